"""Trees that do not fit one another: each is refused in a sentence, which names a parameter."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import GetAttrKey

from msvag_optax._trees import arrays, paths


class LeafError(ValueError):
    """What is wrong with a leaf; whoever knows its name adds it."""

    sentence = "{name!r}: {what}"

    def __init__(self, what: Any, name: str = "") -> None:
        """Says what is wrong, and with which leaf."""
        super().__init__(what, name)

    def of(self, name: str) -> "LeafError":
        """The same of the leaf of this name."""
        return type(self)(self.args[0], name)

    def __str__(self) -> str:
        what, name = self.args
        return self.sentence.format(name=name, what=what)


class LeafMismatchError(LeafError):
    """An update whose shape is not that of the state it meets; `what` has both shapes."""

    sentence = (
        "The update of {name!r} has shape {what[0]}, and what the state holds for it has shape "
        "{what[1]}: `init` was given another parameter, or has made it under other options."
    )


class PartMismatchError(LeafError):
    """A part of an extra argument that does not fit; `what` has its name, the part and a shape."""

    sentence = (
        "The extra argument `{what[0]}` has {what[1]} for {name!r}, whose gradient has shape "
        "{what[2]}: it must have a real array of that shape."
    )


class ReturnedStateError(LeafError):
    """A state that a leaf has returned in another shape; `what` has that shape and its own."""

    sentence = (
        "For {name!r} the `leaf` of a piece has returned a state of shape {what[0]}, and was given "
        "one of shape {what[1]}."
    )


class ReturnedTypeError(LeafError):
    """A state that a leaf has returned in another kind of dtype; `what` has that and its own."""

    sentence = (
        "For {name!r} the `leaf` of a piece has returned a state of {what[0]}, and was given "
        "{what[1]}."
    )


class NoUpdateError(LeafError):
    """What came out has not the gradient's shape; `what` says what it has, and that shape."""

    sentence = (
        "The update of {name!r} has {what[0]}, its gradient has shape {what[1]}: a formula must "
        "return an array of that shape; `from_estimates` turns estimates into an update."
    )


class ForeignStateError(ValueError):
    """A state that another optimizer has made."""


def check_kept(gradient: jax.Array, observed: jax.Array, kept: jax.Array) -> None:
    """Raises unless what is `observed` of a gradient has the shape of what is `kept` of it.

    What is kept for another parameter might broadcast.
    """
    if observed.shape != kept.shape:
        raise LeafMismatchError((gradient.shape, kept.shape))


def check_part(argument: str, gradient: jax.Array, part: Any) -> None:
    """Raises unless the part of an extra argument is real, and has the shape of the gradient."""
    is_real = part is not None and not jnp.iscomplexobj(part)
    if not is_real or arrays.shape_of(part) != gradient.shape:
        kind = "complex numbers of shape" if part is not None and not is_real else "shape"
        found = "nothing" if part is None else f"{kind} {arrays.shape_of(part)}"
        raise PartMismatchError((argument, found, gradient.shape))


def structure_mismatch(updates: Any, other: Any, what: str) -> ValueError:
    """The error for updates whose names are not those of `other`, which is `what`."""
    ours, theirs = set(paths.names(updates)), set(paths.names(other))

    def some(names: set[str]) -> str:
        listed = ", ".join(repr(name) for name in sorted(names)[:5])
        return listed + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    differences = [
        f"only {side} {'has' if 'argument' in side else 'have'} {some(names)}"
        for side, names in (("the updates", ours - theirs), (what, theirs - ours))
        if names
    ]
    detail = "; ".join(differences) or "their containers are of different types"
    return ValueError(f"The updates have another tree structure than {what}: {detail}.")


def check_fits_params(updates: optax.Updates, params: optax.Params) -> bool:
    """Raises unless the updates are such as the parameters; returns whether each leaf moves."""
    update_leaves, update_tree = jax.tree.flatten(updates, is_leaf=_is_none)
    param_leaves, param_tree = jax.tree.flatten(params, is_leaf=_is_none)
    if update_tree != param_tree:
        raise structure_mismatch(updates, params, "the parameters")
    still = 0
    for index, (update, param) in enumerate(zip(update_leaves, param_leaves, strict=True)):
        if update is None or not arrays.is_inexact(param):
            still += 1
            continue
        if not arrays.is_inexact(update):
            raise ValueError(
                f"The update of {paths.names(updates)[index]!r} must be of a floating-point dtype, "
                f"got {getattr(update, 'dtype', type(update).__name__)}."
            )
        if arrays.shape_of(update) != arrays.shape_of(param):
            raise ValueError(
                f"The update of {paths.names(updates)[index]!r} has shape {jnp.shape(update)}, "
                f"its parameter has shape {jnp.shape(param)}."
            )
    return not still


def check_is_update(gradient: Any, new: Any) -> None:
    """Raises unless `new` has the shape of the gradient, as an estimate may not."""
    shape = arrays.shape_of(gradient)
    if getattr(new, "shape", None) != shape:
        made = f"shape {new.shape}" if hasattr(new, "shape") else f"type {type(new).__name__}"
        raise NoUpdateError((made, shape))


def check_fits_state(
    inner: optax.GradientTransformation, updates: optax.Updates, state: optax.OptState
) -> None:
    """Raises unless `init` would make such a state for parameters like these updates."""
    names = paths.names(updates)
    try:
        expected = jax.eval_shape(inner.init, updates)
    except ValueError:  # a pattern that only the right tree matches, say
        expected = None
    if jax.tree.structure(expected) != jax.tree.structure(state):
        if any(_is_none(leaf) for leaf in jax.tree.leaves(updates, is_leaf=_is_none)):
            raise ValueError(
                "A gradient is None where the state has something to keep: pass `params` to "
                "`update`, which tell what that is."
            )
        some = ", ".join(repr(name) for name in names[:5]) or "nothing"
        raise ValueError(
            "The updates have another tree structure than the state that they meet: `init` was "
            f"given another tree than that of {some}{', ...' if len(names) > 5 else ''}."
        )
    for path, made, kept in zip(
        jax.tree.leaves(paths.path_names(state)),
        jax.tree.leaves(expected),
        jax.tree.leaves(state),
        strict=True,
    ):
        if made.shape != jnp.shape(kept):
            name = max((n for n in names if path.endswith(n)), key=len, default=path)
            shapes = dict(zip(names, jax.tree.leaves(updates, is_leaf=paths.is_hole), strict=True))
            shape = getattr(shapes.get(name), "shape", made.shape)
            raise LeafMismatchError((shape, jnp.shape(kept)), name)


@contextlib.contextmanager
def own_state(
    state: Any, own_type: type, init: Callable[[Any], Any], params: Any
) -> Iterator[None]:
    """Says of what fails inside that the state is foreign, if it is.

    It is asked only then, since the answer takes time.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _check_state_belongs(state, own_type, init, params, error)
        raise


def _check_state_belongs(
    state: Any, own_type: type, init: Callable[[Any], Any], params: Any, error: Exception
) -> None:
    """Raises, because of `error`, if the state has another structure than what `init` makes."""
    if not any(map(arrays.is_inexact, jax.tree.leaves(params))):
        return  # Nothing here would have a state, whosever it is: the gradients are all None, say.
    try:
        held, own = _skeleton(state), _skeleton(jax.eval_shape(init, params))
    except (TypeError, ValueError):
        return  # It is the parameters that are not the optimizer's.
    missing, foreign = ([p for p in a if p not in b] for a, b in ((own, held), (held, own)))
    if missing or foreign:
        what = f"it lacks {_first(missing)} and has {_first(foreign)}"
    elif not isinstance(state, own_type):
        what = f"it has lost its types (it is a {type(state).__name__})"
    else:
        return
    raise ForeignStateError(
        f"The state is not one of this optimizer and these parameters: {what}. If it "
        "comes from a checkpoint, build the optimizer that saved it, and restore into its state."
    ) from error


def _skeleton(state: Any) -> dict[str, None]:
    """Where a state has its fields, whatever the parameters are called that it keeps them for."""
    # What has no leaf, such as the state of a link that clips, is still a part of the structure.
    nodes = jax.tree.leaves_with_path(state, is_leaf=lambda node: not jax.tree.leaves(node))
    found = {}
    for path, node in nodes:
        if path and paths.is_hole(node):
            continue  # a parameter's place, not the optimizer's
        fields = [i for i, key in enumerate(path) if isinstance(key, GetAttrKey)]
        end = fields[-1] + 1 if fields and jax.tree.leaves(node) else len(path)
        field = jax.tree_util.keystr(path[:end], simple=True, separator="/")
        found[(field or type(node).__name__) + "/..." * (end < len(path))] = None
    return found


def _first(listed: list[str]) -> str:
    if not listed:
        return "nothing"
    return repr(listed[0]) + (f" and {len(listed) - 1} more" if len(listed) > 1 else "")


def _is_none(node: Any) -> bool:
    return node is None
