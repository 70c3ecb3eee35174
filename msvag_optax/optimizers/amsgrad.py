"""AMSGrad: Adam over the largest second moment so far."""

import jax
import optax

from msvag_optax import _checks
from msvag_optax._trees.selection import Selection
from msvag_optax.optimizers.optimizer import optimizer
from msvag_optax.pieces.around import bias_corrected, running_max
from msvag_optax.pieces.formulas import over_rms
from msvag_optax.pieces.from_estimates import from_estimates
from msvag_optax.pieces.quantities import square
from msvag_optax.pieces.running_average import running_average
from msvag_optax.pieces.weightings import exponential, exponential_from_zero


@_checks.without_mask
def amsgrad(
    learning_rate: optax.ScalarOrSchedule,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    bias_correction: bool = True,
    correct_before_max: bool = False,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    exclude_from_weight_decay: Selection = (),
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AMSGrad: Adam, divided by the largest second moment so far.

    .. math::
        m_t &= m_{t-1} + \frac{1 - \beta_1}{1 - \beta_1^t} (g_t - m_{t-1}) \\
        v_t &= v_{t-1} + (1 - \beta_2) (g_t^2 - v_{t-1}) \\
        v_t^{\max} &= \max(v_{t-1}^{\max}, v_t) \\
        u_t &= \frac{m_t}{\sqrt{v_t^{\max} / (1 - \beta_2^t)} + \varepsilon} \\
        p_t &= p_{t-1} - \eta \, (u_t + \lambda p_{t-1})

    where :math:`g_t` is the gradient, :math:`\eta` is `learning_rate`, :math:`\beta_1` is `b1`,
    :math:`\beta_2` is `b2`, :math:`\varepsilon` is `eps` and :math:`\lambda` is `weight_decay`. The
    weights of the mean include its bias correction.

    There are three dialects. The default takes the maximum first and corrects it afterwards, like
    PyTorch (and Keras, which scales :math:`\varepsilon` with the correction). With
    `bias_correction=False` nothing is corrected, as in the paper. With `correct_before_max=True`
    the maximum is taken of corrected second moments, :math:`v_t / (1 - \beta_2^t)`, like
    `optax.amsgrad`: there a large first gradient is remembered at its full size for ever.

    Args:
      learning_rate: the rate, a finite number of at least 0, or a schedule of it.
      b1: the decay of the mean, in [0, 1).
      b2: the decay of the second moment, in [0, 1).
      eps: the number added to the root, at least 0; at 0 the update does not depend on the
        gradients' scale.
      bias_correction: whether the averages are corrected for having started at zero.
      correct_before_max: whether the second moment is corrected before its maximum is taken.
      weight_decay: the rate of decay, scaled by the learning rate; a number or a schedule.
      exclude_from_weight_decay: which parameters do not decay: regular expressions, searched in
        paths such as `encoder/layer_0/LayerNorm/scale`; a function `(name, shape) -> bool`;
        `fewer_than_two_axes()`, as is usual; or a list of these.
      mu_dtype: the dtype in which the mean is kept; None is that of the parameter, and at least
        float32.
      nu_dtype: the dtype in which the second moment and its maximum are kept, likewise.
        In bfloat16 an average whose newest weight is below 1/512, as at `b2=0.999`, cannot forget.

    Returns:
      The optimizer. Its state has the mean under `mean`, and under `second_moment` the second
      moment and its maximum: three floats a parameter.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range, or `correct_before_max` is asked for without
        `bias_correction`; in `init`, if a pattern is found in no parameter's path.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> gradients = [100.0] + 200 * [1.0]  # Adam forgets the first, AMSGrad does not
    >>> for tx in (optax.adam(0.1, b2=0.9), mo.amsgrad(0.1, b2=0.9)):
    ...     state = tx.init(jnp.zeros(()))
    ...     for gradient in gradients:
    ...         update, state = tx.update(jnp.asarray(gradient), state)
    ...     print(f"{update:.4f}")
    -0.1000
    -0.0032

    Source: Reddi, Kale and Kumar, *On the Convergence of Adam and Beyond* (2018), algorithm 2.
    """
    _checks.check_decays(b1=b1, b2=b2)
    _checks.check_dtypes(mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    _checks.check_flags(bias_correction=bias_correction, correct_before_max=correct_before_max)
    if correct_before_max and not bias_correction:
        raise ValueError(
            "`correct_before_max` must be False where `bias_correction` is False, got True."
        )
    first, second = exponential(b1), exponential_from_zero(b2)
    if correct_before_max:
        second = exponential(b2)
    elif not bias_correction:
        first = exponential_from_zero(b1)
    second_moment = running_max(running_average(second, of=square, dtype=nu_dtype), dtype=nu_dtype)
    if bias_correction and not correct_before_max:
        second_moment = bias_corrected(second_moment, b2)
    mean = running_average(first, dtype=mu_dtype)
    return optimizer(
        from_estimates(over_rms(eps), mean=mean, second_moment=second_moment),
        learning_rate,
        weight_decay,
        exclude_from_weight_decay=exclude_from_weight_decay,
    )
