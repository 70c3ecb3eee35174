"""What the checks on the pages of the optimizers share: gradients, and what becomes of them."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msvag_optax.problems.reddi import LARGE, PERIOD, SMALL

STEPS = 20


def _drawn(seed, **shapes):
    """Gradients of so many steps for parameters of these shapes."""
    noise = np.random.default_rng(seed)
    return {k: noise.normal(0.5, 1.0, (STEPS, *shape)) for k, shape in shapes.items()}


def _as_jax(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


GRADIENTS = _as_jax(
    {"dense": _drawn(0, kernel=(64, 10), bias=(10,)), "LayerNorm": _drawn(1, scale=(10,))}
)
# A row of the embedding is used one time in four.
_USED = np.random.default_rng(2).random((STEPS, 50, 1)) < 0.25
RARE = _as_jax({"embedding": _drawn(3, rows=(50, 8))["rows"] * _USED, **_drawn(4, bias=(8,))})


def at(step, gradients=GRADIENTS):
    """The gradients of one step, counted from 0."""
    return jax.tree.map(lambda g: g[step], gradients)


def params_of(gradients):
    """The parameters before the first step: ones."""
    return jax.tree.map(jnp.ones_like, at(0, gradients))


def path(tx, gradients=GRADIENTS):
    """The parameters after each step."""

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = params_of(gradients)
    return jax.lax.scan(step, (params, tx.init(params)), gradients)[1]


def same(one, other, gradients=GRADIENTS):
    """Whether two optimizers take the same steps."""
    close = functools.partial(jnp.allclose, atol=1e-6)
    return jax.tree.all(jax.tree.map(close, path(one, gradients), path(other, gradients)))


def updates(tx, gradients):
    """The updates of one scalar parameter."""

    def step(state, gradient):
        update, state = tx.update(gradient, state)
        return state, update

    return jax.lax.scan(step, tx.init(jnp.zeros(())), gradients)[1]


def drift(tx):
    """How far the last period moves a parameter with Reddi's gradients; it should decrease."""
    reddi = jnp.where(jnp.arange(40 * PERIOD) % PERIOD == 0, LARGE, SMALL)
    return updates(tx, reddi)[-PERIOD:].sum()


def elements(tx, params):
    """How many elements of each dtype the state has."""
    count: Counter[str] = Counter()
    for leaf in jax.tree.leaves(jax.eval_shape(tx.init, params)):
        count[str(leaf.dtype)] += leaf.size
    return count


def size(params):
    """How many parameters there are."""
    return sum(p.size for p in jax.tree.leaves(params))
