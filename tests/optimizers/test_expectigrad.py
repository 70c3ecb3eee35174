import jax.numpy as jnp
import numpy as np
import pytest

import msvag_optax as mo
from tests.optimizers.trajectories import noise, updates_of


def reference(gradients, beta, eps, sparse):
    total = np.zeros(gradients.shape[1:])
    count, mean, updates = np.zeros(gradients.shape[1:]), 0.0, []
    for step, gradient in enumerate(np.asarray(gradients, np.float64), start=1):
        total += gradient**2
        count = count + (gradient != 0) if sparse else step + np.zeros_like(total)
        quotient = gradient / (eps + np.sqrt(total / np.maximum(count, 1)))
        mean = beta * mean + (1 - beta) * quotient
        updates.append(mean / (1 - beta**step))
    return np.stack(updates)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_updates_are_the_papers(sparse, beta):
    gradients = jnp.where(noise(40, 6, seed=1) > 0.4, noise(40, 6), 0)
    ours = updates_of(mo.expectigrad(1.0, beta, 1e-3, sparse), gradients)
    np.testing.assert_allclose(-ours, reference(gradients, beta, 1e-3, sparse), 1e-5, 1e-6)


def test_step_is_bounded_by_the_root_of_the_count():
    """Where momentum is outside of the quotient, t steps bound it by the root of t."""
    gradients = jnp.asarray([[0.0]] * 99 + [[7.0]])
    dense = updates_of(mo.expectigrad(1.0, 0.0, sparse_counter=False), gradients)
    sparse = updates_of(mo.expectigrad(1.0, 0.0, sparse_counter=True), gradients)
    np.testing.assert_allclose(dense[-1], [-10.0], rtol=1e-6)
    np.testing.assert_allclose(sparse[-1], [-1.0], rtol=1e-6)


@pytest.mark.parametrize("eps", [0, 0.0, -1e-8, float("nan")])
def test_eps_must_be_positive(eps):
    with pytest.raises(ValueError, match=r"`eps` must be a number in \(0, inf\), got"):
        mo.expectigrad(0.1, eps=eps)
