from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from tests.support import float64

DECAYS = [0.0, 0.3, 0.9, 0.999]


def average_of(weighting, observations):
    estimator = mo.running_average(weighting)
    state = estimator.init(jnp.zeros(()))
    for observation in observations:
        estimate, state = estimator.update(jnp.asarray(observation, jnp.float32), state)
    return float(estimate)


@pytest.mark.parametrize("decay", DECAYS)
def test_exponential_is_the_bias_corrected_average(decay):
    observations = np.random.default_rng(0).standard_normal(20)
    reference = optax.ema(decay, debias=True)
    state = reference.init(jnp.zeros(()))
    for observation in observations:
        expected, state = reference.update(jnp.asarray(observation, jnp.float32), state)
    np.testing.assert_allclose(average_of(mo.exponential(decay), observations), expected, rtol=2e-5)


@pytest.mark.parametrize("decay", DECAYS)
def test_exponential_from_zero_is_the_raw_average(decay):
    observations = np.random.default_rng(0).standard_normal(20)
    expected = 0.0
    for observation in observations:
        expected = decay * expected + (1 - decay) * observation
    ours = average_of(mo.exponential_from_zero(decay), observations)
    np.testing.assert_allclose(ours, expected, rtol=2e-6)


@pytest.mark.parametrize("decay", DECAYS)
def test_exponential_from_first_begins_with_the_first(decay):
    observations = np.random.default_rng(0).standard_normal(20)
    expected = observations[0]
    for observation in observations[1:]:
        expected = decay * expected + (1 - decay) * observation
    ours = average_of(mo.exponential_from_first(decay), observations)
    np.testing.assert_allclose(ours, expected, rtol=2e-6)


def test_arithmetic_is_the_mean():
    observations = np.random.default_rng(0).standard_normal(20)
    np.testing.assert_allclose(average_of(mo.arithmetic(), observations), observations.mean(), 1e-6)


def test_complement_of_the_decay_is_formed_in_double_precision():
    """`1 - 0.999` in float32 is 0.0010000467: 5e-5 too much."""
    weight = mo.exponential_from_zero(0.999).weight(jnp.int32(1))
    assert weight == np.float32(1 - 0.999) != np.float32(1) - np.float32(0.999)


@pytest.mark.parametrize("decay", [0.5, 0.999, 0.9999999])
def test_bias_correction_does_not_cancel(decay):
    for count in (1, 2, 1_000, 10_000_000):
        exact = -np.expm1(count * np.log(decay))
        ours = mo.bias_correction(decay, jnp.int32(count))
        np.testing.assert_allclose(np.float64(ours), exact, rtol=3e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_traced_decay_is_computed_in_float32(dtype):
    decay = jnp.asarray(0.9, dtype)
    weight = jax.jit(lambda d: mo.exponential(d).weight(jnp.int32(3)))(decay)
    held = float(decay.astype(jnp.float32))
    assert weight.dtype == jnp.float32
    np.testing.assert_allclose(weight, (1 - held) / (1 - held**3), rtol=1e-6)


def test_weighting_is_no_schedule():
    """`inject_hyperparams` takes every callable argument for a schedule."""
    assert not callable(mo.exponential(0.9))
    tx = optax.inject_hyperparams(mo.running_average)(mo.arithmetic())
    estimate, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
    np.testing.assert_array_equal(estimate, jnp.ones(2))


@pytest.mark.parametrize(
    "factory", [mo.exponential, mo.exponential_from_zero, mo.exponential_from_first]
)
@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan"), float("inf"), 2])
def test_decay_out_of_range(factory, decay):
    with pytest.raises(ValueError, match=r"`decay` must be a number in \[0, 1\), got"):
        factory(decay)


@pytest.mark.parametrize("count_nonzero", [False, True])
def test_a_weighting_of_ones_own_is_as_wide_as_jax(count_nonzero):
    """A count of int32 makes a weight of float32, also where JAX has float64."""
    with float64():
        weighting = mo.Weighting(lambda count: 1 / (count + 2))
        average = mo.running_average(weighting, None, count_nonzero)
        estimate, _ = average.update(jnp.ones(2), average.init(jnp.ones(2)))
        np.testing.assert_allclose(estimate, 1 / 3, rtol=1e-15)


@pytest.mark.parametrize("count_nonzero", [False, True])
def test_a_weighting_gives_a_number_of_any_kind_and_nothing_else(count_nonzero):
    def estimate(weight):
        average = mo.running_average(mo.Weighting(lambda count: weight), None, count_nonzero)
        return average.update(jnp.ones(2), average.init(jnp.ones(2)))[0]

    for quarter in (Fraction(1, 4), np.longdouble(0.25), np.array(0.25), jnp.asarray(0.25)):
        np.testing.assert_array_equal(estimate(quarter), [0.25, 0.25])
    for other in (None, "0.25", True, 1j, np.full(1, 0.25)):
        with pytest.raises(TypeError, match="`weighting` must hold a function that returns a num"):
            estimate(other)
