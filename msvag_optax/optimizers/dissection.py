"""The two-by-two of *Dissecting Adam*: sign or magnitude, with or without variance adaptation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from msvag_optax import _checks
from msvag_optax.optimizers.optimizer import optimizer
from msvag_optax.pieces.formulas import adapted_mean, mean_of, mean_over_rms, sign_of_mean
from msvag_optax.pieces.from_estimates import from_estimates
from msvag_optax.pieces.running_moments import running_moments
from msvag_optax.pieces.weightings import exponential


class Dissection(NamedTuple):
    r"""Four optimizers that differ in how they read the same moments.

    ===================  ===============  ==================
    ..                   magnitude        sign
    ===================  ===============  ==================
    not adapted          `momentum_sgd`   `m_ssd`
    variance-adapted     `msvag`          `adam`
    ===================  ===============  ==================

    Attributes:
      momentum_sgd: the mean, :math:`m`.
      m_ssd: stochastic sign descent with momentum, :math:`\mathrm{sign}(m)`.
      adam: Adam with equal decays and no epsilon, :math:`m / \sqrt{v}`.
      msvag: M-SVAG, :math:`m \cdot m^2 / (m^2 + \sigma_m^2)`.
    """

    momentum_sgd: optax.GradientTransformationExtraArgs
    m_ssd: optax.GradientTransformationExtraArgs
    adam: optax.GradientTransformationExtraArgs
    msvag: optax.GradientTransformationExtraArgs


def dissection(
    learning_rate: optax.ScalarOrSchedule, beta: jax.typing.ArrayLike = 0.9
) -> Dissection:
    r"""The two-by-two of *Dissecting Adam*: four optimizers that read the same moments.

    Each is `from_estimates` of one formula and `running_moments(exponential(beta))`, so that a
    difference between two of them is a difference of one formula and nothing else.

    Args:
      learning_rate: the rate of all four, a finite number of at least 0, or a schedule of it.
        Signs and magnitudes need rates of different sizes: `dissection(rate).adam` for each.
      beta: the decay of the moments, in [0, 1).

    Returns:
      The four optimizers, by name.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> gradients = jnp.asarray([4.0, 0.0])  # the mean is 4/3, its variance 40/9
    >>> for name, tx in mo.dissection(1.0, beta=0.5)._asdict().items():
    ...     state = tx.init(jnp.zeros(()))
    ...     for gradient in gradients:
    ...         update, state = tx.update(gradient, state)
    ...     print(f"{name:<12} {-update:.4f}")
    momentum_sgd 1.3333
    m_ssd        1.0000
    adam         0.5774
    msvag        0.3810

    Source: Balles and Hennig, *Dissecting Adam* (2018), figure 1.
    """
    _checks.check_decays(beta=beta)

    def reading(formula: Callable[..., jax.Array]) -> optax.GradientTransformationExtraArgs:
        moments = running_moments(exponential(beta))
        return optimizer(from_estimates(formula, moments=moments), learning_rate)

    return Dissection(
        momentum_sgd=reading(mean_of),
        m_ssd=reading(sign_of_mean),
        adam=reading(mean_over_rms),
        msvag=reading(adapted_mean),
    )
