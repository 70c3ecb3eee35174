"""Measures stochastic rounding: bias and correlations, and what it takes in bytes, time and loss.

python -m benchmarks.rounding
python -m benchmarks.rounding --problem char-lm
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import msvag_optax as mo
from benchmarks import passes
from benchmarks.step import (
    about_now,
    bytes_in,
    checked,
    donated_step,
    filled,
    interleave,
    spread,
    stepping,
    write_down,
)
from benchmarks.trees import Shapes
from msvag_optax._trees.rounding import Chances, array_number, draw, random_bits
from msvag_optax._trees.slices import Slices
from msvag_optax.problems import PROBLEMS, Problem

Keep = Callable[[Any], Any]
LOW = (jnp.bfloat16, jnp.float16)
DRAWS = 1_000_000
ELEMENTS = 100_000  # of a second moment, over which its fall is averaged
SIZES = (1.0, 1.7e-3, 3.3e4, 6.2e-5, 2.3e-6, 4e-8)
FRACTIONS = (1e-5, 0.25, 0.5, 0.999)
SHAPES: Shapes = {"kernel": (1_000, 1_000)}


def kept(rounding: Any, dtype: Any = jnp.bfloat16) -> Keep:
    """What keeps a transformation's averages in 16 bits."""
    return partial(mo.kept_in, dtype=dtype, rounding=rounding)


def as_it_is(tx: Any) -> Any:
    """Float32."""
    return tx


def bias(dtype: Any) -> float:
    """The largest bias in standard errors, over sizes, fractions and signs."""
    key = Chances(0, None).key_of_step(jnp.asarray(0))
    number = array_number("bias")
    drawn = jax.jit(lambda x: draw(jnp.full(DRAWS, x), dtype, key, number, Slices()))
    worst = 0.0
    for size, fraction, sign in itertools.product(SIZES, FRACTIONS, (1, -1)):
        low = np.asarray(size, dtype)
        high = (low.view(np.uint16) + np.uint16(1)).view(dtype)
        step = float(high) - float(low)
        x = np.float32(float(low) + fraction * step)
        chance = (float(x) - float(low)) / step
        share = np.mean(np.asarray(drawn(sign * x)) == sign * high)
        error = np.sqrt(max(chance * (1 - chance), 1 / DRAWS) / DRAWS)
        worst = max(worst, abs(share - chance) / error)
    return worst


def correlation() -> float:
    """The largest one of the bits of neighbours, rows, steps, seeds and arrays."""
    index = jnp.arange(1 << 22, dtype=jnp.uint32)

    def bits(shift: int = 0, seed: int = 0, count: int = 0, array: int = 0) -> np.ndarray:
        key = Chances(seed, None).key_of_step(jnp.asarray(count))
        return np.asarray(random_bits(index + np.uint32(shift), key, np.uint32(array)), float)

    others = [bits(1), bits(1_000), bits(count=1), bits(count=1_000), bits(seed=1), bits(array=1)]
    return max(abs(float(np.corrcoef(bits(), other)[0, 1])) for other in others)


def fallen(keep: Keep, steps: int = 5_000) -> float:
    """A second moment after its gradients have been a hundredth of 1.35 for so many steps."""
    tx = keep(mo.running_average(mo.exponential(0.999), of=mo.square))
    sizes = jnp.where(jnp.arange(1_000 + steps) < 1_000, 1.35, 0.0135)

    def step(state: Any, size: jax.Array) -> tuple[Any, None]:
        return tx.update(size * jnp.ones(ELEMENTS), state)[1], None

    state, _ = jax.lax.scan(step, tx.init(jnp.ones(ELEMENTS)), sizes)
    return float(optax.tree.get(state, "average").astype(jnp.float32).mean())


def bar_lines() -> Iterator[str]:
    """What stochastic rounding promises."""
    for dtype in LOW:
        name, errors = jnp.dtype(dtype).name, bias(dtype)
        yield f"* The largest bias in {name}, of {DRAWS:,} draws: {errors:.1f} standard errors."
    yield f"* The largest correlation of random bits: {correlation():.1e}."
    exact = fallen(as_it_is)
    for rounding, dtype in (("stochastic", LOW[0]), ("stochastic", LOW[1]), ("nearest", LOW[0])):
        ratio = fallen(kept(rounding, dtype)) / exact
        name = jnp.dtype(dtype).name
        yield (
            f"* A second moment after a hundredfold fall, {name}, {rounding}: {ratio:.3f} of "
            "float32's."
        )


MOMENTS: dict[str, Keep] = {
    "float32": as_it_is,
    "bfloat16, nearest": kept("nearest"),
    "bfloat16, stochastic": kept("stochastic"),
    "float16, stochastic": kept("stochastic", jnp.float16),
}


def time_lines(rounds: int) -> Iterator[str]:
    """Steps of adamw, in turns: those that overwrite what they are given, and others."""
    params, gradients = filled(SHAPES)
    txs = [keep(mo.adamw(1e-3)) for keep in MOMENTS.values()]
    columns = []
    for make in (donated_step, fresh_step):
        steps = [stepping(make(tx), params, tx.init(params), gradients) for tx in txs]
        seconds = interleave(steps, rounds)
        columns += [[spread(found, seconds[i]).median for found in seconds] for i in (0, 1)]
    heads = [
        f"{how}over {what}" for how in ("", "not donated, ") for what in ("float32", "nearest")
    ]
    yield "| moments | " + " | ".join(heads) + " |"
    yield "| --- | --- | --- | --- | --- |"
    for name, *ratios in zip(MOMENTS, *columns, strict=True):
        yield f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"


def fresh_step(tx: optax.GradientTransformation) -> Any:
    """As `donated_step`, but nothing is overwritten."""

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


def pass_lines(device: str) -> Iterator[str]:
    """What XLA makes of the step for a device that need not be here."""
    devices = passes.devices_of(device)
    params = jax.eval_shape(lambda: filled(SHAPES)[0])
    yield f"| moments | passes, {devices[0].device_kind} | least | temporaries |"
    yield "| --- | --- | --- | --- |"
    for name, keep in MOMENTS.items():
        found = passes.cost(devices, keep(mo.adamw(1e-3)), params)
        yield f"| {name} | {found.passes:.2f} | {found.least:.2f} | {found.temporary_bytes:,} B |"


WAYS: dict[str, tuple[Any, Keep]] = {
    "float32": (jnp.float32, as_it_is),
    "moments in bfloat16, nearest": (jnp.float32, kept("nearest")),
    "moments in bfloat16, stochastic": (jnp.float32, kept("stochastic")),
    "parameters in bfloat16, nearest": (jnp.bfloat16, as_it_is),
    "parameters in bfloat16, `rounded_parameters`": (jnp.bfloat16, mo.rounded_parameters),
    "both in bfloat16, stochastic": (
        jnp.bfloat16,
        lambda tx: mo.rounded_parameters(kept("stochastic")(tx)),
    ),
    "parameters in bfloat16, `master_copy`": (jnp.bfloat16, mo.master_copy),
}


class Training(NamedTuple):
    """A problem, the rate with which it is trained, and the steps after which the loss is shown."""

    problem: Callable[[], Problem]
    rate: float
    marks: Sequence[int]


TRAININGS = {
    "digits": Training(PROBLEMS["digits"], 3e-3, (250, 500, 1_000, 2_000)),
    "char-lm": Training(PROBLEMS["char-lm"], 3e-2, (150, 300, 600)),
}


def losses(training: Training, dtype: Any, keep: Keep, seeds: int) -> np.ndarray:
    """The training loss of each run, after each of the marked steps."""
    problem, after = training.problem(), np.asarray(training.marks) - 1
    tx = keep(mo.adamw(optax.cosine_decay_schedule(training.rate, training.marks[-1])))

    def loss_of(params: Any) -> jax.Array:
        wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        return problem.metrics(wide)["train loss"]

    def run(key: jax.Array) -> jax.Array:
        start = jax.tree.map(lambda p: p.astype(dtype), problem.init(key))

        def step(carry: Any, index: jax.Array) -> Any:
            params, state = carry
            wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
            _, gradients = problem.value_and_grad(wide, index, jax.random.fold_in(key, index))
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            is_marked = jnp.any(index == after)
            loss = jax.lax.cond(is_marked, loss_of, lambda _: jnp.float32(jnp.nan), params)
            return (params, state), loss

        steps = jnp.arange(training.marks[-1])
        return jax.lax.scan(step, (start, tx.init(start)), steps)[1][after]

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), seeds)))


def way_lines(training: Training, seeds: int) -> Iterator[str]:
    """What each way of keeping less takes, and the loss that it reaches."""
    params = jax.eval_shape(training.problem().init, jax.random.key(0))
    size = sum(p.size for p in jax.tree.leaves(params))
    heads = [f"loss, {n:,} steps" for n in training.marks]
    yield f"| adamw | bytes a parameter | {' | '.join(heads)} |"
    yield f"| --- | --- |{' --- |' * len(heads)}"
    for name, (dtype, keep) in WAYS.items():
        narrow = jax.tree.map(lambda p, dtype=dtype: jax.ShapeDtypeStruct(p.shape, dtype), params)
        state = jax.eval_shape(keep(mo.adamw(1e-3)).init, narrow)
        found = losses(training, dtype, keep, seeds).T
        cells = [f"{x.mean():.4f} +- {x.std() / np.sqrt(seeds):.4f}" for x in found]
        taken = bytes_in((narrow, state)) / size
        yield f"| {name} | {taken:.2f} | " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints Markdown, and writes it down."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rounding", description=(__doc__ or "").partition("\n")[0]
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--device", choices=passes.DEVICES, help="count passes for this device only")
    only.add_argument("--problem", choices=TRAININGS, help="train this problem only")
    parser.add_argument("--rounds", type=int, default=40, help="timed steps of each (default 40)")
    parser.add_argument("--seeds", type=int, default=8, help="runs of the network (default 8)")
    parser.add_argument("--output", type=Path, help="written as OUTPUT.md and OUTPUT.json as well")
    arguments = checked(parser, argv)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    lines = [f"{about_now()}.", ""]
    if arguments.device:
        lines += pass_lines(arguments.device)
    elif arguments.problem:
        training = TRAININGS[arguments.problem]
        lines += way_lines(training, arguments.seeds)
        source = training.problem().source
        lines += ["", f"Data: {source}."] if source else []
    else:
        lines += [*bar_lines(), "", *time_lines(arguments.rounds), ""]
        lines += way_lines(TRAININGS["digits"], arguments.seeds)
    tables = "\n".join(lines)
    print(tables)
    write_down(arguments.output, tables, lines)


if __name__ == "__main__":
    main()
