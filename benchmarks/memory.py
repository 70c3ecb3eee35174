"""Says what an optimizer remembers, and what training with it takes at its peak.

    python -m benchmarks.memory
    python -m benchmarks.memory --device h200 --dtype float32 bfloat16

XLA compiles whole training steps, and nothing is run; the device need not be here (see
`benchmarks.passes`). The peak of a step is what XLA allocates for it: arguments, results that do
not overwrite an argument, and temporaries, among them gradients and activations. (XLA's own
`peak_memory_in_bytes` leaves out the temporaries on CPUs.)
"""

import argparse
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import msvag_optax as mo
from benchmarks.passes import devices_of
from benchmarks.step import bytes_in
from benchmarks.trees import TREES, Shapes, abstract

RATE = 1e-3
HEAD = 64  # the width of one head of attention
DEVICES = ("cpu", "h200")
DTYPES = ("float32", "bfloat16")
BATCHES = ((1, 64), (8, 512))  # sequences, and the tokens of each
MU, NU = {"mu_dtype": "bfloat16"}, {"nu_dtype": "bfloat16"}

Build = Callable[..., optax.GradientTransformation]
partial = functools.partial


class Row(NamedTuple):
    """An optimizer of the library.

    Attributes:
      name: what the tables call it.
      build: makes it, of `mu_dtype` and `nu_dtype` if it takes them.
      peer: the nearest of optax, in `PEERS`.
      stacked: whether its layers are stacked in one array.
    """

    name: str
    build: Build
    peer: str
    stacked: bool = False


def clipped_adamw(mu_dtype: Any = None) -> optax.GradientTransformation:
    """BERT's optimizer, as far as optax has it."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, mu_dtype=mu_dtype))


PEERS: dict[str, Build] = {
    "adam": partial(optax.adam, RATE),
    "amsgrad": partial(optax.amsgrad, RATE),
    "novograd": partial(optax.novograd, RATE),
    "adamw": partial(optax.adamw, RATE),
    "clip, adamw": clipped_adamw,
}
bert_adamw = partial(mo.bert_adamw, RATE, 1_000, 100)
ROWS = (
    Row("msvag", partial(mo.msvag, RATE), "adam"),
    Row("svag", partial(mo.svag, RATE), "adam"),
    Row("dissection", lambda: mo.dissection(RATE).adam, "adam"),
    Row("variance_adapted(identity)", partial(mo.variance_adapted, optax.identity()), "adam"),
    Row("expectigrad", partial(mo.expectigrad, RATE), "amsgrad"),
    Row(
        "expectigrad, sparse_counter=False",
        partial(mo.expectigrad, RATE, sparse_counter=False),
        "adam",
    ),
    Row("novograd", partial(mo.novograd, RATE), "novograd"),
    Row("novograd, amsgrad", partial(mo.novograd, RATE, amsgrad=True), "novograd"),
    Row("novograd, grad_averaging", partial(mo.novograd, RATE, grad_averaging=True), "novograd"),
    Row("novograd, stacked", partial(mo.novograd, RATE, stacked=["^blocks/"]), "novograd", True),
    Row("amsgrad", partial(mo.amsgrad, RATE), "amsgrad"),
    Row("adamw", partial(mo.adamw, RATE), "adamw"),
    Row("bert_adamw", bert_adamw, "clip, adamw"),
    Row(
        "kept_in(bert_adamw, bfloat16)", lambda: mo.kept_in(bert_adamw(), "bfloat16"), "clip, adamw"
    ),
)
# Whose peaks are shown, and whose with both moments in bfloat16 as well.
WHOLE = (
    "msvag",
    "svag",
    "variance_adapted(identity)",
    "expectigrad",
    "expectigrad, sparse_counter=False",
    "novograd",
    "amsgrad",
    "adamw",
    "bert_adamw",
    "kept_in(bert_adamw, bfloat16)",
)
HALVED = ("msvag", "expectigrad", "novograd", "adamw")


def stacked(shapes: Shapes) -> Shapes:
    """The same parameters, with an array for all layers in place of one for each."""
    layers = layers_of(shapes)
    rest = {name: shape for name, shape in shapes.items() if not name.startswith("block_")}
    blocks = {
        name.replace("block_0/", "blocks/"): (layers, *shape)
        for name, shape in shapes.items()
        if name.startswith("block_0/")
    }
    return rest | blocks


def layers_of(names: Any) -> int:
    """How many layers there are in parameters with these names."""
    return len({name.partition("/")[0] for name in names if name.startswith("block_")})


def takes(build: Build, options: dict[str, Any]) -> bool:
    """Whether an optimizer has these options."""
    return options.keys() <= inspect.signature(build).parameters.keys()


def state_bytes(build: Build, options: dict[str, Any], shapes: Shapes) -> str:
    """Bytes of state a parameter: of float32 parameters, and of bfloat16's if it is another."""
    if not takes(build, options):
        return "-"
    size = sum(math.prod(shape) for shape in shapes.values())
    states = [
        jax.eval_shape(build(**options).init, abstract(shapes, jnp.dtype(dtype)))
        for dtype in DTYPES
    ]
    return " / ".join(dict.fromkeys(f"{bytes_in(state) / size:.2f}" for state in states))


def state_table(shapes: Shapes) -> Iterator[str]:
    """The lines of a table in Markdown: what each optimizer remembers, and optax's nearest."""
    yield (
        "| optimizer | state | mu in bfloat16 | nu in bfloat16 | both "
        "| optax's | its state | its mu in bfloat16 |"
    )
    yield "| --- |" + " --- |" * 7
    peers = {
        name: [state_bytes(build, options, shapes) for options in ({}, MU)]
        for name, build in PEERS.items()
    }
    for row in ROWS:
        tree = stacked(shapes) if row.stacked else shapes
        ours = [state_bytes(row.build, options, tree) for options in ({}, MU, NU, MU | NU)]
        yield f"| {row.name} | " + " | ".join([*ours, row.peer, *peers[row.peer]]) + " |"


def normalized(params: Any, name: str, x: jax.Array) -> jax.Array:
    """Layer normalization."""
    x = jax.nn.standardize(x, epsilon=1e-5)
    return x * params[f"{name}/scale"] + params[f"{name}/bias"]


def loss_of(params: Any, tokens: jax.Array) -> jax.Array:
    """The loss of a decoder with the parameters of `trees.transformer`, at the next tokens."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    x = params["embedding/words"][inputs] + params["embedding/places"][: inputs.shape[1]]
    for block in (f"block_{layer}" for layer in range(layers_of(params))):
        h = normalized(params, f"{block}/norm_1", x)
        projections = [h @ params[f"{block}/attention/{n}"] for n in ("query", "key", "value")]
        heads = [y.reshape(*y.shape[:-1], -1, HEAD) for y in projections]
        h = jax.nn.dot_product_attention(*heads, is_causal=True).reshape(h.shape)
        x = x + h @ params[f"{block}/attention/out"] + params[f"{block}/attention/bias"]
        h = normalized(params, f"{block}/norm_2", x)
        h = jax.nn.gelu(h @ params[f"{block}/up/kernel"] + params[f"{block}/up/bias"])
        x = x + h @ params[f"{block}/down/kernel"]
    logits = normalized(params, "norm", x) @ params["embedding/words"].T
    logits = logits.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


class Memory(NamedTuple):
    """What one training step takes, in bytes.

    Attributes:
      state: of the optimizer.
      temporaries: gradients, activations and all else that is gone when the step is done.
      peak: all that the step needs.
    """

    state: int
    temporaries: int
    peak: int


def memory(device: Any, build: Build, params: Any, batch: tuple[int, int]) -> Memory:
    """Compiles one step for a device: forward and backward pass, and the donated update."""
    tx, (sequences, length) = build(), batch

    def step(params: Any, state: Any, tokens: jax.Array) -> Any:
        gradients = jax.grad(loss_of)(params, tokens)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    there = NamedSharding(Mesh(np.asarray([device]), ("device",)), P())
    state = jax.eval_shape(tx.init, params)
    tokens = jax.ShapeDtypeStruct((sequences, length + 1), jnp.int32)
    lowered = jax.jit(step, donate_argnums=(0, 1), in_shardings=there).lower(params, state, tokens)
    found: Any = lowered.compile().memory_analysis()
    alive = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(bytes_in(state), found.temp_size_in_bytes, alive + found.temp_size_in_bytes)


def contenders() -> Iterator[tuple[str, Build, str, Build]]:
    """Each optimizer and its peer, with their names."""
    for row in ROWS:
        if row.name in WHOLE:
            yield row.name, row.build, row.peer, PEERS[row.peer]
    for row in ROWS:
        if row.name in HALVED:
            peer = PEERS[row.peer]
            halved = partial(peer, **MU) if takes(peer, MU) else peer
            name = row.peer + ", mu in bfloat16" * takes(peer, MU)
            yield f"{row.name}, both in bfloat16", partial(row.build, **MU, **NU), name, halved


def peak_table(device: Any, params: Any) -> Iterator[str]:
    """The lines of a table in Markdown: what training takes with each optimizer, and optax's."""

    @functools.cache
    def cost(build: Build) -> list[Memory]:
        return [memory(device, build, params, batch) for batch in BATCHES]

    def cells(build: Build) -> list[str]:
        ratios = [one.peak / adam.peak for one, adam in zip(cost(build), adams, strict=True)]
        megabytes = [cost(build)[0].state, *(one.temporaries for one in cost(build))]
        return [*(f"{x / 1e6:,.0f}" for x in megabytes), *(f"{ratio:.2f}" for ratio in ratios)]

    adams = cost(PEERS["adam"])
    batches = [f"{math.prod(batch):,} tokens" for batch in BATCHES]
    peaks = [f"{adam.peak / 1e6:,.0f} MB with {b}" for adam, b in zip(adams, batches, strict=True)]
    yield (
        f"{device.device_kind}, {next(iter(params.values())).dtype}: "
        f"{bytes_in(params) / 1e6:,.0f} MB of parameters, and as much of gradients.\n"
        f"Adam's peak is {', '.join(peaks)}.\n"
    )
    yield (
        "| optimizer | optax's | state, MB |"
        + "".join(f" temporaries, {batch} |" for batch in batches)
        + "".join(f" peak, {batch} |" for batch in batches)
    )
    yield "| --- | --- | --- |" + " --- |" * 2 * len(BATCHES)
    yield "| none: plain SGD | sgd | " + " | ".join(cells(partial(optax.sgd, RATE))) + " |"
    for name, build, peer, build_peer in contenders():
        pairs = zip(cells(build), cells(build_peer), strict=True)
        yield f"| {name} | {peer} | " + " | ".join(f"{a} ({b})" for a, b in pairs) + " |"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description="Bytes of state a parameter, and the peak memory of training.",
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="for the peaks")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="likewise")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    device, shapes = devices_of(arguments.device)[0], TREES["transformer"]()
    print(f"{TREES['transformer'].__doc__} jax {jax.__version__}, optax {optax.__version__}.\n")
    print("Bytes of state a parameter:\n")
    print(*state_table(shapes), sep="\n")
    print(
        "\nTwo numbers: of parameters in float32, and in bfloat16; one where they are the same. "
        "Mu is the\nmean or the momentum, nu the second moment or the variance. "
        "A dash: there is no such option."
    )
    for dtype in arguments.dtype:
        print()
        for line in peak_table(device, abstract(shapes, jnp.dtype(dtype))):
            print(line, flush=True)
    print(
        "\nIn brackets: optax's. Temporaries, in MB: gradients (not all at once), activations and "
        "all else\nthat a step needs for a while. Peak: parameters, state, batch and temporaries, "
        "over those of\noptax's Adam."
    )


if __name__ == "__main__":
    main()
