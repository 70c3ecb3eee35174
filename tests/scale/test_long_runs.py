"""Ten million steps: float32 goes with float64, and counters count."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from tests import conformance, oracle, support
from tests.conformance import Row, leaves_by_name

UNIT = 2.0**-24  # the largest relative error of one rounding to float32
CHECKED = (10_000, 100_000, 1_000_000, 10_000_000)
MOST = 2**31 - 1

# Each element has a signal, which may be none, beside its noise of -128 ... 127, and a scale of its
# own. All are small integers times powers of two: float32 holds them, and their squares, exactly.
SHAPES = {"bias": (4,), "kernel": (4, 2), "scale": ()}
SIZE = 13
_index = np.arange(SIZE)
_salt = (_index * 0x85EBCA6B % 2**32).astype(np.uint32)
_signal = np.asarray([0, 32, -128, 512], np.int32)[_index % 4]
_scale = 2.0 ** (5 * _index % 17 - 15)


def integers(step: Any) -> Any:
    """The gradient of a step (of an array of them, in NumPy or JAX) before it is scaled.

    One in eight is zero.
    """
    x = step.astype(np.uint32) * np.uint32(0x9E3779B9) + _salt
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    x = x ^ (x >> np.uint32(16))
    noise = (x & np.uint32(255)).astype(np.int32) - 128
    return (noise + _signal) * ((x >> np.uint32(8)) & np.uint32(7) != 0)


def as_tree(flat: Any) -> dict[str, Any]:
    """The elements of the last axis, as the leaves that they belong to."""
    return {
        "bias": flat[..., :4],
        "kernel": flat[..., 4:12].reshape(*flat.shape[:-1], 4, 2),
        "scale": flat[..., 12],
    }


def params(dtype: Any) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.asarray, as_tree((_index / 4 - 1).astype(dtype)))


def _bert_adamw(learning_rate: Any) -> Any:
    return mo.bert_adamw(learning_rate, 2 * CHECKED[-1], 2)


ROWS = [
    row._replace(build=_bert_adamw) if row.name == "bert_adamw" else row for row in conformance.ROWS
]
# An average of each kind, and a maximum; some are left to the slow tests.
AVERAGES = ("msvag", "adamw", "novograd", "expectigrad", "expectigrad-dense", "adapted_novograd")
KINDS = {
    row.name: row
    for row in ROWS
    if row.name in {*conformance.TYPICAL, *AVERAGES, "novograd-amsgrad"}
}
TYPICAL = {"expectigrad", "msvag", "novograd-amsgrad"}
rows = pytest.mark.parametrize("row", support.by_speed(KINDS, TYPICAL))


class Snapshot(NamedTuple):
    """What `update` returned last."""

    update: Any
    state: Any


@functools.cache
def compiled(row: Row, dtype: Any) -> Any:
    """From a snapshot taken before step `start` to that before step `stop`."""

    @jax.jit
    def run(params: Any, snapshot: Any, start: Any, stop: Any) -> Any:
        tx = row.build(0.125)

        def step(i: Any, snapshot: Any) -> Any:
            gradient = as_tree(integers(i).astype(dtype) * _scale.astype(dtype))
            return Snapshot(*tx.update(gradient, snapshot.state, params))

        return jax.lax.fori_loop(start, stop, step, snapshot)

    return run


def snapshots(row: Row, dtype: Any, state: Any, start: int, stops: Any, device: Any) -> list[Any]:
    """What `update` returns at some steps, from a state (None is a fresh one); not waited for."""
    here = jax.device_put(params(dtype), device)
    state = row.build(0.125).init(here) if state is None else jax.device_put(state, device)
    taken = [Snapshot(here, state)]
    for stop in stops:
        taken.append(compiled(row, dtype)(here, taken[-1], np.int32(start), np.int32(stop + 1)))
        start = stop + 1
    return taken[1:]


class History(NamedTuple):
    """The same steps in float32 and in float64, as NumPy arrays."""

    single: list[Snapshot]
    double: list[Snapshot]


def history(row: Row, state: Any, start: int, stops: Any) -> History:
    first, *_, last = jax.devices() * 2  # two, where there are two, to compute side by side
    single = snapshots(row, np.float32, state, start, stops, first)
    with support.float64():
        wide = jax.tree.map(
            lambda x: np.asarray(x, np.float64 if x.dtype == np.float32 else None), state
        )
        double = snapshots(row, np.float64, wide, start, stops, last)
        return History(*jax.tree.map(np.asarray, (single, double)))


long_history = functools.cache(lambda row: history(row, None, 1, CHECKED))


class Seen(NamedTuple):
    """The gradients of some steps: whole numbers, summed exactly."""

    steps: int
    nonzero: Any  # how often each element was not zero
    nonzero_leaves: Any  # how often each leaf was not zero
    squares: Any  # the sum of the squares, unscaled


@functools.cache
def seen(start: int, stop: int) -> Seen:
    nonzero, leaves, squares = np.zeros((3, SIZE), np.int64)
    for first in range(start, stop + 1, 250_000):
        steps = np.arange(first, min(first + 250_000, stop + 1)).astype(np.uint32)
        gradients = integers(steps[:, None])
        nonzero += np.count_nonzero(gradients, axis=0)
        squares += np.sum(np.square(gradients), axis=0, dtype=np.int64)
        for part in (slice(0, 4), slice(4, 12), slice(12, 13)):
            leaves[part] += np.count_nonzero(gradients[:, part].any(axis=1))
    leaves = {name: leaf.flat[0] for name, leaf in as_tree(leaves).items()}
    return Seen(stop + 1 - start, as_tree(nonzero), leaves, as_tree(squares))


def assert_counts(state: Any, before: int, gradients: Seen) -> None:
    """Asserts that every counter was at `before` when the gradients came, and counted them all."""
    counters = {name: x for name, x in leaves_by_name(state).items() if x.dtype.kind != "f"}
    assert counters
    for name, counter in counters.items():
        own = [key for key in SHAPES if name.endswith(f"['{key}']")]
        if not own:
            new = gradients.steps
        elif counter.shape == SHAPES[own[0]]:
            new = gradients.nonzero[own[0]]
        else:
            new = gradients.nonzero_leaves[own[0]]
        assert counter.dtype == np.int32, name
        np.testing.assert_array_equal(counter, np.minimum(before + new, MOST), err_msg=name)


def assert_goes_with(run: History, bounds: list[float]) -> None:
    """Asserts that float32 is as close to float64 as the bound of each snapshot says.

    An error is relative to the largest value that its element has in any of the snapshots; of an
    update four times the bound is allowed, since M-SVAG's goes like the cube of a mean.
    """
    singles, doubles = ([leaves_by_name(taken) for taken in snapshots] for snapshots in run)
    for name in [name for name, x in doubles[0].items() if x.dtype.kind == "f"]:
        largest = np.max([np.abs(taken[name]) for taken in doubles], axis=0)
        factor = 4 if name.startswith(".update") else 1
        for single, double, bound in zip(singles, doubles, bounds, strict=True):
            assert single[name].dtype == np.float32
            error = np.abs(single[name] - double[name])
            assert np.all(error <= factor * bound * largest), (
                f"{name}: {np.max(error / (bound * largest)):.2g} of {bound:.1e}"
            )


ARITHMETIC = {"expectigrad", "expectigrad-dense", "adapted_novograd"}


def memory(row: Row) -> int:
    """How many steps the longest exponential average remembers: 1 over its newest weight."""
    if row.name.startswith(("novograd", "amsgrad", "adamw", "bert", "lazy")):
        return 1_000
    return 100 if row.name == "adapted-lion" else 10


def drift(row: Row, count: int) -> float:
    """How far float32 may be from float64 after so many steps, relative to what is averaged.

    Each step rounds an average once, by at most a unit, and independently of other steps; its
    standard deviation is 1 / sqrt(3) of that. An exponential average forgets roundings as it
    forgets observations, so that those of `memory / 2` steps add up, however long the run. In an
    arithmetic one, the rounding of step i weighs i / count at the end: sqrt(count) / 3 units. Eight
    deviations are allowed, and eight units for the arithmetic of the newest step.

    An arithmetic average also coarsens. At step i an observation moves it by its distance / i,
    which is a few units from about i = 1e6 on, and roundings are no longer independent. A distance
    spread evenly over r of the last places, each of at most two units, is rounded with a bias of at
    most 1 / (8 r) of a place. Where r is 1 / (2 i units), since squares are spread over their mean
    at least, these biases sum to count^2 units^2 / 6: a twentieth at 1e7, and all at 4e7.
    """
    if row.name not in ARITHMETIC:
        return 8 * UNIT * (1 + np.sqrt(memory(row) / 6))
    return 8 * UNIT * (1 + np.sqrt(count) / 3) + (count * UNIT) ** 2 / 6


@rows
def test_float32_goes_with_float64_for_ten_thousand_steps(row):
    stops = (100, CHECKED[0])
    run = history(row, None, 1, stops)
    assert_goes_with(run, [drift(row, stop) for stop in stops])
    for taken, stop in zip(run.single, stops, strict=True):
        assert_counts(taken.state, 0, seen(1, stop))


@pytest.mark.slow
@pytest.mark.parametrize("name", AVERAGES)
def test_float32_goes_with_float64_for_ten_million_steps(name):
    row = KINDS[name]
    run = long_history(row)
    assert_goes_with(run, [drift(row, stop) for stop in CHECKED])
    for taken, stop in zip(run.single, CHECKED, strict=True):
        assert_counts(taken.state, 0, seen(1, stop))


def scaled(tree: Any, power: int) -> Any:
    return jax.tree.map(lambda x, scale: x * scale**power, tree, as_tree(_scale))


def last_gradients(count: int, stop: int) -> np.ndarray:
    """The gradients of the last steps, all elements in a row."""
    return integers(np.arange(stop - count + 1, stop + 1).astype(np.uint32)[:, None]) * _scale


def defined_averages(name: str, stop: int) -> dict[str, Any]:
    """What the averages of an optimizer hold by their definition, as sums over gradients."""
    gradients = seen(1, stop)
    squares = scaled(gradients.squares, 2)
    layers = {key: np.sum(square) for key, square in squares.items()}
    # What an exponential average has forgotten weighs less than 1e-20.
    fast, slow = (
        (last_gradients(count, stop), oracle.exponential_weights(decay, count))
        for decay, count in ((0.9, 1_000), (0.999, 50_000))
    )
    moments = oracle.moments(*fast)
    recent = as_tree(oracle.moments(*slow).second_moment)
    rho = np.sum(fast[1] ** 2)
    return {
        "msvag": {
            "mean": as_tree(moments.mean),
            "biased_variance": as_tree((1 - rho) * moments.variance),
            "sum_of_squared_weights": rho,
        },
        "adamw": {"second_moment": recent},
        "novograd": {"second_moment": {key: np.sum(square) for key, square in recent.items()}},
        "expectigrad": {"second_moment": jax.tree.map(np.divide, squares, gradients.nonzero)},
        "expectigrad-dense": {"second_moment": jax.tree.map(lambda s: s / stop, squares)},
        "adapted_novograd": {
            "second_moment": jax.tree.map(np.divide, layers, gradients.nonzero_leaves)
        },
    }[name]


def average_of(state: Any, field: str) -> Any:
    """The average of that name in a state, or the one that an average of that name holds."""
    found = optax.tree.get(state, field)
    found = getattr(found, "inner_state", found)  # of a running maximum
    return getattr(found, "average", found)


@pytest.mark.slow
@pytest.mark.parametrize("name", AVERAGES)
def test_averages_of_ten_million_gradients_are_what_their_definitions_say(name):
    """In float64, with which float32 goes: here no recurrence of ours is believed."""
    for taken, stop in list(zip(long_history(KINDS[name]).double, CHECKED, strict=True))[1:]:
        for field, exact in defined_averages(name, stop).items():
            # Eight units of float64 times the root of the count are below 1e-11.
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-15),
                average_of(taken.state, field),
                exact,
            )


LATE = 10  # steps


def after_counting_to(count: int, row: Row) -> Any:
    """The state after ten steps, but that all counters have counted to `count`."""
    (early,) = snapshots(row, np.float32, None, 1, [10], jax.devices()[0])
    return jax.tree.map(
        lambda x: np.full_like(x, count) if x.dtype == np.int32 else np.asarray(x), early.state
    )


@pytest.mark.parametrize("count", [10**9, MOST - 2])
@rows
def test_an_old_state_goes_on(row, count):
    """At a billion steps, and where counters end: they stay there, and so do the weights."""
    start = 11
    stops = range(start, start + LATE)
    run = history(row, after_counting_to(count, row), start, stops)
    # Ten roundings at most, and eight for the arithmetic of the newest step.
    assert_goes_with(run, [(8 + LATE) * UNIT] * LATE)
    for taken, stop in zip(run.single, stops, strict=True):
        assert_counts(taken.state, count, seen(start, stop))
