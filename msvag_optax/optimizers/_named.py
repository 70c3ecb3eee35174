"""What all named optimizers share: a clock, and arguments checked in one place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import GetAttrKey, Partial

from msvag_optax import _checks, _leafwise, _leaves, paths, wrappers
from msvag_optax._leafwise import Leaves, Step
from msvag_optax.weight_decay import Exclusions, decayed_weights


class OptimizerState(NamedTuple):
    """What a named optimizer remembers.

    Attributes:
      count: how many updates it has made, int32; its schedules are read at it.
      links: the state of each link of its chain, under the link's name.
    """

    count: jax.Array
    links: Any


def named_optimizer(
    **links: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """A chain of named links with one clock, made dependable.

    Every link is given the number of updates made so far as the extra argument `count`. One clock
    for all, so that the state has one `count`, whether or not anything is scheduled.

    Args:
      **links: the links of the chain, first to last.

    Returns:
      The optimizer.
    """
    chain = wrappers.dependable(_named_chain(links))

    def init(params: optax.Params) -> OptimizerState:
        return OptimizerState(jnp.zeros([], jnp.int32), chain.init(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, OptimizerState]:
        try:
            extra_args["count"] = state.count
            updates, links = chain.update(updates, state.links, params, **extra_args)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # Asked only now, since the answer takes time.
            _check_state_belongs(state, init, updates if params is None else params, error)
            raise
        return updates, OptimizerState(_leaves.increment(state.count), links)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_state_belongs(
    state: Any, init: Callable[[Any], OptimizerState], params: Any, error: Exception
) -> None:
    """Raises, because of `error`, if the state has another structure than the optimizer's own."""
    try:
        held, own = _skeleton(state), _skeleton(jax.eval_shape(init, params))
    except (TypeError, ValueError):
        return  # It is the parameters that are not the optimizer's.
    missing, foreign = ([p for p in a if p not in b] for a, b in ((own, held), (held, own)))
    if missing or foreign:
        what = f"it lacks {_first(missing)} and has {_first(foreign)}"
    elif not isinstance(state, OptimizerState):
        what = f"it has lost its types (it is a {type(state).__name__})"
    else:
        return
    raise ValueError(
        f"The state is not one of this optimizer and these parameters: {what}. Restore a "
        "checkpoint into the state that `init` of the optimizer that saved it makes."
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


def _named_chain(
    links: dict[str, optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """`optax.named_chain` with a plain dict for its state, which every serializer knows."""
    chain: Any = _leafwise.chain([*links.values()])

    def init(params: optax.Params) -> dict[str, optax.OptState]:
        return dict(zip(links, chain.init(params), strict=True))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, dict[str, optax.OptState]]:
        if state.keys() != links.keys():
            raise KeyError(f"The chain has the links {[*links]}, its state {[*state]}.")
        states = tuple(state[name] for name in links)
        updates, states = chain.update(updates, states, params, **extra_args)
        return updates, dict(zip(links, states, strict=True))

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_learning_rate(
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_learning_rate`, whose schedule is read at the optimizer's own count."""
    _checks.check_number("learning_rate", learning_rate, schedule=True)

    def link(rate: Any) -> optax.GradientTransformationExtraArgs:
        return _leafwise.elementwise(Partial(optax.scale_by_learning_rate, rate))

    return _at_count("learning_rate", link, learning_rate)


def decoupled_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    exclude_from_weight_decay: Any,
    *,
    strict: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """`add_decayed_weights`, whose schedule is read at the optimizer's own count."""
    _checks.check_number("weight_decay", weight_decay, schedule=True)
    exclusions = Exclusions(
        exclude_from_weight_decay, argument="exclude_from_weight_decay", strict=strict
    )

    def link(rate: Any) -> optax.GradientTransformationExtraArgs:
        return decayed_weights(rate, exclusions)

    return _at_count("weight_decay", link, weight_decay)


def _at_count(
    name: str,
    link: Callable[[Any], optax.GradientTransformationExtraArgs],
    value: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """`link(value)`, or `link(value(count))` where the value is a schedule."""
    if not callable(value):
        return link(value)

    def begin(leaves: Leaves, state: Any, params: Any, extra_args: dict[str, Any]) -> Step:
        scheduled_value = value(extra_args["count"])
        _checks.check_scheduled(name, scheduled_value)
        return _leafwise.begin_any(link(scheduled_value), leaves, state, params, extra_args)

    return _leafwise.combined([link(0.0)], link(0.0).init, begin)
