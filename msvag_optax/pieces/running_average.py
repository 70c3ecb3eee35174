"""Running averages: the memory of most optimizers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax import _checks
from msvag_optax._trees import arrays, mismatch, partials, paths
from msvag_optax._trees.exportable import exportable
from msvag_optax._trees.rules import Piece
from msvag_optax.pieces.piece import piece
from msvag_optax.pieces.weightings import Weighting, check_weighting, keeps_newest, weigh, weight_at


@exportable
class RunningAverageState(NamedTuple):
    """What `running_average` remembers.

    Attributes:
      observations: how many observations the average holds, int32: one number, or, where only
        nonzero observations count, one for each element of the average.
      average: the weighted mean of the observations.
    """

    observations: Any
    average: optax.Updates


def running_average(
    weighting: Weighting,
    of: Callable[[jax.Array], jax.Array] | paths.PerLeaf | None = None,
    count_nonzero: bool = False,
    *,
    dtype: jax.typing.DTypeLike | None = None,
) -> Piece:
    r"""Estimates the mean of the gradient, or of a quantity of it, from its past.

    .. math::
        \bar q_t = \bar q_{t-1} + w_t (q_t - \bar q_{t-1}), \qquad q_t = f(g_t), \quad \bar q_0 = 0

    where :math:`g_t` is the gradient, :math:`f` is `of` and :math:`w_t` the weight that `weighting`
    gives to the newest of :math:`t` observations. With `count_nonzero`, a zero is no observation:
    each element has a count of its own, and neither the count nor the average changes where the
    gradient is zero.

    As a link of a chain, instead of an estimate for a formula, it is a momentum: the average of its
    input.

    Args:
      weighting: what the newest observation counts, such as `exponential(0.9)` or `arithmetic()`.
      of: the quantity to average, a function of one leaf such as `square` or
        `layer_square_norm()`; None averages the gradient itself. It is given the leaf in float32
        or wider.
      count_nonzero: whether zeros are left out. Where the quantity has the gradient's shape the
        gradient decides (a square underflows before its root does), else the quantity.
      dtype: the dtype in which the average is kept; None is that of the parameter, and at least
        float32. In bfloat16 an average whose newest weight is below 1/512 cannot forget.

    Returns:
      An estimator whose estimate is the average, in float32 or wider.

    Raises:
      TypeError: if `weighting` is no `Weighting`, `of` no function, `count_nonzero` no bool.
      ValueError: if `dtype` is no floating-point dtype.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> average = mo.running_average(mo.arithmetic(), of=mo.square, count_nonzero=True)
    >>> state = average.init(jnp.zeros(2))
    >>> for gradient in ([3.0, 0.0], [1.0, 4.0]):
    ...     estimate, state = average.update(jnp.asarray(gradient), state)
    >>> print(estimate)  # (9 + 1) / 2, and 16 / 1
    [ 5. 16.]
    >>> print(state.observations)
    [2 1]
    """
    check_weighting(weighting)
    _checks.check_flags(count_nonzero=count_nonzero)
    _checks.check_dtypes(dtype=dtype)
    if of is not None and not isinstance(of, paths.PerLeaf):
        _checks.check_function("of", of, "of one array, or None", "array")
    quantity = _identity if of is None else of
    estimates = of is not None

    def init(params: optax.Params) -> RunningAverageState:
        if isinstance(of, paths.PerLeaf) and jax.tree.leaves(params):
            of.check(params)
        average = paths.map_with_name(lambda name, p: _zeros(quantity, name, p, dtype), params)
        if count_nonzero:
            observations = jax.tree.map(lambda a: arrays.zeros_like(a, jnp.int32), average)
        else:
            observations = jnp.zeros([], jnp.int32)
        return RunningAverageState(observations, average)

    if count_nonzero:
        leaf = partials.bind(_observe_nonzero, quantity, weighting.weight)
        return piece(init, leaf, read=_read, estimates=estimates)

    newest = weigh(weighting)

    def advance(state: RunningAverageState, extra: dict[str, Any]) -> Any:
        del extra
        observations = arrays.increment(state.observations)
        return newest(observations), state._replace(observations=observations)

    observe = _observe_newest if keeps_newest(weighting) else _observe
    leaf = partials.bind(observe, quantity)
    return piece(init, leaf, advance=advance, read=_read, estimates=estimates)


def _identity(gradient: jax.Array) -> jax.Array:
    return gradient


def _zeros(quantity: Any, name: str, param: jax.Array, dtype: Any) -> jax.Array:
    """Zeros to keep averages of the quantity in, sharded like it."""
    # From the parameter, not from zeros: constants have no sharding that XLA could follow.
    shape = jax.ShapeDtypeStruct(param.shape, param.dtype)
    value = paths.function_at(quantity, name, shape)(param)
    return arrays.zeros_like(value, arrays.kept_dtype(value.dtype, dtype))


def _observe(
    quantity: Partial, weight: jax.Array, gradient: jax.Array, state: Any, param: Any
) -> tuple[jax.Array, RunningAverageState]:
    del param
    observation = quantity(gradient)
    mismatch.check_kept(gradient, observation, state.average)
    average = arrays.lerp(state.average, observation, weight)
    return average, state._replace(average=average)


def _observe_newest(
    quantity: Partial, weight: jax.Array, gradient: jax.Array, state: Any, param: Any
) -> tuple[jax.Array, RunningAverageState]:
    """At a decay of 0 nothing is averaged: a NaN goes with its step."""
    del weight, param
    observation = quantity(gradient)
    mismatch.check_kept(gradient, observation, state.average)
    return observation, state._replace(average=observation)


def _observe_nonzero(
    quantity: Partial,
    weight: Partial,
    shared: None,
    gradient: jax.Array,
    state: Any,
    param: Any,
) -> tuple[jax.Array, RunningAverageState]:
    del shared, param
    observation = quantity(gradient)
    mismatch.check_kept(gradient, observation, state.average)
    seen = (gradient if observation.shape == gradient.shape else observation) != 0
    observations = jnp.where(seen, arrays.increment(state.observations), state.observations)
    newest = weight_at(weight, jnp.maximum(observations, 1))
    average = jnp.where(seen, arrays.lerp(state.average, observation, newest), state.average)
    return average, RunningAverageState(observations, average)


def _read(state: Any) -> jax.Array:
    return state.average
