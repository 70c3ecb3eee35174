"""What optax puts around an optimizer: wrappers, chains, schedules, injected hyperparameters."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msvag_optax.testing.runs import NotRunError, Row, run_eagerly
from msvag_optax.testing.trees import (
    PARAMS,
    RATE,
    STREAM,
    assert_close,
    assert_same,
    assert_same_types,
    cast,
    decreasing,
)

SCHEDULED = (
    64  # ulps: a scheduled rate is rounded to float32 before it is used, and a number is not
)


def check_masked(row: Row) -> None:
    """Under `optax.masked`, the other leaves pass unchanged."""
    tx = row.build(RATE)
    masked = optax.masked(tx, {"bias": False, "kernel": True})
    alone = run_eagerly(
        tx, [gradient | {"bias": None} for gradient in STREAM], PARAMS | {"bias": None}
    )
    both = run_eagerly(masked)
    for actual, desired, gradient in zip(both.updates, alone.updates, STREAM, strict=True):
        assert_same(actual, desired | {"bias": gradient["bias"]})


def check_partition(row: Row) -> None:
    """`optax.partition` gives each part its own optimizer."""
    tx = row.build(RATE)
    labels = {"bias": "sgd", "kernel": "own"}
    partitioned = optax.partition({"own": tx, "sgd": optax.sgd(0.5)}, labels)
    alone = run_eagerly(
        tx, [gradient | {"bias": None} for gradient in STREAM], PARAMS | {"bias": None}
    )
    both = run_eagerly(partitioned)
    for actual, desired, gradient in zip(both.updates, alone.updates, STREAM, strict=True):
        assert_same(actual, desired | {"bias": -0.5 * gradient["bias"]})


def _with_rounded_hyperparameters(row: Row, hyperparams: Mapping[str, Any]) -> Any:
    """The optimizer whose numbers are those that `inject_hyperparams` made of its own.

    Decays that were rounded to 1 count as the largest float32 below it.
    """
    numbers = {name: float(value) for name, value in hyperparams.items()}
    decays = {name for name in numbers if name in ("b1", "b2", "beta")}
    below_one = 1 - 2**-24
    return row.build(**numbers | {name: min(numbers[name], below_one) for name in decays})


def _injected(row: Row, learning_rate: Any) -> Any:
    if "learning_rate" not in inspect.signature(row.build).parameters:
        raise NotRunError("it has no argument `learning_rate`")
    return optax.inject_hyperparams(row.build)(learning_rate=learning_rate)


def _need_schedules(row: Row) -> None:
    if not row.schedules:
        raise NotRunError("its rate is no schedule")


def check_injected_hyperparameters(row: Row) -> None:
    """With hyperparameters injected in bfloat16, updates are those of the rounded numbers."""
    injected = _injected(row, RATE)
    params, stream = cast(PARAMS, jnp.bfloat16), cast(STREAM, jnp.bfloat16)
    actual = run_eagerly(injected, stream, params)
    rate = optax.tree.get(actual.state, "learning_rate")
    assert rate.dtype == jnp.bfloat16
    assert rate == jnp.asarray(RATE, jnp.bfloat16)
    same = _with_rounded_hyperparameters(row, actual.state.hyperparams)
    desired = run_eagerly(same, stream, params)
    assert_close(actual.updates, desired.updates, ulps=2)
    assert_same_types(injected.init(params), actual.state)


def check_injected_schedule(row: Row) -> None:
    """Under `optax.inject_hyperparams` a schedule gives each step its rate."""
    injected = _injected(row, decreasing)
    state, alone = injected.init(PARAMS), row.build(RATE).init(PARAMS)
    assert_same_types(state, jax.eval_shape(injected.update, STREAM[0], state, PARAMS)[1])
    for i, gradient in enumerate(STREAM):
        updates, state = injected.update(gradient, state, PARAMS)
        np.testing.assert_allclose(state.hyperparams["learning_rate"], decreasing(i), rtol=1e-6)
        desired, alone = row.build(decreasing(i)).update(gradient, alone, PARAMS)
        assert_close(updates, desired, ulps=SCHEDULED)


def check_scheduled_learning_rate(row: Row) -> None:
    """A schedule gives each step its rate."""
    _need_schedules(row)
    scheduled = row.build(decreasing)
    state, alone = scheduled.init(PARAMS), row.build(RATE).init(PARAMS)
    for i, gradient in enumerate(STREAM):
        updates, new_state = scheduled.update(gradient, state, PARAMS)
        assert_same_types(state, new_state)
        state = new_state
        desired, alone = row.build(decreasing(i)).update(gradient, alone, PARAMS)
        assert_close(updates, desired, ulps=SCHEDULED)


def check_scheduled_weight_decay(row: Row) -> None:
    """A schedule gives each step its rate of weight decay."""
    if "weight_decay" not in inspect.signature(row.build).parameters:
        raise NotRunError("it has no argument `weight_decay`")
    rate = decreasing if row.schedules else lambda count: RATE
    scheduled = row.build(rate if row.schedules else RATE, weight_decay=decreasing)
    state, alone = scheduled.init(PARAMS), row.build(RATE, weight_decay=RATE).init(PARAMS)
    for i, gradient in enumerate(STREAM):
        updates, new_state = scheduled.update(gradient, state, PARAMS)
        assert_same_types(state, new_state)
        state = new_state
        now = row.build(rate(i), weight_decay=decreasing(i))
        desired, alone = now.update(gradient, alone, PARAMS)
        assert_close(updates, desired, ulps=SCHEDULED)


def check_multi_steps(row: Row) -> None:
    """`optax.MultiSteps` makes one update of the mean of two gradients."""
    tx = row.build(RATE)
    accumulating = optax.MultiSteps(tx, every_k_schedule=2)
    update = jax.jit(accumulating.update)
    state = accumulating.init(PARAMS)
    alone = tx.init(PARAMS)
    for first, second in zip(STREAM[::2], STREAM[1::2], strict=True):
        updates, state = update(first, state, PARAMS)
        assert_same(updates, optax.tree.zeros_like(PARAMS))
        updates, state = update(second, state, PARAMS)
        mean = jax.tree.map(lambda x, y: (x + y) / 2, first, second)
        desired, alone = tx.update(mean, alone, PARAMS)
        assert_close(updates, desired, ulps=64)
    assert_same_types(accumulating.init(PARAMS), state)


def check_apply_if_finite(row: Row) -> None:
    """`optax.apply_if_finite` leaves the state alone where a gradient is not finite."""
    guarded = optax.apply_if_finite(row.build(RATE), max_consecutive_errors=3)
    update = jax.jit(guarded.update)
    _, state = update(STREAM[0], guarded.init(PARAMS), PARAMS)
    for bad in (np.nan, np.inf, -np.inf):
        gradient = STREAM[1] | {"kernel": STREAM[1]["kernel"].at[5, 1].set(bad)}
        updates, kept = update(gradient, state, PARAMS)
        assert_same(updates, optax.tree.zeros_like(PARAMS))
        assert_same(kept.inner_state, state.inner_state)
    updates, _ = update(STREAM[1], kept, PARAMS)
    assert_same(updates, update(STREAM[1], state, PARAMS)[0])


def check_chain_with_clipping(row: Row) -> None:
    """In an `optax.chain`, the optimizer sees the gradients that a link before it has clipped."""
    tx = row.build(RATE)
    clip = optax.clip_by_global_norm(1.0)
    clipped = [clip.update(gradient, clip.init(PARAMS))[0] for gradient in STREAM]
    desired = run_eagerly(tx, clipped)
    assert_same(run_eagerly(optax.chain(clip, tx)).updates, desired.updates)
