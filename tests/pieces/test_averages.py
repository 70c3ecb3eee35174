import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from tests import oracle
from tests.support import float64


def run(estimator, observations):
    state = estimator.init(jax.tree.map(lambda x: jnp.zeros_like(x[0]), observations))
    estimates = []
    steps = jax.tree.leaves(observations)[0].shape[0]
    for step in range(steps):
        estimate, state = estimator.update(
            jax.tree.map(lambda x, i=step: x[i], observations), state
        )
        estimates.append(estimate)
    return estimates, state


@pytest.fixture
def observations():
    return jnp.asarray(np.random.default_rng(0).standard_normal((12, 5)))


def test_average_of_a_quantity(observations):
    estimates, _ = run(mo.running_average(mo.arithmetic(), of=jnp.abs), observations)
    np.testing.assert_allclose(estimates[-1], np.abs(observations).mean(0), rtol=1e-6)


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def square(self, gradient):
        return self.factor * gradient**2


@pytest.mark.parametrize(
    "of",
    [jnp.square, abs, lambda g: g**2, Scale(1.0).square, functools.partial(jnp.power, 1.0)],
    ids=["jnp", "builtin", "lambda", "method", "partial"],
)
def test_any_function_is_a_quantity(of):
    estimates, _ = run(mo.running_average(mo.arithmetic(), of=of), jnp.asarray([[1.0], [1.0]]))
    assert estimates[-1] == 1


def test_quantities_that_differ_from_leaf_to_leaf():
    asked = []

    def power_of(name, shape):
        asked.append((name, shape.shape))
        power = "abc".index(name)
        return lambda g: g**power

    estimator = mo.running_average(mo.arithmetic(), of=mo.PerLeaf(power_of))
    gradients = {name: jnp.full((3, 1), 2.0) for name in "abc"}
    estimates, _ = run(estimator, gradients)
    assert jax.tree.map(float, jax.tree.map(jnp.squeeze, estimates[-1])) == {"a": 1, "b": 2, "c": 4}
    once_by_init_and_once_by_update = 2 * [(name, (1,)) for name in "abc"]
    assert asked == once_by_init_and_once_by_update


def test_counting_nonzero_entries_only():
    observations = jnp.asarray([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0], [5.0, 4.0, 0.0]])
    estimator = mo.running_average(mo.arithmetic(), of=mo.square, count_nonzero=True)
    estimates, state = run(estimator, observations)
    np.testing.assert_allclose(estimates[-1], [17.0, 10.0, 0.0])
    np.testing.assert_array_equal(state.observations, [2, 2, 0])


def test_a_gradient_too_small_to_square_is_counted():
    estimator = mo.running_average(mo.arithmetic(), of=mo.square, count_nonzero=True)
    _, state = run(estimator, jnp.asarray([[1e-30], [2.0]]))
    np.testing.assert_array_equal(state.observations, [2])
    np.testing.assert_allclose(state.average, [2.0])


def test_counting_nonzero_layers_is_the_cure_for_a_zero_start():
    """NovoGrad's norm after a zero first gradient: the first nonzero norm counts in full."""
    observations = jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    weighting = mo.exponential_from_first(0.999)
    cured, state = run(
        mo.running_average(weighting, of=mo.layer_square_norm(), count_nonzero=True), observations
    )
    plain, _ = run(mo.running_average(weighting, of=mo.layer_square_norm()), observations)
    np.testing.assert_allclose(cured[-1], 25.0)
    np.testing.assert_allclose(plain[-1], 0.025, rtol=1e-6)
    assert state.observations.shape == ()


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.9])
def test_count_nonzero_with_an_exponential_weighting(decay):
    observations = np.asarray([0.0, 1.0, 0.0, 4.0, 2.0])
    estimator = mo.running_average(mo.exponential(decay), count_nonzero=True)
    estimates, _ = run(estimator, jnp.asarray(observations)[:, None])
    seen = observations[observations != 0]
    expected = oracle.exponential_weights(decay, 3) @ seen if decay else 2.0
    np.testing.assert_allclose(estimates[-1], [expected], rtol=1e-6)


def test_averaged_momentum_in_a_chain_is_optax_ema(observations):
    ours, _ = run(mo.running_average(mo.exponential(0.9)), observations)
    reference, _ = run(optax.ema(0.9), observations)
    np.testing.assert_allclose(ours[-1], reference[-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("weighting", "newest"),
    [
        (mo.arithmetic(), lambda t: 1 / t),
        (mo.exponential(0.7), lambda t: 0.3 / (1 - 0.7**t)),
        (mo.exponential_from_first(0.7), lambda t: np.where(t == 1, 1.0, 0.3)),
    ],
    ids=["arithmetic", "exponential", "exponential_from_first"],
)
def test_moments_against_their_definition(observations, weighting, newest):
    with float64():
        wide = jnp.asarray(np.asarray(observations), jnp.float64)
        estimates, state = run(mo.running_moments(weighting), wide)
        for count in range(1, len(wide) + 1):
            weights = oracle.weights_of(newest(np.arange(1, count + 1)))
            expected = oracle.moments(np.asarray(wide[:count]), weights)
            for ours, exact in zip(estimates[count - 1], expected, strict=True):
                np.testing.assert_allclose(ours, exact, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(state.sum_of_squared_weights, np.sum(weights**2), rtol=1e-14)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.999])
def test_sum_of_squared_weights_is_the_papers(beta):
    with float64():
        estimator = mo.running_moments(mo.exponential(beta))
        _, state = run(estimator, jnp.ones((30, 1)))
        paper = (1 - beta) * (1 + beta**30) / ((1 + beta) * (1 - beta**30))
        np.testing.assert_allclose(state.sum_of_squared_weights, paper, rtol=1e-12)


def test_arithmetic_moments_are_the_sample_variance(observations):
    estimates, _ = run(mo.running_moments(mo.arithmetic()), observations)
    np.testing.assert_allclose(estimates[-1].variance, np.var(observations, axis=0, ddof=1), 1e-5)
    np.testing.assert_allclose(
        estimates[-1].variance_of_mean, np.var(observations, axis=0, ddof=1) / 12, rtol=1e-5
    )


def test_first_moments_have_no_variance(observations):
    estimates, _ = run(mo.running_moments(mo.exponential(0.9)), observations[:1])
    np.testing.assert_array_equal(estimates[0].mean, observations[0])
    np.testing.assert_array_equal(estimates[0].variance, jnp.zeros(5))
    np.testing.assert_array_equal(estimates[0].variance_of_mean, jnp.zeros(5))


def test_moments_can_be_read_from_the_state(observations):
    estimates, state = run(mo.running_moments(mo.exponential(0.9)), observations)
    for ours, given in zip(mo.moments_in(state), estimates[-1], strict=True):
        np.testing.assert_allclose(ours, given, rtol=1e-5)


def test_state_in_low_precision_is_asked_for(observations):
    average = mo.running_average(mo.exponential(0.9), dtype=jnp.bfloat16)
    estimates, state = run(average, observations)
    assert state.average.dtype == jnp.bfloat16
    assert estimates[-1].dtype == jnp.float32
    moments = mo.running_moments(mo.exponential(0.9), nu_dtype=jnp.float16)
    _, state = run(moments, observations)
    assert (state.mean.dtype, state.biased_variance.dtype) == (jnp.float32, jnp.float16)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_gradients_lose_nothing(observations, dtype):
    """Squares of float16 gradients, and sums of them, would overflow in float16."""
    low = (300 * observations).astype(dtype)
    wide = low.astype(jnp.float32)
    for of in (mo.square, mo.layer_square_norm()):
        ours, _ = run(mo.running_average(mo.arithmetic(), of=of), low)
        exact, _ = run(mo.running_average(mo.arithmetic(), of=of), wide)
        np.testing.assert_array_equal(ours[-1], exact[-1])


@pytest.mark.parametrize("shapes", [[(4,), ()], [()], [(4,), (2, 2)]], ids=str)
@pytest.mark.parametrize("stacked", [[], ["0"]], ids=str)
def test_sums_that_overflow_saturate(shapes, stacked):
    if stacked and shapes[0] == ():
        shapes = [(2,), ()]
    gradients = {str(i): jnp.full(shape, 1e30) for i, shape in enumerate(shapes)}
    norms = mo.running_average(mo.exponential(0.5), of=mo.layer_square_norm(stacked=stacked))
    estimates, state = norms.update(gradients, norms.init(gradients))
    for leaf in jax.tree.leaves((estimates, state.average)):
        np.testing.assert_array_equal(leaf, np.finfo(np.float32).max)


@pytest.mark.parametrize(
    "weighting", [mo.exponential(0.0), mo.exponential_from_zero(0), mo.exponential_from_first(0.0)]
)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_at_a_decay_of_zero_nothing_old_is_left(weighting, bad):
    observations = jnp.asarray([[1e30], [bad], [2.0], [1e-30]])
    estimates, _ = run(mo.running_average(weighting), observations)
    np.testing.assert_array_equal(estimates, observations)
    moments, state = run(mo.running_moments(weighting), observations)
    np.testing.assert_array_equal([m.mean for m in moments], observations)
    assert not any(m.variance.any() for m in moments)
    assert not state.biased_variance.any()


def test_at_a_traced_decay_of_zero_the_newest_is_kept_to_an_ulp_of_the_larger():
    def last(decay):
        return run(mo.running_average(mo.exponential(decay)), observations)[0][-1]

    observations = jnp.asarray([[1.0, 1e8, 1e37], [2.0, 1.0, -1e37]])
    eps = jnp.finfo(jnp.float32).eps
    bound = eps * np.abs(observations).max(0)
    assert (np.abs(jax.jit(last)(0.0) - observations[-1]) <= bound).all()


def test_a_nan_stays_in_an_average():
    estimates, _ = run(mo.running_average(mo.exponential(0.5)), jnp.asarray([[jnp.nan], [1.0]]))
    assert np.isnan(estimates).all()


@pytest.mark.parametrize("of", [None, jnp.abs, jnp.asarray, lambda g: jnp.max(jnp.abs(g))])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_an_infinite_gradient_is_seen_in_every_quantity(of, bad):
    average = mo.running_average(mo.exponential(0.5), of=of)
    estimates, _ = run(average, jnp.asarray([[1.0, 1.0], [1.0, bad], [1.0, 1.0]]))
    assert [bool(np.isfinite(e).all()) for e in estimates] == [True, False, False]


def test_norms_on_several_devices_are_averaged_where_they_are():
    """Outside of `jit`, as where stages of a pipeline are placed by hand."""
    devices = jax.devices()[:2]
    gradients = {d.id: jax.device_put(jnp.ones(4), d) for d in devices}
    tx = mo.novograd(0.1)
    state = tx.init(gradients)
    for _ in range(2):
        updates, state = tx.update(gradients, state, gradients)
    norms = optax.tree.get(state, "average")
    for device in devices:
        assert updates[device.id].devices() == norms[device.id].devices() == {device}
        assert norms[device.id] == 4


def double_moments():
    return mo.running_moments(mo.exponential(0.5))


def test_running_max_of_several_arrays(observations):
    moments, estimates = double_moments(), []
    state = moments.init(observations[0])
    for x in observations:
        moment, state = moments.update(jnp.asarray(x), state)
        estimates.append(moment)
    largest, state = run(mo.running_max(double_moments()), observations)
    for field, value in largest[-1]._asdict().items():
        highest = np.max([getattr(e, field) for e in estimates], axis=0)
        np.testing.assert_allclose(value, np.maximum(highest, 0), rtol=1e-6)
    assert isinstance(state.maximum, mo.Moments)


def test_bias_corrected_of_several_arrays(observations):
    moments, _ = double_moments().update(observations[0], double_moments().init(observations[0]))
    corrected, _ = run(mo.bias_corrected(double_moments(), 0.75), observations[:1])
    for one, other in zip(corrected[0], moments, strict=True):
        np.testing.assert_allclose(one, 4 * other, rtol=1e-6)


def test_running_max_keeps_the_largest(observations):
    newest = mo.running_average(mo.exponential(0.0), of=mo.square)
    estimates, _ = run(mo.running_max(newest), observations)
    np.testing.assert_allclose(estimates[-1], np.square(observations).max(0), rtol=1e-6)


def test_running_max_of_norms_has_their_shape():
    estimator = mo.running_max(mo.running_average(mo.arithmetic(), of=mo.layer_square_norm()))
    estimates, state = run(estimator, jnp.ones((2, 3)))
    assert state.maximum.shape == estimates[-1].shape == ()


def test_bias_corrected_average_is_the_unbiased_one(observations):
    corrected = mo.bias_corrected(mo.running_average(mo.exponential_from_zero(0.9)), 0.9)
    ours, _ = run(corrected, observations)
    unbiased, _ = run(mo.running_average(mo.exponential(0.9)), observations)
    for a, b in zip(ours, unbiased, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_maximum_then_correction_is_not_correction_then_maximum():
    observations = jnp.asarray([[10.0], [1.0], [1.0]])
    raw = mo.running_average(mo.exponential_from_zero(0.5), of=mo.square)
    late, _ = run(mo.bias_corrected(mo.running_max(raw), 0.5), observations)
    early, _ = run(mo.running_max(mo.bias_corrected(raw, 0.5)), observations)
    np.testing.assert_allclose(late[-1], [50 / 0.875], rtol=1e-6)
    np.testing.assert_allclose(early[-1], [100.0], rtol=1e-6)


@pytest.mark.parametrize("build", [mo.running_average, mo.running_moments])
def test_weighting_must_be_one(build):
    with pytest.raises(TypeError, match=r"`weighting` must be a Weighting such as.*got 0.9"):
        build(0.9)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="`of` must be a function of one array, or None, got 2"):
        mo.running_average(mo.arithmetic(), of=2)
    with pytest.raises(TypeError, match=r"`of` must be a function of one array.*forget to call it"):
        mo.running_average(mo.arithmetic(), of=mo.layer_square_norm)
    with pytest.raises(TypeError, match="`count_nonzero` must be True or False, got 1"):
        mo.running_average(mo.arithmetic(), count_nonzero=1)
    with pytest.raises(ValueError, match="`nu_dtype` must be None or a real floating-point dtype"):
        mo.running_moments(mo.arithmetic(), nu_dtype=jnp.int32)
    with pytest.raises(ValueError, match=r"`dtype` must be .* 16 bits or more"):
        mo.running_average(mo.arithmetic(), dtype=jnp.float8_e4m3fn)
    with pytest.raises(TypeError, match="`estimator` must be a GradientTransformation"):
        mo.running_max(mo.square)
    with pytest.raises(TypeError, match="`estimator` must be a GradientTransformation"):
        mo.bias_corrected(mo.square, 0.9)


@pytest.mark.parametrize("count_nonzero", [False, True])
def test_weight_may_be_a_plain_number(count_nonzero):
    newest = mo.Weighting(lambda count: 1.0)
    average = mo.running_average(newest, count_nonzero=count_nonzero)
    estimates, _ = run(average, jnp.asarray([[1.0], [2.0]]))
    assert estimates[-1] == 2
    estimates, _ = run(mo.running_moments(newest), jnp.asarray([[1.0], [2.0]]))
    assert estimates[-1].mean == 2
    with pytest.raises(TypeError, match="`weighting` must be a Weighting"):
        mo.running_average(mo.Weighting(0.5))


def test_mismatched_shape_names_the_leaf():
    estimator = mo.running_moments(mo.arithmetic())
    state = estimator.init({"a": jnp.ones(3), "b": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"update of .b. has shape \(1,\), .* shape \(3,\)"):
        estimator.update({"a": jnp.ones(3), "b": jnp.ones(1)}, state)


def test_a_correction_that_overflows_saturates():
    average = mo.running_average(mo.exponential_from_zero(0.9), of=mo.layer_square_norm())
    estimates, _ = run(mo.bias_corrected(average, 0.9), jnp.full((20, 3), 1e30))
    assert np.isfinite(estimates).all()
