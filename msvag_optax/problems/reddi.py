r"""The linear problems on which Adam walks to the worst point there is.

A large gradient is rare and right; small ones are frequent and wrong:

.. math::
    f_t(x) = \begin{cases} 1010\,x & \text{one time in about a hundred,} \\
                           -10\,x  & \text{otherwise,} \end{cases}
    \qquad x \in [-1, 1].

The sum rises with :math:`x`, so the optimum is :math:`x^* = -1`. Adam divides by a root mean square
with a short memory: the large gradient is part of its own divisor, the small ones soon are not, and
together they win. A divisor that cannot forget (AMSGrad's maximum, Expectigrad's arithmetic mean)
weighs all gradients alike.

References:
  Reddi, Kale and Kumar, `On the Convergence of Adam and Beyond
  <https://arxiv.org/abs/1904.09237>`_, 2018, sections 3 and 5 and Figure 1 (which sets
  :math:`\beta_1 = 0.9, \beta_2 = 0.99`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from msvag_optax.problems.problem import Problem

LARGE, SMALL = 1010.0, -10.0
PERIOD = 101
PROBABILITY = 0.01
OPTIMUM = -1.0


def reddi_online() -> Problem:
    r"""The online problem: every 101st gradient is 1010, all others are -10.

    .. math::
        f_t(x) = \begin{cases} 1010\,x & t \bmod 101 = 1, \\ -10\,x & \text{otherwise.} \end{cases}

    One period sums to :math:`+10\,x`. Nothing about it is random. The paper counts
    :math:`t` from 1, `Problem` counts steps from 0: the first gradient is the large one.

    The loss is the *regret* :math:`f_t(x) - f_t(x^*)`, which has the gradient of :math:`f_t` and
    whose average over the steps is the average regret that the paper plots.

    Returns:
      A `Problem` whose parameter is a scalar that starts at 0, halfway between the two ends, and
      whose only metric is that scalar, `x`.
    """

    def slope(step: ArrayLike, key: jax.Array) -> jax.Array:
        del key
        return jnp.where(jnp.asarray(step) % PERIOD == 0, LARGE, SMALL)

    return _linear(slope)


def reddi_stochastic() -> Problem:
    r"""The stochastic problem: a gradient is 1010 with probability 0.01, and -10 otherwise.

    .. math::
        f_t(x) = \begin{cases} 1010\,x & \text{with probability } 0.01, \\
                               -10\,x  & \text{otherwise,} \end{cases}
        \qquad \mathbb{E} f_t(x) = 0.2\,x.

    Otherwise like `reddi_online`.

    Returns:
      A `Problem` whose parameter is a scalar that starts at 0.
    """

    def slope(step: ArrayLike, key: jax.Array) -> jax.Array:
        del step
        return jnp.where(jax.random.bernoulli(key, PROBABILITY), LARGE, SMALL)

    return _linear(slope)


def _linear(slope: Callable[[ArrayLike, jax.Array], jax.Array]) -> Problem:
    def init(key: jax.Array) -> jax.Array:
        del key
        return jnp.zeros([])

    def loss(x: jax.Array, step: ArrayLike, key: jax.Array) -> jax.Array:
        return slope(step, key) * (x - OPTIMUM)

    def metrics(x: jax.Array) -> dict[str, jax.Array]:
        return {"x": x}

    def project(x: jax.Array) -> jax.Array:
        return optax.projections.projection_box(x, -1.0, 1.0)

    return Problem(init, loss, metrics, project)
