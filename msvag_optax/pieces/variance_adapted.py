"""Any direction, shortened by the noise of its gradient."""

import jax
import optax

from msvag_optax import _checks
from msvag_optax.pieces.chain import check_is_direction
from msvag_optax.pieces.formulas import variance_adaptation_factor
from msvag_optax.pieces.from_estimates import from_estimates
from msvag_optax.pieces.running_moments import Moments, running_moments
from msvag_optax.pieces.weightings import exponential
from msvag_optax.wrappers.dependable import dependable


def variance_adapted(
    direction: optax.GradientTransformation,
    beta: jax.typing.ArrayLike = 0.9,
    *,
    of_mean: bool = False,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Shortens each element of any direction by the noise of its gradient.

    .. math::
        u_t = \frac{m_t^2}{m_t^2 + \sigma_t^2} \; d(g_1, \dots, g_t)

    where :math:`d` is `direction`, :math:`m_t` the exponential mean of the gradients at decay
    `beta` and :math:`\sigma_t^2` the variance of one gradient (or, with `of_mean`, of :math:`m_t`).
    It works with directions that no paper has adapted: the sign of a momentum, Nesterov's, Lion's.
    `variance_adapted(optax.identity())` is SVAG's direction, and with `of_mean` around the
    exponential mean itself it is M-SVAG's. There is no learning rate in it.

    Args:
      direction: any transformation of the gradients.
      beta: the decay of mean and variance, in [0, 1).
      of_mean: whether the direction is as noisy as the mean of the gradients (a momentum is) rather
        than as one gradient.
      mu_dtype: the dtype in which the mean is kept; None is that of the parameter, and at least
        float32.
      nu_dtype: the dtype in which the variance is kept, likewise.

    Returns:
      A transformation whose update has the gradient's dtype.

    Raises:
      TypeError: if `direction` is no gradient transformation, `of_mean` no bool or `beta` no real
        scalar.
      ValueError: if `beta` is outside of [0, 1), or a dtype is no floating-point dtype.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = optax.chain(
    ...     mo.variance_adapted(optax.scale_by_sign(), beta=0.5), optax.scale_by_learning_rate(0.1)
    ... )
    >>> state = tx.init(jnp.zeros(2))
    >>> for gradient in ([2.0, 2.0], [2.0, -2.0]):  # one without noise, one with
    ...     update, state = tx.update(jnp.asarray(gradient), state)
    >>> print(", ".join(f"{value:.4f}" for value in update))
    -0.1000, 0.0053

    Source: Balles and Hennig, *Dissecting Adam* (2018), section 3.
    """
    check_is_direction(direction)
    _checks.check_decays(beta=beta)
    _checks.check_dtypes(mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    _checks.check_flags(of_mean=of_mean)
    return dependable(
        from_estimates(
            _adapted_as_mean if of_mean else _adapted,
            direction=direction,
            moments=running_moments(exponential(beta), mu_dtype=mu_dtype, nu_dtype=nu_dtype),
        )
    )


def _adapted(gradient: jax.Array, direction: jax.Array, moments: Moments) -> jax.Array:
    del gradient
    return direction * variance_adaptation_factor(moments.mean, moments.variance)


def _adapted_as_mean(gradient: jax.Array, direction: jax.Array, moments: Moments) -> jax.Array:
    del gradient
    return direction * variance_adaptation_factor(moments.mean, moments.variance_of_mean)
