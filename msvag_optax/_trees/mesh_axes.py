"""Sums over the pieces of a layer that other devices hold, inside of `shard_map`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from msvag_optax import _checks, _compat

AxisNames = str | Sequence[str]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Cut:
    """How a layer is cut.

    Attributes:
      axis_names: the mesh axes over which it is cut; None if nobody has said.
    """

    axis_names: tuple[str, ...] | None


_WANTED = (
    "`axis_name` must be the name of a mesh axis, a sequence of names, or a mapping from regular "
    "expressions to such"
)


def cuts(axis_name: AxisNames | Mapping[str, AxisNames] | None) -> dict[str, Cut]:
    """A `Cut` for each pattern of the parameters' paths, the last for all that no other matches."""
    if isinstance(axis_name, Mapping):
        for pattern in axis_name:
            if not isinstance(pattern, str):
                raise TypeError(f"{_WANTED}, got {pattern!r} for one.")
            _checks.check_pattern("axis_name", pattern)
        rules = {pattern: Cut(_names(names)) for pattern, names in axis_name.items()}
        return {**rules, "": rules.get("", Cut(()))}
    return {"": Cut(None if axis_name is None else _names(axis_name))}


def _names(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{_WANTED}, got {value!r}.")
    return tuple(names)


def sum_over(cut: Cut, total: jax.Array, piece: jax.Array) -> jax.Array:
    """`total`, which was computed from `piece`, summed over all pieces of the layer."""
    if cut.axis_names is None:
        check_whole(
            piece,
            "The norm of a layer that is cut needs `layer_square_norm(axis_name=...)`, in a chain "
            "of pieces instead of `novograd`; `axis_name=()` if each device has its own layers.",
        )
        return total
    cut_over = [name for name in cut.axis_names if _is_cut_over(name, piece)]
    return jax.lax.psum(total, tuple(cut_over)) if cut_over else total


def check_whole(x: jax.Array, remedy: str) -> None:
    """Raises, and names the remedy, unless `shard_map` knows that all devices have the same."""
    if axes := sorted(_compat.varying_axes(x)):
        names = ", ".join(repr(name) for name in axes)
        raise ValueError(
            f"An array of shape {x.shape} may differ along the mesh axes {names}: it is a piece of "
            f"a layer, or a gradient that is not averaged yet. {remedy}"
        )


def check_cut(axis_names: str | Sequence[str], x: jax.Array) -> None:
    """Raises if `shard_map` knows that an array is the same on all devices along an axis."""
    for name in _names(axis_names):
        tracked = name in _compat.varying_axes(jax.lax.axis_index(name))
        if tracked and name not in _compat.varying_axes(x):
            raise ValueError(
                f"A gradient of shape {x.shape} is the same on all devices along the mesh axis "
                f"{name!r}: it is summed over them already, as `shard_map` does with respect to "
                "parameters that do not vary. Take it with respect to "
                f'`jax.lax.pcast(params, {name!r}, to="varying")`, which is `jax.lax.pvary` in old '
                "versions."
            )


def check_varies_over(x: jax.Array, axis_names: set[str] | None, remedy: str) -> None:
    """Raises, and names the remedy, if `x` may differ along other mesh axes than these.

    With None, nobody has said along which it differs; then it must be known to be whole.
    """
    if not _compat.varying_axes(x) <= (axis_names or set()):
        check_whole(x, remedy)
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if axis_names is None and not all(map(_is_tracked, manual)):
        raise ValueError(
            f"`shard_map` does not track along which mesh axes an array of shape {x.shape} "
            f"differs: it may be a piece of a layer. {remedy}"
        )


def _is_cut_over(name: str, piece: jax.Array) -> bool:
    if not is_manual(name):
        return False
    return name in _compat.varying_axes(piece) if _is_tracked(name) else True


def _is_tracked(name: str) -> bool:
    return name in _compat.varying_axes(jax.lax.axis_index(name))


def is_manual(name: str) -> bool:
    """Whether what is seen of an array may be a piece along this mesh axis."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes and name in set(mesh.axis_names) - set(mesh.manual_axes):
        return False  # Along an axis that is left to the compiler an array is whole.
    if not mesh.manual_axes:
        try:
            jax.lax.axis_index(name)
        except NameError:
            return False  # Outside of shard_map an array is whole.
    return True
