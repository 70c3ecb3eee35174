r"""Weight decay: which parameters, and coupled to what.

The decay of a parameter :math:`p` at rate :math:`\lambda` can be coupled in four ways, each of
which is a chain with a named optimizer (here `msvag`, but any will do), where :math:`u_t` is its
direction:

* to the learning rate, as AdamW has it, :math:`p \leftarrow p - \eta_t (u_t + \lambda p)`::

      mo.msvag(learning_rate, weight_decay=decay)

* to the schedule alone, as Loshchilov and Hutter wrote it,
  :math:`p \leftarrow p - \gamma_t (\alpha u_t + \lambda p)`::

      optax.chain(
          mo.msvag(alpha), mo.subtract_decayed_weights(decay), optax.scale_by_schedule(schedule)
      )

* to nothing, :math:`p \leftarrow p - \eta_t u_t - \lambda p`::

      optax.chain(mo.msvag(learning_rate), mo.subtract_decayed_weights(decay))

* to the gradient, which is L2 regularization, :math:`g_t \leftarrow g_t + \lambda p`::

      optax.chain(mo.add_decayed_weights(decay), mo.msvag(learning_rate))

All take a number or a schedule, and which parameters do not decay.
"""

from typing import Any

import jax
import optax
from jax.tree_util import Partial

from msvag_optax import _checks
from msvag_optax._trees import paths
from msvag_optax._trees.rules import Piece, from_rule
from msvag_optax._trees.selection import Selection, selected
from msvag_optax.pieces.rates import at_count
from msvag_optax.wrappers.dependable import dependable

EXCLUDE = "exclude_from_weight_decay"  # the argument, the same everywhere


@_checks.without_mask
def add_decayed_weights(
    weight_decay: optax.ScalarOrSchedule,
    exclude_from_weight_decay: Selection = (),
) -> Piece:
    r"""Adds decayed weights to the updates.

    .. math::
        u_t \leftarrow u_t + \lambda_t \, p_t

    where :math:`\lambda_t` is `weight_decay` and :math:`p_t` the parameter. Before a named
    optimizer it is L2 regularization; inside of a chain, before the learning rate, it is AdamW's
    decoupled decay.

    Args:
      weight_decay: the rate, a finite number of at least 0, or a schedule of it.
      exclude_from_weight_decay: which parameters do not decay: regular expressions, searched in
        paths such as `encoder/layer_0/LayerNorm/scale`; a function `(name, shape) -> bool`;
        `fewer_than_two_axes()`, as is usual; or a list of these.

    Returns:
      A transformation that needs `params`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if the rate is negative or not finite, or a pattern is no regular expression; in
        `init`, if a pattern is found in no parameter's path.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> params = {"kernel": jnp.asarray([10.0]), "bias": jnp.asarray([10.0])}
    >>> tx = mo.add_decayed_weights(0.5, exclude_from_weight_decay=["bias"])
    >>> gradients = {"kernel": jnp.ones(1), "bias": jnp.ones(1)}
    >>> updates, _ = tx.update(gradients, tx.init(params), params)
    >>> print(updates["kernel"], updates["bias"])
    [6.] [1.]

    Source: Loshchilov and Hutter, *Decoupled Weight Decay Regularization* (2019), algorithm 2.
    """
    return dependable(_decayed_weights(weight_decay, exclude_from_weight_decay, Partial(_add)))


@_checks.without_mask
def subtract_decayed_weights(
    weight_decay: optax.ScalarOrSchedule,
    exclude_from_weight_decay: Selection = (),
) -> Piece:
    r"""Subtracts decayed weights from the updates: decay that no learning rate scales.

    .. math::
        u_t \leftarrow u_t - \lambda_t \, p_t

    where :math:`\lambda_t` is `weight_decay` and :math:`p_t` the parameter. After a named
    optimizer, whose updates are ready to be added to the parameters, each step multiplies them by
    :math:`1 - \lambda_t`.

    Args:
      weight_decay: the rate, a finite number of at least 0, or a schedule of it.
      exclude_from_weight_decay: which parameters do not decay: regular expressions, searched in
        paths such as `encoder/layer_0/LayerNorm/scale`; a function `(name, shape) -> bool`;
        `fewer_than_two_axes()`, as is usual; or a list of these.

    Returns:
      A transformation that needs `params`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if the rate is negative or not finite, or a pattern is no regular expression; in
        `init`, if a pattern is found in no parameter's path.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = optax.chain(optax.sgd(0.0), mo.subtract_decayed_weights(0.1))
    >>> params = jnp.asarray(10.0)
    >>> update, _ = tx.update(jnp.asarray(5.0), tx.init(params), params)
    >>> print(optax.apply_updates(params, update))
    9.0

    Source: Loshchilov and Hutter, *Decoupled Weight Decay Regularization* (2019), section 2.
    """
    return dependable(_decayed_weights(weight_decay, exclude_from_weight_decay, Partial(_subtract)))


def _decayed_weights(
    weight_decay: optax.ScalarOrSchedule, exclude: Selection, change: Partial
) -> Piece:
    rate = _checks.number("weight_decay", weight_decay, schedule=True)
    excluded = selected(EXCLUDE, exclude)

    def init(params: optax.Params) -> optax.EmptyState:
        excluded.check(params)
        return optax.EmptyState()

    def at(name: str, shape: jax.ShapeDtypeStruct) -> Partial:
        return Partial(_pass) if excluded.at(name, shape) else change

    none_decays = isinstance(rate, float) and rate == 0
    leaf = Partial(_pass) if none_decays else paths.PerLeaf(at)
    return from_rule(at_count("weight_decay", rate, init, leaf))


def _add(
    rate: jax.Array, update: jax.Array, state: Any, param: jax.Array | None
) -> tuple[Any, Any]:
    # Without a parameter, optax raises its own message.
    decayed, _ = optax.add_decayed_weights(rate).update(update, optax.EmptyState(), param)
    return decayed, state


def _subtract(
    rate: jax.Array, update: jax.Array, state: Any, param: jax.Array | None
) -> tuple[Any, Any]:
    return _add(-rate, update, state, param)


def _pass(rate: jax.Array, update: jax.Array, state: Any, param: Any) -> tuple[jax.Array, Any]:
    del rate, param
    return update, state
