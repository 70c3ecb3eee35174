"""Times what an optimizer adds to training: tracing, compiling, and a step with donated buffers."""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

import msvag_optax as mo
from benchmarks.trees import Shapes
from docs import sections

RATE = 1e-3
WARM_UP = 2  # rounds that are not counted

# Each optimizer, and the one of optax that reads and writes about as much.
PAIRS: dict[str, tuple[Callable[[], Any], str, Callable[[], Any]]] = {
    "msvag": (lambda: mo.msvag(RATE), "adam", lambda: optax.adam(RATE)),
    "svag": (lambda: mo.svag(RATE), "adam", lambda: optax.adam(RATE)),
    "expectigrad-dense": (
        lambda: mo.expectigrad(RATE, sparse_counter=False),
        "adam",
        lambda: optax.adam(RATE),
    ),
    "expectigrad": (lambda: mo.expectigrad(RATE), "amsgrad", lambda: optax.amsgrad(RATE)),
    "novograd": (lambda: mo.novograd(RATE), "novograd", lambda: optax.novograd(RATE)),
    "novograd-decay": (
        lambda: mo.novograd(RATE, weight_decay=1e-2),
        "novograd-decay",
        lambda: optax.novograd(RATE, weight_decay=1e-2),
    ),
    "amsgrad": (lambda: mo.amsgrad(RATE), "amsgrad", lambda: optax.amsgrad(RATE)),
    "adamw": (lambda: mo.adamw(RATE), "adamw", lambda: optax.adamw(RATE, weight_decay=1e-2)),
}
# What the names leave open.
NAMES = (
    "*Expectigrad-dense* has one counter for all elements, *novograd-decay* decays weights, and so "
    "does *adamw*."
)


class Spread(NamedTuple):
    """Ratios that were measured several times."""

    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        """To two digits, as in `1.06 (0.90 to 1.10)`, or `1.06` if there is one alone."""
        if self.least == self.greatest:
            return f"{self.median:.2f}"
        return f"{self.median:.2f} ({self.least:.2f} to {self.greatest:.2f})"


class Compiled(NamedTuple):
    """A compiled step, and what it cost to get there."""

    step: Any
    trace_seconds: float
    compile_seconds: float


class Row(NamedTuple):
    """One optimizer beside its peer.

    Attributes:
      name: of the optimizer.
      peer: the optimizer of optax.
      step: its time over the peer's.
      floor: its time over that of reading and writing the same arrays once.
      peer_floor: likewise, of the peer.
      trace: the time of tracing and lowering over the peer's.
      compile: the time of compiling over the peer's.
      state: what it remembers, in bytes a parameter.
      peer_state: likewise, of the peer.
      temporaries: the bytes that the compiled step allocates beside its arguments and results.
      peer_temporaries: likewise, of the peer's.
    """

    name: str
    peer: str
    step: Spread
    floor: Spread
    peer_floor: Spread
    trace: Spread
    compile: Spread
    state: float
    peer_state: float
    temporaries: int
    peer_temporaries: int


class Eager(NamedTuple):
    """Updates outside of `jit`, on leaves of two sizes.

    Attributes:
      name: of the optimizer.
      peer: the optimizer of optax.
      tiny: its time over the peer's, on tiny leaves.
      tiny_adam: over that of optax's adam.
      small: over the peer's, on small leaves.
      small_adam: over that of optax's adam.
    """

    name: str
    peer: str
    tiny: Spread
    tiny_adam: Spread
    small: Spread
    small_adam: Spread


def machine() -> str:
    """The device, as far as it says what it is."""
    device, cpuinfo = jax.devices()[0], Path("/proc/cpuinfo")
    if device.platform != "cpu":
        return device.device_kind
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def versions() -> str:
    """Those of what is measured."""
    return f"jax {jax.__version__}, optax {optax.__version__}, Python {platform.python_version()}"


def about_now() -> str:
    """The device, the versions and the date, as tables begin."""
    return f"{machine()}; {versions()}; {datetime.date.today():%Y-%m-%d}"


def checked(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, if its whole numbers are positive and its output has a folder."""
    arguments = parser.parse_args(argv)
    for name, value in vars(arguments).items():
        if type(value) is int and value < 1:
            parser.error(f"argument --{name}: must be at least 1, got {value}")
    if arguments.output and not arguments.output.parent.is_dir():
        parser.error(f"argument --output: no folder {arguments.output.parent}")
    return arguments


def write_down(output: Path | None, tables: str, values: Any) -> None:
    """Writes tables in Markdown, and all that is in them as JSON, if there is a place for them.

    A page that shows this file is written anew.
    """
    if output:
        Path(f"{output}.json").write_text(json.dumps(values, indent=1) + "\n")
        sections.keep(Path(f"{output}.md"), tables)


def as_json(row: Any) -> dict[str, Any]:
    """A named tuple as a dictionary, and so every spread within it."""
    values = row._asdict().items()
    return {key: as_json(x) if isinstance(x, Spread) else x for key, x in values}


def spread(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The ratios of what was measured side by side."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return Spread(statistics.median(ratios), min(ratios), max(ratios))


def donated_step(tx: optax.GradientTransformation) -> Any:
    """One step as training has it, `(params, state, gradients) -> (params, state)`, jitted."""

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def compile_step(tx: optax.GradientTransformation, params: Any) -> Compiled:
    """Traces and compiles a donated step, with nothing remembered from other compilations."""
    jax.clear_caches()
    state = jax.eval_shape(tx.init, params)
    start = time.perf_counter()
    lowered = donated_step(tx).trace(params, state, params).lower()
    traced = time.perf_counter()
    compiled = lowered.compile()
    return Compiled(compiled, traced - start, time.perf_counter() - traced)


def bytes_in(tree: Any) -> int:
    """The bytes of all arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def filled(shapes: Shapes, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """Parameters and gradients of these shapes."""
    params = {leaf: jnp.full(shape, 0.1, dtype) for leaf, shape in shapes.items()}
    return params, jax.tree.map(lambda p: 0.5 * p, params)


def _exclusive_or(x: jax.Array, y: jax.Array) -> jax.Array:
    bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    x_bits, y_bits = lax.bitcast_convert_type(x, bits), lax.bitcast_convert_type(y, bits)
    return lax.bitcast_convert_type(x_bits ^ y_bits, x.dtype)


# The floor: reads and writes once what a step must, a kernel for each array. Bits are mixed as fast
# as memory is, whatever the dtype; XLA:CPU runs a kernel of one operation, as `-x`, half as fast.
least_step = jax.jit(
    lambda params, state, gradients: (
        jax.tree.map(_exclusive_or, params, gradients),
        jax.tree.map(lambda x: _exclusive_or(x, jnp.ones_like(x)), state),
    ),
    donate_argnums=(0, 1),
)


class Contender:
    """A step and what it carries from round to round."""

    def __init__(self, step: Callable[..., Any], *carry: Any) -> None:
        """The carry is donated to the step, and copied first."""
        self.step, self.carry, self.seconds = step, jax.tree.map(jnp.copy, carry), []

    def run(self, *arguments: Any, steps: int = 1) -> None:
        """Takes steps, waits for the last of them, and notes the time of one."""
        start = time.perf_counter()
        for _ in range(steps):
            self.carry = self.step(*self.carry, *arguments)
        jax.block_until_ready(self.carry)
        self.seconds.append((time.perf_counter() - start) / steps)


def stepping(step: Any, params: Any, state: Any, gradients: Any) -> Contender:
    """A donated step, with the same gradients at each."""
    return Contender(lambda params, state: step(params, state, gradients), params, state)


def updating(tx: optax.GradientTransformation, params: Any, gradients: Any) -> Contender:
    """An update outside of `jit`."""
    return Contender(
        lambda _, state: tx.update(gradients, state, params), gradients, tx.init(params)
    )


def interleave(contenders: Sequence[Contender], rounds: int, steps: int = 1) -> list[list[float]]:
    """The seconds of each contender; they take turns, so that all see the same machine."""
    for _ in range(WARM_UP + rounds):
        for contender in contenders:
            contender.run(steps=steps)
    return [contender.seconds[WARM_UP:] for contender in contenders]


def measure(name: str, shapes: Shapes, dtype: Any, rounds: int, compilations: int) -> Row:
    """Compiles and runs an optimizer, its peer and the floor, in turns."""
    build, peer, build_peer = PAIRS[name]
    tx, tx_peer = build(), build_peer()
    params, gradients = filled(shapes, dtype)
    pairs = [(compile_step(tx, params), compile_step(tx_peer, params)) for _ in range(compilations)]
    ours, theirs = pairs[-1]
    state, peer_state = jax.jit(tx.init)(params), jax.jit(tx_peer.init)(params)
    step, floor, peer_step, peer_floor = interleave(
        [
            stepping(ours.step, params, state, gradients),
            stepping(least_step, params, state, gradients),
            stepping(theirs.step, params, peer_state, gradients),
            stepping(least_step, params, peer_state, gradients),
        ],
        rounds,
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Row(
        name,
        peer,
        spread(step, peer_step),
        spread(step, floor),
        spread(peer_step, peer_floor),
        spread([a.trace_seconds for a, _ in pairs], [b.trace_seconds for _, b in pairs]),
        spread([a.compile_seconds for a, _ in pairs], [b.compile_seconds for _, b in pairs]),
        bytes_in(state) / size,
        bytes_in(peer_state) / size,
        ours.step.memory_analysis().temp_size_in_bytes,
        theirs.step.memory_analysis().temp_size_in_bytes,
    )


def measure_eagerly(name: str, tiny: Shapes, small: Shapes, rounds: int) -> Eager:
    """An update outside of `jit`, over the peer's and over adam's."""
    build, peer, build_peer = PAIRS[name]
    found: list[Spread] = []
    for shapes in (tiny, small):
        params, gradients = filled(shapes)
        chains = build(), build_peer(), optax.adam(RATE)
        ours, theirs, adam = interleave([updating(tx, params, gradients) for tx in chains], rounds)
        found += [spread(ours, theirs), spread(ours, adam)]
    return Eager(name, peer, *found)
