import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from tests.optimizers.trajectories import noise, updates_of


def reference(gradients, b1, b2, eps, dialect):
    first, second, largest, updates = 0.0, 0.0, 0.0, []
    for step, gradient in enumerate(np.asarray(gradients, np.float64), start=1):
        first = b1 * first + (1 - b1) * gradient
        second = b2 * second + (1 - b2) * gradient**2
        c1, c2 = 1 - b1**step, 1 - b2**step
        if dialect == "paper":
            largest, c1, shown = np.maximum(largest, second), 1.0, None
            shown = largest
        elif dialect == "torch":
            largest = np.maximum(largest, second)
            shown = largest / c2
        else:
            largest = np.maximum(largest, second / c2)
            shown = largest
        updates.append(first / c1 / (np.sqrt(shown) + eps))
    return np.stack(updates)


DIALECTS = {
    "torch": {},
    "paper": {"bias_correction": False},
    "optax": {"correct_before_max": True},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialect(dialect):
    gradients = noise(30, 8) * jnp.linspace(3.0, 0.1, 30)[:, None]
    ours = updates_of(mo.amsgrad(1.0, 0.8, 0.9, 1e-3, **DIALECTS[dialect]), gradients)
    expected = reference(gradients, 0.8, 0.9, 1e-3, dialect)
    np.testing.assert_allclose(-ours, expected, rtol=2e-5, atol=1e-6)


def test_optax_dialect_is_optax_amsgrad():
    """As far as optax goes, which forms 1 - 0.999 in float32 and is 5e-5 off."""
    gradients = noise(30, 8)
    ours = updates_of(mo.amsgrad(0.1, correct_before_max=True), gradients)
    np.testing.assert_allclose(ours, updates_of(optax.amsgrad(0.1), gradients), rtol=5e-4)


def test_second_moment_never_decreases():
    tx = mo.amsgrad(0.1, bias_correction=False)
    state, before = tx.init(jnp.zeros(5)), 0.0
    for gradient in noise(30, 5):
        _, state = tx.update(gradient, state)
        maximum = optax.tree.get(state, "maximum")
        assert (maximum >= before).all()
        before = maximum


def test_dialects_that_contradict_each_other():
    with pytest.raises(ValueError, match="`correct_before_max` must be False where"):
        mo.amsgrad(0.1, bias_correction=False, correct_before_max=True)
