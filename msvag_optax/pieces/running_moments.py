"""Running moments: mean, second moment and variance of the gradient, of any weighting."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax import _checks
from msvag_optax._trees import arrays, mismatch, partials
from msvag_optax._trees.exportable import exportable
from msvag_optax._trees.rules import Piece
from msvag_optax.pieces.piece import piece
from msvag_optax.pieces.quantities import square
from msvag_optax.pieces.weightings import Weighting, check_weighting, keeps_newest, weigh


@exportable
class Moments(NamedTuple):
    r"""What is known of a gradient's distribution from a weighted average of its past.

    With weights :math:`w_i` of the observations :math:`g_i`, which sum to one:

    Attributes:
      mean: :math:`m = \sum_i w_i g_i`.
      second_moment: :math:`v = \sum_i w_i |g_i|^2`.
      variance: the unbiased variance of one gradient, :math:`(v - |m|^2) / (1 - \rho)` with
        :math:`\rho = \sum_i w_i^2`; 0 as long as one observation holds all the weight.
      variance_of_mean: the variance of `mean`, which is :math:`\rho` times `variance`.
    """

    mean: jax.Array
    second_moment: jax.Array
    variance: jax.Array
    variance_of_mean: jax.Array


@exportable
class RunningMomentsState(NamedTuple):
    """What `running_moments` remembers.

    Attributes:
      observations: how many gradients it has seen, int32.
      sum_of_squared_weights: of all observations; 1 over it is how many equally weighted
        observations would tell as much.
      mean: the weighted mean of the gradients.
      biased_variance: the weighted mean of their squared distances from `mean`.
    """

    observations: jax.Array
    sum_of_squared_weights: jax.Array
    mean: optax.Updates
    biased_variance: optax.Updates


def running_moments(
    weighting: Weighting,
    *,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> Piece:
    r"""Estimates mean, second moment and variance of the gradient from its past.

    .. math::
        m_t &= m_{t-1} + w_t \, (g_t - m_{t-1}) \\
        s_t &= (1 - w_t) \, (s_{t-1} + w_t \, |g_t - m_{t-1}|^2) \\
        \rho_t &= (1 - w_t)^2 \rho_{t-1} + w_t^2

    where :math:`g_t` is the gradient and :math:`w_t` the weight that `weighting` gives to the
    newest of :math:`t` observations. :math:`\rho_t` is the sum of their squared weights, for any
    weighting, so that :math:`s_t / (1 - \rho_t)` is the unbiased variance of one gradient and
    :math:`\rho_t s_t / (1 - \rho_t)` that of the mean.

    Laws, for weightings with :math:`w_1 = 1`: the variance is never negative; it is 0 at the first
    observation; it does not change if a constant is added to all gradients, and is scaled by c² if
    they are scaled by c. (Under `exponential_from_zero` the zero start is an observation like any
    other, and its distance from the gradients is part of the variance.)

    Rounding costs digits in proportion to the ratio of mean and deviation, where the difference
    :math:`v_t - m_t^2` of two averages loses them in proportion to its square: all of float32's, at
    a ratio of some thousands. A decay near 0 costs a factor :math:`1 / (1 - w_t)` more.

    Args:
      weighting: what the newest observation counts, such as `exponential(0.9)`.
      mu_dtype: the dtype in which the mean is kept; None is that of the parameter, and at least
        float32.
      nu_dtype: the dtype in which the variance is kept, likewise.

    Returns:
      An estimator whose estimate is a `Moments` at each leaf, in float32 or wider.

    Raises:
      TypeError: if `weighting` is no `Weighting`.
      ValueError: if a dtype is no floating-point dtype.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> estimator = mo.running_moments(mo.arithmetic())
    >>> state = estimator.init(jnp.zeros(()))
    >>> for gradient in (1001.0, 1002.0, 1003.0):
    ...     moments, state = estimator.update(jnp.asarray(gradient), state)
    >>> print(f"{moments.mean:.1f}, {moments.variance:.4f}, {moments.variance_of_mean:.4f}")
    1002.0, 1.0000, 0.3333

    Source: Balles and Hennig, *Dissecting Adam* (2018), section 4, where :math:`\rho` is given
    for the exponential weighting; the recurrence is West's (1979), for weighted data.
    """
    check_weighting(weighting)
    _checks.check_dtypes(mu_dtype=mu_dtype, nu_dtype=nu_dtype)

    def init(params: optax.Params) -> RunningMomentsState:
        def zeros(param: jax.Array, asked: Any) -> jax.Array:
            return jnp.zeros_like(param, dtype=arrays.kept_dtype(param.dtype, asked))

        return RunningMomentsState(
            observations=jnp.zeros([], jnp.int32),
            sum_of_squared_weights=jnp.ones([], arrays.scalar_dtype()),
            mean=jax.tree.map(lambda p: zeros(p, mu_dtype), params),
            biased_variance=jax.tree.map(lambda p: zeros(p.real, nu_dtype), params),
        )

    newest, weigh_all = weigh(weighting), partials.compiled(Partial(_weights))

    def advance(state: RunningMomentsState, extra: dict[str, Any]) -> Any:
        del extra
        observations = arrays.increment(state.observations)
        weights = weigh_all(newest(observations), state.sum_of_squared_weights)
        return weights, state._replace(
            observations=observations, sum_of_squared_weights=weights.sum_of_squares
        )

    observe = _observe_newest if keeps_newest(weighting) else _observe
    return piece(init, observe, advance=advance, read=_read, estimates=True)


class _Weights(NamedTuple):
    """The scalars of one step of `running_moments`, the same for all leaves.

    Each that is not the weight itself ends in a division, so that it is computed once.
    """

    newest: jax.Array  # w
    over_root_of_older: jax.Array  # 1 / sqrt(1 - w), or 0 where nothing is older
    sum_of_squares: jax.Array  # rho
    unbias: jax.Array  # 1 / (1 - rho), or 0 where one observation holds all the weight
    unbias_of_mean: jax.Array  # rho / (1 - rho), likewise


def _weights(newest: jax.Array, sum_of_squares: jax.Array) -> _Weights:
    newest = newest.astype(sum_of_squares.dtype)
    older = 1 - newest
    # 1 - rho, without cancellation where one observation holds nearly all the weight.
    spread = older * (2 * newest + older * (1 - sum_of_squares))
    sum_of_squares = sum_of_squares + newest * (newest - (2 - newest) * sum_of_squares)
    over_spread = jnp.where(spread > 0, spread, 1)
    return _Weights(
        newest=newest,
        over_root_of_older=jnp.where(older > 0, 1, 0) / jnp.sqrt(jnp.where(older > 0, older, 1)),
        sum_of_squares=sum_of_squares,
        unbias=jnp.where(spread > 0, 1, 0) / over_spread,
        unbias_of_mean=jnp.where(spread > 0, sum_of_squares, 0) / over_spread,
    )


def _observe(
    weights: _Weights, gradient: jax.Array, state: Any, param: Any
) -> tuple[Moments, RunningMomentsState]:
    del param
    mismatch.check_kept(gradient, gradient, state.mean)
    mean = arrays.lerp(state.mean, gradient, weights.newest)
    # With d the distance from the new mean, (1 - w) (s + w (d / (1 - w))²) is s + w (d²/(1-w) - s).
    # The distance from the old mean would serve as well, were the old mean not overwritten: a
    # compiler that updates it in place has to copy it first.
    distance = gradient - mean
    weights = jax.tree.map(lambda w: w.astype(arrays.real_dtype(mean.dtype)), weights)
    # Scaled before it is squared, so that 0 times infinity is avoided where nothing is older.
    squared_distance = square(distance * weights.over_root_of_older)
    variance = arrays.lerp(state.biased_variance, squared_distance, weights.newest)
    moments = _moments(mean, variance, weights.unbias, weights.unbias_of_mean)
    return moments, state._replace(mean=mean, biased_variance=variance)


def _observe_newest(
    weights: _Weights, gradient: jax.Array, state: Any, param: Any
) -> tuple[Moments, RunningMomentsState]:
    """At a decay of 0 nothing is averaged: a NaN goes with its step, and there is no variance."""
    del param
    mismatch.check_kept(gradient, gradient, state.mean)
    none = jnp.zeros_like(state.biased_variance)
    moments = _moments(gradient, none, weights.unbias, weights.unbias_of_mean)
    return moments, state._replace(mean=gradient, biased_variance=none)


def _moments(
    mean: jax.Array, biased_variance: jax.Array, unbias: jax.Array, unbias_of_mean: jax.Array
) -> Moments:
    return Moments(
        mean=mean,
        second_moment=biased_variance + square(mean),
        variance=biased_variance * unbias,
        variance_of_mean=biased_variance * unbias_of_mean,
    )


def moments_in(state: RunningMomentsState) -> optax.Updates:
    """The estimate that `running_moments` last gave, up to rounding: a `Moments` at each leaf.

    Args:
      state: what the estimator remembers.

    Returns:
      A tree like the parameters'.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> estimator = mo.running_moments(mo.arithmetic())
    >>> state = estimator.init(jnp.zeros(()))
    >>> for gradient in (1.0, 3.0):
    ...     moments, state = estimator.update(jnp.asarray(gradient), state)
    >>> print(mo.moments_in(state).variance)
    2.0
    """
    (rho,) = jax.tree.leaves(state.sum_of_squared_weights)  # Flax NNX boxes what it holds
    return jax.tree.map(
        lambda mean, variance: _read(
            state._replace(
                sum_of_squared_weights=rho,
                mean=arrays.widen(mean),
                biased_variance=arrays.widen(variance),
            )
        ),
        state.mean,
        state.biased_variance,
    )


def _read(state: Any) -> Moments:
    """The estimate of one leaf, from its averages and the numbers that all leaves share."""
    rho = state.sum_of_squared_weights
    spread = jnp.where(rho < 1, 1 - rho, 1)
    unbias = jnp.where(rho < 1, 1, 0) / spread
    unbias_of_mean = jnp.where(rho < 1, rho, 0) / spread
    dtype = state.biased_variance.dtype
    return _moments(
        state.mean, state.biased_variance, unbias.astype(dtype), unbias_of_mean.astype(dtype)
    )
