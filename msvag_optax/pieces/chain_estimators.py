"""Estimators of estimates."""

from typing import Any

import jax
import optax

from msvag_optax import _checks
from msvag_optax._trees import arrays
from msvag_optax._trees.rules import Estimator


def chain_estimators(
    *estimators: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Passes each estimator the estimate of the one before: `optax.chain` where shapes change.

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
            zeros = jax.tree.map(arrays.zeros_like, params)
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

    return Estimator(init, update)
