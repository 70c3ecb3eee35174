"""Where estimates become updates."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.tree_util import Partial

from msvag_optax import _checks, _leafwise, _leaves, wrappers
from msvag_optax._leafwise import Leaves, Step
from msvag_optax.averages import running_moments
from msvag_optax.formulas import adapted_direction, adapted_direction_of_mean
from msvag_optax.weighting import exponential


class FromEstimatesState(NamedTuple):
    """What `from_estimates` remembers.

    Attributes:
      inner_states: the state of each estimator, under its name.
    """

    inner_states: dict[str, optax.OptState]


def from_estimates(
    formula: Callable[..., jax.Array], **estimators: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    r"""Hands each gradient to several estimators, and reads their estimates with one formula.

    .. math::
        u_t = f\bigl(g_t, E^1_t(g_1, \dots, g_t), \dots, E^n_t(g_1, \dots, g_t)\bigr)

    where :math:`f` is `formula` and :math:`E^1, \dots, E^n` are `estimators`. Every estimator sees
    the same gradient; any optax transformation can be one (`optax.trace`, `optax.scale_by_sign`,
    a chain of them).

    Args:
      formula: a pure function of the arrays of one leaf: the gradient, then by keyword each
        estimate under its estimator's name. An estimate with several arrays, such as `Moments`,
        comes whole. Under `optax.inject_hyperparams` and outside of `jit`, a closure is compiled
        anew at each step; a function that stands in a module is not.
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
    branches = {
        name: optax.with_extra_args_support(estimator) for name, estimator in estimators.items()
    }
    read = _leaves.as_partial(formula)

    def init(params: optax.Params) -> FromEstimatesState:
        return FromEstimatesState({name: tx.init(params) for name, tx in branches.items()})

    def begin(leaves: Leaves, state: Any, params: Any, extra_args: dict[str, Any]) -> Step:
        steps = {
            name: _leafwise.begin_any(tx, leaves, state.inner_states[name], params, extra_args)
            for name, tx in branches.items()
        }

        def close(kept: Sequence[dict[str, Any]]) -> FromEstimatesState:
            return FromEstimatesState(
                {name: step.close([one[name] for one in kept]) for name, step in steps.items()}
            )

        columns = zip(*(step.given for step in steps.values()), strict=True)
        given = [dict(zip(steps, column, strict=True)) for column in columns]
        kernels = {name: step.kernel for name, step in steps.items()}
        return Step(Partial(_read, read, kernels), given, close)

    return _leafwise.combined([*branches.values()], init, begin, [formula])


def _read(
    formula: Partial, kernels: dict[str, Partial], gradient: jax.Array, given: dict[str, Any]
) -> tuple[jax.Array, dict[str, Any]]:
    pairs = {name: kernel(gradient, given[name]) for name, kernel in kernels.items()}
    estimates = {name: estimate for name, (estimate, _) in pairs.items()}
    return formula(gradient, **estimates), {name: kept for name, (_, kept) in pairs.items()}


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
        raise TypeError(
            f"`formula` takes ({', '.join(signature.parameters)}), which does not fit a gradient "
            f"and estimates named {', '.join(estimators)}: {error}."
        ) from None


def chain_estimators(
    *estimators: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Hands each estimator the estimate of the one before: `optax.chain` where shapes change.

    .. math::
        e_t = E^n(\dots E^2(E^1(g_t)))

    `optax.chain` initializes every link from the parameters, which gives the wrong shapes to a link
    that averages, say, a norm a layer. Here each link is initialized from an estimate (of zeros) of
    the one before.

    Args:
      *estimators: the estimators, first to last, at least one.

    Returns:
      An estimator whose estimate is the last one's.

    Raises:
      TypeError: if there is no estimator, or one is no gradient transformation.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> smooth_maximum = mo.chain_estimators(
    ...     mo.running_max(mo.running_average(mo.exponential(0.0), of=mo.layer_square_norm())),
    ...     mo.running_average(mo.arithmetic()),
    ... )
    >>> state = smooth_maximum.init(jnp.zeros(2))
    >>> for gradient in ([1.0, 0.0], [3.0, 4.0], [0.0, 0.0]):  # maxima 1, 25, 25
    ...     estimate, state = smooth_maximum.update(jnp.asarray(gradient), state)
    >>> print(estimate)
    17.0
    """
    if not estimators:
        raise TypeError("`chain_estimators` needs at least one estimator.")
    for index, estimator in enumerate(estimators):
        _checks.check_transformation(f"estimators[{index}]", estimator)
    links = [optax.with_extra_args_support(estimator) for estimator in estimators]

    def init(params: optax.Params) -> tuple[optax.OptState, ...]:
        states = []
        for link in links:
            states.append(link.init(params))
            zeros = jax.tree.map(_leaves.zeros_like, params)
            params, _ = link.update(zeros, states[-1], zeros)
        return tuple(states)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, tuple[optax.OptState, ...]]:
        states = []
        for link, link_state in zip(links, state, strict=True):
            updates, link_state = link.update(updates, link_state, params, **extra_args)
            states.append(link_state)
        return updates, tuple(states)

    return optax.GradientTransformationExtraArgs(init, update)


def variance_adapted(
    direction: optax.GradientTransformation,
    beta: jax.typing.ArrayLike = 0.9,
    *,
    of_mean: bool = False,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Shortens each element of any direction by the noise of its gradient.

    .. math::
        u_t = \frac{m_t^2}{m_t^2 + \sigma_t^2} \; d(g_1, \dots, g_t)

    where :math:`d` is `direction`, :math:`m_t` the exponential mean of the gradients at decay
    `beta` and :math:`\sigma_t^2` the variance of one gradient (or, with `of_mean`, of :math:`m_t`).
    Directions that no paper has adapted are welcome: the sign of a momentum, Nesterov's, Lion's.
    `variance_adapted(optax.identity())` is SVAG's direction, and with `of_mean` around the
    exponential mean itself it is M-SVAG's. There is no learning rate in it.

    Args:
      direction: any transformation of the gradients.
      beta: the decay of mean and variance, in [0, 1).
      of_mean: whether the direction is as noisy as the mean of the gradients (a momentum is) rather
        than as one gradient.
      mu_dtype: the dtype in which the mean is kept; None is that of the parameter, and at least
        float32.
      nu_dtype: the dtype in which the variance is kept, likewise.

    Returns:
      A transformation whose update has the gradient's dtype.

    Raises:
      TypeError: if `direction` is no gradient transformation, `of_mean` no bool or `beta` no real
        scalar.
      ValueError: if `beta` is outside of [0, 1), or a dtype is no floating-point dtype.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = optax.chain(
    ...     mo.variance_adapted(optax.scale_by_sign(), beta=0.5), optax.scale_by_learning_rate(0.1)
    ... )
    >>> state = tx.init(jnp.zeros(2))
    >>> for gradient in ([2.0, 2.0], [2.0, -2.0]):  # one without noise, one with
    ...     update, state = tx.update(jnp.asarray(gradient), state)
    >>> print(", ".join(f"{value:.4f}" for value in update))
    -0.1000, 0.0053

    Source: Balles and Hennig, *Dissecting Adam* (2018), section 3.
    """
    _checks.check_transformation("direction", direction)
    _checks.check_decays(beta=beta)
    _checks.check_dtypes(mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    _checks.check_flags(of_mean=of_mean)
    return wrappers.dependable(
        from_estimates(
            adapted_direction_of_mean if of_mean else adapted_direction,
            direction=direction,
            moments=running_moments(exponential(beta), mu_dtype=mu_dtype, nu_dtype=nu_dtype),
        )
    )
