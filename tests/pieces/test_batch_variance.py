"""Noise within a batch: from its examples, from its microbatches, and as `watch_noise` keeps it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating

import msvag_optax as mo
from benchmarks import noise

RNG = np.random.default_rng(0)
EXAMPLES = {  # the gradients of 12 examples
    "w": jnp.asarray(RNG.normal(1.0, 2.0, (12, 3, 4)), jnp.float32),
    "b": jnp.asarray(RNG.normal(-1.0, 0.5, (12, 4)), jnp.float32),
}
PARAMS = jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), EXAMPLES)


def sample(examples=EXAMPLES):
    """The gradient of a batch, and its extra arguments, as optax makes them."""
    gradient = jax.tree.map(lambda g: g.mean(0), examples)
    squares = jax.tree.map(lambda g, m: jnp.sum(jnp.abs(g - m) ** 2, 0), examples, gradient)
    size = len(jax.tree.leaves(examples)[0])
    return gradient, {"sum_sq_diff_grads": squares, "sample_size": size}


def parts(examples=EXAMPLES, sizes=(3, 3, 3, 3), params=PARAMS):
    """The same from microbatches of these sizes."""
    batch, start = mo.Microbatches.init(params), 0
    for size in sizes:
        part = jax.tree.map(lambda g, a=start, b=size: g[a : a + b].mean(0), examples)
        batch, start = batch.add(part, size), start + size
    return batch.result()


def assert_close(actual, desired, **tolerance):
    jax.tree.map(lambda a, d: np.testing.assert_allclose(a, d, **tolerance), actual, desired)


def test_estimate_is_the_sample_variance_of_the_examples():
    gradient, extra = sample()
    estimator = mo.batch_variance()
    moments, _ = jax.jit(estimator.update)(gradient, estimator.init(PARAMS), **extra)
    for name, examples in EXAMPLES.items():
        one = moments[name]
        np.testing.assert_allclose(one.mean, examples.mean(0), rtol=1e-6)
        np.testing.assert_allclose(one.second_moment, (examples**2).mean(0), rtol=1e-5)
        np.testing.assert_allclose(one.variance, examples.var(0, ddof=1), rtol=1e-5)
        np.testing.assert_allclose(one.variance_of_mean, examples.var(0, ddof=1) / 12, rtol=1e-5)


def test_formulas_read_it():
    gradient, extra = sample()
    tx = mo.from_estimates(mo.adapted_mean, moments=mo.batch_variance())
    updates, _ = tx.update(gradient, tx.init(PARAMS), **extra)
    noise = jax.tree.map(lambda g: g.var(0, ddof=1) / 12, EXAMPLES)
    factor = jax.tree.map(mo.variance_adaptation_factor, gradient, noise)
    assert_close(updates, jax.tree.map(jnp.multiply, gradient, factor), rtol=1e-5)


AROUND = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "dependable": mo.dependable,
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(
        lambda rate: optax.chain(tx, optax.scale(rate))
    )(rate=1.0),
    "lazy_rows": mo.lazy_rows,
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": False}),
    "partition": lambda tx: optax.partition(
        {"own": tx, "other": optax.identity()}, {"w": "own", "b": "other"}
    ),
}


@pytest.mark.parametrize("wrap", AROUND.values(), ids=AROUND)
def test_formulas_read_it_inside_of_wrappers(wrap):
    """Those of optax that leave holes hand on the whole tree of squares."""
    gradient, extra = sample()
    adapted = mo.from_estimates(mo.adapted_mean, moments=mo.batch_variance())
    tx = wrap(adapted)
    updates, _ = tx.update(gradient, tx.init(PARAMS), PARAMS, **extra)
    expected, _ = adapted.update(gradient, adapted.init(PARAMS), **extra)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)


def test_optax_hands_it_the_examples():
    """Through `aggregating`, at once and over accumulated microbatches."""
    whole = aggregating.process(
        optax.identity(),
        aggregating.get_per_element_mean_and_sum_sq_diff_grads(),
        optax.chain(mo.watch_noise(mo.arithmetic()), optax.sgd(0.1)),
        aggregator_has_aux=True,
    )
    _, whole_state = jax.jit(whole.update)(EXAMPLES, whole.init(PARAMS), PARAMS)
    halves = aggregating.process(
        optax.identity(),
        aggregating.get_per_element_mean_and_sum_sq_diff_grads(accumulation_steps=2),
        optax.chain(mo.watch_noise(mo.arithmetic()), optax.sgd(0.1)),
        aggregator_has_aux=True,
    )
    halves_state = halves.init(PARAMS)
    for half in (slice(6), slice(6, 12)):
        examples = jax.tree.map(lambda g, half=half: g[half], EXAMPLES)
        _, halves_state = jax.jit(halves.update)(examples, halves_state, PARAMS)
    tx = mo.watch_noise(mo.arithmetic())
    gradient, extra = sample()
    _, state = tx.update(gradient, tx.init(PARAMS), PARAMS, **extra)
    for other in (whole_state, halves_state):
        reading = mo.noise_scale(other, details=True)
        assert reading.examples == 12
        np.testing.assert_allclose(reading.value, mo.noise_scale(state), rtol=1e-5)


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (1, 6, 2, 3)], ids=["equal", "unequal"])
def test_microbatches_of_any_sizes_tell_the_variance_of_an_example(sizes):
    """The mean over many draws is within four standard errors of the truth, for each element."""
    draws = jnp.asarray(np.random.default_rng(1).normal(3.0, 2.0, (4000, 12, 2)), jnp.float32)

    @jax.jit
    @jax.vmap
    def estimates(examples):
        mean, extra = parts(examples, sizes, jnp.zeros(2))
        estimator = mo.batch_variance()
        moments, _ = estimator.update(mean, estimator.init(mean), **extra)
        return moments.mean, moments.variance, moments.variance_of_mean

    for estimate, truth in zip(estimates(draws), (3.0, 4.0, 4.0 / 12), strict=True):
        error = np.std(estimate, axis=0) / np.sqrt(len(draws))
        assert np.all(np.abs(np.mean(estimate, axis=0) - truth) < 4 * error)
    np.testing.assert_allclose(estimates(draws)[0], draws.mean(1), rtol=1e-5, atol=1e-6)


def test_microbatches_of_one_example_are_the_examples():
    assert_close(parts(sizes=12 * (1,)), sample(), rtol=1e-5)


def test_microbatches_under_scan_are_those_of_a_loop():
    def step(batch, part):
        return batch.add(part, 3), None

    means = jax.tree.map(lambda g: g.reshape(4, 3, *g.shape[1:]).mean(1), EXAMPLES)
    scanned, _ = jax.lax.scan(step, mo.Microbatches.init(PARAMS), means)
    assert_close(scanned.result(), parts(), rtol=1e-5)


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_part_without_examples_is_no_part(at):
    """Wherever it comes, with a gradient that is 0 / 0, it changes nothing."""
    means = jax.tree.map(lambda g: np.reshape(g, (4, 3, *g.shape[1:])).mean(1), EXAMPLES)
    means = jax.tree.map(lambda g: np.insert(g, at, np.nan, axis=0), means)
    sizes = np.insert(np.full(4, 3), at, 0)

    def step(batch, part):
        return batch.add(*part), None

    batch, _ = jax.lax.scan(step, mo.Microbatches.init(PARAMS), (means, sizes))
    assert batch.count == 4
    assert_close(batch.result(), parts(), rtol=1e-5)


def test_microbatches_do_not_cancel():
    """The mean is thousands of deviations: the difference of two squares has no digit left."""
    examples = jnp.asarray([[1e5 + i] for i in range(8)])
    _, extra = parts(examples, (1,) * 8, jnp.zeros(1))
    np.testing.assert_allclose(extra["sum_sq_diff_grads"], 42, rtol=0.01)


def test_microbatches_of_low_precision_and_of_leaves_without_gradient():
    params = {"w": jnp.zeros(2, jnp.bfloat16), "steps": jnp.asarray(0), "frozen": None}
    batch = mo.Microbatches.init(params)
    for value in (1.0, 2.0, 4.0):
        steps = np.zeros((), jax.dtypes.float0)
        gradient = {"w": jnp.full(2, value, jnp.bfloat16), "steps": steps, "frozen": None}
        batch = batch.add(gradient, 1)
    gradient, extra = batch.result()
    assert gradient["w"].dtype == jnp.float32
    assert gradient["steps"] is None
    np.testing.assert_allclose(gradient["w"], 7 / 3, rtol=1e-6)
    np.testing.assert_allclose(extra["sum_sq_diff_grads"]["w"], 14 / 3, rtol=1e-6)


def test_complex_gradients_have_a_real_variance():
    examples = jnp.asarray(RNG.normal(size=(6, 2)) + 1j * RNG.normal(size=(6, 2)), jnp.complex64)
    expected = jnp.var(examples, axis=0, ddof=1)
    estimator = mo.batch_variance()
    one_by_one = parts(examples, 6 * (1,), jnp.zeros(2, jnp.complex64))
    for gradient, extra in (sample(examples), one_by_one):
        moments, _ = estimator.update(gradient, estimator.init(gradient), **extra)
        np.testing.assert_allclose(moments.variance, expected, rtol=1e-5)


def test_unbiased_on_a_linear_model():
    """Within four standard errors of the truth, which a linear model with Gaussian inputs has."""
    weights, target, batch = jnp.asarray([1.0, -2.0]), jnp.asarray([0.5, 0.5]), 8

    def loss(w, x):
        return 0.5 * (x @ (w - target)) ** 2

    def one(key):
        x = jax.random.normal(key, (batch, 2))
        gradients = jax.vmap(jax.grad(loss), (None, 0))(weights, x)
        gradient, extra = sample(gradients)
        tx = mo.watch_noise(mo.arithmetic())
        _, state = tx.update(gradient, tx.init(weights), **extra)
        return state.variance, state.square_length

    variance, square_length = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 20_000))
    away = np.asarray(weights - target)
    # x xᵀ d has the mean d, and the covariance |d|² + d dᵀ.
    for estimate, truth in ((variance, 3 * away @ away), (square_length, away @ away)):
        error = np.std(estimate) / np.sqrt(len(estimate))
        assert abs(np.mean(estimate) - truth) < 4 * error
        assert error < 0.05 * truth


def test_independent_gradients_are_read_exactly():
    """300 batches of 64: variance within 1 %, noise scale within 4 standard errors of its own."""
    mean, deviation, batch, batches = 0.5, 2.0, 64, 300
    draws = np.random.default_rng(2).normal(mean, deviation, (batches, batch, 50))
    tx = mo.watch_noise(mo.arithmetic())

    def step(state, examples):
        gradient, extra = sample(examples)
        _, state = tx.update(gradient, state, **extra)
        newest = tx.update(gradient, tx.init(gradient), **extra)[1]
        return state, (newest.variance / batch, newest.square_length)

    state, (noise, signal) = jax.lax.scan(
        step, tx.init(jnp.zeros(50)), jnp.asarray(draws, jnp.float32)
    )
    np.testing.assert_allclose(state.variance, 50 * deviation**2, rtol=0.01)
    scale = mo.noise_scale(state, details=True)
    # The error of a quotient of two means, to first order.
    residuals = (np.asarray(noise) - scale.value * np.asarray(signal)) / np.mean(signal)
    error = np.std(residuals) / np.sqrt(batches)
    truth = deviation**2 / batch / mean**2
    assert abs(scale.value - truth) < 4 * error
    assert error < 0.05 * truth
    assert (scale.source, scale.examples) == ("within steps", 64)
    np.testing.assert_allclose(scale.steps, batches, rtol=1e-4)
    ratio = mo.signal_to_noise(state)
    np.testing.assert_allclose(ratio, scale.value**-0.5, rtol=1e-5)


def test_a_gradient_without_signal_is_read_as_such_and_refused():
    """The length that noise adds is taken off: what is left is as often negative as positive."""
    draws = np.random.default_rng(3).normal(size=(400, 8, 100))
    tx = mo.watch_noise(mo.arithmetic())

    @jax.jit
    @jax.vmap
    def lengths(examples):
        gradient, extra = sample(examples)
        return tx.update(gradient, tx.init(gradient), **extra)[1]

    states = lengths(jnp.asarray(draws, jnp.float32))
    assert 0.3 < np.mean(states.square_length < 0) < 0.7
    first = int(np.argmax(states.square_length < 0))
    state = jax.tree.map(lambda x: x[first], states)
    with pytest.raises(ValueError, match="No signal can be told from noise in 1 gradients within"):
        mo.noise_scale(state)
    assert jnp.isnan(jax.jit(mo.noise_scale)(state))
    assert jnp.isnan(mo.noise_scale(state, details=True).value)
    assert mo.signal_to_noise(state) == 0


@pytest.mark.slow
@pytest.mark.parametrize("batch", [32, 128])
def test_at_a_tuned_rate_it_is_right_where_reading_over_steps_is_not(batch):
    read = noise.digits(batch)
    for name in ("examples", "4 microbatches"):
        assert np.all(np.isfinite(read[name]))
        assert np.median(np.abs(np.log2(read[name] / read["exact"]))) <= 1.5
    assert np.mean(np.isfinite(read["over steps"])) < 0.5
