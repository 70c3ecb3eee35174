"""The driver: takes trees apart, runs what becomes of one leaf, and puts trees together.

The only place where a tree of updates meets a tree of state. All that is combined before it runs is
one kernel a leaf.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax._trees import arrays, mismatch, paths
from msvag_optax._trees.layout import Layout, Leaves, Place

WHOLE = "the whole trees of updates and parameters"  # A key that is no name of an argument.


class Rule(NamedTuple):
    """What makes a piece; `msvag_optax.piece` says what its functions are.

    Attributes:
      init: makes the state.
      advance: moves what all leaves share, `(state, extra) -> (shared, state)`.
      leaf: what becomes of one leaf, `(shared, gradient, state, param) -> (update, state)`; or a
        `PerLeaf` of such functions.
      read: the estimate that the state of a leaf holds, `state -> estimate`.
      needs_count: whether `advance` reads the number of updates made, `extra["count"]`.
      needs_tree: whether it needs all gradients, and can only be the first of a run of links.
    """

    init: Callable[[Any], Any]
    advance: Callable[[Any, dict[str, Any]], tuple[Any, Any]]
    leaf: Callable[..., Any] | paths.PerLeaf
    read: Callable[[Any], Any] | None = None
    needs_count: bool = False
    needs_tree: bool = False


class Extra(dict[str, Any]):
    """The extra arguments of `update`; one that is missing is named."""

    def __missing__(self, name: str) -> Any:
        hint = " Or is it a piece that needs `needs_count=True`?" if name == "count" else ""
        raise TypeError(f"`update` needs the extra argument `{name}`, and was not given it.{hint}")


def bind(function: Callable[..., Any], *arguments: Any) -> Any:
    """`Partial(function, *arguments)`, where `PerLeaf`s are replaced by what a parameter gets.

    Each argument is a function, a tuple or dict of functions, or a static node.
    """
    if not any(isinstance(one, paths.PerLeaf) for one in _each(arguments)):
        return Partial(function, *_map_each(as_partial, arguments))

    def at(name: str, shape: jax.ShapeDtypeStruct) -> Partial:
        def choose(one: Any) -> Any:
            return as_partial(one.at(name, shape) if isinstance(one, paths.PerLeaf) else one)

        return Partial(function, *_map_each(choose, arguments))

    return paths.PerLeaf(at)


def _each(argument: Any) -> list[Any]:
    collected: list[Any] = []
    _map_each(collected.append, argument)
    return collected


def _map_each(change: Callable[[Any], Any], argument: Any) -> Any:
    if isinstance(argument, dict):
        return {key: _map_each(change, one) for key, one in argument.items()}
    if type(argument) is tuple:
        return tuple(_map_each(change, one) for one in argument)
    return change(argument)


def as_partial(function: Any) -> Any:
    """`function` as a `Partial`, a tree whose leaves are the numbers that are bound."""
    if isinstance(function, Partial) or not callable(function):  # a static node, that is
        return function
    return Partial(function)


class Driver:
    """The `update` of a piece. It keeps for each tree which kernel a leaf gets."""

    def __init__(self, rule: Rule, *, makes_updates: bool = False) -> None:
        """Drives the pieces that follow `rule`.

        Args:
          rule: the rule.
          makes_updates: whether what comes out is to have the shapes and dtypes of the gradients.
        """
        self.rule, self.makes_updates = rule, makes_updates
        self._layout: Layout | None = None
        self._plans: dict[Any, list[Callable[..., Any]]] = {}
        self._kernels: dict[Any, Callable[..., Any]] = {}

    def __reduce__(self) -> Any:
        return functools.partial(Driver, makes_updates=self.makes_updates), (self.rule,)

    def init(self, params: optax.Params) -> Any:
        """The state, in float32 or wider unless the rule wants another dtype, sharded like it."""
        state = self.rule.init(jax.tree.map(arrays.widen, params))
        layout = self._layout_of_state()
        trees, numbers = layout.split(state)
        sharded = [jax.tree.map(lambda p, x: _shard_like(x, p), params, tree) for tree in trees]
        return layout.join(sharded, numbers)

    def __call__(
        self,
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        """One step: `advance` once, then one kernel for each leaf."""
        layout = self._layout_of_state()
        leaves = Leaves(updates)
        trees, numbers = layout.split(state)
        columns = [leaves.split(tree) for tree in trees]
        given = [None] * len(leaves.values) if params is None else leaves.split(params)
        extra = Extra(extra_args)
        if self.rule.needs_tree:
            wide = jax.tree.map(arrays.widen, (updates, params)) if self.makes_updates else None
            extra[WHOLE] = wide or (updates, params)
        shared, numbers = self.rule.advance(layout.join([None] * len(trees), numbers), extra)
        shared_by_leaf = leaves.distribute(shared)
        results = []
        kernels = self._plan(leaves, layout)
        for i, (kernel, gradient) in enumerate(zip(kernels, leaves.values, strict=True)):
            kept = [column[i] for column in columns]
            try:
                results.append(kernel(shared_by_leaf(i), gradient, kept, given[i]))
            except mismatch.LeafError as error:
                raise error.of(jax.tree.leaves(paths.path_names(updates))[i]) from None
        new_updates = leaves.join([update for update, _ in results])
        kept = [leaves.join([kept[i] for _, kept in results]) for i in range(len(trees))]
        return new_updates, layout.join(kept, layout.split(numbers)[1])

    def _layout_of_state(self) -> "Layout":
        if self._layout is None:
            try:
                marked = jax.eval_shape(self.rule.init, Place())
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                raise TypeError(
                    "The `init` of a piece may map over the tree of parameters, by `jax.tree.map`, "
                    f"and look at nothing else of it; it did, and failed: {error}"
                ) from error
            self._layout = Layout(marked)
        return self._layout

    def _plan(self, leaves: "Leaves", layout: "Layout") -> list[Callable[..., Any]]:
        """The kernel of each leaf, with the numbers that are bound to it."""
        leaf = self.rule.leaf
        if not isinstance(leaf, paths.PerLeaf):
            key = arrays.scalar_dtype()
            if key not in self._plans:
                self._plans[key] = [self._kernel(leaf, layout)]
            return self._plans[key] * len(leaves.values)
        shapes = [
            jax.ShapeDtypeStruct(arrays.shape_of(x), arrays.dtype_of(x)) for x in leaves.values
        ]
        key = (leaves.treedef, *((x.shape, x.dtype) for x in shapes), arrays.scalar_dtype())
        if key not in self._plans:
            names = jax.tree.leaves(paths.path_names(leaves.tree))
            chosen = [leaf.at(name, shape) for name, shape in zip(names, shapes, strict=True)]
            self._plans[key] = [self._kernel(one, layout) for one in chosen]
        return self._plans[key]

    def _kernel(self, leaf: Callable[..., Any], layout: "Layout") -> Callable[..., Any]:
        # Numbers would be converted for each leaf, outside of `jit`. Their type stays weak.
        with jax.ensure_compile_time_eval():
            leaf = jax.tree.map(
                lambda x: jnp.asarray(x) if isinstance(x, float) else x, as_partial(leaf)
            )
        numbers, treedef = jax.tree.flatten(leaf)
        if _stand_in_their_modules(treedef):
            return functools.partial(_shared_kernel, layout, self.makes_updates, leaf)
        if treedef not in self._kernels:
            self._kernels[treedef] = _own_kernel(layout, self.makes_updates, treedef)
        return functools.partial(self._kernels[treedef], numbers)


def _run(
    layout: Layout,
    makes_updates: bool,
    leaf: Partial,
    shared: Any,
    gradient: Any,
    kept: list[Any],
    param: Any,
) -> tuple[Any, list[Any]]:
    """What becomes of one leaf, in float32 or wider; its state stays in the dtypes that it has."""
    state = layout.join(
        jax.tree.map(lambda x: arrays.widen(x) if arrays.is_inexact(x) else x, kept),
        [None] * (len(layout.is_tree) - len(kept)),
    )
    param = None if param is None else arrays.widen(param)
    update, state = leaf(shared, arrays.widen(gradient), state, param)
    moved = layout.parts_of_leaf(state)
    if jax.tree.structure(moved) != jax.tree.structure(kept):
        raise TypeError(
            "The `leaf` of a piece must return an update and a state with the structure that it is "
            f"given, {jax.tree.structure(kept)}, got {jax.tree.structure(moved)}."
        )
    if makes_updates:
        mismatch.check_is_update(gradient, update)
        update = arrays.narrow(update, arrays.dtype_of(gradient))
    return update, jax.tree.map(functools.partial(_keep, gradient), kept, moved)


def _keep(gradient: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
    mismatch.check_kept(gradient, after, before)
    return arrays.narrow(after, before.dtype) if arrays.is_inexact(before) else after


@functools.partial(jax.jit, static_argnums=(0, 1))
def _shared_kernel(layout: Layout, makes_updates: bool, leaf: Partial, *arguments: Any) -> Any:
    """The kernel of functions that stand in their modules.

    One `jit` for all shares its traces: leaves of equal shape are traced and lowered once, and an
    update outside of `jit` costs one launch a leaf. A new decay or epsilon is a new argument, and
    not a new compilation. What it has compiled stays for the life of the process.
    """
    return _run(layout, makes_updates, leaf, *arguments)


def _own_kernel(layout: Layout, makes_updates: bool, treedef: Any) -> Callable[..., Any]:
    """A kernel for closures, which goes with the piece that holds them."""

    @jax.jit
    def kernel(numbers: list[Any], *arguments: Any) -> Any:
        return _run(layout, makes_updates, treedef.unflatten(numbers), *arguments)

    return kernel


def compiled(function: Partial) -> Callable[..., Any]:
    """`function`, of what leaves share, as one kernel if it stands in its module."""
    if _stand_in_their_modules(jax.tree.structure(function)):
        return functools.partial(_shared_call, function)
    return function


@jax.jit
def _shared_call(function: Partial, *arguments: Any) -> Any:
    return function(*arguments)


def _stand_in_their_modules(treedef: Any) -> bool:
    """Whether the functions of all `Partial`s of a tree live as long as the process."""
    return all(map(_stands_in_its_module, _functions(treedef)))


def _functions(treedef: Any) -> Iterator[Callable[..., Any]]:
    """The functions of all `Partial`s of a tree."""
    data = treedef.node_data()
    if data and isinstance(data[0], type) and issubclass(data[0], Partial):
        yield data[1]
    for child in treedef.children():
        yield from _functions(child)


def _stands_in_its_module(function: Callable[..., Any]) -> bool:
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return getattr(module, getattr(function, "__qualname__", ""), None) is function


def _shard_like(x: Any, param: Any) -> Any:
    return jax.tree.map(lambda leaf: arrays.shard_like(leaf, param), x)
