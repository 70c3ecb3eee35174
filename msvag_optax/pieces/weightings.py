"""Weightings: how much the newest of `t` observations counts in an average.

A running average moves towards each observation by its weight,
`average += w_t (observation - average)`. The choice of `w_t` is all that distinguishes an
exponential from an arithmetic mean, and a biased from an unbiased one. Laws: `0 < w_t <= 1`; where
`w_1 = 1`, the weights of all observations sum to one, so that the average of a constant is that
constant.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from msvag_optax import _checks
from msvag_optax._trees import partials
from msvag_optax._trees.arrays import scalar_dtype


class Weighting(NamedTuple):
    r"""How much the newest of `count` observations counts.

    A record and not a bare function, so that `optax.inject_hyperparams` cannot take it for a
    schedule. Any function with values in (0, 1] makes one:

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> linear = mo.Weighting(lambda count: 2 / (count + 1))  # the t-th observation weighs t
    >>> average = mo.running_average(linear)
    >>> state = average.init(jnp.zeros(()))
    >>> for observation in (1.0, 2.0, 3.0):
    ...     estimate, state = average.update(jnp.asarray(observation), state)
    >>> print(f"{estimate:.4f}")  # (1 * 1 + 2 * 2 + 3 * 3) / (1 + 2 + 3)
    2.3333

    Attributes:
      weight: maps the number of observations, the newest included (an integer array, at least 1, of
        the widest dtype that JAX is configured for), to the weight of the newest.
    """

    weight: Callable[[jax.Array], jax.Array]


def check_weighting(weighting: object) -> None:
    """Raises unless `weighting` is a `Weighting`."""
    if not isinstance(weighting, Weighting) or not callable(weighting.weight):
        raise TypeError(
            f"`weighting` must be a Weighting such as exponential(0.9), got {weighting!r}."
        )


def _newest(decay: Any) -> Weighting | None:
    """At a decay of 0, the average is the newest observation: what is older leaves no trace."""
    zero = isinstance(decay, float) and decay == 0
    return Weighting(Partial(_whole_weight)) if zero else None


def keeps_newest(weighting: Weighting) -> bool:
    """Whether the weighting was built with a decay of 0, so that nothing is averaged."""
    return getattr(weighting.weight, "func", None) is _whole_weight


def weigh(weighting: Weighting) -> Callable[[jax.Array], jax.Array]:
    """The function from a count to the weight of the newest observation, once for all leaves."""
    return partials.compiled(Partial(weight_at, partials.as_partial(weighting.weight)))


def weight_at(weight: Callable[[jax.Array], jax.Array], count: jax.Array) -> jax.Array:
    """The same, inside of a kernel."""
    count = count.astype(jax.dtypes.canonicalize_dtype(jnp.int64))  # float64 follows from int64
    return jnp.asarray(_checks.weight(weight(count), count.shape), scalar_dtype())


def exponential(decay: jax.typing.ArrayLike) -> Weighting:
    r"""The exponential mean without bias: the weight of the bias-corrected moving average.

    .. math::
        w_t = \frac{1 - \beta}{1 - \beta^t}

    where :math:`\beta` is `decay`. With it the running average *is* the bias-corrected one: nothing
    is left to divide, and a decay that changes from step to step stays unbiased. As
    :math:`\beta \to 1` the weight tends to :math:`1/t`, which is its value at a traced decay of 1
    (where 0.999 was rounded to bfloat16, say).

    Args:
      decay: the number :math:`\beta` in [0, 1); 0 keeps only the newest observation.

    Returns:
      The weighting. It is accurate to a few units of the last place of float32 for any decay and
      up to 1e7 observations and more: :math:`1 - \beta^t` is never formed by subtraction.

    Raises:
      TypeError: if `decay` is no real scalar.
      ValueError: if `decay` is outside of [0, 1).

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> weighting = mo.exponential(0.5)
    >>> [round(float(weighting.weight(jnp.int32(t))), 4) for t in (1, 2, 3)]  # 1, 1/1.5, 1/1.75
    [1.0, 0.6667, 0.5714]

    Source: Kingma and Ba, *Adam* (2015), section 3.
    """
    decay = _checks.decay(decay=decay)
    return _newest(decay) or Weighting(Partial(_exponential_weight, *_log_and_complement(decay)))


def exponential_from_zero(decay: jax.typing.ArrayLike) -> Weighting:
    r"""The exponential mean that starts at zero and is left biased towards it.

    .. math::
        w_t = 1 - \beta

    where :math:`\beta` is `decay`. The zero with which the average starts counts like an
    observation, so that the average of a constant :math:`c` is :math:`(1 - \beta^t) c`;
    `bias_corrected` divides that out. BERT's Adam and the AMSGrad of its paper leave it in.

    Args:
      decay: the number :math:`\beta` in [0, 1). A traced decay of 1 is taken as the largest float
        below 1, so that its bias correction has a limit and not 0/0.

    Returns:
      The weighting.

    Raises:
      TypeError: if `decay` is no real scalar.
      ValueError: if `decay` is outside of [0, 1).

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> average = mo.running_average(mo.exponential_from_zero(0.5))
    >>> state = average.init(jnp.zeros(()))
    >>> for _ in range(2):
    ...     estimate, state = average.update(jnp.asarray(8.0), state)
    >>> print(estimate)  # (1 - 0.5^2) 8
    6.0

    Source: Reddi et al., *On the Convergence of Adam and Beyond* (2018), algorithm 2.
    """
    decay = _checks.decay(decay=decay)
    _, complement = _log_and_complement(_below_one(decay))
    return _newest(decay) or Weighting(Partial(_constant_weight_after, 0, complement))


def exponential_from_first(decay: jax.typing.ArrayLike) -> Weighting:
    r"""The exponential mean that starts at the first observation.

    .. math::
        w_1 = 1, \qquad w_t = 1 - \beta \quad (t > 1)

    where :math:`\beta` is `decay`. It is unbiased, but the first observation keeps the weight
    :math:`\beta^{t-1}`, more than any later one. NovoGrad's second moment is such an average, and
    so is its first moment where gradients are averaged.

    Args:
      decay: the number :math:`\beta` in [0, 1). A traced decay of 1 is taken as the largest float
        below 1.

    Returns:
      The weighting.

    Raises:
      TypeError: if `decay` is no real scalar.
      ValueError: if `decay` is outside of [0, 1).

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> weighting = mo.exponential_from_first(0.75)
    >>> [float(weighting.weight(jnp.int32(t))) for t in (1, 2, 3)]
    [1.0, 0.25, 0.25]

    Source: Ginsburg et al., *Stochastic Gradient Methods with Layer-wise Adaptive Moments* (2019),
    algorithm 1.
    """
    decay = _checks.decay(decay=decay)
    _, complement = _log_and_complement(_below_one(decay))
    return _newest(decay) or Weighting(Partial(_constant_weight_after, 1, complement))


def arithmetic() -> Weighting:
    r"""The arithmetic mean: all observations count alike, for ever.

    .. math::
        w_t = \frac{1}{t}

    Unlike a sum that is divided later, the running mean cannot grow out of its float's range, and
    its counter is an integer, which holds every count up to :math:`2^{31} - 1`.

    Returns:
      The weighting.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> weighting = mo.arithmetic()
    >>> [float(weighting.weight(jnp.int32(t))) for t in (1, 2, 4)]
    [1.0, 0.5, 0.25]

    Source: Daley and Amato, *Expectigrad: Fast Stochastic Optimization with Robust Convergence
    Properties* (2020), section 3.
    """
    return Weighting(Partial(_arithmetic_weight))


def bias_correction(decay: jax.typing.ArrayLike, count: jax.Array) -> jax.Array:
    r"""The weight :math:`1 - \beta^t` that `count` observations have in an average from zero.

    Args:
      decay: the number :math:`\beta` in [0, 1); a traced 1 is taken as by `exponential_from_zero`.
      count: the number :math:`t` of observations.

    Returns:
      A float scalar in (0, 1], free of the cancellation of 1 minus a power.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> print(mo.bias_correction(0.5, jnp.int32(3)))
    0.875
    """
    decay = _below_one(decay)
    log_decay, complement = _log_and_complement(decay)
    # log(0) has no derivative; but 1 - 0^t is 1, and 1 - decay for the first.
    of_zero = jnp.where(count == 1, complement, 1)
    return jnp.where(decay == 0, of_zero, _one_minus_power(log_decay, count))


def _log_and_complement(decay: jax.typing.ArrayLike) -> tuple[jax.typing.ArrayLike, ...]:
    """`log(decay)` and `1 - decay`: in double precision where the decay is a plain number.

    The logarithm of 0 is a large number, by which a power of 0 is 0.
    """
    if isinstance(decay, float):
        return (math.log(decay) if decay > 0 else _LOG_OF_ZERO), 1 - decay
    decay = jnp.asarray(decay).astype(scalar_dtype())
    log_decay = jnp.log1p(jnp.where(decay == 0, 1, decay) - 1)
    return jnp.where(decay == 0, _LOG_OF_ZERO, log_decay), 1 - decay


_LOG_OF_ZERO = -1e4


def _one_minus_power(log_decay: jax.typing.ArrayLike, count: jax.Array) -> jax.Array:
    return -jnp.expm1(count.astype(scalar_dtype()) * log_decay)


def _below_one(decay: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    if isinstance(decay, float):
        return decay
    decay = jnp.asarray(decay).astype(scalar_dtype())
    return jnp.minimum(decay, 1 - jnp.finfo(decay.dtype).epsneg)


# Every weight that changes with the count ends in a division: XLA copies cheaper scalar arithmetic
# into the kernel of each leaf that reads it, which doubles the time to compile a large tree.


def _exponential_weight(
    log_decay: jax.typing.ArrayLike, complement: jax.typing.ArrayLike, count: jax.Array
) -> jax.Array:
    time = count.astype(scalar_dtype())
    numerator = jnp.where(log_decay == 0, 1, jnp.asarray(complement, time.dtype))
    total = jnp.where(log_decay == 0, time, _one_minus_power(log_decay, count))
    # The first weight must be exactly 1, and a compiler may round the quotient.
    return numerator / jnp.where(count <= 1, numerator, total)


def _constant_weight_after(
    start: int, complement: jax.typing.ArrayLike, count: jax.Array
) -> jax.Array:
    """1 up to observation `start` (0 is the zero that an average begins with), then constant."""
    complement = jnp.asarray(complement, scalar_dtype())
    return complement / jnp.where(count <= start, complement, 1)


def _arithmetic_weight(count: jax.Array) -> jax.Array:
    return 1 / count.astype(scalar_dtype())


def _whole_weight(count: jax.Array) -> jax.Array:
    return jnp.ones_like(count, dtype=scalar_dtype())
