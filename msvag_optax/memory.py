"""How many bytes the state of an optimizer takes, before it is made."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _checks
from msvag_optax._trees import arrays, keeping, paths

SHARED = "shared"  # The column of what belongs to no parameter, such as a count.


class StateBytes(NamedTuple):
    """How many bytes the state of an optimizer has; `print` shows it as a table.

    Attributes:
      by_link: the bytes of each part of the state, by group of parameters.
      shared: the bytes of what belongs to no parameter, such as a count, by part of the state.
    """

    by_link: dict[str, dict[str, int]]
    shared: dict[str, int]

    @property
    def of_parameters(self) -> int:
        """The bytes that grow with the parameters."""
        return sum(sum(groups.values()) for groups in self.by_link.values())

    @property
    def total(self) -> int:
        """All bytes."""
        return self.of_parameters + sum(self.shared.values())

    def __str__(self) -> str:
        """The table."""
        groups = list(dict.fromkeys(g for row in self.by_link.values() for g in row))
        columns = [*groups, SHARED] if self.shared else groups
        rows = {
            link: self.by_link.get(link, {}) | {SHARED: self.shared.get(link, 0)}
            for link in [*self.by_link, *self.shared]
        }
        rows["total"] = {c: sum(row.get(c, 0) for row in rows.values()) for c in columns}
        cells = [["state", *(c or "parameters" for c in columns), "bytes"]]
        for link, row in rows.items():
            numbers = [row.get(c, 0) for c in columns]
            cells.append([link, *map(str, [*numbers, sum(numbers)])])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in cells
        )


def state_bytes(
    tx: optax.GradientTransformation,
    params: optax.Params,
    *,
    group: Callable[[str], str] | None = None,
) -> StateBytes:
    """Counts the bytes of an optimizer's state, by link and by group of parameters.

    Nothing is allocated: shapes say it all. They are those of whole arrays, however these are
    sharded.

    Args:
      tx: any transformation or optimizer.
      params: the parameters; arrays or their shapes (`jax.eval_shape` gives them).
      group: the group of a parameter, a function of its path, such as
        `encoder/layer_0/LayerNorm/scale`. None is what comes before the first `/`.

    Returns:
      The bytes, a table when printed. A link is named by where it is in the state, without the
      fields that every state of its kind has.

    Raises:
      TypeError: if `tx` is no gradient transformation, its state cannot be taken apart by
        `optax.tree.map_params` (that of `optax.lbfgs` cannot), or `group` is no function of a path.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> params = {"embed": jnp.ones((10, 4)), "head": {"w": jnp.ones((4, 2)), "b": jnp.ones(2)}}
    >>> print(mo.state_bytes(mo.novograd(0.1), params))
    state                                            embed  head  shared  bytes
    direction/momentum/trace                           160    40       0    200
    direction/normalized/second_moment/average           4     8       0     12
    count                                                0     0       4      4
    direction/normalized/second_moment/observations      0     0       4      4
    total                                              164    48       8    220
    >>> mo.state_bytes(mo.novograd(0.1), params).of_parameters
    212
    """
    _checks.check_transformation("tx", tx)
    keeping.check_can_be_taken_apart("tx", tx)
    if group is not None:
        _checks.check_function("group", group, "of a parameter's path, or None", "path")
    places, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=paths.is_box)
    groups = {path: (group or _first_part)(paths.path_name(path)) for path, _ in places}

    def by_group(tree: Any) -> _ByGroup:
        counted = dict.fromkeys(groups.values(), 0)
        for path, leaf in jax.tree.leaves_with_path(tree):  # It may have several for a parameter.
            place = next(path[:end] for end in range(len(path) + 1) if path[:end] in groups)
            counted[groups[place]] += _size(leaf)
        return _ByGroup(counted)

    state = jax.eval_shape(tx.init, params)
    # Asked for no leaf of them, optax hands over each tree that is like the parameters whole.
    counted = optax.tree.map_params(tx.init, by_group, state, is_leaf=lambda node: True)
    by_link: dict[str, dict[str, int]] = {}
    shared: dict[str, int] = {}
    parts = zip(jax.tree.leaves(paths.path_names(counted)), jax.tree.leaves(counted), strict=True)
    for path, part in parts:
        if isinstance(part, _ByGroup):
            by_link[path if _link(path) in by_link else _link(path)] = part.bytes
        else:
            shared[path if _link(path) in shared else _link(path)] = _size(part)
    return StateBytes(by_link, shared)


class _ByGroup:
    """What stands in the place of a tree that is like the parameters; JAX sees a leaf."""

    def __init__(self, counted: dict[str, int]) -> None:
        self.bytes = counted


def _size(leaf: Any) -> int:
    return math.prod(arrays.shape_of(leaf)) * jnp.dtype(arrays.dtype_of(leaf)).itemsize


def _first_part(name: str) -> str:
    return name.split("/")[0]


def _link(path: str) -> str:
    """A path in a state, without the fields that every state of its kind has."""
    return "/".join(part for part in path.split("/") if part not in _USUAL)


_USUAL = ("links", "inner_state", "inner_states")
