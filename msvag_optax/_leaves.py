"""What is done to the arrays of a tree: kernels traced once for a shape, dtypes, shardings."""

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax import _compat, paths


@jax.jit
def call(function: Partial, /, *arguments: Any, **named: Any) -> Any:
    """`function(*arguments, **named)` as one compiled kernel.

    A module-level `jit` shares its traces: leaves of equal shape are traced and lowered once, and
    an update outside of `jit` costs one launch a leaf. A `Partial` is a tree of hyperparameters, so
    that a new decay or epsilon is a new argument and not a new compilation.
    """
    return function(*arguments, **named)


Call = Callable[..., Any]


def call_for(*functions: Callable[..., Any]) -> Call:
    """The `call` for kernels that call these functions: the shared one, or one of their own.

    What `call` has compiled stays for the life of the process, which is right for functions that
    live as long. A closure gets a `call` that holds it, and goes with the transformation that holds
    them both.
    """
    if all(isinstance(f, Partial) or _lives_in_its_module(f) for f in functions):
        return call

    def call_of_its_own(function: Partial, /, *arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    call_of_its_own.__dict__["holds"] = functions
    return jax.jit(call_of_its_own)


def _lives_in_its_module(function: Callable[..., Any]) -> bool:
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return getattr(module, getattr(function, "__qualname__", ""), None) is function


class _Weak:
    """A function that is held weakly, and equals itself alone, whatever `==` means for it.

    JAX's caches hold the structures of the trees that they have seen, and so this object, for as
    long as they please. They must not hold what the function closes over.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._reference = weakref.ref(function)
        self._hash = id(function)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        function = self._reference()
        assert function is not None, "the transformation that holds the function is gone"
        return function(*arguments, **named)

    def __eq__(self, other: object) -> bool:
        function = self._reference()
        return isinstance(other, _Weak) and function is not None and function is other._reference()

    def __hash__(self) -> int:
        return self._hash


def as_partial(function: Callable[..., Any]) -> Partial:
    """`function` as a `Partial`, an argument for the `call` that `call_for(function)` gives."""
    if isinstance(function, Partial):
        return function
    if _lives_in_its_module(function):
        return Partial(function)
    try:
        return Partial(_Weak(function))
    except TypeError:  # some functions written in C bear no weak reference; they close over nothing
        return Partial(function)


@jax.jit
def map_numbers(function: Partial, *columns: list[jax.Array]) -> list[tuple[jax.Array, ...]]:
    """`function(*row)` of each row of numbers, for an elementwise function with several results.

    On NVIDIA's GPUs, where a kernel takes longer to start than to run, the numbers of a column are
    one vector. On CPUs that would take longer to compile.
    """
    return jax.lax.platform_dependent(function, *columns, cuda=_together, default=_apart)


def _apart(function: Partial, *columns: list[jax.Array]) -> list[tuple[jax.Array, ...]]:
    return _in_chunks(Partial(_row_by_row, function), *columns)


def _together(function: Partial, *columns: list[jax.Array]) -> list[tuple[jax.Array, ...]]:
    vectors = function(*map(_as_vector, columns))
    # Two results may be one array, which is then taken apart once.
    numbers = {id(vector): _as_numbers(vector) for vector in vectors}
    return list(zip(*(numbers[id(vector)] for vector in vectors), strict=True))


def _as_vector(numbers: list[jax.Array]) -> jax.Array:
    # Not jnp.stack, which is several operations for each of its operands.
    return jax.lax.concatenate([jax.lax.reshape(number, (1,)) for number in numbers], 0)


def _as_numbers(vector: jax.Array) -> list[jax.Array]:
    return _in_chunks(Partial(_each_as_number), jax.lax.split(vector, [1] * vector.size))


def _each_as_number(pieces: list[jax.Array]) -> list[jax.Array]:
    # A minimum, which changes no finite number, is fused with what reads it; a slice is a copy.
    return [jnp.minimum(piece.reshape(()), jnp.finfo(piece.dtype).max) for piece in pieces]


def _in_chunks(function: Partial, *columns: Any) -> list[Any]:
    """`function` of columns, which is traced for a few rows at a time and not for all."""
    size, results = 32, []
    for start in range(0, len(columns[0]), size):
        results += call(function, *(list(column[start : start + size]) for column in columns))
    return results


def _row_by_row(function: Partial, *columns: list[jax.Array]) -> list[tuple[jax.Array, ...]]:
    return [function(*row) for row in zip(*columns, strict=True)]


class LeafMismatchError(ValueError):
    """An update whose shape is not that of the state it meets."""

    def __init__(self, shape: tuple[int, ...], kept: tuple[int, ...], name: str = "") -> None:
        """Says which shapes these are, and of which leaf."""
        super().__init__(shape, kept, name)

    def __str__(self) -> str:
        shape, kept, name = self.args
        return (
            f"The update of {name!r} has shape {shape}, and what the state holds for it has shape "
            f"{kept}: `init` was given another parameter, or has made it under other options."
        )


def structure_mismatch(updates: Any, other: Any, what: str) -> ValueError:
    """The error for updates whose names are not those of `other`, which is `what`."""
    ours, theirs = set(paths.names(updates)), set(paths.names(other))

    def some(names: set[str]) -> str:
        listed = ", ".join(repr(name) for name in sorted(names)[:5])
        return listed + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    differences = [
        f"only {side} {'has' if side.endswith('e') else 'have'} {some(names)}"
        for side, names in (("the updates", ours - theirs), (what, theirs - ours))
        if names
    ]
    detail = "; ".join(differences) or "their containers are of different types"
    return ValueError(f"The updates have another tree structure than {what}: {detail}.")


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
    """The dtype of an array or a number."""
    return leaf.dtype if isinstance(leaf, jax.Array) else jnp.result_type(leaf)


@functools.lru_cache
def is_inexact(dtype: Any) -> bool:
    """Whether a dtype is of real or complex numbers."""
    return jnp.issubdtype(dtype, jnp.inexact)


@functools.lru_cache
def wide_dtype(dtype: Any) -> jnp.dtype:
    """`dtype`, or float32 where it is narrower."""
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        return jnp.dtype(jnp.float32)
    return jnp.promote_types(dtype, jnp.float32)


def widen(x: jax.typing.ArrayLike) -> jax.Array:
    """`x` in float32 or wider, and of no weak type; complex stays complex."""
    if not isinstance(x, jax.Array):  # a number, or what a serializer restored
        x = jnp.asarray(x)
    wide = wide_dtype(x.dtype)
    return x if x.dtype == wide and not x.weak_type else x.astype(wide)


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
