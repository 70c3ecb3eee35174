"""Measures each optimizer on an accelerator: its bandwidth, and its share of a training step.

    python -m benchmarks.accelerator --output results

What is measured is written down at once. `--scale tiny` is for a look on any machine.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from benchmarks.step import (
    NAMES,
    PAIRS,
    Contender,
    Spread,
    about_now,
    as_json,
    bytes_in,
    checked,
    donated_step,
    filled,
    interleave,
    spread,
    write_down,
)
from benchmarks.trees import Shapes, abstract, transformer

HEAD = 64  # elements of an attention head
Build = Callable[[], optax.GradientTransformation]
PEERS: dict[str, Build] = {peer: build for _, peer, build in PAIRS.values()}


class Decoder(NamedTuple):
    """How large a decoder is, as `transformer` takes it."""

    width: int
    layers: int
    words: int = 50_257
    places: int = 1_024

    def shapes(self) -> Shapes:
        """Of its parameters."""
        return transformer(**self._asdict())


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
      decoders: those whose optimizer's step is timed.
      trained: the one that is trained.
      batch: sequences, each as long as the decoder has places.
      copied: elements of the array that tells the device's bandwidth.
      steps: launched one after the other, before one waits for the last.
      training_steps: likewise, of whole training steps.
      rounds: how often so many steps are timed.
    """

    decoders: tuple[Decoder, ...]
    trained: Decoder
    batch: int
    copied: int
    steps: int
    training_steps: int
    rounds: int


GPT_2, GPT_2_XL = Decoder(768, 12), Decoder(1_600, 48)
TINY = Decoder(64, 1, words=128, places=32)
SCALES = {
    "tiny": Scale((TINY,), TINY, 2, 2**20, steps=2, training_steps=2, rounds=2),
    "full": Scale((GPT_2, GPT_2_XL), GPT_2, 16, 2**29, steps=20, training_steps=5, rounds=5),
}


class Step(NamedTuple):
    """An optimizer's step beside its peer's.

    Attributes:
      parameters: of the decoder.
      leaves: of the decoder.
      name: of the optimizer.
      peer: the optimizer of optax.
      step: its time over the peer's.
      bandwidth: the bytes that it must move in its time, over what the device copies meanwhile.
      peer_bandwidth: likewise, of the peer.
      milliseconds: that a step takes.
      launch: milliseconds to launch it on an idle device.
      copy: the gigabytes that the device reads and writes in a second.
    """

    parameters: int
    leaves: int
    name: str
    peer: str
    step: Spread
    bandwidth: Spread
    peer_bandwidth: Spread
    milliseconds: float
    launch: float
    copy: float


class Training(NamedTuple):
    """A training step beside that with the peer.

    Attributes:
      parameters: of the decoder.
      tokens: in a batch.
      name: of the optimizer.
      peer: the optimizer of optax.
      step: its time over that with the peer.
      share: what of its time is not that of the gradients alone.
      peer_share: likewise, with the peer.
      milliseconds: that it takes.
    """

    parameters: int
    tokens: int
    name: str
    peer: str
    step: Spread
    share: Spread
    peer_share: Spread
    milliseconds: float


Row = Step | Training


def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Layer normalization, in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-5)
    return unit.astype(x.dtype) * scale + bias


def block(x: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
    """One layer of the decoder."""

    def normalized(x: jax.Array, name: str) -> jax.Array:
        return normalize(x, weights[f"{name}/scale"], weights[f"{name}/bias"])

    inputs = normalized(x, "norm_1")
    heads = (*x.shape[:2], -1, HEAD)
    queries, keys, values = (
        (inputs @ weights[f"attention/{name}"]).reshape(heads) for name in ("query", "key", "value")
    )
    attended = jax.nn.dot_product_attention(queries, keys, values, is_causal=True)
    x += attended.reshape(x.shape) @ weights["attention/out"] + weights["attention/bias"]
    hidden = jax.nn.gelu(normalized(x, "norm_2") @ weights["up/kernel"] + weights["up/bias"])
    return x + hidden @ weights["down/kernel"]


def loss(params: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
    """Of predicting each next token, computed in bfloat16."""
    weights = {name: x.astype(jnp.bfloat16) for name, x in params.items()}
    words = weights["embedding/words"]
    x = words[tokens] + weights["embedding/places"]
    for layer in range(sum(name.endswith("up/kernel") for name in weights)):
        prefix = f"block_{layer}/"
        x = block(
            x, {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}
        )
    x = normalize(x, weights["norm/scale"], weights["norm/bias"])
    logits = (x @ words.T).astype(jnp.float32)
    following = jnp.roll(tokens, -1, axis=1)  # the last is followed by the first: all lengths even
    return optax.softmax_cross_entropy_with_integer_labels(logits, following).mean()


gradient = jax.jit(jax.grad(loss))


@functools.cache
def optimizer_step(build: Build, decoder: Decoder) -> Any:
    """A donated step, compiled."""
    tx, params = build(), abstract(decoder.shapes())
    return donated_step(tx).lower(params, jax.eval_shape(tx.init, params), params).compile()


@functools.cache
def training_step(build: Build, decoder: Decoder, batch: int) -> Any:
    """Gradients and a donated step in one program, compiled."""
    tx, params = build(), abstract(decoder.shapes())

    def step(params: Any, state: Any, tokens: jax.Array) -> Any:
        updates, state = tx.update(gradient(params, tokens), state, params)
        return optax.apply_updates(params, updates), state

    tokens = jax.ShapeDtypeStruct((batch, decoder.places), jnp.int32)
    state = jax.eval_shape(tx.init, params)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, tokens).compile()


def stepping(step: Any, build: Build, params: Any, argument: Any) -> Contender:
    """A donated step from its optimizer's first state, which is not copied: it may be large."""
    contender = Contender(lambda params, state: step(params, state, argument), params)
    contender.carry += (jax.jit(build().init)(params),)
    return contender


def launch_seconds(contender: Contender, steps: int) -> float:
    """Until a step is launched on a device that has nothing to do: the median of some."""
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        contender.carry = contender.step(*contender.carry)
        seconds.append(time.perf_counter() - start)
        jax.block_until_ready(contender.carry)
    return statistics.median(seconds)


_copy = jax.jit(lambda x: (x ^ 1,), donate_argnums=0)


def measure_step(name: str, decoder: Decoder, scale: Scale) -> Step:
    """Runs an optimizer, its peer and a copy of one array, in turns."""
    build, peer, _ = PAIRS[name]
    builds = build, PEERS[peer]
    params, gradients = filled(decoder.shapes())
    pair = [stepping(optimizer_step(b, decoder), b, params, gradients) for b in builds]
    size, moved = bytes_in(params), [3 * bytes_in(params) + 2 * bytes_in(c.carry[1]) for c in pair]
    del params  # The contenders have copies.
    copy = Contender(_copy, jnp.ones(scale.copied, jnp.uint32))
    step, peer_step, copies = interleave([*pair, copy], scale.rounds, scale.steps)
    # The seconds in which the device copies as much as a step must move.
    copied = 2 * bytes_in(copy.carry)
    floors = [[seconds * m / copied for seconds in copies] for m in moved]
    return Step(
        size // 4,
        len(gradients),
        name,
        peer,
        spread(step, peer_step),
        spread(floors[0], step),
        spread(floors[1], peer_step),
        1e3 * statistics.median(step),
        1e3 * launch_seconds(pair[0], scale.steps),
        1e-9 * copied / statistics.median(copies),
    )


def measure_training(name: str, scale: Scale) -> Training:
    """Runs training steps with an optimizer and with its peer, and gradients alone, in turns."""
    build, peer, _ = PAIRS[name]
    decoder, batch = scale.trained, scale.batch
    # Matrix products of random numbers take longer than those of constants.
    keys = jax.random.split(jax.random.key(0), len(decoder.shapes()) + 1)
    tokens = jax.random.randint(keys[0], (batch, decoder.places), 0, decoder.words)
    params = {
        leaf: 0.02 * jax.random.normal(key, shape)
        for key, (leaf, shape) in zip(keys[1:], decoder.shapes().items(), strict=True)
    }
    pair = [
        stepping(training_step(b, decoder, batch), b, params, tokens) for b in (build, PEERS[peer])
    ]
    alone = Contender(lambda _: (gradient(params, tokens),), params)
    step, peer_step, gradients = interleave([*pair, alone], scale.rounds, scale.training_steps)

    def share(whole: list[float]) -> Spread:
        return spread([a - b for a, b in zip(whole, gradients, strict=True)], whole)

    return Training(
        sum(x.size for x in params.values()),
        tokens.size,
        name,
        peer,
        spread(step, peer_step),
        share(step),
        share(peer_step),
        1e3 * statistics.median(step),
    )


def in_markdown(about: str, rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a table for each decoder, and what they mean."""
    yield f"{about}. Parameters in float32."
    steps = [row for row in rows if isinstance(row, Step)]
    for size in dict.fromkeys((row.parameters, row.leaves) for row in steps):
        yield "\n**The optimizer's step**, {:,} parameters in {} leaves.\n".format(*size)
        yield "| optimizer | optax's | step | bandwidth | optax's | ms | launched | copy, GB/s |"
        yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
        for row in (row for row in steps if (row.parameters, row.leaves) == size):
            yield (
                f"| {row.name} | {row.peer} | {row.step} | {row.bandwidth} | {row.peer_bandwidth} "
                f"| {row.milliseconds:.2f} | {row.launch:.2f} | {row.copy:,.0f} |"
            )
    training = [row for row in rows if isinstance(row, Training)]
    for size in dict.fromkeys((row.parameters, row.tokens) for row in training):
        yield "\n**A training step** in bfloat16, {:,} parameters, {:,} tokens.\n".format(*size)
        yield "| optimizer | optax's | step | share | optax's | ms |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for row in training:
            yield (
                f"| {row.name} | {row.peer} | {row.step} | {row.share} | {row.peer_share} "
                f"| {row.milliseconds:.2f} |"
            )
    yield ""
    yield (
        "Ratios are of one process: medians, in brackets the least and the greatest. *Step*: over "
        "the time of optax's. *Bandwidth*: the bytes of each array that a step must read or write, "
        "once, in its time, over what the device copies meanwhile. *Launched*: milliseconds to "
        "launch a step on an idle device; where it takes no longer, launching is the time. "
        "*Share*: what of a training step is not the time of the gradients alone. " + NAMES
    )


def in_json(about: str, rows: Sequence[Row]) -> dict[str, Any]:
    """What `in_markdown` shows, to more digits and for programs."""
    return {
        "about": about,
        "steps": [as_json(row) for row in rows if isinstance(row, Step)],
        "training": [as_json(row) for row in rows if isinstance(row, Training)],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what the command line asks for, prints it, and writes it down row by row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--optimizers", nargs="+", choices=PAIRS, default=[*PAIRS])
    parser.add_argument("--batch", type=int, help="sequences in a batch of training (16)")
    parser.add_argument(
        "--minutes", type=float, default=8.5, help="after which nothing is begun (default 8.5)"
    )
    parser.add_argument("--output", type=Path, help="written as OUTPUT.md and OUTPUT.json as well")
    arguments = checked(parser, argv)
    scale = SCALES[arguments.scale]
    scale = scale._replace(batch=arguments.batch or scale.batch)
    end = time.monotonic() + 60 * arguments.minutes
    about = about_now()
    todo: list[Callable[[], Row]] = [
        functools.partial(measure_step, name, decoder, scale)
        for decoder in scale.decoders
        for name in arguments.optimizers
    ]
    todo += [functools.partial(measure_training, name, scale) for name in arguments.optimizers]
    rows: list[Row] = []
    for one in tqdm(todo, disable=None):
        if time.monotonic() > end:
            about += f"; after {arguments.minutes:g} minutes, {len(todo) - len(rows)} not measured"
            break
        rows.append(one())
        write_down(arguments.output, "\n".join(in_markdown(about, rows)), in_json(about, rows))
    tables = "\n".join(in_markdown(about, rows))
    write_down(arguments.output, tables, in_json(about, rows))
    print(tables)


if __name__ == "__main__":
    main()
