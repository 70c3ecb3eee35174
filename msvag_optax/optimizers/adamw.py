"""Adam with decoupled weight decay, and BERT's recipe of it."""

import jax
import optax

from msvag_optax import _checks
from msvag_optax._trees.selection import Selection
from msvag_optax.optimizers.optimizer import optimizer
from msvag_optax.pieces.formulas import over_rms
from msvag_optax.pieces.from_estimates import from_estimates
from msvag_optax.pieces.quantities import square
from msvag_optax.pieces.running_average import running_average
from msvag_optax.pieces.weightings import exponential, exponential_from_zero


@_checks.without_mask
def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 1e-2,
    *,
    bias_correction: bool = True,
    exclude_from_weight_decay: Selection = (),
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
      exclude_from_weight_decay: which parameters do not decay: regular expressions, searched in
        paths such as `encoder/layer_0/LayerNorm/scale`; a function `(name, shape) -> bool`;
        `fewer_than_two_axes()`, as is usual; or a list of these.
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
    direction = from_estimates(
        over_rms(eps),
        mean=running_average(weighting(b1), dtype=mu_dtype),
        second_moment=running_average(weighting(b2), of=square, dtype=nu_dtype),
    )
    return optimizer(
        direction,
        learning_rate,
        weight_decay,
        exclude_from_weight_decay=exclude_from_weight_decay,
    )
