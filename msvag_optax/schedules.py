"""Schedules that optax lacks."""

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _checks
from msvag_optax._leaves import scalar_dtype


def warmup_linear_decay_schedule(
    init_lr: jax.typing.ArrayLike,
    num_train_steps: int,
    num_warmup_steps: int,
) -> optax.Schedule:
    r"""BERT's schedule: linear warm-up, then linear decay from where it would have been without.

    .. math::
        \eta_k = \begin{cases}
            \eta \, k / W & k < W \\
            \eta \, (1 - \min(k, N) / N) & k \ge W
        \end{cases}

    where :math:`k` is the count, :math:`\eta` is `init_lr`, :math:`N` is `num_train_steps` and
    :math:`W` is `num_warmup_steps`. The first step's rate is 0 if there is a warm-up. The decay
    counts from step 0, so that the rate drops from nearly :math:`\eta` to
    :math:`\eta (1 - W / N)` at step :math:`W`.

    Args:
      init_lr: the rate that warm-up heads for.
      num_train_steps: the step at which the rate reaches 0, at least 1.
      num_warmup_steps: the length of the warm-up, at least 0.

    Returns:
      A function from the step count (0 for the first step) to the rate.

    Raises:
      TypeError: if an argument is no real number, or a count no integer.
      ValueError: if an argument is out of its range.

    >>> import msvag_optax as mo
    >>> schedule = mo.warmup_linear_decay_schedule(1.0, num_train_steps=10, num_warmup_steps=4)
    >>> [round(float(schedule(step)), 2) for step in (0, 2, 4, 9, 10, 11)]
    [0.0, 0.5, 0.6, 0.1, 0.0, 0.0]

    Source: google-research/bert, `optimization.py`, `create_optimizer`.
    """
    _checks.check_number("init_lr", init_lr)
    _checks.check_count("num_train_steps", num_train_steps, 1)
    _checks.check_count("num_warmup_steps", num_warmup_steps, 0)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(count).astype(scalar_dtype())
        warmup = step / jnp.maximum(num_warmup_steps, 1)
        # The steps left over all steps: 1 - k / N may round to less than zero at the end.
        decay = jnp.maximum(num_train_steps - step, 0) / num_train_steps
        return jnp.asarray(init_lr * jnp.where(step < num_warmup_steps, warmup, decay))

    return schedule
