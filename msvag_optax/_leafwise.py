"""Transformations that take a tree leaf by leaf: however many are combined, one kernel a leaf."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax import _leaves, paths


class Leaves:
    """The leaves of a tree of updates, and of other trees what stands in their places."""

    def __init__(self, tree: Any) -> None:
        """Takes a tree apart."""
        self.tree = tree
        self.values, self.treedef = jax.tree.flatten(tree)

    def split(self, other: Any) -> list[Any]:
        """What stands in the places of the leaves in a tree that has `tree` as a prefix."""
        try:
            return self.treedef.flatten_up_to(other)
        except ValueError:
            what = "the state or parameters they meet"
            raise _leaves.structure_mismatch(self.tree, other, what) from None

    def split_all(self, *others: Any) -> list[tuple[Any, ...]]:
        """For each leaf a tuple of what stands in its place in the other trees."""
        return list(zip(*map(self.split, others), strict=True))

    def map(self, call: _leaves.Call, kernel: Partial, given: Sequence[Any]) -> list[Any]:
        """For each leaf `kernel(leaf, given)`, by `call`; an error of a leaf has its name."""
        # Outside of `jit`, a number would be converted for each leaf. Its type stays weak.
        kernel = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float) else x, kernel)
        results = []
        try:
            for value, one in zip(self.values, given, strict=True):
                results.append(call(kernel, value, one))
        except _leaves.LeafMismatchError as error:
            shape, kept, _ = error.args
            name = jax.tree.leaves(paths.path_names(self.tree))[len(results)]
            raise _leaves.LeafMismatchError(shape, kept, name) from None
        return results

    def join(self, values: Sequence[Any]) -> Any:
        """The tree with one of the values in the place of each leaf."""
        return self.treedef.unflatten(values)

    def join_all(self, tuples: Sequence[tuple[Any, ...]], size: int) -> tuple[Any, ...]:
        """For tuples of `size` values, one for each leaf, as many trees."""
        columns = zip(*tuples, strict=True) if tuples else [()] * size
        return tuple(self.join(column) for column in columns)

    def __len__(self) -> int:
        """How many leaves there are."""
        return len(self.values)


class Step(NamedTuple):
    """One step of a leafwise transformation, which is about to be taken.

    Attributes:
      kernel: what becomes of a leaf, `(update, given) -> (update, kept)`. What all leaves share,
        such as the weight of the step, is bound.
      given: for each leaf, what the kernel is given beside the update; a tree, which may hold
        functions as `Partial`.
      close: makes the new state of what the kernel has kept of each leaf.
    """

    kernel: Partial
    given: Sequence[Any]
    close: Callable[[Sequence[Any]], Any]


Begin = Callable[[Leaves, Any, Any, dict[str, Any]], Step]


class Leafwise(NamedTuple):
    """What makes a transformation leafwise: an update for each leaf by itself.

    Attributes:
      begin: makes the step of `(updates, state, params, extra_args)`.
      reads_updates: whether it looks at the updates' values before the kernels run. One that does
        not knows their shapes alone, and may share its kernels with the links before it.
      functions: what the kernels call that may be somebody's closure.
    """

    begin: Begin
    reads_updates: bool
    functions: tuple[Callable[..., Any], ...]


def leafwise(
    init: optax.TransformInitFn,
    begin: Begin,
    functions: Sequence[Callable[..., Any]] = (),
    *,
    reads_updates: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The transformation that begins a step, and takes it with one kernel a leaf."""
    call = _leaves.call_for(*functions)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        leaves = Leaves(updates)
        step = begin(leaves, state, params, extra_args)
        pairs = leaves.map(call, step.kernel, step.given)
        return leaves.join([new for new, _ in pairs]), step.close([kept for _, kept in pairs])

    update.__dict__["leafwise"] = Leafwise(begin, reads_updates, tuple(functions))
    return optax.GradientTransformationExtraArgs(init, update)


def leafwise_of(transformation: optax.GradientTransformation) -> Leafwise | None:
    """What makes a transformation leafwise, if it is; it goes wherever its `update` goes."""
    return getattr(transformation.update, "leafwise", None)


def begin_any(
    estimator: optax.GradientTransformationExtraArgs,
    leaves: Leaves,
    state: Any,
    params: Any,
    extra_args: dict[str, Any],
) -> Step:
    """The step of any estimator; of one that is not leafwise it is taken already."""
    if found := leafwise_of(estimator):
        return found.begin(leaves, state, params, extra_args)
    estimates, state = estimator.update(leaves.tree, state, params, **extra_args)
    return Step(Partial(known), leaves.split(estimates), lambda _: state)


def known(update: jax.Array, estimate: Any) -> tuple[Any, None]:
    """The kernel of an estimator whose estimate of the leaf is known."""
    del update
    return estimate, None


def combined(
    parts: Sequence[optax.GradientTransformation],
    init: optax.TransformInitFn,
    begin: Begin,
    functions: Sequence[Callable[..., Any]] = (),
) -> optax.GradientTransformationExtraArgs:
    """What begins the steps of its parts, leafwise or not, when it begins its own."""
    found = [leafwise_of(part) for part in parts]
    inner = [function for part in found if part for function in part.functions]
    ahead = any(part.reads_updates if part else True for part in found)
    return leafwise(init, begin, [*functions, *inner], reads_updates=ahead)


def chain(
    links: Sequence[optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """`optax.chain`, where leafwise links that follow one another share one kernel a leaf."""
    runs: list[list[optax.GradientTransformation]] = []
    for link in links:
        found = leafwise_of(link)
        shares = found is not None and not found.reads_updates
        if shares and runs and leafwise_of(runs[-1][0]):
            runs[-1].append(link)
        else:
            runs.append([link])
    parts: list[Any] = [_in_turn(run) if leafwise_of(run[0]) else optax.chain(*run) for run in runs]

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, tuple[Any, ...]]:
        new_state = []
        for run, part in zip(runs, parts, strict=True):
            old = state[len(new_state) : len(new_state) + len(run)]
            updates, new = part.update(updates, old, params, **extra_args)
            new_state += new
        return updates, tuple(new_state)

    return optax.GradientTransformationExtraArgs(optax.chain(*links).init, update)


def _in_turn(
    links: Sequence[optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """A chain of leafwise links, of which the first alone may read the updates."""
    parts = [found for found in map(leafwise_of, links) if found]

    def begin(leaves: Leaves, state: Any, params: Any, extra_args: dict[str, Any]) -> Step:
        steps = [
            part.begin(leaves, part_state, params, extra_args)
            for part, part_state in zip(parts, state, strict=True)
        ]

        def close(kept: Sequence[Any]) -> tuple[Any, ...]:
            columns = zip(*kept, strict=True) if kept else [()] * len(steps)
            return tuple(step.close(column) for step, column in zip(steps, columns, strict=True))

        kernel = Partial(_turn, tuple(step.kernel for step in steps))
        return Step(kernel, list(zip(*(step.given for step in steps), strict=True)), close)

    functions = [function for part in parts for function in part.functions]
    init = optax.chain(*links).init
    return leafwise(init, begin, functions, reads_updates=parts[0].reads_updates)


def _turn(
    kernels: tuple[Partial, ...], update: jax.Array, given: tuple[Any, ...]
) -> tuple[jax.Array, tuple[Any, ...]]:
    kept = []
    for kernel, one in zip(kernels, given, strict=True):
        update, new = kernel(update, one)
        kept.append(new)
    return update, tuple(kept)


def elementwise(build: Partial) -> optax.GradientTransformationExtraArgs:
    """A transformation of optax's that looks at one element at a time, and at no parameter.

    Args:
      build: makes the transformation; a `Partial`, so that its hyperparameters are arguments of the
        kernel. Its state is a NamedTuple of trees like the parameters', or of nothing.

    Returns:
      The same transformation, leafwise.
    """

    def begin(leaves: Leaves, state: Any, params: Any, extra_args: dict[str, Any]) -> Step:
        del params, extra_args
        kernel = Partial(_elementwise, build)
        if not jax.tree.leaves(state):
            return Step(kernel, [state] * len(leaves), lambda _: state)
        given = [type(state)(*fields) for fields in leaves.split_all(*state)]

        def close(kept: Sequence[Any]) -> Any:
            return type(state)(*leaves.join_all(kept, len(state)))

        return Step(kernel, given, close)

    return leafwise(build().init, begin, [build.func])


def _elementwise(build: Partial, update: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    for kept in jax.tree.leaves(state):
        if kept.shape != update.shape:  # What is kept for another parameter might broadcast.
            raise _leaves.LeafMismatchError(update.shape, kept.shape)
    return build().update(update, state)
