"""Rates, which may follow a schedule, and momentum."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax import _checks
from msvag_optax._trees import arrays, mismatch, paths
from msvag_optax._trees.driver import Rule
from msvag_optax._trees.rules import Piece, from_rule
from msvag_optax.pieces.piece import piece


def at_count(
    argument: str,
    value: optax.ScalarOrSchedule,
    init: Callable[[Any], Any],
    leaf: Callable[..., Any] | paths.PerLeaf,
) -> Rule:
    """The rule by which leaves share a number, or what a schedule says at the optimizer's count."""

    def advance(state: Any, extra: dict[str, Any]) -> tuple[jax.Array, Any]:
        now = _checks.scheduled(argument, value(extra["count"])) if callable(value) else value
        return jnp.asarray(now), state

    return Rule(init, advance, leaf, needs_count=callable(value))


def scale_by_learning_rate(learning_rate: optax.ScalarOrSchedule) -> Piece:
    """Turns a direction into a step downhill, as optax's of this name does."""
    rate = _checks.number("learning_rate", learning_rate, schedule=True)
    return from_rule(at_count("learning_rate", rate, _nothing, _scale))


def _nothing(params: optax.Params) -> optax.EmptyState:
    del params
    return optax.EmptyState()


def _scale(
    rate: jax.Array, update: jax.Array, state: optax.EmptyState, param: Any
) -> tuple[jax.Array, optax.EmptyState]:
    del param
    return -rate * update, state


def momentum(decay: jax.typing.ArrayLike, *, dtype: jax.typing.DTypeLike | None = None) -> Piece:
    r"""The decaying sum of past updates: heavy-ball momentum.

    .. math::
        b_t = \beta b_{t-1} + u_t, \qquad b_0 = 0

    where :math:`u_t` is the update that comes in and :math:`\beta` is `decay`. It is `optax.trace`,
    as a piece. (A momentum that is a mean is `running_average(exponential(decay))`.)

    Args:
      decay: the number :math:`\beta` in [0, 1).
      dtype: the dtype in which the momentum is kept; None is that of the parameter, and at least
        float32.

    Returns:
      The piece. Its state is optax's, with the momentum under `trace`.

    Raises:
      TypeError: if `decay` is no real scalar.
      ValueError: if `decay` is outside of [0, 1), or `dtype` no floating-point dtype.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> heavy_ball = mo.momentum(0.5)
    >>> state = heavy_ball.init(jnp.zeros(()))
    >>> for gradient in (4.0, 2.0):
    ...     update, state = heavy_ball.update(jnp.asarray(gradient), state)
    >>> print(update)  # 0.5 * 4 + 2
    4.0
    """
    decay = _checks.decay(decay=decay)
    _checks.check_dtypes(dtype=dtype)

    def init(params: optax.Params) -> optax.TraceState:
        return optax.TraceState(
            jax.tree.map(
                lambda p: jnp.zeros_like(p, dtype=arrays.kept_dtype(p.dtype, dtype)), params
            )
        )

    return piece(init, Partial(_accumulate, decay))


def _accumulate(
    decay: jax.typing.ArrayLike, shared: None, update: jax.Array, state: Any, param: Any
) -> tuple[jax.Array, optax.TraceState]:
    del shared, param
    mismatch.check_kept(update, update, state.trace)
    trace = update + decay * state.trace
    return trace, optax.TraceState(trace)
