import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from tests import oracle
from tests.optimizers.trajectories import noise, updates_of
from tests.support import float64


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999])
def test_updates_are_the_papers(beta):
    with float64():
        gradients = noise(25, 8).astype(jnp.float64)
        mean = updates_of(mo.msvag(1.0, beta), gradients)
        plain = updates_of(mo.svag(1.0, beta), gradients)
    for count in range(1, 26):
        weights = oracle.exponential_weights(beta, count)
        step = oracle.moments(np.asarray(gradients[:count]), weights)
        np.testing.assert_allclose(-mean[count - 1], oracle.adapted_mean(step), rtol=1e-11)
        expected = oracle.adapted_gradient(step, np.asarray(gradients[count - 1]))
        np.testing.assert_allclose(-plain[count - 1], expected, rtol=1e-11)


def test_a_constant_gradient_is_followed_in_full():
    gradients = jnp.full((30, 4), 0.7)
    for tx in (mo.msvag(0.1), mo.svag(0.1)):
        np.testing.assert_allclose(updates_of(tx, gradients), -0.1 * gradients, rtol=1e-6)


def test_noise_without_signal_is_hardly_followed():
    """At a mean of zero the expected factor of M-SVAG is well below one half, SVAG's below 0.1."""
    gradients = noise(2_000, 50, mean=0.0)
    svag = np.asarray(updates_of(mo.svag(1.0, 0.99), gradients))[1_000:]
    assert np.mean(svag**2) < 0.01
    momentum = np.asarray(updates_of(mo.dissection(1.0, 0.99).momentum_sgd, gradients))[1_000:]
    msvag = np.asarray(updates_of(mo.msvag(1.0, 0.99), gradients))[1_000:]
    assert np.mean(msvag**2) < 0.75 * np.mean(momentum**2)


def test_state_is_found_by_name():
    tx = mo.msvag(lambda count: 0.1 / (1 + count), weight_decay=lambda count: 0.1)
    params = jnp.ones(3)
    _, state = tx.update(params, tx.init(params), params)
    assert optax.tree.get(state, "count") == 1
    np.testing.assert_array_equal(optax.tree.get(state, "mean"), params)
    np.testing.assert_array_equal(optax.tree.get(state, "biased_variance"), jnp.zeros(3))
