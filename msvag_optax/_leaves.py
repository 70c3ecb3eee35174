"""How a formula for one array is carried to a whole tree: traced once for all leaves of a shape."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.shard_alike import shard_alike
from jax.tree_util import Partial

from msvag_optax import paths


@jax.jit
def call(function: Partial, *arguments: Any, **named: Any) -> Any:
    """`function(*arguments, **named)` as one compiled kernel.

    A module-level `jit` shares its traces: leaves of equal shape are traced and lowered once, and
    an update outside of `jit` costs one launch a leaf. A `Partial` is a tree of hyperparameters, so
    that a new decay or epsilon is a new argument and not a new compilation.
    """
    return function(*arguments, **named)


def as_partial(function: Callable[..., Any]) -> Partial:
    """`function` as a `Partial`, which `call` takes as an argument."""
    return function if isinstance(function, Partial) else Partial(function)


class LeafMismatchError(ValueError):
    """An update whose shape is not that of the state it meets."""

    def __init__(self, shape: tuple[int, ...], kept: tuple[int, ...], name: str = "") -> None:
        """Says which shapes these are, and of which leaf."""
        self.shapes = shape, kept
        super().__init__(
            f"The update of {name!r} has shape {shape}, and what the state holds for it has shape "
            f"{kept}: `init` was given another parameter."
        )


def _flatten_like(treedef: Any, tree: Any) -> list[Any]:
    try:
        return treedef.flatten_up_to(tree)
    except ValueError:
        raise ValueError(
            "The updates have another tree structure than the state or parameters they meet: "
            f"{treedef} against {jax.tree.structure(tree)}."
        ) from None


def map_leaves(function: Callable[..., Any], tree: Any, *rest: Any, **named: Any) -> Any:
    """Applies `function` to the leaves of `tree` and what stands in their places in the others.

    Args:
      function: a function of arrays.
      tree: the tree whose leaves are visited, with their structure in the result.
      *rest: trees that have `tree` as a prefix, positional arguments of `function`.
      **named: trees that have `tree` as a prefix, keyword arguments of `function`.

    Returns:
      A tree with the structure of `tree`.
    """
    leaves, treedef = jax.tree.flatten(tree)
    kernel = as_partial(function)
    columns = [_flatten_like(treedef, other) for other in rest]
    keywords = {name: _flatten_like(treedef, other) for name, other in named.items()}
    results = []
    try:
        for i, leaf in enumerate(leaves):
            named_values = {name: column[i] for name, column in keywords.items()}
            results.append(call(kernel, leaf, *(column[i] for column in columns), **named_values))
    except LeafMismatchError as error:
        names = [paths.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        raise LeafMismatchError(*error.shapes, names[len(results)]) from None
    return treedef.unflatten(results)


def increment(count: jax.Array) -> jax.Array:
    """`count + 1`, element by element; the largest integer stays."""
    return jnp.asarray(optax.safe_increment(count))


def unzip(tree: Any, tuples: Any, size: int) -> tuple[Any, ...]:
    """Turns a tree of `size`-tuples, with the structure of `tree`, into `size` trees."""
    leaves, treedef = jax.tree.flatten(tree)
    columns = zip(*treedef.flatten_up_to(tuples), strict=True) if leaves else [()] * size
    return tuple(treedef.unflatten(column) for column in columns)


def scalar_dtype() -> jnp.dtype:
    """The dtype of weights and corrections: the widest float that JAX is configured for."""
    return jax.dtypes.canonicalize_dtype(jnp.float64)


def wide_dtype(dtype: Any) -> jnp.dtype:
    """`dtype`, or float32 where it is narrower."""
    return jnp.promote_types(dtype, jnp.float32)


def widen(x: jax.Array) -> jax.Array:
    """`x` in float32 or wider; complex stays complex."""
    return x.astype(wide_dtype(x.dtype))


def real_dtype(dtype: Any) -> jnp.dtype:
    """The dtype of the absolute value of a number of `dtype`."""
    return jnp.finfo(dtype).dtype


def kept_dtype(dtype: Any, asked: Any) -> jnp.dtype:
    """The dtype to keep a number of `dtype` in where `asked`, or None, was asked for."""
    if asked is None:
        return dtype
    complex_valued = jnp.issubdtype(dtype, jnp.complexfloating)
    return jnp.promote_types(asked, jnp.complex64) if complex_valued else jnp.dtype(asked)


def narrow(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` in `dtype`; what is finite stays finite, at the largest number that `dtype` holds."""
    if x.dtype == dtype or jnp.issubdtype(dtype, jnp.complexfloating):
        return x.astype(dtype)
    largest = jnp.finfo(dtype).max.astype(x.dtype)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x).astype(dtype)


def zeros_like(x: Any, dtype: Any = None) -> jax.Array:
    """Zeros with the shape of `x` and its sharding, also where `x` is a tracer on a mesh."""
    return shard_like(jnp.zeros_like(x, dtype=dtype), x)


def shard_like(x: Any, like: Any) -> Any:
    """`x`, sharded as `like` is where their shapes agree.

    A traced array has no sharding to copy, so that XLA must be told; without this, state that is
    made under `jit` is replicated on every device of a mesh.
    """
    if isinstance(like, jax.core.Tracer) and jnp.shape(x) == jnp.shape(like):
        return shard_alike(x, like)[0]
    return x
