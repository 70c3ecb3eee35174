"""Adam with decoupled weight decay, and BERT's recipe of it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _checks, _manual
from msvag_optax.averages import running_average
from msvag_optax.combining import from_estimates
from msvag_optax.formulas import over_rms, square
from msvag_optax.optimizers._named import (
    decoupled_weight_decay,
    named_optimizer,
    scale_by_learning_rate,
)
from msvag_optax.schedules import warmup_linear_decay_schedule
from msvag_optax.weighting import exponential, exponential_from_zero


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 1e-2,
    *,
    bias_correction: bool = True,
    exclude_from_weight_decay: Sequence[str] = (),
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW: Adam, with a weight decay that its denominator does not touch.

    .. math::
        m_t &= m_{t-1} + w^1_t (g_t - m_{t-1}), \qquad w^1_t = \frac{1 - \beta_1}{1 - \beta_1^t} \\
        v_t &= v_{t-1} + w^2_t (g_t^2 - v_{t-1}), \qquad w^2_t = \frac{1 - \beta_2}{1 - \beta_2^t}
        \\
        p_t &= p_{t-1} - \eta \Bigl(\frac{m_t}{\sqrt{v_t} + \varepsilon} + \lambda p_{t-1}\Bigr)

    where :math:`g_t` is the gradient, :math:`\eta` is `learning_rate`, :math:`\beta_1` is `b1`,
    :math:`\beta_2` is `b2`, :math:`\varepsilon` is `eps` and :math:`\lambda` is `weight_decay`.
    These averages are Adam's :math:`\hat m` and :math:`\hat v`: the correction is in the weights.
    Without `bias_correction` the weights are :math:`1 - \beta` from the first step on.

    Args:
      learning_rate: the rate, a finite number of at least 0, or a schedule of it.
      b1: the decay of the mean, in [0, 1).
      b2: the decay of the second moment, in [0, 1).
      eps: the number added to the root, at least 0.
      weight_decay: the rate of decay, scaled by the learning rate; a number or a schedule.
      bias_correction: whether the averages are corrected for having started at zero; BERT's are
        not.
      exclude_from_weight_decay: regular expressions, searched in paths such as
        `encoder/layer_0/LayerNorm/scale`; what matches does not decay.
      mu_dtype: the dtype in which the mean is kept; None is that of the parameter, and at least
        float32.
      nu_dtype: the dtype in which the second moment is kept, likewise. In bfloat16 an average
        whose newest weight is below 1/512, as at `b2=0.999`, cannot forget.

    Returns:
      The optimizer. Its state has the averages under `mean` and `second_moment`: two floats a
      parameter.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range; in `init`, if a pattern is found in no
        parameter's path.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = mo.adamw(0.1, weight_decay=0.5, exclude_from_weight_decay=["bias$"])
    >>> params = {"kernel": jnp.asarray(2.0), "bias": jnp.asarray(2.0)}
    >>> gradients = {"kernel": jnp.asarray(7.0), "bias": jnp.asarray(7.0)}
    >>> updates, state = tx.update(gradients, tx.init(params), params)
    >>> params = optax.apply_updates(params, updates)
    >>> print(params["kernel"], params["bias"])  # 2 - 0.1 (1 + 0.5 * 2), and 2 - 0.1
    1.8 1.9

    Source: Loshchilov and Hutter, *Decoupled Weight Decay Regularization* (2019), algorithm 2, in
    PyTorch's coupling: the decay is scaled by the learning rate, not by the schedule alone.
    """
    _checks.check_decays(b1=b1, b2=b2)
    _checks.check_dtypes(mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    _checks.check_flags(bias_correction=bias_correction)
    weighting = exponential if bias_correction else exponential_from_zero
    return named_optimizer(
        direction=from_estimates(
            over_rms(eps),
            mean=running_average(weighting(b1), dtype=mu_dtype),
            second_moment=running_average(weighting(b2), of=square, dtype=nu_dtype),
        ),
        decay=decoupled_weight_decay(weight_decay, exclude_from_weight_decay),
        rate=scale_by_learning_rate(learning_rate),
    )


def _is_default(exclusions: Sequence[str]) -> bool:
    return isinstance(exclusions, Sequence) and tuple(exclusions) == _BERT_EXCLUSIONS


_CLIP_BEFORE = (
    "The norm by which BERT clips is that of all gradients. With `max_grad_norm=None` it does not "
    "clip, and you may before: by a norm to which each device adds what no other has."
)


def _clip_by_global_norm(max_norm: jax.typing.ArrayLike) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, for gradients of any size: no square overflows."""

    def clip(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        for gradient in jax.tree.leaves(updates):
            _manual.check_whole(gradient, _CLIP_BEFORE)
        largest = optax.tree.norm(updates, ord=jnp.inf)
        safe = jnp.where(largest == 0, 1, largest)
        norm = largest * optax.tree.norm(jax.tree.map(lambda g: g / safe, updates))
        scale = jnp.where(norm > max_norm, max_norm / norm, 1)
        return jax.tree.map(lambda g: g * jnp.where(jnp.isnan(norm), norm, scale), updates)

    return optax.stateless(clip)


_BERT_EXCLUSIONS = ("LayerNorm", "layer_norm", "bias")


def bert_adamw(
    init_lr: jax.typing.ArrayLike,
    num_train_steps: int,
    num_warmup_steps: int,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    exclude_from_weight_decay: Sequence[str] = _BERT_EXCLUSIONS,
    max_grad_norm: jax.typing.ArrayLike | None = 1.0,
) -> optax.GradientTransformationExtraArgs:
    r"""BERT's optimizer: clipping, Adam without bias correction, decay, warm-up and linear decay.

    .. math::
        g_t &\leftarrow g_t \min(1, c / \|g_t\|) \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        p_t &= p_{t-1} - \eta_{t-1} \Bigl(\frac{m_t}{\sqrt{v_t} + \varepsilon}
               + \lambda p_{t-1}\Bigr)

    where :math:`g_t` is the gradient, whose norm is taken over the whole tree, :math:`c` is
    `max_grad_norm`, :math:`\beta_1` is `b1`, :math:`\beta_2` is `b2`, :math:`\varepsilon` is `eps`,
    :math:`\lambda` is `weight_decay` and :math:`\eta_k` is `warmup_linear_decay_schedule(init_lr,
    num_train_steps, num_warmup_steps)`. The first steps lack the correction of their bias, which
    makes them :math:`(1 - \beta_1^t) / \sqrt{1 - \beta_2^t}` times as long as Adam's: 3.2 times at
    the first and 6.6 times at the twelfth, at the defaults. Warm-up hides that.

    Args:
      init_lr: the rate that warm-up heads for, a finite number of at least 0.
      num_train_steps: the step at which the rate reaches 0, at least 1.
      num_warmup_steps: the length of the warm-up, at least 0.
      weight_decay: the rate of decay, scaled by the learning rate; a number or a schedule.
      b1: the decay of the mean, in [0, 1).
      b2: the decay of the second moment, in [0, 1).
      eps: the number added to the root, at least 0.
      exclude_from_weight_decay: regular expressions, searched in paths such as
        `encoder/layer_0/LayerNorm/scale`; what matches does not decay. The default holds spellings
        of which a model needs to know one only, or none: to a model that spells all of them
        otherwise (Haiku's `b` and `offset`), give patterns. One's own must all be found.
      max_grad_norm: the largest global norm, greater than 0; None does not clip.

    Returns:
      The optimizer. Its state has the averages under `mean` and `second_moment`: two floats a
      parameter.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range; in `init`, if a pattern of one's own is found
        in no parameter's path; inside of `shard_map`, if it clips and a gradient may be a piece.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = mo.bert_adamw(0.1, num_train_steps=10, num_warmup_steps=2)
    >>> params = jnp.asarray([1.0, -2.0])
    >>> state = tx.init(params)
    >>> for _ in range(3):  # at rates 0, 0.05 and 0.08
    ...     updates, state = tx.update(2 * params, state, params)
    ...     params = optax.apply_updates(params, updates)
    ...     print(", ".join(f"{value:.3f}" for value in params))
    1.000, -2.000
    0.787, -1.787
    0.392, -1.389

    Source: google-research/bert, `optimization.py`; Devlin et al., *BERT* (2019), appendix A.2.
    """
    schedule = warmup_linear_decay_schedule(init_lr, num_train_steps, num_warmup_steps)
    _checks.check_decays(b1=b1, b2=b2)
    if max_grad_norm is not None:
        _checks.check_number("max_grad_norm", max_grad_norm, "(0, inf)")
    clip = optax.identity() if max_grad_norm is None else _clip_by_global_norm(max_grad_norm)
    return named_optimizer(
        clip=clip,
        direction=from_estimates(
            over_rms(eps),
            mean=running_average(exponential_from_zero(b1)),
            second_moment=running_average(exponential_from_zero(b2), of=square),
        ),
        decay=decoupled_weight_decay(
            weight_decay,
            exclude_from_weight_decay,
            strict=not _is_default(exclude_from_weight_decay),
        ),
        rate=scale_by_learning_rate(schedule),
    )
