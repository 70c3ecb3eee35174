"""Chains, in which links that are pieces share one kernel a leaf."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax import _checks
from msvag_optax._trees import arrays, driver, layout, partials
from msvag_optax._trees.driver import Rule
from msvag_optax._trees.layout import Parts
from msvag_optax._trees.rules import Estimator, Optimizer, Piece, combined, from_rule, rule_of
from msvag_optax.wrappers.dependable import dependable


def chain(
    *links: optax.GradientTransformation, **named_links: optax.GradientTransformation
) -> Piece | Optimizer:
    r"""Passes the updates from link to link, as `optax.chain` does, with one kernel a leaf.

    .. math::
        u_t = L^n(\dots L^2(L^1(g_t)))

    where :math:`L^1, \dots, L^n` are the links. Pieces that follow one another share a kernel, and
    all links that are on a schedule share a count. Any optax transformation may be a link; one that
    is no piece is given whole trees, and begins a new run of links. (`optax.chain` takes pieces
    too, each with a kernel and a count of its own: it keeps their functions, and not their types.)

    Args:
      *links: the links, first to last.
      **named_links: the same, by name: the names are the keys of their states.

    Returns:
      A piece, or an optimizer if a link is one. Its state is a tuple of the links' states, or a
      dict of them where they are named.

    Raises:
      TypeError: if there is no link, some are named and some are not, one is no gradient
        transformation, or one is an estimator, whose output is no update.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = mo.chain(optax.clip(1.0), mo.momentum(0.5), mo.add_decayed_weights(0.1))
    >>> params = jnp.asarray(10.0)
    >>> updates, state = tx.update(jnp.asarray(3.0), tx.init(params), params)
    >>> print(updates)  # 1 + 0.1 * 10
    2.0
    """
    if bool(links) == bool(named_links):
        raise TypeError("`chain` needs links: all of them by position, or all by keyword.")
    named = {f"links[{i}]": link for i, link in enumerate(links)} or named_links
    for name, link in named.items():
        _checks.check_transformation(name, link)
        check_is_no_estimator(name, link)
    chained = dependable(
        from_rule(_chained([rule_of(link) for link in named.values()], [*named_links]))
    )
    has_optimizer = any(isinstance(link, Optimizer) for link in named.values())
    return Optimizer(chained.init, chained.update) if has_optimizer else chained


def check_is_no_estimator(name: str, link: Any) -> None:
    """Raises if a link is an estimator."""
    if isinstance(link, Estimator):
        raise TypeError(
            f"`{name}` must be a transformation to updates, got an estimator: `from_estimates` "
            "turns its estimate into an update."
        )


def check_is_direction(direction: Any) -> None:
    """Raises unless the argument `direction` makes updates, and may point uphill."""
    _checks.check_transformation("direction", direction)
    check_is_no_estimator("direction", direction)
    if isinstance(direction, Optimizer):
        raise TypeError(
            "`direction` must point uphill, and got an optimizer, whose updates point downhill: "
            "give its direction, such as `optax.scale_by_adam()`, or use the optimizer as it is."
        )


def _chained(rules: Sequence[Rule], names: Sequence[str]) -> Rule:
    """The rule of a chain: the last run of links is its kernel, and those before it go ahead."""
    start = max((i for i, rule in enumerate(rules) if rule.needs_tree), default=0)
    ahead = driver.Driver(_chained(rules[:start], [])) if start else None
    run = rules[start:]

    def join(states: Sequence[Any]) -> Any:
        return dict(zip(names, states, strict=True)) if names else tuple(states)

    def init(params: optax.Params) -> Any:
        if ahead is None:
            states = ()
        elif layout.is_place(params):  # To the driver, what goes ahead is shared, trees and all.
            states = (jnp.zeros([]),) * start
        else:
            states = ahead.init(params)
        return join([*states, *(rule.init(params) for rule in run)])

    def advance(state: Any, extra: Any) -> tuple[_Shared, Any]:
        states = [state[name] for name in names] if names else [*state]
        part = None
        if ahead is not None:
            updates, params = extra.whole
            updates, states[:start] = ahead(updates, tuple(states[:start]), params, **extra)
            part = Parts(updates)
            extra = driver.Extra(extra, (updates, params))
        shared = []
        for i, rule in enumerate(run, start):
            now, states[i] = rule.advance(states[i], extra)
            shared.append(now)
        return _Shared(part, shared), join(states)

    keys = _Keys(tuple(names[start:] or range(start, len(rules))))
    leaf = partials.bind(_in_turn, keys, tuple(rule.leaf for rule in run))
    rule = combined(rules, init, advance, leaf)
    return rule._replace(needs_tree=start > 0 or rules[0].needs_tree)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Keys:
    """Where the states of the links of a run stand in the state of the chain."""

    keys: tuple[Any, ...]


class _Shared(NamedTuple):
    """What the leaves of a run share.

    Attributes:
      update: what happens to this leaf before the run; None if the run is the first.
      by_link: what each link of the run shares.
    """

    update: Any
    by_link: list[Any]


def _in_turn(
    where: _Keys,
    links: tuple[Partial, ...],
    shared: _Shared,
    gradient: jax.Array,
    state: Any,
    param: Any,
) -> tuple[jax.Array, Any]:
    update = gradient if shared.update is None else arrays.widen(shared.update)
    states = state.copy() if isinstance(state, dict) else [*state]
    for key, link, now in zip(where.keys, links, shared.by_link, strict=True):
        update, states[key] = link(now, update, states[key], param)
    return update, states if isinstance(state, dict) else tuple(states)
