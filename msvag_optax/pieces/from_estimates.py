"""Where estimates become updates."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.tree_util import Partial

from msvag_optax import _checks
from msvag_optax._trees import partials
from msvag_optax._trees.exportable import exportable
from msvag_optax._trees.rules import Piece, combined, from_rule, rule_of


@exportable
class FromEstimatesState(NamedTuple):
    """What `from_estimates` remembers.

    Attributes:
      inner_states: the state of each estimator, under its name.
    """

    inner_states: dict[str, optax.OptState]


def from_estimates(
    formula: Callable[..., jax.Array], **estimators: optax.GradientTransformation
) -> Piece:
    r"""Passes each gradient to several estimators, and reads their estimates with one formula.

    .. math::
        u_t = f\bigl(g_t, E^1_t(g_1, \dots, g_t), \dots, E^n_t(g_1, \dots, g_t)\bigr)

    where :math:`f` is `formula` and :math:`E^1, \dots, E^n` are `estimators`. Every estimator sees
    the same gradient; any optax transformation can be one (`optax.trace`, `optax.scale_by_sign`,
    a chain of them).

    Args:
      formula: a pure function of the arrays of one leaf: the gradient, then by keyword each
        estimate under its estimator's name. An estimate with several arrays, such as `Moments`,
        comes whole. Under `optax.inject_hyperparams` and outside of `jit`, a closure is compiled
        again at each step; a function at the top level of a module is not.
      **estimators: the estimators, each named like the formula's argument that takes its estimate.

    Returns:
      A transformation from gradients to what the formula makes of them.

    Raises:
      TypeError: if there is no estimator, one is no gradient transformation, or their names are
        not the arguments of the formula.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> adam = mo.from_estimates(
    ...     mo.over_rms(eps=0.0),
    ...     mean=mo.running_average(mo.exponential(0.9)),
    ...     second_moment=mo.running_average(mo.exponential(0.999), of=mo.square),
    ... )
    >>> gradient = jnp.asarray([0.5, -20.0])
    >>> update, state = adam.update(gradient, adam.init(gradient))
    >>> print(update)  # at the first step, Adam's is the sign
    [ 1. -1.]
    """
    _check_names(formula, estimators)
    rules = {name: rule_of(estimator) for name, estimator in estimators.items()}

    def init(params: optax.Params) -> FromEstimatesState:
        return FromEstimatesState({name: rule.init(params) for name, rule in rules.items()})

    def advance(state: FromEstimatesState, extra: dict[str, Any]) -> Any:
        pairs = {
            name: rule.advance(state.inner_states[name], extra) for name, rule in rules.items()
        }
        shared = {name: shared for name, (shared, _) in pairs.items()}
        return shared, FromEstimatesState({name: state for name, (_, state) in pairs.items()})

    leaves = {name: rule.leaf for name, rule in rules.items()}
    leaf = partials.bind(_read, formula, leaves)
    return from_rule(combined([*rules.values()], init, advance, leaf))


def _read(
    formula: Partial,
    estimators: dict[str, Partial],
    shared: dict[str, Any],
    gradient: jax.Array,
    state: Any,
    param: Any,
) -> tuple[jax.Array, FromEstimatesState]:
    estimates, inner_states = {}, {}
    for name, estimator in estimators.items():
        estimates[name], inner_states[name] = estimator(
            shared[name], gradient, state.inner_states[name], param
        )
    update = formula(gradient, **estimates)
    if update is None:
        raise TypeError("`formula` returned None, in place of an update: does it lack a `return`?")
    return update, FromEstimatesState(inner_states)


def _check_names(formula: Any, estimators: dict[str, Any]) -> None:
    if not callable(formula):
        raise TypeError(
            f"`formula` must be a function of a gradient and estimates, got {formula!r}."
        )
    if not estimators:
        raise TypeError("`from_estimates` needs at least one estimator, given by keyword.")
    for name, estimator in estimators.items():
        _checks.check_transformation(name, estimator)
    signature = inspect.signature(formula)
    try:
        signature.bind("gradient", **estimators)
    except TypeError as error:
        is_called = "gradient" in signature.parameters or {*signature.parameters} & {*estimators}
        hint = "" if is_called else " Did you forget to call it?"
        raise TypeError(
            f"`formula` takes ({', '.join(signature.parameters)}), which does not fit a gradient "
            f"and estimates named {', '.join(estimators)}: {error}.{hint}"
        ) from None
