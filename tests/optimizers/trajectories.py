"""Runs an optimizer over gradients that do not depend on the parameters."""

import jax
import jax.numpy as jnp
import numpy as np


def updates_of(tx, gradients, params=None):
    """The update at each step, stacked; `gradients` is a tree with the steps on leading axes."""
    if params is None:
        params = jax.tree.map(lambda g: jnp.zeros_like(g[0]), gradients)

    def step(state, gradient):
        updates, state = tx.update(gradient, state, params)
        return state, updates

    return jax.jit(lambda g: jax.lax.scan(step, tx.init(params), g)[1])(gradients)


def noise(*shape, seed=0, mean=0.3):
    return jnp.asarray(mean + np.random.default_rng(seed).standard_normal(shape), jnp.float32)
