"""Diagnostics: how noisy the gradients are, read from the state of an optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from msvag_optax._trees import arrays, mesh_axes, paths, selection
from msvag_optax._trees.selection import Selection
from msvag_optax.pieces.quantities import square
from msvag_optax.pieces.running_moments import (
    Moments,
    RunningMomentsState,
    moments_in,
    running_moments,
)
from msvag_optax.pieces.weightings import Weighting
from msvag_optax.wrappers.dependable import dependable


def watch_moments(weighting: Weighting) -> optax.GradientTransformationExtraArgs:
    """Remembers the moments of the gradients that pass, and passes them on.

    At the head of a chain it makes the diagnostics of this module readable from the state of any
    optimizer; `msvag`, `svag` and `variance_adapted` have moments of their own.

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


def signal_to_noise(state: optax.OptState, *, stacked: Selection = ()) -> Any:
    r"""The signal-to-noise ratio of each layer's gradient.

    .. math::
        \sqrt{\frac{\max(0, \sum_i (m_i^2 - \rho \hat s_i))}{\sum_i \hat s_i}}

    over the elements :math:`i` of a layer, where :math:`m` is the mean gradient, :math:`\hat s` the
    variance of one gradient and :math:`\rho \hat s` that of the mean, which is what noise alone
    adds to :math:`m^2` if gradients are independent. In the state of an optimizer they are not
    quite: it answers the noise of one gradient by the next, and the parameters move. A weak signal
    is then read too low. Where that matters, hold the parameters still for some mini-batches under
    `watch_moments(arithmetic())`.

    Args:
      state: the state of an optimizer that keeps moments: `msvag`, `svag`, `variance_adapted`, or
        any with `watch_moments` in its chain.
      stacked: which parameters hold a layer in each row of their leading axis, as for
        `layer_square_norm`; every other leaf is one layer.

    Returns:
      A tree like the parameters' with a float for each leaf, or an array of shape (layers,) for a
      stacked one; infinite where there is no noise, 0 where no signal can be told from noise, or
      where there is neither.

    Raises:
      TypeError: if `stacked` is no sequence of strings and no such function.
      ValueError: if the state keeps no moments, or moments in several places; if a pattern is no
        regular expression, or is found in no parameter's path, or that parameter is a scalar.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> tx = mo.msvag(0.1, beta=0.5)
    >>> params = {"loud": jnp.zeros(2), "quiet": jnp.zeros(2)}
    >>> state = tx.init(params)
    >>> for sign in (1.0, -1.0, 1.0, -1.0):
    ...     noise = jnp.asarray([sign, -sign])
    ...     _, state = tx.update({"loud": 20 + noise, "quiet": noise}, state, params)
    >>> {name: round(float(ratio), 1) for name, ratio in mo.signal_to_noise(state).items()}
    {'loud': 16.6, 'quiet': 0.0}
    """
    layers = selection.layers(stacked)
    moments = _moments_of(state)
    means = jax.tree.map(lambda node: node.mean, moments, is_leaf=_is_moments)
    layers.check(means)

    def ratio(name: str, moments: Moments) -> jax.Array:
        shape = jax.ShapeDtypeStruct(moments.mean.shape, moments.mean.dtype)
        signal, noise = _signal_and_noise(moments, layers.at(name, shape))
        return jnp.sqrt(_quotient(jnp.maximum(0, signal), noise))

    return jax.tree.map(ratio, paths.path_names(means), moments)


def noise_scale(state: optax.OptState) -> jax.Array:
    r"""The simple noise scale: how many gradients to average before their noise equals the signal.

    .. math::
        B = \frac{\sum_i \hat s_i}{\max(0, \sum_i (m_i^2 - \rho \hat s_i))}

    over all elements :math:`i` of all leaves, with the symbols of `signal_to_noise`. In units of
    the batch that one gradient was taken on: batches much smaller than :math:`B` times that waste
    no data, much larger ones do.

    Args:
      state: the state of an optimizer that keeps moments, as for `signal_to_noise`.

    Returns:
      A float; infinite where no signal can be told from noise, 0 where there is no noise.

    Raises:
      ValueError: if the state keeps no moments, or moments in several places.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> tx = mo.svag(0.1, beta=0.999)
    >>> state = tx.init(jnp.zeros(()))
    >>> for gradient in 1000 * (1.0, 3.0):  # mean 2, variance 1
    ...     _, state = tx.update(jnp.asarray(gradient), state)
    >>> print(f"{mo.noise_scale(state):.2f}")
    0.25

    Source: McCandlish et al., *An Empirical Model of Large-Batch Training* (2018), equation 2.9.
    """
    leaves = jax.tree.leaves(_moments_of(state), is_leaf=_is_moments)
    pairs = [_signal_and_noise(moments) for moments in leaves]
    signal = jnp.asarray(sum(signal for signal, _ in pairs), float)
    noise = jnp.asarray(sum(noise for _, noise in pairs), float)
    return _quotient(noise, jnp.maximum(0, signal))


def _signal_and_noise(moments: Moments, rows: bool = False) -> tuple[jax.Array, jax.Array]:
    axes = tuple(range(1, moments.mean.ndim)) if rows else None

    def total(x: jax.Array) -> jax.Array:
        return arrays.saturate(jnp.sum(x, axis=axes))

    signal = total(square(moments.mean)) - total(moments.variance_of_mean)
    return signal, total(moments.variance)


def _quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """0 / 0 is 0: without gradients there is neither signal nor noise."""
    return jnp.where(numerator == 0, 0, numerator / denominator)


def _is_moments(node: Any) -> bool:
    return isinstance(node, Moments)


def _moments_of(state: optax.OptState) -> Any:
    def is_found(node: Any) -> bool:
        return isinstance(node, RunningMomentsState)

    found = [node for node in jax.tree.leaves(state, is_leaf=is_found) if is_found(node)]
    if len(found) != 1:
        raise ValueError(
            "`state` must keep the moments of the gradients in one place (see `watch_moments`), "
            f"got a state that keeps them in {len(found)}."
        )
    for mean in jax.tree.leaves(found[0].mean):
        mesh_axes.check_whole(mean, "Read the state outside of `shard_map`.")
    return moments_in(found[0])
