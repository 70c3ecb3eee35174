"""The gradient of a batch and its noise, from the gradients of its parts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _checks, _compat
from msvag_optax._trees import arrays, mesh_axes, mismatch, paths
from msvag_optax._trees.exportable import exportable
from msvag_optax.pieces.batch_variance import SIZE, SQUARES
from msvag_optax.pieces.quantities import absolute_square

Number = int | jax.Array


@exportable
class Microbatches(NamedTuple):
    r"""The mean of the gradients of several microbatches, and how far they are from it.

    .. math::
        m = \frac{1}{n} \sum_{j=1}^k b_j \, g_j, \qquad
        q = \sum_{j=1}^k b_j \, |g_j - m|^2, \qquad n = \sum_{j=1}^k b_j

    where :math:`g_j` is the mean gradient of microbatch :math:`j`, of :math:`b_j` examples. It
    takes the memory of two gradients in float32, whatever :math:`k` is. Since the mean of
    :math:`b_j` examples has the variance of one example over :math:`b_j`, :math:`q / (k - 1)` is an
    unbiased estimate of the variance of one *example's* gradient. `result` gives it in the form
    that optax hands to a chain from single examples, so that all sizes are numbers of examples, and
    all variances those of examples, wherever they come from.

    A device's part of a batch, in `shard_map` or `pmap`, is a microbatch too: see `across`. The
    fewer parts, the more chance is in the estimate: of 4 parts it has a relative standard deviation
    of 0.8 for each element, which averages out over elements and steps.

    Attributes:
      mean: the mean gradient :math:`m` so far, in float32 or wider.
      squares: :math:`q`.
      examples: :math:`n`.
      count: :math:`k`, without those of no examples.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = mo.chain(mo.watch_noise(mo.exponential(0.9)), optax.scale(-0.1))
    >>> params = jnp.zeros(2)
    >>> batch = mo.Microbatches.init(params)
    >>> for gradient in ([1.0, 4.0], [2.0, 2.0], [3.0, 0.0]):  # means of 8 examples each
    ...     batch = batch.add(jnp.asarray(gradient), 8)
    >>> gradient, noise = batch.result()
    >>> updates, state = tx.update(gradient, tx.init(params), params, **noise)
    >>> print(gradient, noise["sample_size"])
    [2. 2.] 24
    >>> print(noise["sum_sq_diff_grads"] / (24 - 1))  # 8 times the variances 1 and 4
    [ 8. 32.]

    Source: Chan, Golub and LeVeque, *Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances* (1979).
    """

    mean: Any
    squares: Any
    examples: Number
    count: Number

    @classmethod
    def init(cls, params: optax.Params) -> "Microbatches":
        """No microbatch yet.

        Args:
          params: the parameters; one that can have no gradient, such as an integer, has None here.

        Returns:
          The empty record.
        """

        def zeros(param: Any, real: bool) -> jax.Array | None:
            if not arrays.is_inexact(param):
                return None
            wide = arrays.widen(param)
            return arrays.zeros_like(wide.real if real else wide)

        mean, squares = (jax.tree.map(lambda p, r=r: zeros(p, r), params) for r in (False, True))
        return cls(mean, squares, 0, 0)

    def add(self, gradients: optax.Updates, size: Number) -> "Microbatches":
        """Adds a microbatch.

        Args:
          gradients: its gradient, the mean over its examples.
          size: how many examples that is. A traced size of 0 adds nothing, whatever the gradient.

        Returns:
          The record with one microbatch more.

        Raises:
          TypeError: if `size` is no integer.
          ValueError: if it is known to be less than 1, the gradients do not fit the parameters, or
            one is missing.
        """
        size = _size(size)
        gradients = self._like_mean(gradients)
        with arrays.standard_promotion():
            examples = self.examples + size
            share = _share(size, examples)
            weight = self.examples * share  # b n / (b + n)
            # The mean over no examples may be NaN, which a share of 0 would let through.
            away = jax.tree.map(
                lambda g, m: jnp.where(size > 0, arrays.widen(g) - m, 0), gradients, self.mean
            )
            mean = jax.tree.map(lambda m, d: m + share.astype(d.real.dtype) * d, self.mean, away)
            squares = jax.tree.map(lambda q, d: _plus(q, weight, d), self.squares, away)
            return Microbatches(mean, squares, examples, self.count + (size > 0))

    def across(self, axis_name: str | tuple[str, ...]) -> "Microbatches":
        """All microbatches of all devices along a mesh axis, inside of `shard_map` or `pmap`.

        It is one all-reduce for the mean, which training on several devices takes anyway, and one
        more of the same size for the squares. (Where sizes are traced, as in a `lax.scan`, two
        numbers are summed as well.)

        Where `shard_map` tracks what varies over an axis (`check_vma=True`, its default), the
        gradient with respect to parameters that are the same on all devices is summed over the
        devices already, and what differs between them is lost. Make the parameters vary first:
        `jax.lax.pcast(params, axis_name, to="varying")`.

        Args:
          axis_name: the name of the mesh axis over which the batch is cut, or several.

        Returns:
          The record of the whole batch, the same on all devices.

        Raises:
          ValueError: if a gradient is known to be the same on all devices.
        """
        for leaf in jax.tree.leaves(self.mean):
            mesh_axes.check_cut(axis_name, leaf)

        def total(x: Any) -> Any:
            return jax.lax.psum(x, axis_name)

        with arrays.standard_promotion():
            examples, count = total(self.examples), total(self.count)
            share = _share(self.examples, examples)
            mean = jax.tree.map(lambda m: total(share.astype(m.real.dtype) * m), self.mean)
            squares = jax.tree.map(
                lambda q, m, whole: total(_plus(q, jnp.asarray(self.examples), m - whole)),
                self.squares,
                self.mean,
                mean,
            )
            return Microbatches(mean, squares, examples, count)

    def result(self) -> tuple[optax.Updates, dict[str, Any]]:
        """The gradient of the batch, and the extra arguments that say how noisy it is.

        Returns:
          The mean gradient, for `update`; and `sum_sq_diff_grads` and `sample_size`, to be given to
          it by keyword. The squares are in the unit of examples: over `sample_size - 1` they are
          the unbiased variance of one example's gradient.

        Raises:
          ValueError: if there are known to be fewer than two microbatches. (Where that is traced,
            the sample size is 1, of which there is no variance: `watch_noise` does not count it.)
        """
        if not _compat.is_tracer(self.count) and self.count < 2:
            raise ValueError(
                "The variance within a batch needs two microbatches or more, got "
                f"{int(self.count)}: cut the batch into more parts."
            )
        with arrays.standard_promotion():
            others, parts = (
                jnp.asarray(x, arrays.scalar_dtype()) - 1 for x in (self.examples, self.count)
            )
            ratio = others / parts
            squares = jax.tree.map(
                lambda q: arrays.saturate(q * ratio.astype(q.dtype)), self.squares
            )
            size = self.examples
            if _compat.is_tracer(self.count):
                size = jnp.where(self.count < 2, 1, size)
        return self.mean, {SQUARES: squares, SIZE: size}

    def _like_mean(self, gradients: Any) -> Any:
        """The gradients, without those that the record has no place for, if they fit it."""
        try:
            gradients = jax.tree.map(
                lambda m, g: None if m is None else g,
                self.mean,
                gradients,
                is_leaf=lambda node: node is None,
            )
        except ValueError:
            what = "the microbatches before"
            raise mismatch.structure_mismatch(gradients, self.mean, what) from None
        mismatch.check_fits_params(gradients, self.mean)
        kept, given = (
            jax.tree.leaves(tree, is_leaf=paths.is_hole) for tree in (self.mean, gradients)
        )
        for name, m, g in zip(paths.names(self.mean), kept, given, strict=True):
            if g is None and m is not None:
                raise ValueError(
                    f"The gradient of {name!r} is missing: initialize `Microbatches` with None in "
                    "the place of a parameter that has no gradient."
                )
        return gradients


def _size(size: Any) -> Number:
    checked = _checks.count("size", size, 1)
    if isinstance(checked, jax.Array) and not jnp.issubdtype(checked.dtype, jnp.integer):
        raise TypeError(f"`size` must be an integer >= 1, got {size!r}.")
    return checked


def _share(size: Number, examples: Number) -> jax.Array:
    """The share of `size` in all examples; 0 where there is none yet."""
    return size / jnp.maximum(jnp.asarray(examples, arrays.scalar_dtype()), 1)


def _plus(squares: jax.Array, weight: jax.Array, away: jax.Array) -> jax.Array:
    return arrays.saturate(squares + weight.astype(squares.dtype) * absolute_square(away))
