"""Transformations that follow a rule, which others can take into their own."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax._trees import arrays, driver, layout, mismatch, paths
from msvag_optax._trees.driver import Rule
from msvag_optax._trees.exportable import exportable
from msvag_optax._trees.layout import Parts


class Piece(optax.GradientTransformationExtraArgs):
    """A transformation that is defined leaf by leaf: pieces combine to one kernel a leaf."""


class Estimator(Piece):
    """A piece whose output is an estimate, such as a variance, and not an update."""


class Optimizer(optax.GradientTransformationExtraArgs):
    """A transformation whose updates are to be added, and point downhill."""


def wrapper_of(
    inner: optax.GradientTransformation, init: Any, update: Any
) -> optax.GradientTransformationExtraArgs:
    """A transformation that wraps another, and is an optimizer if that one is."""
    is_optimizer = isinstance(inner, Optimizer)
    kind = Optimizer if is_optimizer else optax.GradientTransformationExtraArgs
    return kind(init, update)


@exportable
class OwnCountState(NamedTuple):
    """What a piece on a schedule remembers where nobody gives it a count.

    Attributes:
      count: how many updates it has made, int32.
      inner_state: the state of the piece.
    """

    count: jax.Array
    inner_state: Any


def from_rule(rule: Rule, *, estimates: bool = False, makes_updates: bool = False) -> Piece:
    """The piece that follows a rule; with `makes_updates`, in the gradients' dtypes."""
    kind = Estimator if estimates else Piece
    update: Any = driver.Driver(rule, makes_updates=makes_updates)
    if rule.needs_count:
        update = _OnOwnCount(update)
    return kind(update.init, update)


def on_given_count(rule: Rule) -> optax.GradientTransformationExtraArgs:
    """What makes updates by a rule, and leaves the count that it may need to whoever calls it."""
    update = driver.Driver(rule, makes_updates=True)
    return optax.GradientTransformationExtraArgs(update.init, update)


class _OnOwnCount:
    """The `update` of a piece that needs a count, and is given none."""

    def __init__(self, inner: driver.Driver) -> None:
        self.rule, self._driver = inner.rule, inner

    def __reduce__(self) -> Any:
        return _OnOwnCount, (self._driver,)

    def init(self, params: optax.Params) -> OwnCountState:
        return OwnCountState(jnp.zeros([], jnp.int32), self._driver.init(params))

    def __call__(
        self, updates: Any, state: OwnCountState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, OwnCountState]:
        like = updates if params is None else params
        with mismatch.own_state(state, OwnCountState, self.init, like):
            extra_args["count"] = state.count
            updates, inner_state = self._driver(updates, state.inner_state, params, **extra_args)
        return updates, OwnCountState(arrays.increment(state.count), inner_state)


def rule_of(transformation: optax.GradientTransformation) -> Rule:
    """The rule of a piece; of any other transformation, that it is given whole trees."""
    if not is_piece(transformation):
        return _rule_of_another(transformation)
    update: Any = transformation.update
    rule = update.rule
    if transformation.init != update.init:  # Somebody has replaced it.
        return rule._replace(init=transformation.init)
    return rule


def _rule_of_another(transformation: optax.GradientTransformation) -> Rule:
    inner = optax.with_extra_args_support(transformation)

    def init(params: optax.Params) -> Any:
        # Its state is its own, trees and all: to the driver, it is shared.
        if layout.is_place(params):
            return jnp.zeros([])
        return arrays.init_like_params(inner, params)

    def advance(state: Any, extra: Any) -> tuple[Parts, Any]:
        updates, params = extra.whole
        updates, state = inner.update(updates, state, params, **extra)
        return Parts(updates), state

    return Rule(init, advance, Partial(_known), needs_tree=True)


def _known(part: Any, gradient: jax.Array, state: Any, param: Any) -> tuple[Any, Any]:
    del gradient, param
    return part, state


def combined(
    rules: Sequence[Rule],
    init: Callable[[Any], Any],
    advance: Callable[[Any, dict[str, Any]], tuple[Any, Any]],
    leaf: Callable[..., Any] | paths.PerLeaf,
    read: Callable[[Any], Any] | None = None,
) -> Rule:
    """A rule that is made of others."""
    needs_count, needs_tree = (
        any(getattr(rule, flag) for rule in rules) for flag in ("needs_count", "needs_tree")
    )
    return Rule(init, advance, leaf, read, needs_count, needs_tree)


def behind(face: optax.GradientTransformationExtraArgs, piece: Piece, rule: Rule) -> Piece:
    """`face`, a wrapper of `piece`, which gives the piece's own rule where pieces are combined."""
    return type(piece)(face.init, _Face(face, rule))


def is_wrapped(piece: optax.GradientTransformation) -> bool:
    """Whether a piece supports missing gradients and gives updates in the gradients' dtypes."""
    return isinstance(piece.update, _Face)


def is_piece(transformation: optax.GradientTransformation) -> bool:
    """Whether a transformation has a rule of its own."""
    return isinstance(getattr(transformation.update, "rule", None), Rule)


class _Face:
    """The `update` of a wrapped piece."""

    def __init__(self, face: optax.GradientTransformationExtraArgs, rule: Rule) -> None:
        self._face, self.init, self.rule = face, face.init, rule

    def __call__(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        return self._face.update(updates, state, params, **extra_args)
