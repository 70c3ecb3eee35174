"""Which parameters decay, as a table."""

import math
import sys
from typing import TextIO

import jax
import optax

from msvag_optax._trees import arrays, paths
from msvag_optax._trees.selection import Selection, selected
from msvag_optax.pieces.decay import EXCLUDE


def weight_decay_report(
    params: optax.Params, exclude_from_weight_decay: Selection = (), *, file: TextIO | None = None
) -> None:
    """Prints which parameters decay, and how many elements that is.

    Args:
      params: the parameters; arrays or their shapes (`jax.eval_shape` gives them).
      exclude_from_weight_decay: which parameters do not decay: regular expressions, searched in
        paths such as `encoder/layer_0/LayerNorm/scale`; a function `(name, shape) -> bool`;
        `fewer_than_two_axes()`, as is usual; or a list of these.
      file: where to print; None is the standard output.

    Raises:
      TypeError: if `exclude_from_weight_decay` is none of these, or `params` an optimizer.
      ValueError: if a pattern is no regular expression, or is found in no parameter's path.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3), "steps": jnp.asarray(0)}
    >>> mo.weight_decay_report(params, exclude_from_weight_decay=["bias"])
    parameter  elements  weight decay
    bias              3  no
    kernel           12  yes
    steps             1  no (not trained)
    12 of 16 elements decay, in 1 of 3 parameters.
    """
    if isinstance(params, optax.GradientTransformation):
        raise TypeError("`params` must be a tree of parameters, got a transformation.")
    excluded = selected(EXCLUDE, exclude_from_weight_decay)
    excluded.check(params)
    rows = []
    for name, leaf in zip(*map(jax.tree.leaves, (paths.path_names(params), params)), strict=True):
        answer = "no (not trained)"
        if arrays.is_inexact(leaf):
            shape = jax.ShapeDtypeStruct(arrays.shape_of(leaf), arrays.dtype_of(leaf))
            answer = "no" if excluded.at(name, shape) else "yes"
        rows.append((name, math.prod(getattr(leaf, "shape", ())), answer))
    heading = ("parameter", "elements", "weight decay")
    width = max(len(name) for name in (heading[0], *(name for name, _, _ in rows)))
    digits = max(len(heading[1]), *(len(str(size)) for _, size, _ in rows), 0)
    lines = [f"{heading[0]:<{width}}  {heading[1]:>{digits}}  {heading[2]}"]
    lines += [f"{name:<{width}}  {size:>{digits}}  {answer}" for name, size, answer in rows]
    decaying = [size for _, size, answer in rows if answer == "yes"]
    lines.append(
        f"{sum(decaying)} of {sum(size for _, size, _ in rows)} elements decay, "
        f"in {len(decaying)} of {len(rows)} parameters."
    )
    print("\n".join(lines), file=file or sys.stdout)
