"""The two-by-two of Dissecting Adam, read off one set of moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from tests.optimizers.trajectories import noise, updates_of

BETA = 0.8


@pytest.fixture
def gradients():
    return noise(30, 8)


def test_momentum_sgd_is_the_unbiased_average(gradients):
    reference = optax.chain(optax.ema(BETA), optax.scale(-0.1))
    ours = updates_of(mo.dissection(0.1, BETA).momentum_sgd, gradients)
    np.testing.assert_allclose(ours, updates_of(reference, gradients), rtol=1e-4, atol=1e-7)


def test_sign_descent_is_the_sign_of_momentum_sgd(gradients):
    four = mo.dissection(0.1, BETA)
    momentum = updates_of(four.momentum_sgd, gradients)
    np.testing.assert_allclose(updates_of(four.m_ssd, gradients), 0.1 * jnp.sign(momentum), 1e-6)


def test_adam_is_adam_without_epsilon(gradients):
    reference = optax.adam(0.1, BETA, BETA, eps=0.0)
    ours = updates_of(mo.dissection(0.1, BETA).adam, gradients)
    np.testing.assert_allclose(ours, updates_of(reference, gradients), rtol=1e-4)


def test_msvag_is_msvag(gradients):
    ours = updates_of(mo.dissection(0.1, BETA).msvag, gradients)
    np.testing.assert_array_equal(ours, updates_of(mo.msvag(0.1, BETA), gradients))


def test_adam_is_a_variance_adapted_sign(gradients):
    """Section 2 of the paper: m / sqrt(v) is sign(m) over the root of 1 + variance / mean²."""
    four = mo.dissection(1.0, BETA)
    mean = np.asarray(updates_of(four.momentum_sgd, gradients), np.float64)
    moments = mo.running_moments(mo.exponential(BETA))
    state, ratios = moments.init(gradients[0]), []
    for gradient in gradients:
        estimate, state = moments.update(gradient, state)
        ratios.append((estimate.second_moment - estimate.mean**2) / estimate.mean**2)
    expected = np.sign(mean) / np.sqrt(1 + np.asarray(ratios))
    np.testing.assert_allclose(updates_of(four.adam, gradients), expected, rtol=1e-4)


def expected_improvement(name, eigenvalues, rotation, noise, samples=2_000):
    """How much one step at its best rate is expected to lower 0.5 x'Hx, with H = Q diag(λ) Q'."""
    tx = getattr(mo.dissection(1.0), name)
    rng = np.random.default_rng(1)
    hessian = rotation @ np.diag(eigenvalues) @ rotation.T
    gradient = hessian @ rotation @ rng.choice([-1, 1], len(eigenvalues))
    observed = gradient + noise * rng.standard_normal((samples, len(eigenvalues)))
    state = tx.init(jnp.zeros(len(eigenvalues)))
    directions = -jax.vmap(lambda g: tx.update(g, state)[0])(jnp.asarray(observed, jnp.float32))
    descent = np.mean(directions @ gradient)
    curvature = np.mean(np.einsum("si,ij,sj->s", directions, hessian, directions))
    return descent**2 / (2 * curvature)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_rotation_takes_the_signs_advantage_away(noise):
    """Section 2.2 of the paper: the sign wins where few eigenvalues stick out along the axes."""
    rng = np.random.default_rng(0)
    eigenvalues = np.concatenate([np.ones(48), [20.0, 20.0]])
    rotation = np.linalg.qr(rng.standard_normal((50, 50)))[0]

    def advantage(q):
        """Of the sign over the magnitude."""
        sign, magnitude = (
            expected_improvement(name, eigenvalues, q, noise) for name in ("m_ssd", "momentum_sgd")
        )
        return sign / magnitude

    assert advantage(np.eye(50)) > 1.5
    assert advantage(rotation) < 1.1
