"""What is done to one array: its dtype, its sharding, and how it moves."""

import functools
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _compat


def increment(count: jax.Array) -> jax.Array:
    """`count + 1`, element by element; the largest integer stays."""
    return jnp.asarray(optax.safe_increment(count))


def scalar_dtype() -> jnp.dtype:
    """The dtype of weights and corrections: the widest float that JAX is configured for."""
    return jax.dtypes.canonicalize_dtype(jnp.float64)


# An update outside of `jit` asks these of every leaf: they are quick for arrays.


def shape_of(leaf: Any) -> tuple[int, ...]:
    """The shape of an array or a number."""
    return leaf.shape if hasattr(leaf, "shape") else jnp.shape(leaf)


def dtype_of(leaf: Any) -> jnp.dtype:
    """The dtype of an array, its shape, or a number."""
    known = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    return leaf.dtype if known else jnp.result_type(leaf)


@functools.lru_cache
def is_inexact_dtype(dtype: Any) -> bool:
    """Whether a dtype is of real or complex numbers."""
    return jnp.issubdtype(dtype, jnp.inexact)


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is a number or array that a gradient can move."""
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, float | complex) if dtype is None else is_inexact_dtype(dtype)


@functools.lru_cache
def wide_dtype(dtype: Any) -> jnp.dtype:
    """`dtype`, or float32 where it is narrower."""
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        return jnp.dtype(jnp.float32)
    return jnp.promote_types(dtype, jnp.float32)


def widen(x: jax.typing.ArrayLike) -> jax.Array:
    """`x` in float32 or wider, and of no weak type; complex stays complex.

    Of a shape that has no values yet, zeros.
    """
    if isinstance(x, jax.ShapeDtypeStruct):
        x = jnp.zeros_like(x)
    if not isinstance(x, jax.Array):  # a number, or what a serializer restored
        x = jnp.asarray(x)
    wide = wide_dtype(x.dtype)
    return x if x.dtype == wide and not x.weak_type else x.astype(wide)


def standard_promotion() -> AbstractContextManager[None]:
    """JAX's own promotion of dtypes, where a caller has asked for a stricter one.

    That is for the caller's own code: a rate of bfloat16 meets float32 here, and a real factor a
    complex mean.
    """
    return jax.numpy_dtype_promotion("standard")


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
    if x.dtype == dtype:
        return x
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return x.astype(dtype)
    largest = jnp.finfo(dtype).max.astype(x.dtype)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x).astype(dtype)


def saturate(x: jax.Array) -> jax.Array:
    """`x` with the largest float in place of positive infinity; NaN and complex `x` stay.

    Use it in a quantity of your own that sums squares, so that a finite gradient never makes an
    infinite average.

    Args:
      x: any array of real or complex floats.

    Returns:
      An array of the same shape and dtype.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> print(mo.saturate(jnp.asarray([1.0, jnp.inf])))
    [1.0000000e+00 3.4028235e+38]
    """
    return x if jnp.iscomplexobj(x) else jnp.minimum(x, jnp.finfo(x.dtype).max)


def lerp(average: jax.Array, observation: jax.Array, weight: jax.Array) -> jax.Array:
    """The mean of `average` and `observation`, of which the latter counts `weight`."""
    average, observation = widen(average), widen(observation)
    dtype = jnp.promote_types(average.dtype, observation.dtype)
    weight = weight.astype(real_dtype(dtype))
    return average + weight * (observation - average)


def zeros_like(x: Any, dtype: Any = None) -> jax.Array:
    """Zeros with the shape of `x` and its sharding, also where `x` is a tracer on a mesh."""
    return shard_like(jnp.zeros_like(x, dtype=dtype), x)


def shard_like(x: Any, like: Any) -> Any:
    """`x`, sharded as `like` is where their shapes agree.

    A traced array has no sharding to copy, so that XLA must be told; without this, state that is
    made under `jit` is whole on some device of a mesh, or on all.
    """
    if not _compat.is_tracer(like) or getattr(x, "shape", None) != like.shape:
        return x
    if not like.shape and not _compat.varying_axes(like):
        return x  # A number is whole everywhere, and `like` need not be computed.
    return _compat.shard_alike(x, like)


def init_like_params(transformation: optax.GradientTransformation, params: Any) -> Any:
    """The state of any optax transformation, whose trees are sharded like the parameters."""
    state = transformation.init(params)
    if not any(map(_compat.is_tracer, jax.tree.leaves(params))):
        return state  # arrays, unlike tracers, have shardings that zeros can copy
    return optax.tree.map_params(
        transformation.init,
        shard_like,
        state,
        params,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
