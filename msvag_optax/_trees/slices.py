"""The place of an element in the whole array, also inside of `shard_map`, where a slice is seen."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from msvag_optax._trees import mesh_axes, paths


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Slices:
    """How an array is cut.

    Attributes:
      axes: the mesh axes over which each of its axes is cut; None if nobody has said.
    """

    axes: tuple[tuple[str, ...], ...] | None = None


def by_name(specs: Any) -> dict[str, Any] | None:
    """Partition specs under the names of the parameters, or of the subtrees, that they are for.

    Raises:
      TypeError: if there is anything else among them.
    """
    if specs is None:
        return None
    names, found = jax.tree.leaves(paths.path_names(specs)), jax.tree.leaves(specs)
    if not found or not all(isinstance(spec, jax.sharding.PartitionSpec) for spec in found):
        raise TypeError(
            "`specs` must be None, a PartitionSpec, or a tree of them like the parameters, got "
            f"{specs!r}."
        )
    return dict(zip(names, found, strict=True))


def slices_of(specs: dict[str, Any] | None, name: str, shape: tuple[int, ...]) -> Slices:
    """How the parameter of this name is cut.

    Raises:
      ValueError: if there are specs and none is for it, or it has fewer axes than its spec.
    """
    if specs is None:
        return Slices()
    parts = name.split("/")
    above = ("/".join(parts[:end]) for end in range(len(parts), -1, -1))
    spec = next((specs[prefix] for prefix in above if prefix in specs), None)
    if spec is None:
        raise ValueError(f"`specs` must have a PartitionSpec for {name!r}, got {sorted(specs)}.")
    if len(spec) > len(shape):
        raise ValueError(
            f"`specs` must fit the parameters, got {spec} for {name!r}, whose shape is {shape}."
        )
    axes = [(axis,) if isinstance(axis, str) else tuple(axis or ()) for axis in spec]
    return Slices((*axes, *[()] * (len(shape) - len(axes))))


def index_of(x: jax.Array, cut: Slices) -> jax.Array:
    """The index of each element in the whole array, its axes taken as one, modulo 2**32.

    Raises:
      ValueError: inside of `shard_map`, if `x` may be a slice and `cut` does not say of what.
    """
    axes = cut.axes or ((),) * x.ndim
    manual = [tuple(filter(mesh_axes.is_manual, names)) for names in axes]
    mesh_axes.check_varies_over(
        x,
        None if cut.axes is None else {name for names in manual for name in names},
        "Stochastic rounding needs to know its place: give `specs`, the partition specs of the "
        "parameters.",
    )
    index, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        places = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        size = x.shape[axis]
        if manual[axis]:
            slices = jax.lax.psum(1, manual[axis])
            places = places + jax.lax.axis_index(manual[axis]).astype(jnp.uint32) * size
            size = size * slices
        index = index + places * jnp.uint32(stride % 2**32)
        stride = stride * size
    return index
