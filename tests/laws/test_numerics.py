"""What float32 can give: (M-)SVAG against a float64 oracle, and averages after a million steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from tests import oracle

STEPS = 10_000
RATIOS = 10.0 ** np.arange(-3, 4)  # of signal to noise
CHECKED = [10, 100, 1_000, STEPS]


@functools.cache
def gradients() -> np.ndarray:
    """Float32 gradients of all ratios, 50 elements each, at scales from 0.01 to 100."""
    rng = np.random.default_rng(0)
    signal = np.repeat(RATIOS, 50)
    scale = 10.0 ** rng.uniform(-2, 2, signal.size)
    return ((signal + rng.standard_normal((STEPS, signal.size))) * scale).astype(np.float32)


def run(estimator, observations):
    """The estimates after each of the checked steps."""

    def step(state, gradient):
        estimate, state = estimator.update(gradient, state)
        return state, estimate

    def scan(observations):
        return jax.lax.scan(step, estimator.init(observations[0]), observations)[1]

    return jax.jit(lambda x: jax.tree.map(lambda e: e[np.asarray(CHECKED) - 1], scan(x)))(
        observations
    )


@functools.cache
def estimates(beta):
    """(checked step, ours, the oracle's, the root mean square gradient) for a decay."""
    ours = run(mo.running_moments(mo.exponential(beta)), gradients())
    rows = []
    for index, count in enumerate(CHECKED):
        seen = gradients()[:count]
        exact = oracle.moments(seen, oracle.exponential_weights(beta, count))
        rms = np.sqrt(np.mean(np.square(seen, dtype=np.float64), axis=0))
        rows.append((count, jax.tree.map(lambda x, i=index: x[i], ours), exact, rms))
    return rows


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 0.999])
def test_variance_in_float32(beta):
    for _, ours, exact, _ in estimates(beta):
        for estimate, truth in (
            (ours.variance, exact.variance),
            (ours.variance_of_mean, exact.variance_of_mean),
        ):
            error = np.abs(np.asarray(estimate, np.float64) - truth) / truth
            assert np.median(error) <= 2e-5
            assert np.max(error) <= 1e-3


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 0.999])
def test_update_in_float32(beta):
    for count, ours, exact, rms in estimates(beta):
        gradient = gradients()[count - 1]
        for update, truth in (
            (mo.adapted_mean(gradient, ours), oracle.adapted_mean(exact)),
            (mo.adapted_gradient(gradient, ours), oracle.adapted_gradient(exact, gradient)),
        ):
            assert np.max(np.abs(np.asarray(update, np.float64) - truth) / rms) <= 2e-6


@pytest.mark.parametrize("beta", [0.9, 0.999])
def test_difference_of_averages_would_not_do(beta):
    """Why the moments are centred: v - m² is useless where the signal is a thousand noises."""
    loud = np.repeat(RATIOS, 50) == 1e3
    second_moment = run(mo.running_average(mo.exponential(beta), of=mo.square), gradients())
    for index, (_, ours, exact, _) in enumerate(estimates(beta)[2:], start=2):
        difference = np.asarray(second_moment[index] - np.square(ours.mean), np.float64)
        naive = difference * (exact.variance / (exact.second_moment - exact.mean**2))
        assert np.median(np.abs(naive - exact.variance)[loud] / exact.variance[loud]) > 0.05


@pytest.mark.parametrize("optimizer", [mo.msvag, mo.svag])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.9999])
def test_first_factor_is_exactly_one(optimizer, beta):
    gradient = jnp.asarray([1e-3, -7.7, 0.1, 1e20, -1e-20, 0.0])
    tx, sgd = optimizer(0.3, beta), optax.sgd(0.3)
    for update in (tx.update, jax.jit(tx.update)):
        ours, _ = update(gradient, tx.init(gradient))
        np.testing.assert_array_equal(ours, sgd.update(gradient, sgd.init(gradient))[0])


@pytest.mark.parametrize("optimizer", [mo.msvag, mo.svag])
def test_beta_zero_is_sgd_bit_for_bit(optimizer):
    rng = np.random.default_rng(1)
    observations = jnp.asarray(rng.standard_normal((50, 40)) * 10.0 ** rng.integers(-8, 8, 40))
    ours, sgd = optimizer(0.3, beta=0.0), optax.sgd(0.3)

    @jax.jit
    def updates(observations):
        def step(states, gradient):
            mine, state = ours.update(gradient, states[0])
            reference, sgd_state = sgd.update(gradient, states[1])
            return (state, sgd_state), (mine, reference)

        start = (ours.init(observations[0]), sgd.init(observations[0]))
        return jax.lax.scan(step, start, observations)[1]

    np.testing.assert_array_equal(*updates(observations.astype(jnp.float32)))


def test_scheduled_beta_stays_unbiased():
    """Under `inject_hyperparams` the weights change with beta, and their sum stays one."""
    steps = 30
    schedule = optax.linear_schedule(0.5, 0.95, steps)
    rng = np.random.default_rng(2)
    observations = (3.0 + rng.standard_normal((steps, 20))).astype(np.float32)
    tx = optax.inject_hyperparams(mo.msvag)(learning_rate=1.0, beta=schedule)
    state = tx.init(observations[0])
    update = jax.jit(tx.update)
    newest = []
    for index, gradient in enumerate(observations):
        updates, state = update(jnp.asarray(gradient), state, jnp.zeros(20))
        beta = float(schedule(index))
        newest.append((1 - beta) / (1 - beta ** (index + 1)))
        exact = oracle.moments(observations[: index + 1], oracle.weights_of(np.asarray(newest)))
        np.testing.assert_allclose(-updates, oracle.adapted_mean(exact), rtol=1e-5, atol=1e-6)
    constant = jnp.full(20, 7.25)
    state = tx.init(constant)
    for _ in range(steps):
        updates, state = update(constant, state, jnp.zeros(20))
    np.testing.assert_allclose(updates, -constant, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 0.9, 0.999, 0.99999])
@pytest.mark.parametrize("traced", [False, True])
def test_weights_against_float64(decay, traced):
    counts = np.asarray([1, 2, 3, 10, 1_000, 100_000, 10_000_000])
    held = np.float64(np.float32(decay)) if traced else np.float64(decay)
    exact = (1 - held) / -np.expm1(counts * np.log1p(held - 1)) if decay else np.ones(counts.size)

    def weights(decay, counts):
        return mo.exponential(decay).weight(counts)

    ours = (jax.jit(weights) if traced else weights)(
        jnp.float32(decay) if traced else decay, counts
    )
    np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=5e-7)
    assert ours[0] == 1


def test_traced_decay_of_one_is_the_arithmetic_mean():
    counts = jnp.asarray([1, 2, 3, 1_000, 1_000_000])
    weights = jax.jit(lambda decay: mo.exponential(decay).weight(counts))
    for dtype in (jnp.float32, jnp.bfloat16):
        np.testing.assert_array_equal(
            weights(jnp.asarray(1.0, dtype)), mo.arithmetic().weight(counts)
        )


def test_amsgrad_at_a_traced_decay_of_one():
    """In bfloat16 0.999 is 1; the corrections then have a limit, and it is not 0/0."""

    def update(b2):
        tx = mo.amsgrad(0.1, b1=0.0, b2=b2, eps=0.0)
        state = tx.init(jnp.zeros(()))
        for gradient in (1.0, 2.0, 3.0):
            update, state = tx.update(jnp.asarray(gradient), state, jnp.zeros(()))
        return update

    exact = -0.1 * 3 / np.sqrt((1 + 4 + 9) / 3)
    np.testing.assert_allclose(jax.jit(update)(jnp.asarray(1.0, jnp.bfloat16)), exact, rtol=1e-6)


MILLION = 1_000_000


def _long_gradients(steps, dtype):
    """Gradients of three scales, zero at every third step."""
    step = np.arange(steps)[:, None]
    values = (1 + np.sin(step * 0.7)) * np.asarray([1e-3, 1.0, 30.0])
    return jnp.asarray(np.where(step % 3 == 0, 0, values)).astype(dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_expectigrad_after_a_million_steps(dtype):
    observations = _long_gradients(MILLION, dtype)
    tx = mo.expectigrad(0.0)

    @jax.jit
    def run(observations):
        start = tx.init(observations[0])
        state, _ = jax.lax.scan(lambda s, g: (tx.update(g, s)[1], None), start, observations)
        return optax.tree.get(state, "second_moment")

    state = run(observations)
    exact = np.asarray(observations, np.float64)
    count = np.count_nonzero(exact, axis=0)
    assert count.min() > 600_000
    assert state.observations.dtype == jnp.int32
    np.testing.assert_array_equal(state.observations, count)
    np.testing.assert_allclose(state.average, np.square(exact).sum(0) / count, rtol=2e-4)


def test_counters_saturate():
    most = jnp.iinfo(jnp.int32).max

    def full_counter(leaf):
        return jnp.full_like(leaf, most) if leaf.dtype == jnp.int32 else leaf

    for tx in (
        mo.running_average(mo.arithmetic()),
        mo.running_average(mo.arithmetic(), count_nonzero=True),
        mo.running_moments(mo.exponential(0.9)),
        mo.msvag(0.1),
    ):
        state = jax.tree.map(full_counter, tx.init(jnp.ones(2)))
        estimate, state = tx.update(jnp.ones(2), state, jnp.ones(2))
        for leaf in jax.tree.leaves(state):
            assert leaf.dtype != jnp.int32 or (leaf == most).all()
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(estimate))
