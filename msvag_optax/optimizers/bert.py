"""BERT's recipe of AdamW, with its schedule."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _checks
from msvag_optax._trees import arrays, mesh_axes, selection
from msvag_optax._trees.selection import Selection
from msvag_optax.optimizers.optimizer import optimizer
from msvag_optax.pieces.chain import chain
from msvag_optax.pieces.formulas import over_rms
from msvag_optax.pieces.from_estimates import from_estimates
from msvag_optax.pieces.quantities import square
from msvag_optax.pieces.running_average import running_average
from msvag_optax.pieces.weightings import exponential_from_zero


def warmup_linear_decay_schedule(
    init_lr: jax.typing.ArrayLike,
    num_train_steps: int,
    num_warmup_steps: int,
) -> optax.Schedule:
    r"""BERT's schedule: linear warm-up, then linear decay as if there had been no warm-up.

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
    rate = _checks.number("init_lr", init_lr)
    train_steps = _checks.count("num_train_steps", num_train_steps, 1)
    warmup_steps = _checks.count("num_warmup_steps", num_warmup_steps, 0)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(count).astype(arrays.scalar_dtype())
        warmup = step / jnp.maximum(warmup_steps, 1)
        # The steps left over all steps: 1 - k / N may round to less than zero at the end.
        decay = jnp.maximum(train_steps - step, 0) / train_steps
        return jnp.asarray(rate * jnp.where(step < warmup_steps, warmup, decay))

    return schedule


_CLIP_BEFORE = (
    "BERT clips by the norm of all gradients. Set `max_grad_norm=None`, and clip before the "
    "optimizer, by a norm that counts each element once: sum the squares of pieces over the "
    "devices, and not those of what every device has whole."
)


def _clip_by_global_norm(max_norm: jax.typing.ArrayLike) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, for gradients of any size: no square overflows."""

    def clip(updates: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        del params
        for gradient in jax.tree.leaves(updates):
            mesh_axes.check_whole(gradient, _CLIP_BEFORE)
        # The norm does not depend on the number that the gradients are divided by, nor does its
        # derivative; and the root of 0, which has none, is not taken.
        largest = jax.lax.stop_gradient(optax.tree.norm(updates, ord=jnp.inf))
        safe = jnp.where(largest == 0, 1, largest)
        squares = optax.tree.norm(jax.tree.map(lambda g: g / safe, updates), squared=True)
        norm = largest * jnp.sqrt(jnp.where(squares == 0, 1, squares))
        too_long = norm > max_norm
        scale = jnp.where(too_long, max_norm / jnp.where(too_long, norm, 1), 1)
        return jax.tree.map(lambda g: g * jnp.where(jnp.isnan(norm), norm, scale), updates)

    return optax.stateless(clip)


_BERT_EXCLUSIONS = ("LayerNorm", "layer_norm", "bias")


@_checks.without_mask
def bert_adamw(
    init_lr: jax.typing.ArrayLike,
    num_train_steps: int,
    num_warmup_steps: int,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    exclude_from_weight_decay: Selection = _BERT_EXCLUSIONS,
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
      exclude_from_weight_decay: which parameters do not decay: regular expressions, searched in
        paths such as `encoder/layer_0/LayerNorm/scale`; a function `(name, shape) -> bool`;
        `fewer_than_two_axes()`, as is usual; or a list of these. The default is BERT's own
        spellings, and a model need not have any of them: `ln_1/scale`, `norm1/scale`,
        `layernorm_before/scale` and Haiku's `b` and `offset` decay. `weight_decay_report` shows
        what does. Patterns that you give must all be found.
      max_grad_norm: the largest global norm, greater than 0; None does not clip.

    Returns:
      The optimizer. Its state has the averages under `mean` and `second_moment`: two floats a
      parameter.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range; in `init`, if a pattern that you gave is found
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
    clip = optax.identity()
    if max_grad_norm is not None:
        clip = _clip_by_global_norm(_checks.number("max_grad_norm", max_grad_norm, "(0, inf)"))
    direction = chain(
        clip=clip,
        adam=from_estimates(
            over_rms(eps),
            mean=running_average(exponential_from_zero(b1)),
            second_moment=running_average(exponential_from_zero(b2), of=square),
        ),
    )
    exclude = exclude_from_weight_decay
    if isinstance(exclude, Sequence) and tuple(exclude) == _BERT_EXCLUSIONS:
        exclude = _is_spelled_as_in_bert  # A model may lack these spellings, but not a caller's.
    return optimizer(direction, schedule, weight_decay, exclude_from_weight_decay=exclude)


def _is_spelled_as_in_bert(name: str, shape: jax.ShapeDtypeStruct) -> bool:
    del shape
    return selection.matches(_BERT_EXCLUSIONS, name)
