"""Expectigrad: the gradient over the root of the mean of all its squares, then momentum."""

import jax
import optax

from msvag_optax import _checks
from msvag_optax._trees.selection import Selection
from msvag_optax.optimizers.optimizer import optimizer
from msvag_optax.pieces.chain import chain
from msvag_optax.pieces.formulas import over_rms
from msvag_optax.pieces.from_estimates import from_estimates
from msvag_optax.pieces.quantities import square
from msvag_optax.pieces.running_average import running_average
from msvag_optax.pieces.weightings import arithmetic, exponential


@_checks.without_mask
def expectigrad(
    learning_rate: optax.ScalarOrSchedule,
    beta: jax.typing.ArrayLike = 0.9,
    eps: jax.typing.ArrayLike = 1e-8,
    sparse_counter: bool = True,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    exclude_from_weight_decay: Selection = (),
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Expectigrad: the gradient over the root of the mean of *all* its squares, then momentum.

    .. math::
        n_t &= n_{t-1} + [g_t \ne 0] \\
        v_t &= v_{t-1} + [g_t \ne 0] \, (g_t^2 - v_{t-1}) / n_t \\
        x_t &= \frac{g_t}{\varepsilon + \sqrt{v_t}} \\
        b_t &= b_{t-1} + \frac{1 - \beta}{1 - \beta^t} (x_t - b_{t-1}) \\
        p_t &= p_{t-1} - \eta \, (b_t + \lambda p_{t-1})

    where :math:`g_t` is the gradient, :math:`\eta` is `learning_rate`, :math:`\beta` is `beta`,
    :math:`\varepsilon` is `eps` and :math:`\lambda` is `weight_decay`. Every element has its own
    count :math:`n_t` of nonzero gradients; without `sparse_counter` all have :math:`n_t = t`. The
    arithmetic mean forgets nothing, which is why Reddi's counterexample cannot mislead Expectigrad
    as it misleads Adam; momentum comes after the quotient, and so cannot change what that bounds.

    Args:
      learning_rate: the rate, a finite number of at least 0, or a schedule of it.
      beta: the decay of the momentum, in [0, 1); 0 is no momentum.
      eps: the number added to the root, greater than 0.
      sparse_counter: whether an element counts its nonzero gradients only, so that a row of an
        embedding that is seldom looked up is not taken for one whose gradients are small.
      weight_decay: the rate of decay, scaled by the learning rate; a number or a schedule.
      exclude_from_weight_decay: which parameters do not decay: regular expressions, searched in
        paths such as `encoder/layer_0/LayerNorm/scale`; a function `(name, shape) -> bool`;
        `fewer_than_two_axes()`, as is usual; or a list of these.
      mu_dtype: the dtype in which the momentum is kept; None is that of the parameter, and at least
        float32.
      nu_dtype: the dtype in which the mean of squares is kept, likewise. The counter is int32
        always. In bfloat16 the mean hardly moves after 512 observations.

    Returns:
      The optimizer. Its state has the mean of squares and the counter under `second_moment` and
      the momentum under `momentum`: two floats a parameter, and an integer with `sparse_counter`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range; in `init`, if a pattern is found in no
        parameter's path.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> tx = mo.expectigrad(0.1, beta=0.0)
    >>> state = tx.init(jnp.zeros(2))
    >>> for gradient in ([3.0, 0.0], [3.0, 3.0], [-4.0, 0.0]):
    ...     updates, state = tx.update(jnp.asarray(gradient), state)
    >>> print(abs(updates).round(4))  # 0.1 * 4 / sqrt((9 + 9 + 16) / 3)
    [0.1188 0.    ]

    Source: Daley and Amato, *Expectigrad: Fast Stochastic Optimization with Robust Convergence
    Properties* (2020), algorithm 1, and the authors' package of that name. It keeps the sum of
    squares and a counter in the parameter's dtype, which stops counting at 256 in bfloat16; here
    the mean itself is kept, and the counter is an integer.
    """
    _checks.check_decays(beta=beta)
    _checks.check_dtypes(mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    _checks.number("eps", eps, "(0, inf)")
    _checks.check_flags(sparse_counter=sparse_counter)
    second_moment = running_average(
        arithmetic(), of=square, count_nonzero=sparse_counter, dtype=nu_dtype
    )
    direction = chain(
        normalized=from_estimates(over_rms(eps), second_moment=second_moment),
        momentum=running_average(exponential(beta), dtype=mu_dtype),
    )
    return optimizer(
        direction,
        learning_rate,
        weight_decay,
        exclude_from_weight_decay=exclude_from_weight_decay,
    )
