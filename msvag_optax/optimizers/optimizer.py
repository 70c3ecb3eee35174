"""What every optimizer ends with: decay, a rate, one count, and all that real parameters need."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _checks
from msvag_optax._trees import arrays, mismatch
from msvag_optax._trees.exportable import exportable
from msvag_optax._trees.rules import Optimizer, on_given_count, rule_of
from msvag_optax._trees.selection import Selection
from msvag_optax.pieces.chain import chain, check_is_direction
from msvag_optax.pieces.decay import add_decayed_weights
from msvag_optax.pieces.rates import scale_by_learning_rate
from msvag_optax.wrappers.gradientless import skip_gradientless


@exportable
class OptimizerState(NamedTuple):
    """What an optimizer remembers.

    Attributes:
      count: how many updates it has made, int32; its schedules are read at it.
      links: the state of its links, `direction`, `decay` and `rate`.
    """

    count: jax.Array
    links: Any


@_checks.without_mask
def optimizer(
    direction: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    *,
    exclude_from_weight_decay: Selection = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Makes an optimizer from any direction; every named optimizer of this library is made by it.

    .. math::
        p_t = p_{t-1} - \eta_t \, (u_t + \lambda_t \, p_{t-1})

    where :math:`u_t` is what `direction` makes of the gradient, :math:`\eta_t` is `learning_rate`,
    :math:`\lambda_t` is `weight_decay` and :math:`p` a parameter. One count serves all that is on a
    schedule, here and inside of the direction. Parameters and gradients may be in low precision or
    sharded, and gradients may be missing (see `dependable`). Where the direction is made of pieces,
    the whole optimizer is one kernel a leaf.

    Args:
      direction: a piece, a transformation of optax's, or a `chain` of both. It points uphill, as a
        gradient does, and is subtracted: `optax.scale_by_adam()`, say, and not `optax.adam(0.1)`.
      learning_rate: the rate, a finite number of at least 0, or a schedule of it.
      weight_decay: the rate of decay, scaled by the learning rate; a number or a schedule.
      exclude_from_weight_decay: which parameters do not decay: regular expressions, searched in
        paths such as `encoder/layer_0/LayerNorm/scale`; a function `(name, shape) -> bool`;
        `fewer_than_two_axes()`, as is usual; or a list of these.

    Returns:
      The optimizer.

    Raises:
      TypeError: if an argument has the wrong type; an estimator, such as `running_moments`, is no
        direction, nor is an optimizer.
      ValueError: if an argument is out of its range; in `init`, if a pattern is found in no
        parameter's path.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> signum = mo.chain(mo.running_average(mo.exponential(0.9)), optax.scale_by_sign())
    >>> tx = mo.optimizer(signum, learning_rate=0.1, weight_decay=0.5)
    >>> params = jnp.asarray([2.0, -2.0])
    >>> updates, state = tx.update(jnp.asarray([3.0, 0.001]), tx.init(params), params)
    >>> print(optax.apply_updates(params, updates))  # 2 - 0.1 (1 + 0.5 * 2), -2 - 0.1 (1 - 0.5 * 2)
    [ 1.8 -2. ]
    """
    check_is_direction(direction)
    links = chain(
        direction=direction,
        decay=add_decayed_weights(weight_decay, exclude_from_weight_decay),
        rate=scale_by_learning_rate(learning_rate),
    )
    # Not the chain itself, which would count for itself.
    inner = skip_gradientless(on_given_count(rule_of(links)))

    def init(params: optax.Params) -> OptimizerState:
        return OptimizerState(jnp.zeros([], jnp.int32), inner.init(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, OptimizerState]:
        like = updates if params is None else params
        with mismatch.own_state(state, OptimizerState, init, like):
            extra_args["count"] = state.count
            updates, new_links = inner.update(updates, state.links, params, **extra_args)
        return updates, OptimizerState(arrays.increment(state.count), new_links)

    return Optimizer(init, update)
