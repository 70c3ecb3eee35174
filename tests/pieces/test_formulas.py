import jax.numpy as jnp
import numpy as np
import pytest

import msvag_optax as mo


def moments(mean, variance, variance_of_mean):
    mean = jnp.asarray(mean)
    return mo.Moments(
        mean,
        jnp.square(jnp.abs(mean)) + jnp.asarray(variance),
        jnp.asarray(variance),
        jnp.asarray(variance_of_mean),
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_square_saturates_and_shows_nan(dtype):
    limits = jnp.finfo(dtype)
    largest = float(limits.max)
    x = jnp.asarray([0.0, -3.0, largest / 2, -np.inf, np.nan], dtype)
    squares = np.asarray(mo.square(x), np.float64)
    desired = [0, 9, largest, largest, np.nan]
    np.testing.assert_allclose(squares, desired, rtol=4 * float(limits.eps))
    assert np.nanmax(squares) <= largest


def test_square_of_complex_is_real():
    np.testing.assert_allclose(mo.square(jnp.asarray([3 + 4j, -1j])), [25.0, 1.0])


def test_square_norm_of_leaf_and_of_rows():
    x = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(mo.layer_square_norm()(x), 55.0)
    norm = mo.layer_square_norm(stacked=["blocks"])
    rows = {name: norm.at(name, x) for name in ("blocks", "head")}
    np.testing.assert_array_equal(rows["blocks"](x), [[1.0], [13.0], [41.0]])
    np.testing.assert_array_equal(rows["head"](x), 55.0)


def test_square_norm_saturates():
    assert mo.layer_square_norm()(jnp.full(4, 1e30)) == jnp.finfo(jnp.float32).max


def test_stacked_must_match_and_have_an_axis():
    norm = mo.layer_square_norm(stacked=["block"])
    with pytest.raises(ValueError, match=r"`stacked` has the pattern 'block'.*'head'"):
        norm.check({"head": jnp.ones(2)})
    with pytest.raises(ValueError, match="`stacked` matches 'block', a scalar"):
        norm.at("block", jnp.ones(()))


def test_over_rms_places_its_epsilons():
    gradient, second_moment = jnp.asarray(6.0), jnp.asarray(7.0)
    update = mo.over_rms(2.0, eps_root=9.0)(gradient, second_moment=second_moment)
    np.testing.assert_allclose(update, 6 / (2 + np.sqrt(7 + 9)), rtol=1e-6)
    of_mean = mo.over_rms(2.0)(gradient, second_moment=jnp.asarray(16.0), mean=jnp.asarray(3.0))
    np.testing.assert_allclose(of_mean, 3 / (2 + 4), rtol=1e-6)


def test_over_rms_of_nothing_is_zero_and_of_nan_is_nan():
    formula = mo.over_rms(0.0)
    zero, tiny, nan = jnp.asarray(0.0), jnp.asarray(1e-30), jnp.asarray(jnp.nan)
    assert formula(zero, second_moment=zero) == 0
    assert formula(tiny, second_moment=zero) == 0
    assert jnp.isnan(formula(nan, second_moment=nan))


@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_over_rms_of_the_unsquarable_is_finite(eps):
    formula = mo.over_rms(eps)
    for huge in (jnp.asarray([1e25, -1e37]), jnp.asarray([1e37 + 0j, 1e37j])):
        assert jnp.isfinite(formula(huge, second_moment=mo.square(huge))).all()
    infinite = jnp.asarray([jnp.inf, -jnp.inf])
    assert not jnp.isfinite(formula(infinite, second_moment=mo.square(infinite))).any()


def test_factor_against_its_formula():
    rng = np.random.default_rng(0)
    mean, variance = rng.standard_normal(100), rng.uniform(0, 3, 100)
    expected = mean**2 / (mean**2 + variance)
    factor = mo.variance_adaptation_factor(jnp.asarray(mean), jnp.asarray(variance))
    np.testing.assert_allclose(factor, expected, rtol=1e-5)


def test_factor_minimizes_the_expected_square_error():
    """The claim of the docstring, by brute force: no other factor comes closer."""
    rng = np.random.default_rng(1)
    mean, variance = 0.7, 1.3
    estimates = mean + np.sqrt(variance) * rng.standard_normal(200_000)
    factors = np.linspace(0, 1, 201)
    errors = [np.mean((factor * estimates - mean) ** 2) for factor in factors]
    ours = float(mo.variance_adaptation_factor(jnp.asarray(mean), jnp.asarray(variance)))
    np.testing.assert_allclose(factors[np.argmin(errors)], ours, atol=0.01)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_factor_does_not_square_the_mean(scale):
    mean = jnp.asarray(2.0 * scale, jnp.float32)
    assert mo.variance_adaptation_factor(mean, jnp.asarray(0.0)) == 1
    assert mo.variance_adaptation_factor(mean, mean * jnp.float32(1e8)) >= 0


def test_readings_of_the_same_moments():
    m = moments([2.0, -1.0, 0.0], [12.0, 3.0, 1.0], [4.0, 1.0, 0.5])
    gradient = jnp.asarray([5.0, 5.0, 5.0])
    expected = {
        mo.mean_of: [2.0, -1.0, 0.0],
        mo.sign_of_mean: [1.0, -1.0, 0.0],
        mo.mean_over_rms: [0.5, -0.5, 0.0],
        mo.adapted_mean: [1.0, -0.5, 0.0],
        mo.adapted_gradient: [1.25, 1.25, 0.0],
    }
    for formula, values in expected.items():
        np.testing.assert_allclose(formula(gradient, m), values, rtol=1e-6, atol=1e-37)


def test_saturate_leaves_complex_alone():
    np.testing.assert_array_equal(mo.saturate(jnp.asarray([1j])), [1j])


@pytest.mark.parametrize("variance", [0.0, 1.0])
def test_factor_is_zero_without_a_mean(variance):
    assert mo.variance_adaptation_factor(jnp.asarray(0.0), jnp.asarray(variance)) == 0
