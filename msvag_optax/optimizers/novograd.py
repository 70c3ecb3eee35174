"""NovoGrad: each layer's gradient over its norm, then momentum."""

import jax
import optax

from msvag_optax import _checks
from msvag_optax._trees.selection import Selection
from msvag_optax.optimizers.optimizer import optimizer
from msvag_optax.pieces.around import running_max
from msvag_optax.pieces.chain import chain
from msvag_optax.pieces.decay import add_decayed_weights
from msvag_optax.pieces.formulas import over_rms
from msvag_optax.pieces.from_estimates import from_estimates
from msvag_optax.pieces.quantities import layer_square_norm
from msvag_optax.pieces.rates import momentum
from msvag_optax.pieces.running_average import running_average
from msvag_optax.pieces.weightings import exponential_from_first


@_checks.without_mask
def novograd(
    learning_rate: optax.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-7,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    *,
    grad_averaging: bool = False,
    amsgrad: bool = False,
    eps_root: jax.typing.ArrayLike = 0.0,
    stacked: Selection = (),
    exclude_from_weight_decay: Selection = (),
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""NovoGrad: momentum of gradients that are normalized layer by layer.

    .. math::
        v_1 &= \|g_1\|^2, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) \|g_t\|^2 \\
        x_t &= \frac{g_t}{\sqrt{v_t + \bar\varepsilon} + \varepsilon} \\
        b_t &= \beta_1 b_{t-1} + x_t + \lambda p_{t-1}, \qquad b_0 = 0 \\
        p_t &= p_{t-1} - \eta \, b_t

    where :math:`g_t` is the gradient of one layer, a leaf of the tree, :math:`\eta` is
    `learning_rate`, :math:`\beta_1` is `b1`, :math:`\beta_2` is `b2`, :math:`\varepsilon` is `eps`,
    :math:`\bar\varepsilon` is `eps_root` and :math:`\lambda` is `weight_decay`. One number a layer
    takes the place of Adam's second moment: half of its state. With `grad_averaging` the momentum
    is a mean: what is added to it is scaled by :math:`1 - \beta_1`, except at the first step. With
    `amsgrad`, :math:`v_t` is replaced by :math:`v_t^{\max}`, the largest so far.

    After the first step, the norm of :math:`x_t` is at most :math:`1 / \sqrt{1 - \beta_2}`, which
    it reaches where gradients grow faster than the average can follow. A run of a few hundred steps
    needs a smaller `b2` than the default, which remembers a thousand, or a warm-up. A layer whose
    *first* gradient is zero (a LoRA matrix, an unused embedding) starts from :math:`v_1 = 0`, and
    its next step is :math:`1 / \sqrt{1 - \beta_2}` times too long, as in tensorflow-addons and
    optax (OpenSeq2Seq starts over where :math:`v = 0`).
    `running_average(..., of=layer_square_norm(), count_nonzero=True)` avoids that, in a chain of
    your own.

    Args:
      learning_rate: the rate, a finite number of at least 0, or a schedule of it.
      b1: the decay of the momentum, in [0, 1).
      b2: the decay of the squared norms, in [0, 1).
      eps: the number added to the root, at least 0.
      weight_decay: the rate of decay, which joins the momentum; a number or a schedule.
      grad_averaging: whether the momentum is a mean rather than a sum. It needs a rate
        :math:`1 / (1 - \beta_1)` times as large, and a warm-up: the first step is at the full rate.
      amsgrad: whether to normalize by the largest mean norm so far.
      eps_root: the number added under the root, at least 0.
      stacked: which parameters have a leading axis that counts layers (as in models that scan over
        them), so that each layer keeps a norm of its own: regular expressions, or a function
        `(name, shape) -> bool`.
      exclude_from_weight_decay: which parameters do not decay: regular expressions, searched in
        paths such as `encoder/layer_0/LayerNorm/scale`; a function `(name, shape) -> bool`;
        `fewer_than_two_axes()`, as is usual; or a list of these.
      mu_dtype: the dtype in which the momentum is kept; None is that of the parameter, and at least
        float32.
      nu_dtype: the dtype in which the squared norms are kept, likewise. In bfloat16 an
        average whose newest weight is below 1/512, as at `b2=0.999`, cannot forget.

    Returns:
      The optimizer. Its state has the norms under `second_moment`, a float a layer, and the
      momentum under `momentum`, a float a parameter.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range; in `init`, if a pattern is found in no
        parameter's path.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> tx = mo.novograd(0.1)
    >>> params = {"first": jnp.zeros(2), "second": jnp.zeros(2)}
    >>> gradients = {"first": jnp.asarray([3.0, 4.0]), "second": jnp.asarray([0.0, 1e-3])}
    >>> updates, state = tx.update(gradients, tx.init(params), params)
    >>> print(updates["first"].round(4), updates["second"].round(4))  # both as long as the rate
    [-0.06 -0.08] [-0.  -0.1]

    Source: Ginsburg et al., *Stochastic Gradient Methods with Layer-wise Adaptive Moments for
    Training of Deep Networks* (2019), algorithm 1, as tensorflow-addons has it (where the learning
    rate sits inside of the momentum, which makes a difference only if it is scheduled). OpenSeq2Seq
    puts :math:`\varepsilon` under the root, averages from the first step on and starts over where
    :math:`v = 0`.
    """
    _checks.check_decays(b1=b1, b2=b2)
    _checks.check_dtypes(mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    _checks.check_flags(grad_averaging=grad_averaging, amsgrad=amsgrad)
    second_moment = running_average(
        exponential_from_first(b2), of=layer_square_norm(stacked=stacked), dtype=nu_dtype
    )
    if amsgrad:
        second_moment = running_max(second_moment, dtype=nu_dtype)
    if grad_averaging:
        accumulated = running_average(exponential_from_first(b1), dtype=mu_dtype)
    else:
        accumulated = momentum(b1, dtype=mu_dtype)
    direction = chain(
        normalized=from_estimates(over_rms(eps, eps_root), second_moment=second_moment),
        decay=add_decayed_weights(weight_decay, exclude_from_weight_decay),
        momentum=accumulated,
    )
    return optimizer(direction, learning_rate)
