"""Times what an optimizer adds to training: tracing, compiling, and a step with donated buffers."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import msvag_optax as mo
from benchmarks.trees import Shapes

RATE = 1e-3
WARM_UP = 2  # rounds that are not counted

# Each optimizer, and the one of optax that reads and writes about as much.
PAIRS: dict[str, tuple[Callable[[], Any], str, Callable[[], Any]]] = {
    "msvag": (lambda: mo.msvag(RATE), "adam", lambda: optax.adam(RATE)),
    "svag": (lambda: mo.svag(RATE), "adam", lambda: optax.adam(RATE)),
    "expectigrad, dense counter": (
        lambda: mo.expectigrad(RATE, sparse_counter=False),
        "adam",
        lambda: optax.adam(RATE),
    ),
    "expectigrad": (lambda: mo.expectigrad(RATE), "amsgrad", lambda: optax.amsgrad(RATE)),
    "novograd": (lambda: mo.novograd(RATE), "novograd", lambda: optax.novograd(RATE)),
    "novograd, decay": (
        lambda: mo.novograd(RATE, weight_decay=1e-2),
        "novograd, decay",
        lambda: optax.novograd(RATE, weight_decay=1e-2),
    ),
    "amsgrad": (lambda: mo.amsgrad(RATE), "amsgrad", lambda: optax.amsgrad(RATE)),
    "adamw": (lambda: mo.adamw(RATE), "adamw", lambda: optax.adamw(RATE, weight_decay=1e-2)),
}


class Spread(NamedTuple):
    """Ratios that were measured several times."""

    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        """To two digits, as in `1.06 (0.90 to 1.10)`."""
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
      floor: its time over that of moving the bytes that it must read and write.
      trace: the time of tracing and lowering over the peer's.
      compile: the time of compiling over the peer's.
      state_bytes_per_parameter: what it remembers.
      temporary_bytes: what the compiled step allocates beside its arguments and results.
    """

    name: str
    peer: str
    step: Spread
    floor: Spread
    trace: Spread
    compile: Spread
    state_bytes_per_parameter: float
    temporary_bytes: int


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


# Reads and writes each array once.
_touch = jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)


class Contender:
    """A step and what it carries from round to round."""

    def __init__(self, step: Callable[..., Any], *carry: Any) -> None:
        """The carry is donated to the step, and copied first."""
        self.step, self.carry, self.seconds = step, jax.tree.map(jnp.copy, carry), []

    def run(self, *arguments: Any) -> None:
        """Takes one step, and its time."""
        start = time.perf_counter()
        self.carry = jax.block_until_ready(self.step(*self.carry, *arguments))
        self.seconds.append(time.perf_counter() - start)


def measure(name: str, shapes: Shapes, dtype: Any, rounds: int, compilations: int) -> Row:
    """Interleaves an optimizer, its peer and the floor, so that all see the same machine."""
    build, peer, build_peer = PAIRS[name]
    tx, tx_peer = build(), build_peer()
    params = {leaf: jnp.full(shape, 0.1, dtype) for leaf, shape in shapes.items()}
    gradients = jax.tree.map(lambda p: 0.5 * p, params)

    pairs = [(compile_step(tx, params), compile_step(tx_peer, params)) for _ in range(compilations)]
    ours, theirs = pairs[-1]
    state = jax.jit(tx.init)(params)
    contenders = [
        Contender(ours.step, params, state),
        Contender(theirs.step, params, jax.jit(tx_peer.init)(params)),
        Contender(lambda tree: (_touch(tree),), (params, state)),
    ]
    for _ in range(WARM_UP + rounds):
        for contender, arguments in zip(contenders, [(gradients,), (gradients,), ()], strict=True):
            contender.run(*arguments)
    step, peer_step, touch = (contender.seconds[WARM_UP:] for contender in contenders)

    # The last contender reads and writes parameters and state; a step reads gradients as well.
    touched = 2 * bytes_in((params, state))
    floor = [(touched + bytes_in(gradients)) / touched * seconds for seconds in touch]
    return Row(
        name,
        peer,
        spread(step, peer_step),
        spread(step, floor),
        spread([a.trace_seconds for a, _ in pairs], [b.trace_seconds for _, b in pairs]),
        spread([a.compile_seconds for a, _ in pairs], [b.compile_seconds for _, b in pairs]),
        bytes_in(state) / sum(leaf.size for leaf in jax.tree.leaves(params)),
        ours.step.memory_analysis().temp_size_in_bytes,
    )


def measure_eagerly(name: str, shapes: Shapes, rounds: int) -> Spread:
    """An update outside of `jit`, over the peer's."""
    build, _, build_peer = PAIRS[name]
    params = {leaf: jnp.full(shape, 0.1) for leaf, shape in shapes.items()}
    gradients = jax.tree.map(lambda p: 0.5 * p, params)

    def contender(tx: optax.GradientTransformation) -> Contender:
        return Contender(
            lambda _, state: tx.update(gradients, state, params), gradients, tx.init(params)
        )

    pair = contender(build()), contender(build_peer())
    for _ in range(WARM_UP + rounds):
        for one in pair:
            one.run()
    ours, theirs = (one.seconds[WARM_UP:] for one in pair)
    return spread(ours, theirs)
