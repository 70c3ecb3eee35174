"""The noise of a gradient, from the examples of its own batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _checks, _compat
from msvag_optax._trees import arrays, mismatch
from msvag_optax._trees.layout import Parts
from msvag_optax._trees.rules import Piece
from msvag_optax.pieces.piece import piece
from msvag_optax.pieces.quantities import square
from msvag_optax.pieces.running_moments import Moments

SQUARES, SIZE = "sum_sq_diff_grads", "sample_size"  # as optax calls them


def batch_variance() -> Piece:
    r"""Estimates the variance of the gradient from the examples of one batch, without memory.

    .. math::
        \sigma^2 = \frac{1}{n - 1} \sum_{j=1}^n |g_j - m|^2, \qquad
        \sigma_m^2 = \frac{\sigma^2}{n}, \qquad m = \frac{1}{n} \sum_{j=1}^n g_j

    where :math:`g_j` is the gradient of one example and :math:`m` the gradient of the batch, which
    is what `update` is given. The sum is its extra argument `sum_sq_diff_grads`, a tree like the
    gradients, and :math:`n` its extra argument `sample_size`, a number of examples. Both estimates
    are unbiased for examples that are drawn independently, at any learning rate: unlike
    `running_moments`, which compares the gradients of different steps, this one compares gradients
    at the same parameters.

    `optax.experimental.aggregating` makes these two from the gradients of single examples, and
    passes them to a chain. `Microbatches` makes them where an accumulation loop or several devices
    have the gradients of parts of a batch.

    Returns:
      An estimator whose estimate is a `Moments` at each leaf, in float32 or wider: of the batch's
      examples, which have the weight 1/n each. So `variance` is of the gradient of one example, and
      `variance_of_mean` that of the batch's.

    Raises:
      TypeError: in `update`, if one of the two extra arguments is missing, or `sample_size` is no
        number.
      ValueError: in `update`, if `sum_sq_diff_grads` differs from the gradients in structure or in
        a shape, or is complex; if `sample_size` is known to be below 2. (Of a traced size of 1 the
        variance is not a number.)

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> of_examples = jnp.asarray([1.0, 3.0, 5.0])
    >>> gradient = of_examples.mean()
    >>> estimator = mo.batch_variance()
    >>> moments, _ = estimator.update(
    ...     gradient,
    ...     estimator.init(gradient),
    ...     sum_sq_diff_grads=jnp.sum((of_examples - gradient) ** 2),
    ...     sample_size=3,
    ... )
    >>> print(f"{moments.mean:.1f}, {moments.variance:.4f}, {moments.variance_of_mean:.4f}")
    3.0, 4.0000, 1.3333

    Source: McCandlish et al., *An Empirical Model of Large-Batch Training* (2018), appendix A.
    """
    return piece(_init, _estimate, advance=_advance, estimates=True)


class Sample(NamedTuple):
    """What the extra arguments say of a batch, for all leaves.

    Attributes:
      squares: the sum of squared differences of its examples' gradients from their mean.
      size: how many examples it has.
    """

    squares: Parts
    size: jax.Array


def sample_in(extra: dict[str, Any]) -> Sample:
    """The sample that the extra arguments of `update` describe.

    Raises:
      TypeError: if one is missing, or the size is no number.
      ValueError: if the size is known to be less than 2.
    """
    for name in (SQUARES, SIZE):
        if name not in extra:
            raise TypeError(
                f"The variance within a batch needs the extra arguments `{SQUARES}` and `{SIZE}` "
                f"of `update`, and was not given `{name}`: pass it the second value of "
                "`Microbatches.result()`, or let `optax.experimental.aggregating` do so."
            )
    return Sample(Parts(extra[SQUARES], SQUARES), _size(extra[SIZE]))


def _size(size: Any) -> jax.Array:
    if not _compat.is_tracer(size):
        size = _checks.number(SIZE, size, "(-inf, inf)")
        if size < 2:
            raise ValueError(
                f"`{SIZE}` must be at least 2, a number of examples, got {size:g}: one example has "
                "no variance."
            )
    return jnp.asarray(size, arrays.scalar_dtype())


def variance_of(gradient: jax.Array, squares: Any, over_others: jax.Array) -> jax.Array:
    """The variance of one example's gradient; `over_others` is 1 / (n - 1).

    Raises:
      LeafError: if the squares are no real array of the gradient's shape.
    """
    mismatch.check_part(SQUARES, gradient, squares)
    dtype = arrays.real_dtype(gradient.dtype)
    return arrays.saturate(arrays.widen(squares).astype(dtype) * over_others.astype(dtype))


def _init(params: optax.Params) -> optax.EmptyState:
    del params
    return optax.EmptyState()


class _Shared(NamedTuple):
    """What the leaves share; each number ends in a division, so that it is computed once."""

    squares: Parts
    over_size: jax.Array
    over_others: jax.Array
    share_of_others: jax.Array  # (n - 1) / n


def _advance(state: optax.EmptyState, extra: dict[str, Any]) -> tuple[_Shared, optax.EmptyState]:
    squares, size = sample_in(extra)
    return _Shared(squares, 1 / size, 1 / (size - 1), (size - 1) / size), state


def _estimate(
    shared: _Shared, gradient: jax.Array, state: Any, param: Any
) -> tuple[Moments, optax.EmptyState]:
    del param
    variance = variance_of(gradient, shared.squares, shared.over_others)
    moments = Moments(
        mean=gradient,
        second_moment=square(gradient) + variance * shared.share_of_others.astype(variance.dtype),
        variance=variance,
        variance_of_mean=variance * shared.over_size.astype(variance.dtype),
    )
    return moments, state
