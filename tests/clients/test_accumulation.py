"""Accumulated gradients, some of which are skipped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.clients import programs

PARAMS = {"kernel": jnp.full((8, 8), 0.1), "bias": jnp.zeros(8)}
GRADIENT = jax.grad(
    lambda params: programs.mean_square(programs.X @ params["kernel"] + params["bias"])
)(PARAMS)
# What each mini-batch makes of the gradient. Those that are skipped leave no trace at all.
FACTORS = (1.0, jnp.nan, -2.0, jnp.inf, jnp.nan, 3.0, 0.5, -jnp.inf)
GOOD = ((1.0, -2.0), (3.0, 0.5))
TOO_LARGE = (1.0, 1e6, -2.0, 1e4, -1e5, 3.0, 0.5, jnp.inf)
SKIPS = {
    "not finite": (optax.skip_not_finite, FACTORS),
    "too large": (
        functools.partial(optax.skip_large_updates, max_squared_norm=1e3),
        TOO_LARGE,
    ),
}


@pytest.mark.parametrize(("build", "skip"), programs.each_way(SKIPS))
def test_skipped_mini_batches_are_as_if_they_had_never_come(build, skip):
    should_skip, factors = skip
    inner = build(programs.RATE, **programs.DECAY)
    tx = optax.MultiSteps(inner, 2, should_skip_update_fn=should_skip)
    params, state = PARAMS, tx.init(PARAMS)
    twin = programs.Twin(inner, PARAMS)

    @jax.jit
    def step(params, state, factor):
        gradients = jax.tree.map(lambda g: factor * g, GRADIENT)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for factor in factors:
        params, state = step(params, state, factor)
    for pair in GOOD:
        twin.follow(jax.tree.map(functools.partial(jnp.multiply, np.mean(pair)), GRADIENT))
    twin.assert_is_at(params)
    assert optax.tree.get(state.inner_opt_state, "count") == state.gradient_step == len(GOOD)
    assert state.mini_step == 0
