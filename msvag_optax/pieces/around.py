"""Estimators that wrap an estimator: its largest value, its corrected value, its value before."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax import _checks
from msvag_optax._trees import arrays, partials
from msvag_optax._trees.exportable import exportable
from msvag_optax._trees.rules import Estimator, Piece, combined, from_rule, rule_of
from msvag_optax.pieces.weightings import bias_correction


@exportable
class RunningMaxState(NamedTuple):
    """What `running_max` remembers.

    Attributes:
      maximum: the largest estimate so far, element by element.
      inner_state: the state of the estimator.
    """

    maximum: optax.Updates
    inner_state: optax.OptState

    keeps_maximum = True  # Rounded at random, a maximum would creep.


def running_max(
    estimator: optax.GradientTransformation, *, dtype: jax.typing.DTypeLike | None = None
) -> Piece:
    r"""Keeps the largest value that an estimate has had: AMSGrad's long memory.

    .. math::
        v_t^{\max} = \max(v_{t-1}^{\max}, v_t), \qquad v_0^{\max} = 0

    where :math:`v_t` is what `estimator` estimates, a quantity that is never negative.

    Args:
      estimator: an estimator, such as `running_average(exponential(0.999), of=square)`.
      dtype: the dtype in which the maximum is kept; None is that of the estimate.

    Returns:
      An estimator whose estimate is the maximum.

    Raises:
      TypeError: if `estimator` is no gradient transformation.
      ValueError: if `dtype` is no floating-point dtype.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> estimator = mo.running_max(mo.running_average(mo.exponential(0.0), of=mo.square))
    >>> state = estimator.init(jnp.zeros(()))
    >>> for gradient in (1.0, 3.0, 2.0):
    ...     estimate, state = estimator.update(jnp.asarray(gradient), state)
    >>> print(estimate)
    9.0

    Source: Reddi et al., *On the Convergence of Adam and Beyond* (2018), algorithm 2.
    """
    _checks.check_transformation("estimator", estimator)
    _checks.check_dtypes(dtype=dtype)
    inner = rule_of(estimator)

    def init(params: optax.Params) -> RunningMaxState:
        if not jax.tree.leaves(params):
            return RunningMaxState(params, inner.init(params))
        # The estimate of zeros has the shapes, dtypes and shardings of any estimate.
        zeros = jax.tree.map(arrays.zeros_like, params)
        try:
            estimate, _ = estimator.update(zeros, estimator.init(params), zeros)
        except TypeError as error:  # It needs an extra argument, say, which `init` is not given.
            raise TypeError(
                f"`running_max` asks its estimator for an estimate of zeros, and it failed: {error}"
            ) from error
        maximum = jax.tree.map(
            lambda e: arrays.zeros_like(e, arrays.kept_dtype(e.dtype, dtype)), estimate
        )
        return RunningMaxState(maximum, inner.init(params))

    def advance(state: RunningMaxState, extra: dict[str, Any]) -> Any:
        shared, inner_state = inner.advance(state.inner_state, extra)
        return shared, state._replace(inner_state=inner_state)

    leaf = partials.bind(_keep_larger, inner.leaf)
    rule = combined([inner], init, advance, leaf, _read_maximum)
    return from_rule(rule, estimates=True)


def _keep_larger(
    inner: Partial, shared: Any, gradient: jax.Array, state: Any, param: Any
) -> tuple[Any, RunningMaxState]:
    estimate, inner_state = inner(shared, gradient, state.inner_state, param)
    maximum = jax.tree.map(jnp.maximum, estimate, state.maximum)
    return maximum, RunningMaxState(maximum, inner_state)


def _read_maximum(state: RunningMaxState) -> Any:
    return state.maximum


@exportable
class BiasCorrectedState(NamedTuple):
    """What `bias_corrected` remembers.

    Attributes:
      observations: how many gradients the estimator has seen, int32.
      inner_state: the state of the estimator.
    """

    observations: jax.Array
    inner_state: optax.OptState


def bias_corrected(estimator: optax.GradientTransformation, decay: jax.typing.ArrayLike) -> Piece:
    r"""Divides an exponential average that started at zero by the weight of what it has seen.

    .. math::
        \hat v_t = \frac{v_t}{1 - \beta^t}

    where :math:`v_t` is what `estimator` estimates and :math:`\beta` is `decay`. Around a plain
    `running_average(exponential_from_zero(decay))` it gives what `exponential(decay)` gives
    directly; around the `running_max` of one, AMSGrad as in PyTorch: the maximum is taken of the
    biased averages, and corrected afterwards. It counts all gradients: an average with
    `count_nonzero` has counts of its own, and `exponential(decay)` is what corrects that.

    Args:
      estimator: an estimator of what `exponential_from_zero(decay)` averages.
      decay: the number :math:`\beta` in [0, 1), the same as the estimator's.

    Returns:
      An estimator of the corrected quantity.

    Raises:
      TypeError: if `estimator` is no gradient transformation, or `decay` no real scalar.
      ValueError: if `decay` is outside of [0, 1).

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> average = mo.running_average(mo.exponential_from_zero(0.9), of=mo.square)
    >>> estimator = mo.bias_corrected(average, 0.9)
    >>> estimate, _ = estimator.update(jnp.asarray(3.0), estimator.init(jnp.zeros(())))
    >>> print(f"{estimate:.4f}")
    9.0000

    Source: Kingma and Ba, *Adam* (2015), section 3.
    """
    _checks.check_transformation("estimator", estimator)
    decay = _checks.decay(decay=decay)
    inner = rule_of(estimator)

    def init(params: optax.Params) -> BiasCorrectedState:
        return BiasCorrectedState(jnp.zeros([], jnp.int32), inner.init(params))

    def advance(state: BiasCorrectedState, extra: dict[str, Any]) -> Any:
        shared, inner_state = inner.advance(state.inner_state, extra)
        observations = arrays.increment(state.observations)
        correction = bias_correction(decay, observations)
        return (correction, shared), BiasCorrectedState(observations, inner_state)

    def read(state: BiasCorrectedState) -> Any:
        assert inner.read is not None
        weight = bias_correction(decay, state.observations)
        return _correct(jnp.where(weight > 0, weight, 1), inner.read(state.inner_state))

    leaf = partials.bind(_observe_corrected, inner.leaf)
    rule = combined([inner], init, advance, leaf, read if inner.read else None)
    return from_rule(rule, estimates=isinstance(estimator, Estimator))


def _observe_corrected(
    inner: Partial, shared: Any, gradient: jax.Array, state: Any, param: Any
) -> tuple[Any, BiasCorrectedState]:
    correction, inner_shared = shared
    estimate, inner_state = inner(inner_shared, gradient, state.inner_state, param)
    return _correct(correction, estimate), state._replace(inner_state=inner_state)


def _correct(correction: jax.Array, estimate: Any) -> Any:
    return jax.tree.map(
        lambda e: arrays.saturate(e / correction.astype(arrays.real_dtype(e.dtype))), estimate
    )


def before(estimator: Piece) -> Piece:
    """The estimate of a piece before it has seen this gradient.

    Args:
      estimator: a piece with a `read`, such as `running_average`. An estimator that remembers no
        estimate, as `observations` and `batch_variance` do not, has none.

    Returns:
      The piece whose output at each step is what `estimator` gave at the step before; at the first,
      what its state holds from `init` on.

    Raises:
      TypeError: if `estimator` is no piece, or has no `read`.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> past = mo.before(mo.running_average(mo.exponential(0.0)))  # the gradient before
    >>> state = past.init(jnp.zeros(()))
    >>> for gradient in (1.0, 2.0, 3.0):
    ...     estimate, state = past.update(jnp.asarray(gradient), state)
    >>> print(estimate)
    2.0
    """
    _checks.check_transformation("estimator", estimator)
    inner = rule_of(estimator)
    if inner.read is None or inner.needs_tree:
        raise TypeError(
            "`estimator` must be a piece that was made with a `read`, and of pieces alone."
        )

    def advance(numbers: Any, extra: dict[str, Any]) -> Any:
        shared, moved = inner.advance(numbers, extra)
        return (numbers, shared), moved

    leaf = partials.bind(_read_then_observe, inner.leaf, inner.read)
    rule = combined([inner], inner.init, advance, leaf)
    return from_rule(rule, estimates=isinstance(estimator, Estimator))


def _read_then_observe(
    inner: Partial, read: Partial, shared: Any, gradient: jax.Array, state: Any, param: Any
) -> tuple[Any, Any]:
    numbers, inner_shared = shared
    whole = jax.tree.map(
        lambda number, kept: kept if number is None else number,
        numbers,
        state,
        is_leaf=lambda node: node is None,
    )
    _, state = inner(inner_shared, gradient, state, param)
    return read(whole), state
