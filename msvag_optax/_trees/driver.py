"""The driver: takes trees apart, runs what becomes of one leaf, and puts trees together.

The only place where a tree of updates meets a tree of state. All that is combined before it runs is
one kernel a leaf.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax import _compat
from msvag_optax._trees import arrays, mismatch, partials, paths
from msvag_optax._trees.layout import Layout, Leaves, Place


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
    """The extra arguments of `update`; one that is missing is named.

    Attributes:
      whole: the trees of updates and parameters, for a rule that needs them.
    """

    def __init__(self, extra_args: dict[str, Any], whole: tuple[Any, Any] | None = None) -> None:
        """Takes the arguments by their names."""
        super().__init__(extra_args)
        self.whole = whole

    def __missing__(self, name: str) -> Any:
        hint = " Or is it a piece that needs `needs_count=True`?" if name == "count" else ""
        raise TypeError(f"`update` needs the extra argument `{name}`, and was not given it.{hint}")


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
        self._plans: dict[Any, list[_Kernel]] = {}

    def __reduce__(self) -> Any:
        return functools.partial(Driver, makes_updates=self.makes_updates), (self.rule,)

    def init(self, params: optax.Params) -> Any:
        """The state, in float32 or wider unless the rule wants another dtype, sharded like it."""
        layout, leaves = self._layout_of_state(), Leaves(params)
        with arrays.standard_promotion():
            state = self.rule.init(jax.tree.map(arrays.widen, params))
        trees, numbers = layout.split(state)
        columns = [map(_shard_like, leaves.split(tree), leaves.values) for tree in trees]
        return layout.join([leaves.join_state([*column]) for column in columns], numbers)

    def __call__(
        self,
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        """One step: `advance` once, then one kernel for each leaf."""
        with arrays.standard_promotion():
            return self._step(updates, state, params, extra_args)

    def _step(
        self, updates: Any, state: Any, params: Any, extra_args: dict[str, Any]
    ) -> tuple[Any, Any]:
        layout = self._layout_of_state()
        leaves = Leaves(updates)
        try:
            trees, numbers = layout.split(state)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The state is none that `init` of this piece makes: {error}"
            ) from None
        columns = [leaves.split(tree) for tree in trees]
        given = [None] * len(leaves.values) if params is None else leaves.split(params)
        extra = Extra(extra_args)
        if self.rule.needs_tree:
            whole = updates, params
            extra.whole = jax.tree.map(arrays.widen, whole) if self.makes_updates else whole
        numbers = layout.join([None] * len(trees), numbers)
        shared, numbers = self.rule.advance(numbers, extra)
        shared_by_leaf = leaves.distribute(shared)
        results = []
        as_array = functools.cache(lambda number: jnp.asarray(float(number)))
        kernels = self._plan(leaves, layout)
        for i, (kernel, gradient) in enumerate(zip(kernels, leaves.values, strict=True)):
            kept = [column[i] for column in columns]
            # Outside of `jit` a number would be converted for each leaf. Its type stays weak.
            numbers_of_leaf = [as_array(x) if isinstance(x, float) else x for x in kernel.numbers]
            try:
                results.append(
                    kernel.call(numbers_of_leaf, shared_by_leaf(i), gradient, kept, given[i])
                )
            except mismatch.LeafError as error:
                raise error.of(jax.tree.leaves(paths.path_names(updates))[i]) from None
        new_updates = leaves.join([update for update, _ in results])
        kept = [leaves.join_state([kept[i] for _, kept in results]) for i in range(len(trees))]
        return new_updates, layout.join(kept, layout.numbers_of(numbers))

    def _layout_of_state(self) -> Layout:
        if self._layout is None:
            try:
                marked = jax.eval_shape(self.rule.init, Place())
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                raise TypeError(
                    "The `init` of a piece may map over the tree of parameters, by `jax.tree.map`, "
                    f"and must not look at the tree otherwise; it failed: {error}"
                ) from error
            self._layout = Layout(marked)
        return self._layout

    def _plan(self, leaves: Leaves, layout: Layout) -> "list[_Kernel]":
        """The kernel of each leaf."""
        leaf = self.rule.leaf
        if not isinstance(leaf, paths.PerLeaf):
            if None not in self._plans:
                self._plans[None] = self._kernels([leaf], layout)
            return self._plans[None] * len(leaves.values)
        shapes = [
            jax.ShapeDtypeStruct(arrays.shape_of(x), arrays.wide_dtype(arrays.dtype_of(x)))
            for x in leaves.values
        ]
        key = (leaves.treedef, *((x.shape, x.dtype) for x in shapes))
        if key in self._plans:
            return self._plans[key]
        names = jax.tree.leaves(paths.path_names(leaves.tree))
        plan = self._kernels(
            [leaf.at(name, shape) for name, shape in zip(names, shapes, strict=True)], layout
        )
        if not _compat.is_tracing():  # What was chosen while tracing may hold a tracer.
            self._plans[key] = plan
        return plan

    def _kernels(self, leaves: list[Any], layout: Layout) -> "list[_Kernel]":
        own: dict[Any, Callable[..., Any]] = {}
        kernels = []
        for leaf in map(partials.as_partial, leaves):
            numbers, treedef = jax.tree.flatten(leaf)
            if partials.stand_in_their_modules(treedef):
                call = functools.partial(_shared_kernel, layout, self.makes_updates, treedef)
            else:
                if treedef not in own:
                    own[treedef] = _own_kernel(layout, self.makes_updates, treedef)
                call = own[treedef]
            kernels.append(_Kernel(call, numbers))
        return kernels


class _Kernel(NamedTuple):
    """What is called for a leaf, and the numbers that are bound to its functions."""

    call: Callable[..., Any]
    numbers: list[Any]


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
    after = jnp.asarray(after)
    if after.shape != before.shape and before.shape == gradient.shape:
        raise mismatch.ReturnedStateError((after.shape, before.shape))
    mismatch.check_kept(gradient, after, before)
    if arrays.is_inexact(before):
        return arrays.narrow(after, before.dtype)
    if jnp.issubdtype(after.dtype, jnp.inexact):
        raise mismatch.ReturnedTypeError((after.dtype, before.dtype))
    return after.astype(before.dtype)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _shared_kernel(
    layout: Layout, makes_updates: bool, treedef: Any, numbers: list[Any], *arguments: Any
) -> Any:
    """The kernel of functions that stand in their modules.

    One `jit` for all shares its traces: leaves of equal shape are traced and lowered once, and an
    update outside of `jit` costs one launch a leaf. A new decay or epsilon is a new argument, and
    not a new compilation. What it has compiled stays for the life of the process.
    """
    return _run(layout, makes_updates, treedef.unflatten(numbers), *arguments)


def _own_kernel(layout: Layout, makes_updates: bool, treedef: Any) -> Callable[..., Any]:
    """A kernel for closures, which goes with the piece that holds them."""

    @jax.jit
    def kernel(numbers: list[Any], *arguments: Any) -> Any:
        return _run(layout, makes_updates, treedef.unflatten(numbers), *arguments)

    return kernel


def _shard_like(x: Any, param: Any) -> Any:
    """What is kept of a parameter, sharded like it, and never the parameter itself.

    A step that is given both to overwrite could not.
    """

    def own(leaf: jax.Array) -> jax.Array:
        return jnp.copy(leaf) if leaf is param else leaf

    return jax.tree.map(lambda leaf: arrays.shard_like(own(leaf), param), x)
