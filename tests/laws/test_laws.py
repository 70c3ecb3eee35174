"""The laws: what holds for every gradient, of every piece and optimizer that a law speaks of.

Laws 2, 6 and 7 (the state keeps its types; how an optimizer is run makes no difference; leaves
without gradient pass through) hold or break whatever the numbers are, and so are checks of
`tests/conformance.py`. Shapes are fixed throughout, since new ones are compiled anew.
"""

import functools
import inspect
from fractions import Fraction
from typing import Any, NamedTuple

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import msvag_optax as mo
from tests import conformance
from tests.conformance import (
    PARAMS,
    RATE,
    ROWS,
    SHAPES,
    STEPS,
    TYPICAL,
    Row,
    assert_close,
    assert_same,
)
from tests.support import by_speed

EPS = float(np.finfo(np.float32).eps)
LARGEST = float(np.finfo(np.float32).max)
SIZES = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}


# Beside the typical rows: formulas, and orders of pieces, that none of these has.
SPECIAL = (
    "adapted-nesterov",
    "adapted_novograd",
    "amsgrad-correct-before-max",
    "dissection-adam",
    "dissection-m_ssd",
    "novograd-averaging",
    "svag",
)


def rows(
    *, scale: tuple[str | None, ...] = (), reach: tuple[str, ...] = (), fast: tuple[str, ...] = ()
) -> Any:
    """Parametrizes a test over the optimizers with one of these promises; all, if none is given.

    The typical ones, and those that are named, are among the fast tests; the special ones are slow,
    and the others are made of the same pieces in the same order.
    """
    chosen = {
        row.name: row
        for row in ROWS
        if row.name in (*TYPICAL, *SPECIAL, *fast)
        if (not scale or row.scale in scale) and (not reach or row.reach in reach)
    }
    return pytest.mark.parametrize("row", by_speed(chosen, (*TYPICAL, *fast)))


def stream_of(values: list[float], seed: int) -> dict[str, np.ndarray]:
    """Stacked gradients for the tree on which all optimizers are compiled, strewn with `values`."""
    random = np.random.default_rng(seed)
    palette = np.asarray(values, np.float32)
    return {name: random.choice(palette, size=(STEPS, *shape)) for name, shape in SHAPES.items()}


def streams(elements: st.SearchStrategy[float]) -> st.SearchStrategy[dict[str, np.ndarray]]:
    """Gradients made of a few drawn numbers: to draw each one of them takes fifty times as long."""
    return st.builds(stream_of, st.lists(elements, min_size=1, max_size=8), st.integers(0, 2**16))


def either_sign(magnitudes: st.SearchStrategy[float]) -> st.SearchStrategy[float]:
    return st.one_of(st.just(0.0), magnitudes, magnitudes.map(lambda x: -x))


def powers_of_ten(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda exponent: float(np.float32(10.0**exponent)))


# Neither these nor their squares come near the ends of float32.
moderate = either_sign(st.floats(2.0**-8, 2.0**8, width=32))
# Far from them, but their squares are not.
extreme = either_sign(powers_of_ten(-30, 30))
# All sizes up to 1e37, from which no difference of two overflows; many are too large to square.
promised = either_sign(
    st.one_of(powers_of_ten(-44, 37), powers_of_ten(19.5, 37), st.just(float(np.float32(1e37))))
)
# Every size that float32 has.
utmost = either_sign(st.one_of(powers_of_ten(-44, 38), st.just(LARGEST)))
decays = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 0.999]), st.floats(0.0, 0.9999))


def run(row: Row, gradients: Any) -> conformance.Trajectory:
    return conformance.trajectory(row)(RATE, PARAMS, gradients)


def is_square(path: str) -> bool:
    """Whether a state holds squares of gradients under this path, and not gradients."""
    return any(name in path for name in ("second_moment", "biased_variance", "maximum"))


def all_finite(tree: Any) -> bool:
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


# Law 1: weights are in (0, 1], and the average of a constant is that constant.

WEIGHTINGS = {
    "exponential": mo.exponential,
    "exponential_from_zero": mo.exponential_from_zero,
    "exponential_from_first": mo.exponential_from_first,
    "arithmetic": lambda _: mo.arithmetic(),
}
UNBIASED = [name for name in WEIGHTINGS if name != "exponential_from_zero"]


@functools.cache
def traced_weight(name: str) -> Any:
    return jax.jit(lambda decay, count: WEIGHTINGS[name](decay).weight(count))


@pytest.mark.parametrize("name", WEIGHTINGS)
@given(
    decay=st.floats(0.0, 1.0, exclude_max=True),
    count=st.one_of(st.integers(1, 100), st.integers(1, 2**31 - 1)),
)
def test_weights_are_in_the_unit_interval(name, decay, count):
    for t in (1, count):
        concrete = WEIGHTINGS[name](decay).weight(jnp.int32(t))
        # In float32 the decay may have become 1.
        traced = traced_weight(name)(jnp.float32(decay), jnp.int32(t))
        for weight in (concrete, traced):
            assert 0 < weight <= 1
            if t == 1 and name in UNBIASED:
                assert weight == 1


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_weights_are_in_the_unit_interval_at_the_ends_of_traced_decays(name, decay):
    for t in (1, 2, 1000, 2**31 - 1):
        weight = traced_weight(name)(jnp.float32(decay), jnp.int32(t))
        assert 0 < weight <= 1
        if t == 1 and name in UNBIASED:
            assert weight == 1


@functools.cache
def averages(name: str) -> Any:
    """From decays and observations, one of each a step, to averages, moments and their states."""

    @jax.jit
    def run(decays: Any, observations: Any) -> Any:
        def step(states: Any, inputs: Any) -> Any:
            decay, observation = inputs
            weighting = WEIGHTINGS[name](decay)
            average_of: Any = mo.running_average(weighting)
            moments_of: Any = mo.running_moments(weighting)
            average, first = average_of.update(observation, states[0])
            moments, second = moments_of.update(observation, states[1])
            return (first, second), (average, moments, second)

        weighting = WEIGHTINGS[name](0.5)
        like = observations[0]
        states = mo.running_average(weighting).init(like), mo.running_moments(weighting).init(like)
        return jax.lax.scan(step, states, (decays, observations))[1]

    return run


step_decays = hnp.arrays(np.float32, STEPS, elements=st.floats(0.0, 1.0, width=32))
observed = hnp.arrays(np.float32, (STEPS, STEPS), elements=moderate)


@pytest.mark.parametrize("name", UNBIASED)
@given(decays=step_decays, constant=utmost.filter(lambda x: x == 0 or abs(x) > 1e-37))
def test_average_of_a_constant_is_that_constant(name, decays, constant):
    observations = np.full((STEPS, STEPS), constant, np.float32)
    average, moments, _ = averages(name)(decays, observations)
    np.testing.assert_array_equal(average, observations)
    np.testing.assert_array_equal(moments.mean, observations)
    np.testing.assert_array_equal(moments.variance, np.zeros_like(observations))


@given(decay=decays, constant=moderate)
def test_corrected_average_of_a_constant_is_that_constant(decay, constant):
    average = mo.running_average(mo.exponential_from_zero(decay))
    estimator: Any = mo.bias_corrected(average, decay)
    gradient = jnp.full(STEPS, constant, jnp.float32)
    state = estimator.init(gradient)
    for _ in range(4):
        estimate, state = estimator.update(gradient, state)
        np.testing.assert_allclose(estimate, gradient, rtol=8 * EPS)


@pytest.mark.parametrize("name", UNBIASED)
@given(decays=step_decays)
def test_weights_of_all_observations_sum_to_one(name, decays):
    # The average of unit vectors is the vector of their weights.
    weights, _, state = averages(name)(decays, np.eye(STEPS, dtype=np.float32))
    assert np.all(weights >= 0)
    np.testing.assert_allclose(np.sum(weights, axis=1), 1, rtol=8 * EPS)
    squares = np.sum(np.square(np.float64(weights)), axis=1)
    np.testing.assert_allclose(state.sum_of_squared_weights, squares, rtol=32 * EPS)


@pytest.mark.parametrize("name", UNBIASED)
@given(decays=step_decays, observations=observed)
def test_average_lies_among_its_observations(name, decays, observations):
    average, _, _ = averages(name)(decays, observations)
    slack = 8 * EPS * np.max(np.abs(observations), axis=0)
    assert np.all(average <= np.maximum.accumulate(observations) + slack)
    assert np.all(average >= np.minimum.accumulate(observations) - slack)


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name != "arithmetic"])
@given(observations=hnp.arrays(np.float32, (STEPS, STEPS), elements=extreme))
def test_at_a_traced_decay_of_zero_the_average_is_within_an_ulp_of_the_newest(name, observations):
    """Of the larger of the two that are averaged: m + (x - m) is x, but for the difference."""
    average, moments, _ = averages(name)(np.zeros(STEPS, np.float32), observations)
    for mean in map(np.asarray, (average, moments.mean)):
        before = np.concatenate([np.zeros((1, STEPS), np.float32), mean[:-1]])
        ulp = np.spacing(np.maximum(np.abs(before), np.abs(observations)))
        assert np.all(np.abs(np.float64(mean) - np.float64(observations)) <= ulp)
        np.testing.assert_array_equal(mean[0], observations[0])


@pytest.mark.parametrize("name", WEIGHTINGS)
@given(
    decays=step_decays,
    observations=observed,
    step=st.integers(0, STEPS - 1),
    element=st.integers(0, STEPS - 1),
)
def test_nan_stays_in_an_average_and_its_element(name, decays, observations, step, element):
    """Also at weights that are 1, or come close to it."""
    spoiled = observations.copy()
    spoiled[step, element] = np.nan
    average, moments, _ = averages(name)(decays, spoiled)
    expected = np.zeros((STEPS, STEPS), bool)
    expected[step:, element] = True
    for estimate in (average, moments.mean, moments.variance):
        np.testing.assert_array_equal(np.isnan(estimate), expected)


@functools.cache
def averages_of_nonzero(name: str) -> Any:
    """From a decay and gradients to the averages of their nonzero squares, and their number."""

    @jax.jit
    def run(decay: Any, gradients: Any) -> Any:
        squares: Any = mo.running_average(WEIGHTINGS[name](decay), mo.square, count_nonzero=True)

        def step(state: Any, gradient: Any) -> Any:
            average, state = squares.update(gradient, state)
            return state, (average, state.observations)

        return jax.lax.scan(step, squares.init(gradients[0]), gradients)[1]

    return run


@pytest.mark.parametrize("name", UNBIASED)
@given(
    decay=st.floats(0.0, 1.0, width=32),
    gradients=hnp.arrays(np.float32, (STEPS, STEPS), elements=extreme, fill=st.just(0.0)),
)
def test_zeros_are_no_observations(name, decay, gradients):
    average, count = averages_of_nonzero(name)(decay, gradients)
    np.testing.assert_array_equal(count, np.cumsum(gradients != 0, axis=0))
    for i, column in enumerate(gradients.T):
        seen = column[column != 0]
        repeated = np.resize(seen, STEPS)[:, None].repeat(STEPS, axis=1)
        alone, _ = averages_of_nonzero(name)(decay, repeated)
        expected = alone[len(seen) - 1, 0] if len(seen) else 0.0
        np.testing.assert_allclose(average[-1, i], expected, rtol=4 * EPS)


# The moments: what they are, and how they move with the gradients.


@pytest.mark.parametrize("name", UNBIASED)
@given(decays=step_decays, observations=observed)
def test_moments_are_the_weighted_sums_that_define_them(name, decays, observations):
    all_weights, _, _ = averages(name)(decays, np.eye(STEPS, dtype=np.float32))
    _, moments, _ = averages(name)(decays, observations)
    x = np.float64(observations)
    size = np.max(np.abs(x))
    for t in range(STEPS):
        w = np.asarray(all_weights[t], np.float64)[:, None]
        mean = np.sum(w * x, axis=0)
        np.testing.assert_allclose(moments.mean[t], mean, atol=16 * EPS * size)
        second_moment = np.sum(w * x**2, axis=0)
        np.testing.assert_allclose(moments.second_moment[t], second_moment, atol=64 * EPS * size**2)
        # 1 - rho would cancel: it is the sum of the products of different weights.
        spread = np.sum(w * (np.sum(w) - w))
        if spread < 1e-6:
            continue
        variance = np.sum(w * (x - mean) ** 2, axis=0) / spread
        slack = 64 * EPS * size**2 / spread
        np.testing.assert_allclose(moments.variance[t], variance, atol=slack, rtol=1e-4)
        np.testing.assert_allclose(
            moments.variance_of_mean[t], np.sum(w**2) * variance, atol=slack, rtol=1e-4
        )


@pytest.mark.parametrize("name", UNBIASED)
@given(
    decays=hnp.arrays(np.float32, STEPS, elements=st.floats(0.125, 1.0, width=32)),
    observations=hnp.arrays(np.float32, (STEPS, STEPS), elements=st.integers(-8, 8)),
    shift=st.integers(-1000, 1000),
)
def test_variance_does_not_change_with_a_shift(name, decays, observations, shift):
    _, moments, _ = averages(name)(decays, observations)
    _, shifted, _ = averages(name)(decays, observations + np.float32(shift))
    # The difference of two averages, v - m², would be off by EPS times the shift's square.
    slack = 8 * EPS * abs(shift)
    np.testing.assert_allclose(shifted.mean - shift, moments.mean, atol=slack)
    np.testing.assert_allclose(shifted.variance, moments.variance, atol=16 * 8 * slack)


@pytest.mark.parametrize("name", UNBIASED)
@given(decays=step_decays, observations=observed, exponent=st.integers(-20, 20))
def test_variance_scales_with_the_square(name, decays, observations, exponent):
    factor = np.float32(2.0**exponent)
    _, moments, _ = averages(name)(decays, observations)
    _, scaled, _ = averages(name)(decays, observations * factor)
    np.testing.assert_array_equal(scaled.mean, moments.mean * factor)
    for field in ("second_moment", "variance", "variance_of_mean"):
        np.testing.assert_array_equal(
            getattr(scaled, field), getattr(moments, field) * factor**2, err_msg=field
        )


# Law 3: accumulators are float32 or wider, and otherwise what is asked for. (That they are without
# being asked is a check of conformance.)

WITH_DTYPES = [
    row
    for row in ROWS
    if row.name in (*TYPICAL, "novograd-amsgrad")
    and "nu_dtype" in inspect.signature(row.build).parameters
]


def dtypes_of_arrays(row: Row, **dtypes: Any) -> dict[str, Any]:
    """The dtypes of the state's floating-point arrays, after an update, by their paths."""
    tx = row.build(RATE, **dtypes)
    before = tx.init(PARAMS)
    _, state = jax.eval_shape(tx.update, conformance.STREAM[0], before, PARAMS)
    conformance.assert_same_types(before, state)
    leaves = conformance.leaves_by_name(state)
    return {
        path: leaf.dtype
        for path, leaf in leaves.items()
        if jnp.issubdtype(leaf.dtype, jnp.floating) and any(f"'{p}'" in path for p in PARAMS)
    }


@pytest.mark.parametrize("row", WITH_DTYPES, ids=lambda row: row.name)
def test_accumulators_have_the_dtypes_that_are_asked_for(row):
    plain = dtypes_of_arrays(row)
    assert set(plain.values()) == {np.dtype(np.float32)}
    mean = dtypes_of_arrays(row, mu_dtype=jnp.bfloat16)
    square = dtypes_of_arrays(row, nu_dtype=jnp.float16)
    both = dtypes_of_arrays(row, mu_dtype=jnp.bfloat16, nu_dtype=jnp.float16)
    for path in plain:
        desired = (np.float32, np.float16) if is_square(path) else (jnp.bfloat16, np.float32)
        assert (mean[path], square[path]) == desired, path
        assert both[path] == (np.float16 if is_square(path) else jnp.bfloat16), path


def test_adapted_direction_keeps_its_moments_in_the_dtypes_that_are_asked_for():
    tx = mo.variance_adapted(optax.scale_by_sign(), mu_dtype=jnp.bfloat16, nu_dtype=jnp.float16)
    state = tx.init(PARAMS)
    for name in PARAMS:
        assert optax.tree.get(state, "mean")[name].dtype == jnp.bfloat16
        assert optax.tree.get(state, "biased_variance")[name].dtype == jnp.float16


@pytest.mark.parametrize(
    "row", by_speed({row.name: row for row in WITH_DTYPES}, ("msvag", "expectigrad", "amsgrad"))
)
def test_narrow_accumulators_only_round(row):
    stream = conformance.STREAM
    wide = conformance.run_eagerly(row.build(RATE), stream)
    narrow = conformance.run_eagerly(
        row.build(RATE, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16), stream
    )
    # At first nothing has been rounded that is read, but what is read back from the state.
    assert_close(narrow.updates, wide.updates, ulps=0.1 / EPS)
    with pytest.raises(AssertionError):
        assert_same(narrow.updates[1:], wide.updates[1:])


@rows()
def test_counters_saturate(row):
    tx = row.build(RATE)
    _, state = tx.update(conformance.STREAM[0], tx.init(PARAMS), PARAMS)
    last = np.iinfo(np.int32).max

    def exhaust(leaf: jax.Array) -> jax.Array:
        return jnp.full_like(leaf, last) if leaf.dtype == jnp.int32 else leaf

    state = jax.tree.map(exhaust, state)
    updates, new_state = tx.update(conformance.STREAM[1], state, PARAMS)
    assert_same(jax.tree.map(exhaust, new_state), new_state)
    assert all_finite((updates, new_state))


# Law 4: the factor is in [0, 1], and what becomes of scaled gradients.

vectors = functools.partial(hnp.arrays, np.float32, STEPS)


@given(mean=vectors(elements=utmost), variance=vectors(elements=utmost.map(abs)))
def test_factor_is_in_the_unit_interval(mean, variance):
    factor = np.asarray(mo.variance_adaptation_factor(mean, variance))
    assert np.all(factor >= 0)
    assert np.all(factor <= 1)
    assert np.all(factor[mean == 0] == 0)
    without_noise = np.asarray(mo.variance_adaptation_factor(mean, np.zeros_like(variance)))
    assert np.all(without_noise[mean == 0] == 0)
    # A subnormal mean may count as zero.
    assert np.all(without_noise[np.abs(mean) >= np.finfo(np.float32).tiny] == 1)


@given(
    mean=vectors(elements=moderate),
    variance=vectors(elements=moderate.map(abs)),
    exponent=st.integers(-20, 20),
)
def test_factor_does_not_change_with_the_scale(mean, variance, exponent):
    c = np.float32(2.0**exponent)
    factor = mo.variance_adaptation_factor(mean, variance)
    np.testing.assert_array_equal(mo.variance_adaptation_factor(c * mean, c * c * variance), factor)
    squares = np.square(np.float64(mean))
    expected = np.divide(squares, squares + variance, out=np.zeros(STEPS), where=mean != 0)
    np.testing.assert_allclose(factor, expected, rtol=8 * EPS)


@rows(scale=("equivariant", "invariant"))
@given(
    gradients=streams(moderate), exponent=st.integers(-20, 20), sign=st.sampled_from([-1.0, 1.0])
)
def test_scaling_all_gradients_scales_the_update_or_leaves_it(row, gradients, exponent, sign):
    """Powers of two round nothing, so that the law holds bit for bit; a sign is kept by all."""
    c = np.float32(sign * 2.0**exponent)
    factor = c if row.scale == "equivariant" else np.float32(sign)
    updates = run(row, gradients).updates
    scaled = run(row, jax.tree.map(lambda g: c * g, gradients)).updates
    for name, update in updates.items():
        np.testing.assert_array_equal(scaled[name], factor * np.asarray(update), err_msg=name)


@rows(scale=("equivariant", "invariant"))
@given(c=powers_of_ten(-4, 4))
def test_scaling_by_any_number_is_the_same_but_for_rounding(row, c):
    updates = run(row, conformance.GRADIENTS).updates
    scaled = run(row, jax.tree.map(lambda g: c * g, conformance.GRADIENTS)).updates
    factor = c if row.scale == "equivariant" else 1.0
    assert_close(scaled, jax.tree.map(lambda u: u * jnp.float32(factor), updates), ulps=64)


# Law 5: what is finite stays finite, and what is not is seen.


@pytest.mark.parametrize("name", WEIGHTINGS)
@given(
    decays=step_decays,
    observations=hnp.arrays(np.float32, (STEPS, STEPS), elements=promised),
)
def test_averages_of_finite_gradients_are_finite(name, decays, observations):
    """Of gradients up to 1e37 in size, most of which are too large to square.

    What is made of two averages, or of an average and its correction, may overflow; it is no NaN.
    """
    average, moments, state = averages(name)(decays, observations)
    assert all_finite((average, moments.mean, state))
    assert np.all(state.biased_variance >= 0)
    for estimate in (moments.second_moment, moments.variance, moments.variance_of_mean):
        assert np.all(estimate >= 0)
    assert np.all(moments.variance_of_mean <= moments.variance)


@rows()
@given(gradients=streams(promised))
def test_finite_gradients_make_finite_updates_and_states(row, gradients):
    """Up to 1e37 in size, and however small."""
    assert all_finite(run(row, gradients))


@rows(fast=("novograd-amsgrad",))
@pytest.mark.parametrize(
    ("dtype", "rate"),
    [(jnp.float16, 100.0), pytest.param(jnp.bfloat16, 1.0, marks=pytest.mark.slow)],
)
def test_finite_gradients_of_low_precision_make_finite_updates_and_states(row, dtype, rate):
    """Every float16, and every bfloat16 up to 1e37."""
    finfo = jnp.finfo(dtype)
    largest = min(float(finfo.max), float(jnp.bfloat16(1e37)))
    values = [0.0, largest, -largest, float(finfo.tiny), 1.0]
    params = conformance.cast(PARAMS, dtype)
    narrow = {"mu_dtype": dtype, "nu_dtype": dtype} if row in WITH_DTYPES else {}
    tx = row.build(rate, **narrow)
    state = tx.init(params)
    for step in range(3):
        stacked = stream_of(values, seed=step)
        gradient = {name: jnp.asarray(g[step], dtype) for name, g in stacked.items()}
        updates, state = tx.update(gradient, state, params)
        assert all_finite(conformance.cast((updates, state), jnp.float32))


# M-SSD's direction is a sign, which hides what it is a sign of.
@rows(fast=("dissection-m_ssd",))
@given(
    gradients=streams(moderate),
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    step=st.integers(0, STEPS - 1),
    element=st.integers(0, SIZES["kernel"] - 1),
)
def test_gradients_that_are_not_finite_are_seen_in_the_update(row, gradients, bad, step, element):
    kernel = gradients["kernel"].copy()
    kernel[step].flat[element] = bad
    spoiled = run(row, gradients | {"kernel": kernel}).updates
    assert not np.isfinite(np.asarray(spoiled["kernel"])[step].flat[element])
    clean = run(row, gradients).updates
    for name, update in clean.items():
        before = np.asarray(spoiled[name])[:step]
        np.testing.assert_array_equal(before, update[:step], err_msg="before it came")
        if row.reach != "tree" and name != "kernel":
            np.testing.assert_array_equal(spoiled[name], update, err_msg=name)


# How much longer steps may be because the first gradient was zero.
LONGEST = {
    "novograd": (1 - 0.999) ** -0.5,
    "novograd-averaging": (1 - 0.999) ** -0.5,
    "novograd-amsgrad": (1 - 0.999) ** -0.5,
    "novograd-stacked": (1 - 0.999) ** -0.5,
}


@rows()
@given(zeros=st.integers(1, STEPS - 1), value=powers_of_ten(-10, 10))
def test_zero_first_gradients_do_no_harm(row, zeros, value):
    ones = {name: np.full((STEPS, *shape), value, np.float32) for name, shape in SHAPES.items()}
    late = jax.tree.map(
        lambda g: np.where(np.arange(STEPS).reshape(-1, *[1] * (g.ndim - 1)) < zeros, 0, g), ones
    )
    none = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    plain = conformance.trajectory(row)(RATE, none, ones)
    after = conformance.trajectory(row)(RATE, none, late)
    assert all_finite(after)
    longest = LONGEST.get(row.name, 2.0)
    for name, update in after.updates.items():
        np.testing.assert_array_equal(update[:zeros], 0)
        bound = longest * np.max(np.abs(plain.updates[name])) * (1 + 1e-3)
        assert np.max(np.abs(update)) <= bound, name
        assert np.all(np.abs(update[zeros:]) > 0), name


# Elements, leaves and their order.


@rows()
@given(permutation=st.permutations(range(SIZES["kernel"])))
def test_order_of_elements_makes_no_difference(row, permutation):
    if row.reach == "row":  # Then only rows may trade places.
        firsts = [i - i % 2 for i in permutation if i % 2]
        permutation = [i for first in firsts for i in (first, first + 1)]

    def permuted(x: Any) -> np.ndarray:
        x = np.asarray(x)
        flat = x.reshape(*x.shape[: x.ndim - 2], -1)
        return flat[..., permutation].reshape(x.shape)

    gradients, params = conformance.GRADIENTS, PARAMS
    plain = run(row, gradients).updates
    other = conformance.trajectory(row)(
        RATE,
        params | {"kernel": permuted(params["kernel"])},
        gradients | {"kernel": permuted(gradients["kernel"])},
    ).updates
    desired = plain | {"kernel": jnp.asarray(permuted(plain["kernel"]))}
    if row.reach == "element":
        assert_same(other, desired)
    else:
        assert_close(other, desired, ulps=32)


@rows(reach=("element", "row", "leaf"))
@given(gradients=streams(moderate), others=streams(moderate), i=st.integers(0, 7))
def test_gradients_reach_no_further_than_promised(row, gradients, others, i):
    """An element, row or leaf moves by its own gradients, whatever those of all others are."""
    own = {"element": np.s_[:, i, 0], "row": np.s_[:, i], "leaf": np.s_[:]}[row.reach]
    kernel = others["kernel"].copy()
    kernel[own] = gradients["kernel"][own]
    plain = run(row, gradients).updates
    changed = run(row, others | {"kernel": kernel}).updates
    np.testing.assert_array_equal(changed["kernel"][own], plain["kernel"][own])


# Law 8: complex parameters.


def complex_stream() -> list[dict[str, jax.Array]]:
    random = np.random.default_rng(8)
    return [
        {
            name: jnp.asarray(
                random.normal(size=shape) + 1j * random.normal(size=shape), "complex64"
            )
            for name, shape in SHAPES.items()
        }
        for _ in range(3)
    ]


@rows()
def test_complex_gradients_without_imaginary_part_are_real_ones(row):
    real = conformance.run_eagerly(row.build(RATE))
    stream = conformance.cast(conformance.STREAM, jnp.complex64)
    params = conformance.cast(PARAMS, jnp.complex64)
    complex_ = conformance.run_eagerly(row.build(RATE), stream, params)
    assert_close(complex_.updates, conformance.cast(real.updates, jnp.complex64), ulps=32)
    assert_close(jax.tree.map(jnp.real, complex_.state), real.state, ulps=32)


@rows()
@given(angle=st.sampled_from([0.5, 1.0, 2.5]))
def test_rotated_complex_gradients_rotate_the_update(row, angle):
    phase = jnp.asarray(np.exp(1j * angle), jnp.complex64)
    params = jax.tree.map(jnp.zeros_like, complex_stream()[0])

    def turned(tree: Any) -> Any:
        return jax.tree.map(lambda x: phase * x, tree)

    plain = conformance.run_eagerly(row.build(RATE), complex_stream(), params)
    rotated = conformance.run_eagerly(row.build(RATE), turned(complex_stream()), params)
    assert_close(rotated.updates, turned(plain.updates), ulps=256)


@rows()
def test_second_moments_of_complex_gradients_are_real(row):
    params = jax.tree.map(jnp.zeros_like, complex_stream()[0])
    state = conformance.run_eagerly(row.build(RATE), complex_stream(), params).state
    for path, leaf in conformance.leaves_by_name(state).items():
        if is_square(path):
            assert not jnp.iscomplexobj(leaf), path
        elif jnp.shape(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact):
            assert jnp.iscomplexobj(leaf), path


# Law 9: what is wrong is said when the optimizer is built: argument, value and what is allowed.


class Kind(NamedTuple):
    """What an argument may be: how an error spells it, and values that are none."""

    allowed: str
    wrong_values: tuple[Any, ...] = ()
    wrong_types: tuple[Any, ...] = ()


NO_NUMBERS = (
    "0.1",
    True,
    np.bool_(True),
    np.array(True),
    jnp.asarray(True),
    1j,
    np.array(1j),
    jnp.asarray(1j),
    np.array("x"),
    [0.1],
    np.ones(2),
    jnp.ones(2),
    {},
    object(),
)
OUTSIDE = (np.nan, np.inf, -np.inf, -0.1, -1, np.float32(-0.1), np.array(np.nan))
OUTSIDE += (10**40, 10**400, Fraction(-1, 2))
NUMBER = Kind("must be a number in [0, inf)", OUTSIDE, (None, *NO_NUMBERS))
POSITIVE = Kind("must be a number in (0, inf)", (0.0, *OUTSIDE), (None, *NO_NUMBERS))
POSITIVE_OR_NONE = Kind("must be a number in (0, inf)", (0.0, *OUTSIDE), NO_NUMBERS)
DECAY = Kind("must be a number in [0, 1)", (1.0, 1, 1.5, *OUTSIDE), (None, *NO_NUMBERS))
SCHEDULE = Kind("must be a number in [0, inf) or a schedule", OUTSIDE, (None, *NO_NUMBERS))
FLAG = Kind("must be True or False", (), (None, 0, 1, "yes", 0.0, jnp.asarray(True)))
DTYPE = Kind(
    "must be None or a real floating-point dtype",
    (jnp.int32, "int8", bool, jnp.complex64),
    ("float99", 3, 1.5, True),
)
PATTERNS = Kind(
    "regular expressions", (["("], ("a", "*")), ("bias", None, 3, [3], [None], {"a": 1}, [b"x"])
)
WEIGHTING = Kind("must be a Weighting", (), (0.9, None, mo.exponential, lambda count: 1.0))
ESTIMATOR = Kind("must be a GradientTransformation", (), (0.9, None, mo.arithmetic(), optax.trace))
LEAST_ONE = Kind("must be an integer >= 1", (0, -1), (None, True, 1.0, "1", np.ones(2), 1j))
LEAST_ZERO = Kind("must be an integer >= 0", (-1, -5), (None, True, 1.0, "1", np.ones(2), 1j))

_SHARED = {
    "weight_decay": SCHEDULE,
    "exclude_from_weight_decay": PATTERNS,
    "mu_dtype": DTYPE,
    "nu_dtype": DTYPE,
}
_ADAM = {"learning_rate": SCHEDULE, "b1": DECAY, "b2": DECAY, "eps": NUMBER}
ARGUMENTS: dict[Any, dict[str, Kind]] = {
    mo.adamw: _ADAM | {"bias_correction": FLAG} | _SHARED,
    mo.amsgrad: _ADAM | {"bias_correction": FLAG, "correct_before_max": FLAG} | _SHARED,
    mo.bert_adamw: {
        "init_lr": NUMBER,
        "num_train_steps": LEAST_ONE,
        "num_warmup_steps": LEAST_ZERO,
        "b1": DECAY,
        "b2": DECAY,
        "eps": NUMBER,
        "weight_decay": SCHEDULE,
        "exclude_from_weight_decay": PATTERNS,
        "max_grad_norm": POSITIVE_OR_NONE,
    },
    mo.dissection: {"learning_rate": SCHEDULE, "beta": DECAY},
    mo.expectigrad: {
        "learning_rate": SCHEDULE,
        "beta": DECAY,
        "eps": POSITIVE,
        "sparse_counter": FLAG,
    }
    | _SHARED,
    mo.msvag: {"learning_rate": SCHEDULE, "beta": DECAY} | _SHARED,
    mo.novograd: _ADAM
    | {"grad_averaging": FLAG, "amsgrad": FLAG, "eps_root": NUMBER, "stacked": PATTERNS}
    | _SHARED,
    mo.svag: {"learning_rate": SCHEDULE, "beta": DECAY} | _SHARED,
    mo.variance_adapted: {
        "direction": ESTIMATOR,
        "beta": DECAY,
        "of_mean": FLAG,
        "mu_dtype": DTYPE,
        "nu_dtype": DTYPE,
    },
    mo.exponential: {"decay": DECAY},
    mo.exponential_from_zero: {"decay": DECAY},
    mo.exponential_from_first: {"decay": DECAY},
    mo.bias_corrected: {"estimator": ESTIMATOR, "decay": DECAY},
    mo.running_average: {"weighting": WEIGHTING, "count_nonzero": FLAG, "dtype": DTYPE},
    mo.running_moments: {"weighting": WEIGHTING, "mu_dtype": DTYPE, "nu_dtype": DTYPE},
    mo.running_max: {"estimator": ESTIMATOR, "dtype": DTYPE},
    mo.over_rms: {"eps": NUMBER, "eps_root": NUMBER},
    mo.layer_square_norm: {"stacked": PATTERNS},
    mo.warmup_linear_decay_schedule: {
        "init_lr": NUMBER,
        "num_train_steps": LEAST_ONE,
        "num_warmup_steps": LEAST_ZERO,
    },
    mo.add_decayed_weights: {"weight_decay": SCHEDULE, "exclude_from_weight_decay": PATTERNS},
    mo.subtract_decayed_weights: {"weight_decay": SCHEDULE, "exclude_from_weight_decay": PATTERNS},
}
# What stands for the arguments that have no default, and are no numbers.
GIVEN: dict[str, Any] = {
    "direction": optax.identity(),
    "estimator": mo.running_average(mo.arithmetic()),
    "exclude_from_weight_decay": (),
    "num_train_steps": 10,
    "num_warmup_steps": 2,
    "weighting": mo.arithmetic(),
}


def build(function: Any, **arguments: Any) -> Any:
    """Calls `function` with something that is right for every argument not given."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty:
            arguments.setdefault(name, GIVEN.get(name, 0.5))
    return function(**arguments)


NAMED = (
    mo.adamw,
    mo.amsgrad,
    mo.bert_adamw,
    mo.dissection,
    mo.expectigrad,
    mo.msvag,
    mo.novograd,
    mo.svag,
)


@pytest.mark.parametrize("function", NAMED, ids=lambda function: function.__name__)
def test_every_argument_of_every_named_optimizer_is_checked(function):
    assert set(ARGUMENTS[function]) == set(inspect.signature(function).parameters)
    build(function)


CASES = [
    pytest.param(function, argument, kind, id=f"{function.__name__}-{argument}")
    for function, arguments in ARGUMENTS.items()
    for argument, kind in arguments.items()
]


@pytest.mark.parametrize(("function", "argument", "kind"), CASES)
def test_wrong_arguments_are_named_when_built(function, argument, kind):
    wrong = [(value, ValueError) for value in kind.wrong_values]
    wrong += [(value, TypeError) for value in kind.wrong_types]
    for value, error in wrong:
        with pytest.raises(error) as caught:
            build(function, **{argument: value})
        message = str(caught.value)
        assert f"`{argument}`" in message
        assert kind.allowed in message
        shown = value[-1] if isinstance(value, list | tuple) and kind is PATTERNS else value
        assert repr(shown) in message or f"shape {np.shape(value)}" in message
        assert "\n" not in message


@pytest.mark.parametrize(("function", "argument", "kind"), CASES)
def test_right_arguments_are_accepted_in_every_form(function, argument, kind):
    right: list[Any] = [None, jnp.bfloat16, "float32", np.dtype("float16"), np.float64]
    if kind is FLAG:
        right = [True, False, np.bool_(True)]
        if argument == "bias_correction":
            right = [True, False]
    elif kind is PATTERNS:
        right = [(), ["bias$"], ("a|b", "c")]
    elif kind is WEIGHTING or kind is ESTIMATOR:
        right = [GIVEN[argument]]
    elif kind is LEAST_ONE or kind is LEAST_ZERO:
        right = [1, 7, np.int64(7), jnp.int32(7)]
    elif kind is not DTYPE:
        right = [0.5, np.float32(0.5), np.array(0.5), jnp.asarray(0.5), jnp.bfloat16(0.5)]
        right += [np.float64(0.5), np.longdouble(0.5), Fraction(1, 2), jnp.complex64(0.5)]
        right += [] if kind in (POSITIVE, POSITIVE_OR_NONE) else [0, 0.0]
        right += [lambda count: 0.5] if kind is SCHEDULE else []
        right += [None] if kind is POSITIVE_OR_NONE else []
    for value in right:
        build(function, **{argument: value})


def test_amsgrad_cannot_correct_before_the_maximum_what_it_does_not_correct():
    with pytest.raises(ValueError, match=r"`correct_before_max`.*`bias_correction`.*True"):
        mo.amsgrad(0.1, bias_correction=False, correct_before_max=True)


DECAYING = [f for f in NAMED if "exclude_from_weight_decay" in ARGUMENTS[f]]


@pytest.mark.parametrize("function", DECAYING, ids=lambda function: function.__name__)
def test_pattern_that_matches_nothing_is_answered_with_the_names(function):
    tx = build(function, exclude_from_weight_decay=["bias", "nrom"], weight_decay=0.1)
    with pytest.raises(ValueError, match="nrom") as caught:
        tx.init({"dense": PARAMS})
    message = str(caught.value)
    assert "`exclude_from_weight_decay`" in message
    for name in PARAMS:
        assert f"'dense/{name}'" in message
    build(function, exclude_from_weight_decay=["dense/bias"]).init({"dense": PARAMS})


@pytest.mark.parametrize("function", DECAYING, ids=lambda function: function.__name__)
def test_patterns_find_the_names_of_holes(function):
    tx = build(function, exclude_from_weight_decay=["bias"], weight_decay=0.1)
    labels = {"bias": "sgd", "kernel": "own"}
    for whole in (
        optax.partition({"own": tx, "sgd": optax.sgd(0.1)}, labels),
        optax.masked(tx, {"bias": False, "kernel": True}),
    ):
        whole.update(PARAMS, whole.init(PARAMS), PARAMS)
    tx.init(PARAMS | {"bias": None})
    tx.init({})


def test_default_patterns_of_bert_may_miss():
    mo.bert_adamw(0.1, 10, 2).init({"dense": {"kernel": jnp.ones(2)}})
