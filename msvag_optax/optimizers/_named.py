"""What all named optimizers share: a clock, and arguments checked in one place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _checks, _leaves, wrappers
from msvag_optax.weight_decay import decayed_weights


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
        extra_args["count"] = state.count
        updates, links = chain.update(updates, state.links, params, **extra_args)
        return updates, OptimizerState(_leaves.increment(state.count), links)

    return optax.GradientTransformationExtraArgs(init, update)


def _named_chain(
    links: dict[str, optax.GradientTransformation],
) -> optax.GradientTransformationExtraArgs:
    """`optax.named_chain` with a plain dict for its state, which every serializer knows."""
    transformations = {name: optax.with_extra_args_support(tx) for name, tx in links.items()}

    def init(params: optax.Params) -> dict[str, optax.OptState]:
        return {name: tx.init(params) for name, tx in transformations.items()}

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, dict[str, optax.OptState]]:
        new_state = {}
        for name, tx in transformations.items():
            updates, new_state[name] = tx.update(updates, state[name], params, **extra_args)
        return updates, new_state

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_learning_rate(
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformation:
    """`optax.scale_by_learning_rate`, whose schedule is read at the optimizer's own count."""
    _checks.check_number("learning_rate", learning_rate, schedule=True)
    return _at_count(optax.scale_by_learning_rate, learning_rate)


def decoupled_weight_decay(
    weight_decay: optax.ScalarOrSchedule,
    exclude_from_weight_decay: Any,
    *,
    strict: bool = True,
) -> optax.GradientTransformation:
    """`add_decayed_weights`, whose schedule is read at the optimizer's own count."""
    _checks.check_number("weight_decay", weight_decay, schedule=True)

    def link(rate: Any) -> optax.GradientTransformation:
        return decayed_weights(
            rate, exclude_from_weight_decay, argument="exclude_from_weight_decay", strict=strict
        )

    return _at_count(link, weight_decay)


def _at_count(
    link: Callable[[Any], optax.GradientTransformation], value: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """`link(value)`, or `link(value(count))` where the value is a schedule."""
    if not callable(value):
        return link(value)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        scheduled = optax.with_extra_args_support(link(value(extra_args["count"])))
        return scheduled.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(link(0.0).init, update)
