"""Measures the processor time that XLA takes to compile each optimizer, beside optax's nearest.

    python -m benchmarks.compilation
    python -m benchmarks.compilation --part update --optimizers msvag --pairs 15

Each program is traced and lowered afresh, and only then does the clock start. It counts all threads
of the process, so that other work on the machine matters less than it does to a wall clock.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from benchmarks.memory import layers_of, normalized
from benchmarks.step import PAIRS, Spread, about_now, checked, donated_step, spread
from benchmarks.trees import Shapes, abstract
from docs import sections

WARM_UP = 1  # pairs that are not counted
WIDTHS = (16, 32, 64, 48, 24)  # of dense layers, again and again
HEAD = 16  # the width of one head of attention
SEQUENCES = 2

Build = Callable[[], optax.GradientTransformation]
# Each optimizer, and its counterpart in optax: adam, unless it is of the AMSGrad or NovoGrad kind.
CASES: dict[str, tuple[Build, str, Build]] = {
    name: (PAIRS[name][0], *PAIRS[name if name in ("amsgrad", "novograd") else "msvag"][1:])
    for name in (
        "msvag",
        "svag",
        "expectigrad",
        "expectigrad-dense",
        "adamw",
        "amsgrad",
        "novograd",
    )
}


def dense_layers(layers: int = 50) -> Shapes:
    """Kernels and biases of small dense layers."""
    widths = [WIDTHS[layer % len(WIDTHS)] for layer in range(layers + 1)]
    shapes: Shapes = {}
    for layer in range(layers):
        shapes[f"dense_{layer}/kernel"] = tuple(widths[layer : layer + 2])
        shapes[f"dense_{layer}/bias"] = (widths[layer + 1],)
    return shapes


def decoder(layers: int = 12, width: int = 64, words: int = 128, places: int = 32) -> Shapes:
    """A small decoder, in which each matrix but the embeddings has a bias."""
    shapes: Shapes = {"embedding/words": (words, width), "embedding/places": (places, width)}
    norms, kernels = ["norm"], {"head": (width, words)}
    for block in (f"block_{layer}" for layer in range(layers)):
        norms += [f"{block}/norm_1", f"{block}/norm_2"]
        for name in ("query", "key", "value", "out"):
            kernels[f"{block}/attention/{name}"] = (width, width)
        kernels |= {f"{block}/up": (width, 4 * width), f"{block}/down": (4 * width, width)}
    shapes |= {f"{norm}/{leaf}": (width,) for norm in norms for leaf in ("scale", "bias")}
    for name, kernel in kernels.items():
        shapes |= {f"{name}/kernel": kernel, f"{name}/bias": kernel[1:]}
    return shapes


def loss_of(params: Any, tokens: jax.Array) -> jax.Array:
    """The loss of a decoder at the next tokens."""

    def dense(name: str, x: jax.Array) -> jax.Array:
        return x @ params[f"{name}/kernel"] + params[f"{name}/bias"]

    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    x = params["embedding/words"][inputs] + params["embedding/places"]
    for block in (f"block_{layer}" for layer in range(layers_of(params))):
        h = normalized(params, f"{block}/norm_1", x)
        projections = [dense(f"{block}/attention/{name}", h) for name in ("query", "key", "value")]
        heads = [y.reshape(*y.shape[:-1], -1, HEAD) for y in projections]
        h = jax.nn.dot_product_attention(*heads, is_causal=True).reshape(h.shape)
        x = x + dense(f"{block}/attention/out", h)
        h = normalized(params, f"{block}/norm_2", x)
        x = x + dense(f"{block}/down", jax.nn.gelu(dense(f"{block}/up", h)))
    logits = dense("head", normalized(params, "norm", x))
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def lower_update(tx: optax.GradientTransformation) -> jax.stages.Lowered:
    """The donated update of dense layers, for the compiler."""
    params = abstract(dense_layers())
    return donated_step(tx).lower(params, jax.eval_shape(tx.init, params), params)


def lower_training(tx: optax.GradientTransformation) -> jax.stages.Lowered:
    """The donated training step of a decoder: loss, gradients and update."""

    def step(params: Any, state: Any, tokens: jax.Array) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, tokens)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = abstract(decoder())
    length = params["embedding/places"].shape[0] + 1
    tokens = jax.ShapeDtypeStruct((SEQUENCES, length), jnp.int32)
    state = jax.eval_shape(tx.init, params)
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, tokens)


Lower = Callable[[optax.GradientTransformation], jax.stages.Lowered]
# What is compiled, by its name on the command line and in the table.
PARTS: dict[str, tuple[str, Lower]] = {
    "update": ("update alone", lower_update),
    "step": ("whole training step", lower_training),
}


def seconds_to_compile(lower: Lower, build: Build) -> float:
    """The processor time of compiling, with nothing remembered from other compilations."""
    jax.clear_caches()
    gc.collect()
    lowered = lower(build())
    start = time.process_time()
    compiled = lowered.compile()
    seconds = time.process_time() - start
    del compiled  # Freeing it takes time, too.
    return seconds


def measure(name: str, lower: Lower, pairs: int) -> Spread:
    """An optimizer's time over that of optax's, pair by pair; every other pair is swapped."""
    build, _, build_peer = CASES[name]
    ours: list[float] = []
    theirs: list[float] = []
    for pair in range(-WARM_UP, pairs):
        turns = [(theirs, build_peer), (ours, build)]
        for seconds, contender in reversed(turns) if pair % 2 else turns:
            seconds.append(seconds_to_compile(lower, contender))
    return spread(ours[WARM_UP:], theirs[WARM_UP:])


def in_markdown(found: dict[str, list[Spread]], parts: Sequence[str], pairs: int) -> Iterator[str]:
    """The lines of the table, and what it means."""
    yield f"{about_now()}.\n"
    yield "| optimizer | optax's |" + "".join(f" {PARTS[part][0]} |" for part in parts)
    yield "| --- | --- |" + " --- |" * len(parts)
    for name, ratios in found.items():
        yield f"| {name} | {CASES[name][1]} | " + " | ".join(map(str, ratios)) + " |"
    yield ""
    yield (
        "The processor time, of all threads, in which XLA compiles a donated step, over that with "
        f"the optimizer of optax that is named: medians of {pairs} pairs, in brackets the least "
        f"and the greatest. *Update alone*: {len(dense_layers())} leaves of dense layers. *Whole "
        f"training step*: loss, gradients and update of a decoder of {layers_of(decoder())} layers "
        f"and {len(decoder())} leaves. All in float32. *Expectigrad-dense* has one counter for all "
        "elements; *adamw* decays weights, optax's adam does not."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what the command line asks for, prints it, and writes it down."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compilation", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--optimizers", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--part", choices=[*PARTS, "both"], default="both")
    parser.add_argument("--pairs", type=int, default=7, help="that are counted (default 7)")
    parser.add_argument("--output", type=Path, help="a file for the table, such as found.md")
    arguments = checked(parser, argv)
    parts = [*PARTS] if arguments.part == "both" else [arguments.part]
    jax.config.update("jax_enable_compilation_cache", False)
    found: dict[str, list[Spread]] = {name: [] for name in arguments.optimizers}
    with tqdm(total=len(found) * len(parts), disable=None) as progress:
        for part in parts:
            for name, ratios in found.items():
                ratios.append(measure(name, PARTS[part][1], arguments.pairs))
                progress.update()
    table = "\n".join(in_markdown(found, parts, arguments.pairs))
    print(table)
    if arguments.output:
        sections.keep(arguments.output, table)


if __name__ == "__main__":
    main()
