"""Quantities: what an average averages, a function of the gradient of one leaf.

Squares and sums that would overflow stop at the largest float, or a few units in the last place
below it, so that a finite gradient never makes an infinite average. An infinity or NaN in the
gradient itself passes through, and is seen in the update.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from msvag_optax._trees import arrays, mesh_axes, paths, selection
from msvag_optax._trees.selection import Selection


def square(gradient: jax.Array) -> jax.Array:
    r"""The elementwise square :math:`|g|^2`: what Adam's second moment averages.

    Args:
      gradient: the array :math:`g`, real or complex.

    Returns:
      A real, non-negative array of the same shape; a square that would overflow is the largest
      float but for a few units in its last place.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> print(mo.square(jnp.asarray([3.0, -4.0])))
    [ 9. 16.]
    >>> print(mo.square(jnp.asarray([3.0 + 4.0j])))
    [25.]
    """
    if jnp.iscomplexobj(gradient):
        return arrays.saturate(absolute_square(gradient))
    # XLA would take longer to compile a bound on the square.
    limits = jnp.finfo(gradient.dtype)
    largest = math.sqrt(limits.max) * (1 - float(limits.eps))
    return jnp.square(jnp.clip(gradient, -largest, largest))


def absolute_square(x: jax.Array) -> jax.Array:
    """The elementwise :math:`|x|^2`, which may overflow."""
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def layer_square_norm(
    *,
    stacked: Selection = (),
    axis_name: mesh_axes.AxisNames | Mapping[str, mesh_axes.AxisNames] | None = None,
) -> Callable[[jax.Array], jax.Array] | paths.PerLeaf:
    r"""The squared norm of each layer: what NovoGrad's second moment averages.

    .. math::
        \|g\|^2 = \sum_i |g_i|^2

    over all elements of the leaf :math:`g`, which is one layer; or, for a leaf whose leading axis
    counts layers (as in models that scan over them), over the elements of each layer apart.

    Under `jax.jit` an array is whole, however it is sharded, and so is its norm. Inside of
    `jax.shard_map` a device sees a piece of it: `axis_name` then says over which axes of the mesh
    layers are cut, and the squares are summed over these. Where `shard_map` tracks what varies over
    an axis (`check_vma=True`, its default), a parameter that is replicated over `axis_name` is left
    alone, and a piece is refused unless `axis_name` is given. Where it does not, and in `jax.pmap`,
    neither can be seen: name the parameters that are cut, by a mapping.

    Args:
      stacked: which parameters hold one layer in each row of their leading axis: regular
        expressions, searched in their paths, or a function `(name, shape) -> bool`. Their rows must
        be whole: an axis that counts layers may be cut, and is then not to be summed over.
      axis_name: the name of the mesh axis over which layers are cut inside of `shard_map`, or
        several; or a mapping from regular expressions, searched in the parameter's path, to such
        names, for each parameter the first that matches. `()` says that each device holds layers of
        its own.

    Returns:
      What `running_average` takes as `of`. Its values are real scalars of shape (), or of shape
      (layers, 1, ..., 1) for a stacked leaf.

    Raises:
      TypeError: if `stacked` is no sequence of strings and no such function, or `axis_name` no
        name.
      ValueError: if a pattern is no regular expression; when the average is initialized, if a
        pattern is found in no parameter's path or the parameter it finds is a scalar; inside of
        `shard_map`, if a gradient is a piece and there is no `axis_name`.
      NameError: inside of `shard_map`, if the mesh has no axis of that name.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> norms = mo.running_average(mo.arithmetic(), of=mo.layer_square_norm(stacked=["blocks"]))
    >>> gradient = {"blocks": jnp.asarray([[3.0, 4.0], [0.0, 1.0]]), "head": jnp.ones((2, 2))}
    >>> estimate, _ = norms.update(gradient, norms.init(gradient))
    >>> print(estimate["blocks"].ravel(), estimate["head"])
    [25.  1.] 4.0

    Source: Ginsburg et al., *Stochastic Gradient Methods with Layer-wise Adaptive Moments* (2019),
    algorithm 1.
    """
    layers, cuts = selection.layers(stacked), mesh_axes.cuts(axis_name)
    if stacked == () and len(cuts) == 1:
        return Partial(_square_norm, cuts[""])

    def norm_of(name: str, leaf: jax.ShapeDtypeStruct) -> Partial:
        cut = next(cut for pattern, cut in cuts.items() if selection.matches([pattern], name))
        return Partial(_square_norm_of_rows if layers.at(name, leaf) else _square_norm, cut)

    def check(params: Any) -> None:
        layers.check(params)
        selection.check_patterns_match("axis_name", tuple(cuts), params)

    return paths.PerLeaf(norm_of, check)


def _square_norm(cut: mesh_axes.Cut, gradient: jax.Array) -> jax.Array:
    # The sum is what saturates: a minimum inside of it would keep XLA from fusing the two.
    squares = jnp.sum(absolute_square(gradient))
    return arrays.saturate(mesh_axes.sum_over(cut, squares, gradient))


def _square_norm_of_rows(cut: mesh_axes.Cut, gradient: jax.Array) -> jax.Array:
    axes = tuple(range(1, gradient.ndim))
    rows = jnp.sum(absolute_square(gradient), axis=axes, keepdims=True)
    return arrays.saturate(mesh_axes.sum_over(cut, rows, gradient))
