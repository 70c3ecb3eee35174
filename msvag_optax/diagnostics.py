"""Diagnostics: how noisy the gradients are, read from the state of an optimizer."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _checks, _compat, _signal
from msvag_optax._trees import arrays
from msvag_optax._trees.selection import Selection


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("value", "steps", "examples"),
    meta_fields=("source",),
)
@dataclasses.dataclass(frozen=True)
class Reading:
    """What `noise_scale` or `signal_to_noise` has read, and from what; a tree of arrays to JAX.

    Attributes:
      value: what the function returns without `details`; not a number where nothing can be said.
      source: `"within steps"`, from the state of `watch_noise`, or `"over steps"`, from moments of
        the gradients of different steps.
      steps: the number of steps of equal weight whose mean would be as reliable.
      examples: the mean number of examples in a batch; None over steps, whose moments do not know.
    """

    value: Any
    source: str
    steps: jax.Array
    examples: jax.Array | None


def signal_to_noise(
    state: optax.OptState, *, stacked: Selection = (), details: bool = False
) -> Any:
    r"""The signal-to-noise ratio of each layer's gradient.

    .. math::
        \sqrt{\frac{\max(0, L)}{V / n}}

    where, for a layer, :math:`L` is an estimate of the squared length of the true gradient, and
    :math:`V / n` one of the variance of the gradient of one batch, summed over the elements. With
    `watch_noise` in the chain they are compared within each batch of :math:`n` examples, at the
    same parameters, and have no bias. Without it, they are read from moments over steps,
    :math:`L = \sum_i (m_i^2 - \sigma_{m,i}^2)` and :math:`V / n = \sum_i \sigma_i^2`, where
    :math:`m` is the mean gradient, :math:`\sigma^2` the variance of one gradient and
    :math:`\sigma_m^2` that of the mean, which is what noise alone adds to :math:`m^2` if gradients
    are independent.

    **Where reading over steps fails.** During training, gradients are not independent: the noise of
    one moves the parameters, and the next points back. A weak signal is then read too low, and at
    the learning rates that are used in practice often as zero: `python -m benchmarks.noise` reads a
    network on digits at M-SVAG's best rate, and finds a signal in 1 of 24 readings over steps, and
    in all within steps. `watch_noise` is the remedy, and costs two numbers a layer. Without it,
    hold the parameters still for some mini-batches under `watch_moments(arithmetic())`.

    Args:
      state: the state of an optimizer that has `watch_noise` in its chain, which is preferred, or
        keeps moments: `msvag`, `svag`, `variance_adapted`, or any with `watch_moments` in its
        chain.
      stacked: which parameters hold a layer in each row of their leading axis, as for
        `layer_square_norm`; every other leaf is one layer. `watch_noise` has an argument of its
        own in place of this one.
      details: whether to return a `Reading`, which says what was read, and over how many steps.

    Returns:
      A tree like the parameters' with a float for each leaf, or an array of shape (layers,) for a
      stacked one; infinite where there is no noise, 0 where no signal can be told from noise, or
      where there is neither. Before there are enough steps, not a number. With `details`, a
      `Reading` of that.

    Raises:
      TypeError: if `stacked` is no sequence of strings and no such function.
      ValueError: if the state keeps neither, or one of them in several places; outside of `jit`
        and without `details`, if there are not enough steps: one with `watch_noise`, else two; if a
        pattern is no regular expression, or is found in no parameter's path, or that parameter is a
        scalar; if `stacked` is given for the state of a `watch_noise`.

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
    _checks.check_flags(details=details)
    with arrays.standard_promotion():
        found = _signal.find(state, stacked)

        def ratio(signal: jax.Array, noise: jax.Array) -> jax.Array:
            return _if(found.is_enough, jnp.sqrt(_quotient(jnp.maximum(0, signal), noise)))

        value = jax.tree.map(ratio, found.signal, found.noise)
    if details:
        return _reading(value, found)
    found.check_steps()
    return value


def noise_scale(state: optax.OptState, *, details: bool = False) -> Any:
    r"""The simple noise scale: how many batches to average before their noise equals the signal.

    .. math::
        B = \frac{\sum V / n}{\sum L}

    over all layers, with the symbols of `signal_to_noise`. It is in units of the batch that one
    gradient was taken on: times the number of examples in it, it is a number of examples. Batches
    much smaller than that waste no data, much larger ones do.

    **Where reading over steps fails**, as `signal_to_noise` says, there is no signal left in the
    moments, and no noise scale. It is then refused: what one would have to return is infinity,
    where the truth may be a few batches. `watch_noise` is the remedy.

    Args:
      state: the state of an optimizer, as for `signal_to_noise`.
      details: whether to return a `Reading`, which says what was read, and over how many steps.

    Returns:
      A float; 0 where there is no noise. Where nothing can be said (there is no signal that can be
      told from noise, or there are not enough steps) it is refused, or inside of `jit` not a
      number. With `details`, a `Reading`, whose value is then not a number.

    Raises:
      ValueError: if the state keeps nothing to read, or in several places; outside of `jit` and
        without `details`, if no signal can be told from noise, or there are not enough steps: one
        with `watch_noise`, else two.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> tx = mo.svag(0.1, beta=0.99)
    >>> state = tx.init(jnp.zeros(()))
    >>> for gradient in 100 * (1.0, 3.0):  # mean 2, variance 1
    ...     _, state = tx.update(jnp.asarray(gradient), state)
    >>> print(f"{mo.noise_scale(state):.2f}")
    0.25
    >>> reading = mo.noise_scale(state, details=True)
    >>> print(reading.source, reading.steps.round())  # 199, and fading
    over steps 152.0

    Source: McCandlish et al., *An Empirical Model of Large-Batch Training* (2018), equation 2.9.
    """
    _checks.check_flags(details=details)
    with arrays.standard_promotion():
        found = _signal.find(state)
        signal, noise = (
            jnp.asarray(sum(map(jnp.sum, jax.tree.leaves(tree))), float)
            for tree in (found.signal, found.noise)
        )
        has_answer = (signal > 0) | (noise == 0)
        value = _if(found.is_enough & has_answer, _quotient(noise, signal))
    if details:
        return _reading(value, found)
    found.check_steps()
    if not _compat.is_tracer(has_answer) and not has_answer:
        raise ValueError(
            f"No signal can be told from noise in {found.steps:.0f} gradients {found.source}, so "
            f"that there is no noise scale to read. {found.remedy}"
        )
    return value


def _reading(value: Any, found: _signal.Found) -> Reading:
    return Reading(value, found.source, found.steps, found.examples)


def _quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """0 / 0 is 0: without gradients there is neither signal nor noise."""
    return jnp.where(numerator == 0, 0, numerator / denominator)


def _if(condition: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.where(condition, value, jnp.nan)
