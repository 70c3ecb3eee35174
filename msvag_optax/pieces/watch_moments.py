"""A link that remembers the moments of the gradients that pass."""

from typing import Any

import optax

from msvag_optax.pieces.running_moments import running_moments
from msvag_optax.pieces.weightings import Weighting
from msvag_optax.wrappers.dependable import dependable


def watch_moments(weighting: Weighting) -> optax.GradientTransformationExtraArgs:
    """Remembers the moments of the gradients that pass, and passes them on.

    As the first link of a chain, it lets `signal_to_noise` and `noise_scale` read the state of any
    optimizer; `msvag`, `svag` and `variance_adapted` have moments of their own. It compares the
    gradients of different steps; `watch_noise` compares gradients within each step, and is right
    where this one fails.

    Args:
      weighting: what the newest gradient counts, such as `exponential(0.99)`.

    Returns:
      A transformation that changes no update.

    Raises:
      TypeError: if `weighting` is no `Weighting`.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = optax.chain(mo.watch_moments(mo.arithmetic()), optax.adam(0.1))
    >>> params = jnp.zeros(2)
    >>> state = tx.init(params)
    >>> for gradient in ([3.0, 1.0], [5.0, 1.0]):
    ...     updates, state = tx.update(jnp.asarray(gradient), state, params)
    >>> print(optax.tree.get(state, "RunningMomentsState").mean)
    [4. 1.]
    """
    moments = running_moments(weighting)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        _, state = moments.update(updates, state, params, **extra_args)
        return updates, state

    return dependable(optax.GradientTransformationExtraArgs(moments.init, update))
