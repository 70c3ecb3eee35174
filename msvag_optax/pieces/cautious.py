"""Any direction, where it agrees with the gradient."""

import jax
import jax.numpy as jnp
import optax

from msvag_optax._trees.rules import Piece
from msvag_optax.pieces.chain import check_is_direction
from msvag_optax.pieces.from_estimates import from_estimates
from msvag_optax.wrappers.dependable import dependable


def cautious(direction: optax.GradientTransformation) -> Piece:
    r"""Keeps of any direction only the elements that have the sign of their gradient.

    .. math::
        u_t = \frac{D}{1 + \sum_i \phi_{t, i}} \, \phi_t \, d_t, \qquad \phi_t = [d_t \, g_t > 0]

    where :math:`d_t` is what `direction` makes of the gradient :math:`g_t` and :math:`D` the number
    of elements of the leaf. What is kept is scaled up to make up for what is not, so that a rate
    that was tuned without it still suits. It has no state of its own. An element whose momentum
    would still lead uphill waits until its gradient turns; a small enough step cannot raise the
    loss.

    Of complex numbers, the real part of :math:`\bar d_t g_t` decides. Inside of `shard_map` each
    device counts the elements that it holds.

    Args:
      direction: any transformation of the gradients that points uphill, as they do, without a
        learning rate: `optax.scale_by_adam()`, say, and not `optax.adam(0.1)`.

    Returns:
      A transformation whose update has the gradient's dtype.

    Raises:
      TypeError: if `direction` is no gradient transformation, an estimator, or an optimizer.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> tx = mo.cautious(mo.momentum(0.5))
    >>> state = tx.init(jnp.zeros(3))
    >>> for gradient in ([4.0, 4.0, 4.0], [1.0, 1.0, -1.0]):  # the last turns
    ...     update, state = tx.update(jnp.asarray(gradient), state)
    >>> print(update)  # the momentum is 3, 3, 1
    [3. 3. 0.]

    Source: Liang et al., *Cautious Optimizers: Improving Training with One Line of Code* (2024),
    with its :math:`\xi` of 1. Many implementations divide by the mean of the mask, or by 1e-3 where
    that is larger, which is nearly the same where many elements are kept.
    """
    check_is_direction(direction)
    return dependable(from_estimates(_agreeing, direction=direction))


def _agreeing(gradient: jax.Array, direction: jax.Array) -> jax.Array:
    # Signs, since a product of small numbers underflows.
    agrees = (jnp.conj(jnp.sign(direction)) * jnp.sign(gradient)).real > 0
    kept = jnp.sum(agrees, dtype=direction.real.dtype)
    # A product, so that a direction that is not finite stays visible.
    return direction * jnp.where(agrees, agrees.size / (kept + 1), 0)
