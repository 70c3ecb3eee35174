"""Optimizers by the definitions of their papers: they keep all gradients, and no average.

Slow and hungry, but there is nothing to get wrong. They are what the library's are held to by the
promise `reference` of `msvag_optax.testing`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

BETA = 0.9
HORIZON = 8  # steps, at most


def _from_history(
    direction: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> Callable[..., optax.GradientTransformation]:
    """Of `direction(past, weights, newest)`: all gradients, their weights, and the last of them."""

    def build(learning_rate: float) -> optax.GradientTransformation:
        def init(params: Any) -> Any:
            return jnp.zeros([], jnp.int32), jax.tree.map(
                lambda p: jnp.zeros((HORIZON, *p.shape)), params
            )

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            newest, past = state
            past = jax.tree.map(lambda h, g: h.at[newest].set(g), past, updates)
            ages = newest - jnp.arange(HORIZON)
            weights = jnp.where(ages >= 0, BETA**ages, 0)
            weights /= weights.sum()
            steps = jax.tree.map(lambda h: -learning_rate * direction(h, weights, newest), past)
            return steps, (newest + 1, past)

        return optax.GradientTransformation(init, update)

    return build


def _mean_and_variance(past: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weighted mean, and the unbiased variance of one gradient."""
    mean = jnp.tensordot(weights, past, 1)
    rho = jnp.sum(weights**2)
    biased = jnp.tensordot(weights, (past - mean) ** 2, 1)
    return mean, jnp.where(rho < 1, biased / jnp.where(rho < 1, 1 - rho, 1), 0)


def _shortened(step: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
    total = mean**2 + variance
    return step * jnp.where(total > 0, mean**2 / jnp.where(total > 0, total, 1), 0)


@_from_history
def msvag(past: jax.Array, weights: jax.Array, newest: jax.Array) -> jax.Array:
    """Balles and Hennig, *Dissecting Adam* (2018), algorithm 2."""
    del newest
    mean, variance = _mean_and_variance(past, weights)
    return _shortened(mean, mean, jnp.sum(weights**2) * variance)


@_from_history
def svag(past: jax.Array, weights: jax.Array, newest: jax.Array) -> jax.Array:
    """The same without momentum."""
    return _shortened(past[newest], *_mean_and_variance(past, weights))


@_from_history
def expectigrad(past: jax.Array, weights: jax.Array, newest: jax.Array) -> jax.Array:
    """Daley and Amato, *Expectigrad* (2020), without epsilon: zeros do not count."""
    del newest
    counts = jnp.cumsum(past != 0, axis=0)
    mean_squares = jnp.cumsum(past**2, axis=0) / jnp.maximum(counts, 1)
    normalized = past / jnp.sqrt(jnp.where(mean_squares > 0, mean_squares, 1))
    return jnp.tensordot(weights, normalized, 1)
