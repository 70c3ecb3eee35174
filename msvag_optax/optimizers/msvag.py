"""SVAG and M-SVAG: gradient and momentum, shortened by their noise."""

import jax
import optax

from msvag_optax import _checks
from msvag_optax._trees.selection import Selection
from msvag_optax.optimizers.optimizer import optimizer
from msvag_optax.pieces.formulas import adapted_gradient, adapted_mean
from msvag_optax.pieces.from_estimates import from_estimates
from msvag_optax.pieces.running_moments import running_moments
from msvag_optax.pieces.weightings import exponential


@_checks.without_mask
def msvag(
    learning_rate: optax.ScalarOrSchedule,
    beta: jax.typing.ArrayLike = 0.9,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    exclude_from_weight_decay: Selection = (),
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""M-SVAG: momentum SGD, each element shortened by the noise of its mean gradient.

    .. math::
        m_t &= m_{t-1} + w_t (g_t - m_{t-1}), \qquad w_t = \frac{1 - \beta}{1 - \beta^t} \\
        s_t &= (1 - w_t) \bigl(s_{t-1} + w_t (g_t - m_{t-1})^2\bigr) \\
        \rho_t &= (1 - w_t)^2 \rho_{t-1} + w_t^2 \\
        u_t &= \frac{m_t^2}{m_t^2 + \rho_t s_t / (1 - \rho_t)} \; m_t \\
        p_t &= p_{t-1} - \eta \, (u_t + \lambda p_{t-1})

    where :math:`g_t` is the gradient, :math:`\eta` is `learning_rate`, :math:`\beta` is `beta` and
    :math:`\lambda` is `weight_decay`. It is Adam without the sign: Adam's direction is the sign of
    the mean times the root of such a factor, M-SVAG's the mean itself times the factor. Scaling all
    gradients by c scales the update by c, as in SGD. The mean is an average, where the momentum of
    SGD is mostly a sum: rates are those of plain SGD, :math:`1 / (1 - \beta)` times those of SGD
    with momentum.

    The first step is SGD's, as there is no variance yet. A zero mean gives a zero update.

    Args:
      learning_rate: the rate, a finite number of at least 0, or a schedule of it.
      beta: the decay of mean and variance, in [0, 1); 0 is SGD, in float32 bit for bit.
      weight_decay: the rate of decay, scaled by the learning rate; a number or a schedule.
      exclude_from_weight_decay: which parameters do not decay: regular expressions, searched in
        paths such as `encoder/layer_0/LayerNorm/scale`; a function `(name, shape) -> bool`;
        `fewer_than_two_axes()`, as is usual; or a list of these.
      mu_dtype: the dtype in which the mean is kept; None is that of the parameter, and at least
        float32.
      nu_dtype: the dtype in which the variance is kept, likewise.

    Returns:
      The optimizer. Its state has, under `moments`, the mean and the (biased) variance: two floats
      a parameter.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range; in `init`, if a pattern is found in no
        parameter's path.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = mo.msvag(0.1)
    >>> params = jnp.asarray([1.0, 1.0])
    >>> state = tx.init(params)
    >>> for noise in (0.0, 2.0, -2.0):  # the gradient is the parameter, the second's is noisy
    ...     updates, state = tx.update(params + noise * jnp.asarray([0.0, 1.0]), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> print(", ".join(f"{value:.4f}" for value in params))
    0.7164, 0.7137

    Source: Balles and Hennig, *Dissecting Adam: The Sign, Magnitude and Variance of Stochastic
    Gradients* (2018), algorithm 1. The authors' code (lballes/msvag) forms the variance as
    :math:`v - m^2` and caps :math:`\rho` at 0.9999, so that its first factor is rounding noise
    between about 0.997 and 1; here it is exactly 1.
    """
    _checks.check_decays(beta=beta)
    _checks.check_dtypes(mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    moments = running_moments(exponential(beta), mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    return optimizer(
        from_estimates(adapted_mean, moments=moments),
        learning_rate,
        weight_decay,
        exclude_from_weight_decay=exclude_from_weight_decay,
    )


@_checks.without_mask
def svag(
    learning_rate: optax.ScalarOrSchedule,
    beta: jax.typing.ArrayLike = 0.9,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    exclude_from_weight_decay: Selection = (),
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SVAG: SGD, each element shortened by the noise of its gradient.

    .. math::
        u_t = \frac{m_t^2}{m_t^2 + s_t / (1 - \rho_t)} \; g_t, \qquad
        p_t = p_{t-1} - \eta \, (u_t + \lambda p_{t-1})

    where :math:`g_t` is the gradient, :math:`m_t`, :math:`s_t` and :math:`\rho_t` are as for
    `msvag` at decay :math:`\beta`, which is `beta`; :math:`\eta` is `learning_rate` and
    :math:`\lambda` is `weight_decay`. The mean only serves to estimate the noise; there is no
    momentum.

    Args:
      learning_rate: the rate, a finite number of at least 0, or a schedule of it.
      beta: the decay of mean and variance, in [0, 1); 0 is SGD, in float32 bit for bit.
      weight_decay: the rate of decay, scaled by the learning rate; a number or a schedule.
      exclude_from_weight_decay: which parameters do not decay: regular expressions, searched in
        paths such as `encoder/layer_0/LayerNorm/scale`; a function `(name, shape) -> bool`;
        `fewer_than_two_axes()`, as is usual; or a list of these.
      mu_dtype: the dtype in which the mean is kept; None is that of the parameter, and at least
        float32.
      nu_dtype: the dtype in which the variance is kept, likewise.

    Returns:
      The optimizer. Its state has, under `moments`, the mean and the (biased) variance: two floats
      a parameter.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range; in `init`, if a pattern is found in no
        parameter's path.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> tx = mo.svag(1.0, beta=0.5)
    >>> state = tx.init(jnp.zeros(2))
    >>> for gradient in ([1.0, 3.0], [1.0, -1.0]):  # means 1 and 1/3, variances 0 and 8
    ...     updates, state = tx.update(jnp.asarray(gradient), state)
    >>> print(updates.round(4))  # -1, and 1 / (1 + 72) of 1
    [-1.      0.0137]

    Source: Balles and Hennig, *Dissecting Adam* (2018), section 3, and algorithm 1 without
    momentum. The authors' code (lballes/msvag) differs at the first step as for `msvag`.
    """
    _checks.check_decays(beta=beta)
    _checks.check_dtypes(mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    moments = running_moments(exponential(beta), mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    return optimizer(
        from_estimates(adapted_gradient, moments=moments),
        learning_rate,
        weight_decay,
        exclude_from_weight_decay=exclude_from_weight_decay,
    )
