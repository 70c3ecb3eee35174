import jax
import jax.numpy as jnp
import numpy as np
import pytest

import msvag_optax as mo


def test_schedule_against_its_formula():
    schedule = mo.warmup_linear_decay_schedule(2.0, num_train_steps=20, num_warmup_steps=5)
    for step in range(30):
        expected = 2 * step / 5 if step < 5 else 2 * (1 - min(step, 20) / 20)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(step)), expected, rtol=1e-6)


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0), (10, 10), (7, 12), (1, 0)])
def test_edges(steps, warmup):
    schedule = mo.warmup_linear_decay_schedule(1.0, steps, warmup)
    assert schedule(0) == (0 if warmup else 1)
    assert schedule(max(steps, warmup)) == schedule(10**6) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1.0, 10, 1), ValueError, r"`init_lr` must be a number in \[0, inf\), got -1.0"),
        ((1.0, 0, 1), ValueError, "`num_train_steps` must be an integer >= 1, got 0"),
        ((1.0, 10, -1), ValueError, "`num_warmup_steps` must be an integer >= 0, got -1"),
        ((1.0, 10.5, 1), TypeError, "`num_train_steps` must be an integer >= 1, got 10.5"),
        ((1.0, True, 1), TypeError, "`num_train_steps` must be an integer >= 1, got True"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        mo.warmup_linear_decay_schedule(*arguments)
