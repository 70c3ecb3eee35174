"""Where the parts of a leaf are: in trees like the updates, and in a state."""

from collections.abc import Callable
from typing import Any

import jax

from msvag_optax._trees import arrays, mismatch, paths


@jax.tree_util.register_pytree_node_class
class Parts:
    """Wraps a tree like the updates among what leaves share: each leaf gets its part of it."""

    def __init__(self, tree: Any, name: str = "") -> None:
        """Wraps the tree; an error about it says the name of the extra argument, if there is one.

        Where the updates have a hole, as `optax.masked` and `optax.partition` make, the tree may
        have its part nevertheless.
        """
        self.tree, self.name = tree, name

    def tree_flatten(self) -> tuple[tuple[Any], str]:
        """A node of JAX's, so that shared values may be mapped over."""
        return (self.tree,), self.name

    @classmethod
    def tree_unflatten(cls, name: str, children: tuple[Any]) -> "Parts":
        """The inverse."""
        return cls(*children, name)


@jax.tree_util.register_static
class Place:
    """Stands in the place of the parameters, to find where a state has trees like theirs."""


def is_place(node: Any) -> bool:
    """Whether `init` is asked where its trees are, and is given no parameters."""
    return isinstance(node, Place)


class Leaves:
    """The leaves of a tree of updates, and of other trees what stands in their places.

    Flax boxes an array with what it says of its axes. A state that has not its parameter's shape,
    such as a layer's norm, has other axes, and stands in the place of the box.
    """

    def __init__(self, tree: Any) -> None:
        """Takes a tree apart."""
        self.tree = tree
        nodes, self._outer = jax.tree.flatten(tree, is_leaf=paths.is_box)
        self._boxes = [jax.tree.structure(x) if paths.is_box(x) else None for x in nodes]
        self._has_boxes = any(self._boxes)
        # Without boxes the nodes are the leaves: an update outside of `jit` flattens them once.
        self.values, self.treedef = (
            jax.tree.flatten(tree) if self._has_boxes else (nodes, self._outer)
        )

    def split(self, other: Any) -> list[Any]:
        """What stands in the places of the leaves in a tree that has `tree` as a prefix."""
        try:
            if not self._has_boxes:
                return self.treedef.flatten_up_to(other)
            nodes = self._outer.flatten_up_to(other)
            return [
                part
                for box, node in zip(self._boxes, nodes, strict=True)
                for part in _content(box, node)
            ]
        except ValueError:
            what = "the state or parameters they meet"
            raise mismatch.structure_mismatch(self.tree, other, what) from None

    def _split_parts(self, other: Parts) -> list[Any]:
        """The same of a tree that may have a part where there is no gradient."""
        gradients, treedef = jax.tree.flatten(self.tree, is_leaf=paths.is_hole)
        try:
            parts = treedef.flatten_up_to(other.tree)
        except ValueError:
            what = f"the extra argument{f' `{other.name}`' if other.name else ''}"
            raise mismatch.structure_mismatch(self.tree, other.tree, what) from None
        return [
            part
            for gradient, part in zip(gradients, parts, strict=True)
            if not paths.is_hole(gradient)
        ]

    def join(self, values: list[Any]) -> Any:
        """A tree of updates."""
        return self.treedef.unflatten(values)

    def join_state(self, parts: list[Any]) -> Any:
        """A tree of state, where only what has its parameter's shape stands in its box."""
        if not self._has_boxes:
            return self.treedef.unflatten(parts)
        rest, nodes = iter(zip(parts, self.values, strict=True)), []
        for box in self._boxes:
            pairs = [next(rest) for _ in range(1 if box is None else box.num_leaves)]
            fits = all(
                arrays.shape_of(x) == arrays.shape_of(value)
                for part, value in pairs
                for x in jax.tree.leaves(part)
            )
            own = [part for part, _ in pairs]
            nodes.append(own[0] if box is None else (box if fits else _open(box)).unflatten(own))
        return self._outer.unflatten(nodes)

    def distribute(self, shared: Any) -> Callable[[int], Any]:
        """What leaf `i` gets of what is shared: all, but of `Parts` its own."""
        values, treedef = jax.tree.flatten(shared, is_leaf=lambda x: isinstance(x, Parts))
        columns = {i: self._split_parts(x) for i, x in enumerate(values) if isinstance(x, Parts)}
        if not columns:
            return lambda _: shared
        return lambda leaf: treedef.unflatten(
            [columns[i][leaf] if i in columns else value for i, value in enumerate(values)]
        )


def _open(box: Any) -> Any:
    """The structure of what a box holds."""
    (content,) = box.children()
    return content


def _content(box: Any, node: Any) -> list[Any]:
    """The parts of a node that stands in the place of a box, or of a leaf without one."""
    if box is None:
        return [node]
    return (box if paths.is_box(node) else _open(box)).flatten_up_to(node)


class Layout:
    """Where a state has trees like the parameters', and where numbers that all leaves share."""

    def __init__(self, marked: Any) -> None:
        nodes, self.treedef = jax.tree.flatten(marked, is_leaf=is_place)
        self.is_tree = tuple(map(is_place, nodes))

    def split(self, state: Any) -> tuple[list[Any], list[Any]]:
        slots = self.treedef.flatten_up_to(state)
        pairs = list(zip(slots, self.is_tree, strict=True))
        return [x for x, is_tree in pairs if is_tree], [x for x, is_tree in pairs if not is_tree]

    def parts_of_leaf(self, state: Any) -> list[Any] | None:
        """What a leaf has returned in place of the trees; None if its structure is another."""
        try:
            parts, numbers = self.split(state)
        except (TypeError, ValueError):
            return None
        return parts if all(number is None for number in numbers) else None

    def numbers_of(self, state: Any) -> list[Any]:
        """What `advance` has returned in place of the numbers."""
        try:
            return self.split(state)[1]
        except (TypeError, ValueError) as error:
            raise TypeError(
                "The `advance` of a piece must return a state with the structure that it is given: "
                f"{error}"
            ) from None

    def join(self, trees: list[Any], numbers: list[Any]) -> Any:
        rest_of_trees, rest_of_numbers = iter(trees), iter(numbers)
        slots = [next(rest_of_trees if is_tree else rest_of_numbers) for is_tree in self.is_tree]
        return self.treedef.unflatten(slots)

    def __hash__(self) -> int:
        return hash((self.treedef, self.is_tree))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and (self.treedef, self.is_tree) == (
            other.treedef,
            other.is_tree,
        )
