"""What differs between versions of JAX, and whatever of JAX is not part of its public interface.

The only module that may import from `jax.core`, `jax.experimental` or `jax._src`, or read an
attribute that has changed its name: a test looks for such uses everywhere else.
"""

import sys
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp

_OLDEST_PYTHON = (3, 11)
_OLDEST_JAX = (0, 7, 2)


def _check_versions(python: tuple[int, ...], jax_version: tuple[int, ...]) -> None:
    for name, found, oldest in (
        ("Python", python, _OLDEST_PYTHON),
        ("jax", jax_version, _OLDEST_JAX),
    ):
        if found < oldest:
            needed, has = (".".join(map(str, version)) for version in (oldest, found))
            raise ImportError(f"msvag_optax needs {name} {needed} or newer, and this is {has}.")


_check_versions(sys.version_info[:3], jax.__version_info__)


def is_tracer(x: Any) -> bool:
    """Whether `x` is an abstract value inside of a transformation of JAX."""
    return isinstance(x, jax.core.Tracer)  # Public under this name in all versions.


def is_tracing() -> bool:
    """Whether an array that is made now is an abstract value."""
    return is_tracer(jnp.zeros([]))


def shard_alike(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x`, which the compiler shards as it shards `like`; both have one shape.

    `jax.experimental.shard_alike` says that, up to jax 0.11.1, and is gone from 0.11.2 on. A choice
    between the two says it in every version, and on meshes that are manual in part. It always falls
    on `x`; a barrier hides that from XLA until arrays are sharded, and what is left costs nothing.
    """
    if jax.typeof(like).memory_space != jax.memory.Space.Device:
        if jax.sharding.AxisType.Explicit in jax.typeof(like).sharding.mesh.axis_types:
            return x  # Its type is sharded; and jax 0.7 fails to move `like`.
        like = jax.device_put(like, jax.memory.Space.Device)
    if jnp.iscomplexobj(like) and not jnp.iscomplexobj(x):
        like = like.real
    never = jax.lax.optimization_barrier(jnp.zeros([], bool))
    return jax.lax.select(never, jax.lax.stop_gradient(like).astype(x.dtype), x)


def varying_axes(x: jax.Array) -> frozenset[str]:
    """The mesh axes along which `x` may differ, as far as `jax.shard_map` tracks it.

    A type has `vma` up to jax 0.9, and `manual_axis_type` in its place from 0.10 on.
    """
    aval: Any = jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", None)
    return frozenset(getattr(aval, "vma", None) or () if kind is None else kind.varying)


def enable_x64() -> AbstractContextManager[None]:
    """Double precision inside a `with` block.

    `jax.experimental.enable_x64` up to jax 0.7, `jax.enable_x64` from 0.8 on.
    """
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax import experimental

    old: Any = experimental
    return old.enable_x64(True)


def topology(*arguments: Any, **named: Any) -> Any:
    """`jax.experimental.topologies.get_topology_desc`, in all versions: devices to compile for."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(*arguments, **named)
