"""Formulas: one equation each, on the arrays of one leaf, without state.

A formula that `from_estimates` reads is given the gradient first, then each estimate under the name
of its argument.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from msvag_optax import _checks
from msvag_optax.pieces.running_moments import Moments


def over_rms(
    eps: jax.typing.ArrayLike, eps_root: jax.typing.ArrayLike = 0.0
) -> Callable[..., jax.Array]:
    r"""The gradient, or its mean, over the root of a second moment.

    .. math::
        u = \frac{m}{\sqrt{v + \bar\varepsilon} + \varepsilon}

    where :math:`v` is the estimate named `second_moment`, :math:`m` the one named `mean` (the
    gradient itself where there is none), :math:`\varepsilon` is `eps` and
    :math:`\bar\varepsilon` is `eps_root`. The quotient is 0 where the denominator is: a gradient
    too small to square is no reason to move. At a gradient of 0 its derivative is that of
    :math:`m / \varepsilon`; without an epsilon there is none, and 0 is given.

    Args:
      eps: the number added to the root, at least 0.
      eps_root: the number added under the root, at least 0.

    Returns:
      The formula `(gradient, second_moment, mean=None) -> update`, for `from_estimates`. The
      second moment has the shape of the gradient or broadcasts to it; with the `mean_square` of
      blocks, each element is divided by the root of its block's.

    Raises:
      TypeError: if an argument is no real scalar.
      ValueError: if an argument is negative or not finite.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> formula = mo.over_rms(1.0)
    >>> print(formula(jnp.asarray([6.0, 0.0]), second_moment=jnp.asarray([4.0, 0.0])))
    [2. 0.]
    """
    eps, eps_root = _checks.number("eps", eps), _checks.number("eps_root", eps_root)
    never_zero = isinstance(eps, float) and eps != 0
    return Partial(_over_rms, Partial(_divide if never_zero else _divide_or_zero), eps, eps_root)


def _over_rms(
    divide: Partial,
    eps: jax.typing.ArrayLike,
    eps_root: jax.typing.ArrayLike,
    gradient: jax.Array,
    second_moment: jax.Array,
    mean: jax.Array | None = None,
) -> jax.Array:
    update = gradient if mean is None else mean
    return divide(update, _spread(_root(second_moment + eps_root) + eps, update.shape))


def _spread(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`x`, repeated along each axis that it counts in blocks; what broadcasts stays as it is."""
    if x.ndim == len(shape):
        for axis, (blocks, size) in enumerate(zip(x.shape, shape, strict=True)):
            if 1 < blocks < size:  # `jnp.repeat` would have to be told how a mesh cuts it.
                before, after = x.shape[:axis], x.shape[axis + 1 :]
                each = (*before, blocks, size // blocks, *after)
                x = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), each)
                x = x.reshape(*before, size, *after)
    return x


def _divide(x: jax.Array, y: jax.Array) -> jax.Array:
    return x / y


def _divide_or_zero(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


@jax.custom_jvp
def _root(x: jax.Array) -> jax.Array:
    """The square root, with a derivative of 0 at 0.

    It has none there; but where a second moment is 0, so is the gradient that it is the square of,
    and with an epsilon their quotient has the derivative of the gradient over that epsilon.
    """
    return jnp.sqrt(x)


@_root.defjvp
def _root_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    root = _root(x)
    return root, jnp.where(x == 0, 0, dx / jnp.where(x == 0, 1, 2 * root))


def variance_adaptation_factor(mean: jax.Array, variance: jax.Array) -> jax.Array:
    r"""The factor by which noise should shorten an estimate: 1 without noise, 0 without signal.

    .. math::
        \frac{m^2}{m^2 + \sigma^2}

    where :math:`m` is `mean` and :math:`\sigma^2` is `variance`. Of all factors, this one brings an
    estimate with mean :math:`m` and variance :math:`\sigma^2` closest, in expected square, to
    :math:`m`.

    Laws: it is in [0, 1]; scaling `mean` by c and `variance` by c² changes nothing; it is 0 where
    the mean is 0 (as the limit says wherever there is variance, and harmless where there is none).

    Args:
      mean: an array, real or complex.
      variance: the real variance of that mean (M-SVAG) or of one gradient (SVAG), not negative.

    Returns:
      A real array of the same shape.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> print(mo.variance_adaptation_factor(jnp.asarray([2.0, 2.0]), jnp.asarray([0.0, 12.0])))
    [1.   0.25]

    Source: Balles and Hennig, *Dissecting Adam* (2018), section 3.
    """
    return jnp.where(mean == 0, 0, _factor(mean, variance))


def _factor(mean: jax.Array, variance: jax.Array) -> jax.Array:
    """The factor, which is 1 where there is neither mean nor variance.

    A product with the mean is 0 there, and has the derivative of the mean.
    """
    # m / (m + v / m) squares nothing, and so neither overflows nor underflows where m² would. A
    # mean whose square underflows is taken for the least whose square does not.
    least = jnp.finfo(variance.dtype).tiny ** 0.5
    magnitude = jnp.maximum(jnp.abs(mean), least)
    return magnitude / (magnitude + variance / magnitude)


def adapted_mean(gradient: jax.Array, moments: Moments) -> jax.Array:
    r"""The mean, shortened by the noise of the mean: M-SVAG's direction.

    .. math::
        u = \frac{m^2}{m^2 + \sigma_m^2} \, m

    where :math:`m` is `moments.mean` and :math:`\sigma_m^2` is `moments.variance_of_mean`.

    Args:
      gradient: not read; the moments have seen it.
      moments: the estimates of one leaf.

    Returns:
      The direction, of the shape of the mean.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> moments = mo.Moments(*map(jnp.asarray, (2.0, 16.0, 12.0, 4.0)))
    >>> print(mo.adapted_mean(jnp.asarray(5.0), moments))  # 4 / (4 + 4) of 2
    1.0

    Source: Balles and Hennig, *Dissecting Adam* (2018), algorithm 1.
    """
    del gradient
    return moments.mean * _factor(moments.mean, moments.variance_of_mean)


def adapted_gradient(gradient: jax.Array, moments: Moments) -> jax.Array:
    r"""The gradient, shortened by its own noise: SVAG's direction.

    .. math::
        u = \frac{m^2}{m^2 + \sigma^2} \, g

    where :math:`m` is `moments.mean`, :math:`\sigma^2` is `moments.variance` and :math:`g` is
    `gradient`.

    Args:
      gradient: the newest gradient.
      moments: the estimates of one leaf.

    Returns:
      The direction, of the shape of the gradient.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> moments = mo.Moments(*map(jnp.asarray, (2.0, 16.0, 12.0, 4.0)))
    >>> print(mo.adapted_gradient(jnp.asarray(8.0), moments))  # 4 / (4 + 12) of 8
    2.0

    Source: Balles and Hennig, *Dissecting Adam* (2018), section 3.
    """
    return gradient * _factor(moments.mean, moments.variance)


def mean_of(gradient: jax.Array, moments: Moments) -> jax.Array:
    """The mean gradient: the direction of SGD with momentum.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> moments = mo.Moments(*map(jnp.asarray, (-2.0, 16.0, 12.0, 4.0)))
    >>> print(mo.mean_of(jnp.asarray(8.0), moments))
    -2.0

    Args:
      gradient: not read.
      moments: the estimates of one leaf.

    Returns:
      `moments.mean`.
    """
    del gradient
    return moments.mean


def sign_of_mean(gradient: jax.Array, moments: Moments) -> jax.Array:
    """The sign of the mean gradient: the direction of M-SSD, stochastic sign descent.

    Args:
      gradient: not read.
      moments: the estimates of one leaf.

    Returns:
      -1, 0 or 1 (for complex means, the number of modulus 1 with the same angle).

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> moments = mo.Moments(*map(jnp.asarray, (-2.0, 16.0, 12.0, 4.0)))
    >>> print(mo.sign_of_mean(jnp.asarray(8.0), moments))
    -1.0
    """
    del gradient
    magnitude = jnp.abs(moments.mean)
    # Not jnp.sign, which makes a finite step of an infinite mean.
    return jnp.where(magnitude == 0, 0, moments.mean / jnp.where(magnitude == 0, 1, magnitude))


def mean_over_rms(gradient: jax.Array, moments: Moments) -> jax.Array:
    r"""The mean over the root mean square: the direction of Adam with :math:`\beta_1 = \beta_2`.

    .. math::
        u = \frac{m}{\sqrt{v}} = \mathrm{sign}(m) \sqrt{\frac{m^2}{m^2 + s}}

    where :math:`m` is `moments.mean` and :math:`v = m^2 + s` is `moments.second_moment`, with the
    biased variance :math:`s`: a sign, shortened by the noise.

    Args:
      gradient: not read.
      moments: the estimates of one leaf.

    Returns:
      The direction, 0 where the second moment is 0.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> moments = mo.Moments(*map(jnp.asarray, (-2.0, 16.0, 12.0, 4.0)))
    >>> print(mo.mean_over_rms(jnp.asarray(8.0), moments))
    -0.5

    Source: Balles and Hennig, *Dissecting Adam* (2018), section 1.
    """
    del gradient
    return _divide_or_zero(moments.mean, _root(moments.second_moment))
