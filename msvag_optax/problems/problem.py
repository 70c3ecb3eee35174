"""What an optimizer is handed: where to start, a noisy loss, and how well a point really does."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

Params = Any
"""A tree of arrays; each problem knows which."""


def anywhere(params: Params) -> Params:
    """The projection of an unconstrained problem: every point may stay where it is."""
    return params


class Problem(NamedTuple):
    r"""A stochastic or online optimization problem, as four pure functions.

    At step :math:`t = 0, 1, \dots` the optimizer sees :math:`\nabla f_t(x_t)` and no more, and
    :math:`x_{t+1} = \Pi(x_t + u_t)`, where :math:`u_t` is its update:

    >>> import jax, optax
    >>> from msvag_optax.problems import noisy_quadratic
    >>> problem, tx = noisy_quadratic(noise=0.0), optax.sgd(1.0)
    >>> key = jax.random.key(0)
    >>> params = problem.init(key)
    >>> loss, gradient = problem.value_and_grad(params, 0, key)
    >>> updates, state = tx.update(gradient, tx.init(params), params)
    >>> params = problem.project(optax.apply_updates(params, updates))
    >>> bool(problem.metrics(params)["expected loss"] < loss)
    True

    All four may be traced, so that a whole grid of runs fits into one `jax.jit` of `jax.vmap`.

    Attributes:
      init: `key -> params`, a starting point.
      loss: `(params, step, key) -> scalar`, the loss :math:`f_t` of one step. Given the same step
        and key it is the same function of `params`: `step` moves an online problem along, `key`
        draws whatever is random about it.
      metrics: `params -> {name: scalar}`, what is worth knowing about a point, without noise.
      project: `params -> params`, the projection :math:`\Pi` onto the feasible set.
      source: where its data come from, if they are not the same on every machine.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, ArrayLike, jax.Array], jax.Array]
    metrics: Callable[[Params], dict[str, jax.Array]]
    project: Callable[[Params], Params] = anywhere
    source: str = ""

    def value_and_grad(
        self, params: Params, step: ArrayLike, key: jax.Array
    ) -> tuple[jax.Array, Params]:
        """The gradient oracle: the loss of this step at `params`, and its gradient there."""
        return jax.value_and_grad(self.loss)(params, step, key)
