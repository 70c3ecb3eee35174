"""How many gradients there have been, as an estimate."""

from typing import Any

import jax
import optax

from msvag_optax._trees import arrays
from msvag_optax._trees.rules import Piece
from msvag_optax.pieces.piece import piece


def observations() -> Piece:
    r"""Estimates :math:`t`, the number of gradients so far, this one included.

    For formulas that need it: a rate that depends on the age of an average (RAdam), a bound that
    grows (ADOPT), a correction of your own. All leaves share one int32 scalar. In an `optimizer` it
    is the optimizer's count, and takes no bytes of state; elsewhere the outermost piece counts.

    Returns:
      An estimator whose estimate is the same scalar at each leaf.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> sum_of_gradients = mo.from_estimates(
    ...     lambda gradient, mean, t: t * mean,
    ...     mean=mo.running_average(mo.arithmetic()),
    ...     t=mo.observations(),
    ... )
    >>> state = sum_of_gradients.init(jnp.zeros(2))
    >>> for gradient in ([1.0, 2.0], [3.0, 6.0]):
    ...     update, state = sum_of_gradients.update(jnp.asarray(gradient), state)
    >>> print(update)
    [4. 8.]
    """
    return piece(_nothing, _count, advance=_advance, estimates=True, needs_count=True)


def _nothing(params: optax.Params) -> optax.EmptyState:
    del params
    return optax.EmptyState()


def _advance(state: optax.EmptyState, extra: dict[str, Any]) -> tuple[jax.Array, optax.EmptyState]:
    return arrays.increment(extra["count"]), state


def _count(count: jax.Array, gradient: jax.Array, state: Any, param: Any) -> tuple[jax.Array, Any]:
    del gradient, param
    return count, state
