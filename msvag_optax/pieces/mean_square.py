"""Mean squares of the parts of a parameter: from one for each element to one for a layer."""

import dataclasses
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from msvag_optax import _checks
from msvag_optax._trees import arrays, paths
from msvag_optax.pieces.quantities import absolute_square, square

Axes = int | Sequence[int] | Mapping[int, int] | None


def mean_square(axes: Axes | Callable[[str, jax.ShapeDtypeStruct], Axes]) -> paths.PerLeaf:
    r"""The mean of :math:`|g|^2` along some axes, for an average with fewer numbers than Adam's.

    .. math::
        q_J = \frac{1}{|J|} \sum_{i \in J} |g_i|^2

    where :math:`J` is the part of the leaf that shares :math:`q_J`. `axes=()` makes each element a
    part: this is `square`, and the average Adam's second moment. `axes=None` makes the leaf one
    part, a layer. Of a kernel with the shape (inputs, outputs), `axes=0` gives one number for each
    output unit, and `axes=1` for each input unit. It is a mean, and not the sum that
    `layer_square_norm` is, so that a rate that was tuned for Adam suits all of them.

    An axis that is averaged has length 1 in the result. `over_rms` reads it as it is.

    Inside of `shard_map` each device averages over the piece that it holds. On a mesh with explicit
    axes, a cut must not go through a block.

    Args:
      axes: the axes along which the mean is taken: an integer or several, None for all, `()` for
        none; a mapping from axes to the lengths of blocks, `{-1: 64}`, so that each run of 64 has a
        mean of its own; or a rule, `(name, shape) -> axes`, such as `adam_mini_axes()`.

    Returns:
      What `running_average` takes as `of`.

    Raises:
      TypeError: if `axes` is none of these, or, in `init`, what the rule gives.
      ValueError: in `init`, if a parameter has no such axis, or its length is no multiple of the
        block's.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> kernel = jnp.asarray([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])  # 2 inputs, 3 outputs
    >>> for axes in (0, 1, None):
    ...     means = mo.running_average(mo.arithmetic(), of=mo.mean_square(axes))
    ...     estimate, _ = means.update(kernel, means.init(kernel))
    ...     print(estimate.ravel())
    [ 5. 10. 17.]
    [ 4.67 16.67]
    [10.67]

    Source: Zhang et al., *Adam-mini: Use Fewer Learning Rates To Gain More* (2024).
    """
    if callable(axes):
        _checks.check_function("axes", axes, "of a parameter's name and shape", "name", "shape")
    else:
        _blocks(axes)

    def at(name: str, shape: jax.ShapeDtypeStruct) -> Partial:
        chosen: Any = axes(name, shape) if callable(axes) else axes
        return Partial(_mean_square, _Parts(_lengths(_blocks(chosen), name, shape.shape)))

    return paths.PerLeaf(at)


def adam_mini_axes(
    heads: int | None = None,
) -> Callable[[str, jax.ShapeDtypeStruct], Axes]:
    """Adam-mini's rule of what shares a second moment, for `mean_square`.

    Each element of an embedding and of the output layer has its own; so has each head of a query
    and of a key; any other parameter is one part. Names decide: an embedding or output layer has
    `embed`, `embd` or `wte` anywhere in its path, or `lm_head` or `output` at its end; a query or
    key has `query`, `key`, `q_proj`, `k_proj`, `wq` or `wk` at its end. A last `kernel`, `weight`
    or `w` does not count.

    Args:
      heads: how many heads the last axis of a query or key holds, if its shape is (inputs, heads
        times size). None is for the shape (inputs, heads, size).

    Returns:
      The rule. For other names write your own; it is a function `(name, shape) -> axes`.

    Raises:
      TypeError: if `heads` is no integer; as part of `init`, if a query or key has two axes and
        there are no `heads`.
      ValueError: if `heads` is less than 1, or, as part of `init`, divides no query or key.

    >>> import jax
    >>> import msvag_optax as mo
    >>> rule = mo.adam_mini_axes(heads=4)
    >>> kernel = jax.ShapeDtypeStruct((32, 32), "float32")
    >>> rule("attention/query/kernel", kernel)  # four blocks of eight columns
    {0: 32, 1: 8}
    >>> rule("embed/embedding", kernel), rule("mlp/kernel", kernel)
    ((), None)

    Source: Zhang et al., *Adam-mini: Use Fewer Learning Rates To Gain More* (2024), as in the
    authors' package.
    """
    if heads is not None:
        heads = _checks.count("heads", heads, 1)

    def axes_of(name: str, shape: jax.ShapeDtypeStruct) -> Axes:
        if _WITHOUT_PARTS.search(name):
            return ()
        if not _BY_HEAD.search(name):
            return None
        if len(shape.shape) == 3:
            return 0, 2
        if heads is None or len(shape.shape) != 2:
            raise TypeError(
                f"`adam_mini_axes` needs `heads` for {name!r} of shape {shape.shape}: it shows no "
                "axis of heads."
            )
        if shape.shape[1] % heads:
            raise ValueError(
                f"`heads` must divide the last axis of {name!r}, of shape {shape.shape}, "
                f"got {heads}."
            )
        return {0: shape.shape[0], 1: shape.shape[1] // heads}

    return axes_of


_END = "(/(kernel|weight|w))?$"
_WITHOUT_PARTS = re.compile("embed|embd|wte|(^|/)(lm_head|output)" + _END)
_BY_HEAD = re.compile("(^|/)(query|key|q_proj|k_proj|wq|wk)" + _END)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Parts:
    """The parts of a leaf: how long a part is along each axis."""

    lengths: tuple[int, ...]


def _blocks(axes: Any) -> dict[int, int | None] | None:
    """The length of a block along each axis of which a mean is taken, None for the whole axis."""
    wanted = (
        "`axes` must be an integer, a sequence of integers, None, a mapping from axes to lengths, "
        f"or a function `(name, shape) -> axes`, got {axes!r}"
    )
    if axes is None:
        return None
    try:
        if not isinstance(axes, Mapping):
            axes = dict.fromkeys([axes] if hasattr(axes, "__index__") else axes)
        return {
            operator.index(axis): None if length is None else _checks.count("axes", length, 1)
            for axis, length in axes.items()
        }
    except TypeError:
        raise TypeError(f"{wanted}.") from None


def _lengths(
    blocks: dict[int, int | None] | None, name: str, shape: tuple[int, ...]
) -> tuple[int, ...]:
    if blocks is None:
        return shape
    lengths, taken = [1] * len(shape), set()
    for axis, length in blocks.items():
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"`axes` has {axis}, and {name!r} of shape {shape} has no such axis.")
        if axis % len(shape) in taken:
            raise ValueError(f"`axes` has an axis of {name!r} of shape {shape} twice: {axis}.")
        taken.add(axis % len(shape))
        lengths[axis] = shape[axis] if length is None else length
        if shape[axis] % max(lengths[axis], 1):
            raise ValueError(
                f"`axes` has blocks of {length} along axis {axis}, which the shape {shape} of "
                f"{name!r} is no multiple of."
            )
    return tuple(lengths)


def _mean_square(parts: _Parts, gradient: jax.Array) -> jax.Array:
    if set(parts.lengths) <= {1}:
        return square(gradient)  # with the very roundings of Adam's
    means = absolute_square(gradient)
    whole = tuple(
        axis for axis, length in enumerate(parts.lengths) if length == gradient.shape[axis] != 1
    )
    means = _mean(means, whole, keepdims=True)
    for axis, length in enumerate(parts.lengths):
        size = means.shape[axis]
        if 1 < length < size:  # One axis after another: a mesh may cut each.
            blocks = (*means.shape[:axis], size // length, length, *means.shape[axis + 1 :])
            means = _mean(means.reshape(blocks), (axis + 1,), keepdims=False)
    return arrays.saturate(means)


def _mean(squares: jax.Array, axes: tuple[int, ...], *, keepdims: bool) -> jax.Array:
    if not squares.size:  # The mean of nothing is not 0/0.
        return jnp.sum(squares, axis=axes, keepdims=keepdims)
    return jnp.mean(squares, axis=axes, keepdims=keepdims) if axes else squares
