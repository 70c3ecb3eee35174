"""Meshes of host devices, and where arrays lie on them."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax.sharding import AxisType

from tests.conformance import leaves_by_name

KINDS = (AxisType.Auto, AxisType.Explicit)


def mesh_of(axes: Mapping[str, int], kind: AxisType) -> jax.sharding.Mesh:
    """A mesh with axes of these names and sizes, all of one kind."""
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))


def entered(mesh: jax.sharding.Mesh) -> AbstractContextManager[Any]:
    """What to be in for arrays on the mesh: explicit axes ask for it."""
    return jax.set_mesh(mesh) if AxisType.Explicit in mesh.axis_types else nullcontext()


def assert_sharded_like(tree: Any, params: Mapping[str, Any]) -> None:
    """Asserts that arrays of a parameter's shape lie as it does, and scalars on all devices.

    Args:
      tree: a state, or updates.
      params: the parameters under their names, or types that have shardings.
    """
    found = set()
    for path, leaf in leaves_by_name(tree).items():
        names = [k for k, p in params.items() if f"'{k}'" in path and p.shape == leaf.shape]
        found.update(names)
        for name in names:
            sharding = params[name].sharding
            same = leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
            assert same, f"{path}: {leaf.sharding}, but the parameter has {sharding}"
        if not leaf.shape:
            assert leaf.sharding.is_fully_replicated, f"{path}: {leaf.sharding}"
    assert found == set(params), f"there is no array like {set(params) - found} in {tree}"
