"""Averages: all that an optimizer remembers of its gradients.

Each is an *estimator*, a `GradientTransformation` whose output is an estimate (a mean, a second
moment, a variance) and not an update; `from_estimates` is where estimates become updates. Laws: the
state has the same structure, shapes, dtypes and shardings from `init` on; it is kept in float32 or
wider unless another dtype is asked for; it is computed in float32 or wider always.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax import _checks, _compat, _leafwise, _leaves, paths
from msvag_optax._leafwise import Leaves, Step
from msvag_optax.formulas import Moments, absolute_square, saturate, square, unsaturated_norm
from msvag_optax.weighting import Weighting, bias_correction


class RunningAverageState(NamedTuple):
    """What `running_average` remembers.

    Attributes:
      observations: how many observations the average holds, int32: one number, or, where only
        nonzero observations count, one for each element of the average.
      average: the weighted mean of the observations.
    """

    observations: Any
    average: optax.Updates


def running_average(
    weighting: Weighting,
    of: Callable[[jax.Array], jax.Array] | paths.PerLeaf | None = None,
    count_nonzero: bool = False,
    *,
    dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Estimates the mean of the gradient, or of a quantity of it, from its past.

    .. math::
        a_t = a_{t-1} + w_t \, (x_t - a_{t-1}), \qquad x_t = f(g_t), \quad a_0 = 0

    where :math:`g_t` is the gradient, :math:`f` is `of` and :math:`w_t` the weight that `weighting`
    gives to the newest of :math:`t` observations. With `count_nonzero`, a zero is no observation:
    each element :math:`i` has a count :math:`t_i` of its own, which stands still, like
    :math:`a_i`, wherever the gradient is zero.

    Chained rather than read by a formula, it is a momentum: the average of its input.

    Args:
      weighting: what the newest observation counts, such as `exponential(0.9)` or `arithmetic()`.
      of: the quantity to average, a function of one leaf such as `square` or
        `layer_square_norm()`; None averages the gradient itself. It is given the leaf in float32
        or wider.
      count_nonzero: whether zeros are left out. Where the quantity has the gradient's shape the
        gradient decides (a square underflows before its root does), else the quantity.
      dtype: the dtype in which the average is kept; None is that of the parameter, and at least
        float32. In bfloat16 an average whose newest weight is below 1/512 cannot forget.

    Returns:
      An estimator whose estimate is the average, in float32 or wider.

    Raises:
      TypeError: if `weighting` is no `Weighting`, `of` no function, `count_nonzero` no bool.
      ValueError: if `dtype` is no floating-point dtype.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> average = mo.running_average(mo.arithmetic(), of=mo.square, count_nonzero=True)
    >>> state = average.init(jnp.zeros(2))
    >>> for gradient in ([3.0, 0.0], [1.0, 4.0]):
    ...     estimate, state = average.update(jnp.asarray(gradient), state)
    >>> print(estimate)  # (9 + 1) / 2, and 16 / 1
    [ 5. 16.]
    >>> print(state.observations)
    [2 1]
    """
    _check_weighting(weighting)
    _checks.check_flags(count_nonzero=count_nonzero)
    _checks.check_dtypes(dtype=dtype)
    if of is not None and not isinstance(of, paths.PerLeaf):
        _checks.check_function_of_one_array("of", of)
    weight = _leaves.as_partial(weighting.weight)
    quantity = of.resolve if isinstance(of, paths.PerLeaf) else of or _identity
    call, measure = _leaves.call_for(weighting.weight), _leaves.call_for(quantity)
    quantities_of = _quantities_of(of)

    def init(params: optax.Params) -> RunningAverageState:
        average = jax.tree.map(lambda p, f: _zeros_of(f, p, dtype), params, quantities_of(params))
        if count_nonzero:
            observations = jax.tree.map(lambda a: _leaves.zeros_like(a, jnp.int32), average)
        else:
            observations = jnp.zeros([], jnp.int32)
        return RunningAverageState(observations, average)

    def begin(leaves: Leaves, state: Any, params: Any, extra_args: dict[str, Any]) -> Step:
        del params, extra_args
        quantities = quantities_of(leaves.tree)
        if count_nonzero:
            return Step(
                Partial(_observe_nonzero, weight),
                leaves.split_all(quantities, state.observations, state.average),
                lambda kept: RunningAverageState(*leaves.join_all(kept, 2)),
            )
        observations = _leaves.increment(state.observations)
        weight_now = call(Partial(_weigh, weight), observations)
        given = leaves.split_all(quantities, state.average)

        def close(kept: Sequence[jax.Array]) -> RunningAverageState:
            return RunningAverageState(observations, leaves.join(kept))

        norms = [unsaturated_norm(quantity) for quantity, _ in given]
        averages = [average for _, average in given]
        if not all(norms) or not _may_stand_together(leaves.values, averages):
            return Step(Partial(_observe, weight_now), given, close)
        observed = leaves.map(measure, Partial(_measure), list(zip(norms, averages, strict=True)))
        pairs = _leaves.map_numbers(Partial(_move_norm, weight_now), observed, averages)
        moved = close([kept for _, kept in pairs])
        return Step(Partial(_leafwise.known), [estimate for estimate, _ in pairs], lambda _: moved)

    functions = [quantity, weighting.weight] if count_nonzero else [quantity]
    ahead = isinstance(of, paths.PerLeaf) or unsaturated_norm(quantity) is not None
    return _leafwise.leafwise(init, begin, functions, reads_updates=ahead)


def _may_stand_together(gradients: Sequence[Any], averages: Sequence[Any]) -> bool:
    """Whether the norms of these gradients, and their averages, may be one array each."""
    arrays = [x for x in (*gradients, *averages) if isinstance(x, jax.Array)]
    concrete = [x for x in arrays if not _compat.is_tracer(x)]
    return (
        len({(average.shape, average.dtype) for average in averages}) == 1
        and len({_leaves.wide_dtype(_leaves.dtype_of(gradient)) for gradient in gradients}) == 1
        and len({frozenset(x.devices()) for x in concrete}) <= 1
        and not any(_compat.varying_axes(gradient) for gradient in gradients)
    )


def _check_weighting(weighting: Any) -> None:
    if not isinstance(weighting, Weighting) or not callable(weighting.weight):
        raise TypeError(
            f"`weighting` must be a Weighting such as exponential(0.9), got {weighting!r}."
        )


def _weigh(weight: Partial, count: jax.Array) -> jax.Array:
    return jnp.asarray(weight(count), _leaves.scalar_dtype())


def _identity(gradient: jax.Array) -> jax.Array:
    return gradient


def _quantities_of(of: Any) -> Callable[[Any], Any]:
    """A function from a tree to a tree that has at each leaf what is averaged there."""
    if not isinstance(of, paths.PerLeaf):
        quantity = _leaves.as_partial(_identity if of is None else of)
        return lambda tree: jax.tree.map(lambda _: quantity, tree)
    resolved: dict[Any, Any] = {}  # once for a tree, so that each step has the same functions

    def resolve(tree: Any) -> Any:
        shapes = jax.tree.map(_shape_of, tree)
        leaves, treedef = jax.tree.flatten(shapes)
        key = treedef, tuple(leaf.shape for leaf in leaves)
        if key not in resolved:
            resolved[key] = of.resolve(shapes)
        return jax.tree.map(_leaves.as_partial, resolved[key], is_leaf=callable)

    return resolve


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _zeros_of(quantity: Partial, param: Any, dtype: Any) -> jax.Array:
    """Zeros to keep averages of `quantity(param)` in, sharded like the parameter."""
    # Of the parameter, not of zeros: what is made of constants, XLA leaves no sharding to follow.
    value = quantity(_leaves.widen(param))
    return _leaves.zeros_like(value, _leaves.kept_dtype(value.dtype, dtype))


def toward(average: jax.Array, observation: jax.Array, weight: jax.Array) -> jax.Array:
    """The mean of `average` and `observation`, of which the latter counts `weight`."""
    average, observation = _leaves.widen(average), _leaves.widen(observation)
    dtype = jnp.promote_types(average.dtype, observation.dtype)
    weight = weight.astype(_leaves.real_dtype(dtype))
    # From the nearer end, a + w (x - a) or x + (w - 1) (x - a), nothing is lost where the two are
    # equal, and elsewhere an ulp. Multiplied first, a difference of large numbers cannot overflow.
    near = weight <= 0.5
    pull = jnp.where(near, weight, weight - 1)
    way = pull * observation - pull * average
    # At a weight of 0 or 1 one of the two is not to be seen, whatever it is.
    return jnp.where(near, average, observation) + jnp.where(pull == 0, 0, way)


def _observe(
    weight: jax.Array, gradient: jax.Array, given: tuple[Partial, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return _move(weight, _measure(gradient, given), given[1])


def _measure(gradient: jax.Array, given: tuple[Partial, jax.Array]) -> jax.Array:
    quantity, average = given
    observation = quantity(_leaves.widen(gradient))
    if observation.shape != average.shape:
        raise _leaves.LeafMismatchError(gradient.shape, average.shape)
    return observation


def _move(
    weight: jax.Array, observation: jax.Array, average: jax.Array
) -> tuple[jax.Array, jax.Array]:
    moved = toward(average, observation, weight)
    return moved, _leaves.narrow(moved, average.dtype)


def _move_norm(
    weight: jax.Array, norm: jax.Array, average: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _move(weight, saturate(norm), average)


def _observe_nonzero(
    weight: Partial, gradient: jax.Array, given: tuple[Partial, jax.Array, jax.Array]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    quantity, observations, average = given
    observation = _measure(gradient, (quantity, average))
    seen = (gradient if observation.shape == gradient.shape else observation) != 0
    observations = jnp.where(seen, _leaves.increment(observations), observations)
    moved = toward(average, observation, _weigh(weight, jnp.maximum(observations, 1)))
    moved = jnp.where(seen, moved, average)
    return moved, (observations, _leaves.narrow(moved, average.dtype))


class RunningMomentsState(NamedTuple):
    """What `running_moments` remembers.

    Attributes:
      observations: how many gradients it has seen, int32.
      sum_of_squared_weights: of all observations; 1 over it is how many equally weighted
        observations would tell as much.
      mean: the weighted mean of the gradients.
      biased_variance: the weighted mean of their squared distances from `mean`.
    """

    observations: jax.Array
    sum_of_squared_weights: jax.Array
    mean: optax.Updates
    biased_variance: optax.Updates


def running_moments(
    weighting: Weighting,
    *,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Estimates mean, second moment and variance of the gradient from its past.

    .. math::
        m_t &= m_{t-1} + w_t \, (g_t - m_{t-1}) \\
        s_t &= (1 - w_t) \, (s_{t-1} + w_t \, |g_t - m_{t-1}|^2) \\
        \rho_t &= (1 - w_t)^2 \rho_{t-1} + w_t^2

    where :math:`g_t` is the gradient and :math:`w_t` the weight that `weighting` gives to the
    newest of :math:`t` observations. :math:`\rho_t` is the sum of their squared weights, for any
    weighting, so that :math:`s_t / (1 - \rho_t)` is the unbiased variance of one gradient and
    :math:`\rho_t s_t / (1 - \rho_t)` that of the mean.

    Laws, for weightings with :math:`w_1 = 1`: the variance is never negative; it is 0 at the first
    observation; it does not change if a constant is added to all gradients, and is scaled by c² if
    they are scaled by c. (Under `exponential_from_zero` the zero start is an observation like any
    other, and its distance from the gradients is part of the variance.)

    Rounding costs digits in proportion to the ratio of mean and deviation, where the difference
    :math:`v_t - m_t^2` of two averages loses them in proportion to its square: all of float32's, at
    a ratio of some thousands. A decay near 0 costs a factor :math:`1 / (1 - w_t)` more.

    Args:
      weighting: what the newest observation counts, such as `exponential(0.9)`.
      mu_dtype: the dtype in which the mean is kept; None is that of the parameter, and at least
        float32.
      nu_dtype: the dtype in which the variance is kept, likewise.

    Returns:
      An estimator whose estimate is a `Moments` at each leaf, in float32 or wider.

    Raises:
      TypeError: if `weighting` is no `Weighting`.
      ValueError: if a dtype is no floating-point dtype.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> estimator = mo.running_moments(mo.arithmetic())
    >>> state = estimator.init(jnp.zeros(()))
    >>> for gradient in (1001.0, 1002.0, 1003.0):
    ...     moments, state = estimator.update(jnp.asarray(gradient), state)
    >>> print(f"{moments.mean:.1f}, {moments.variance:.4f}, {moments.variance_of_mean:.4f}")
    1002.0, 1.0000, 0.3333

    Source: Balles and Hennig, *Dissecting Adam* (2018), section 4, where :math:`\rho` is given
    for the exponential weighting; the recurrence is West's (1979), for weighted data.
    """
    _check_weighting(weighting)
    _checks.check_dtypes(mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    weight = _leaves.as_partial(weighting.weight)
    call = _leaves.call_for(weighting.weight)

    def init(params: optax.Params) -> RunningMomentsState:
        return RunningMomentsState(
            observations=jnp.zeros([], jnp.int32),
            sum_of_squared_weights=jnp.ones([], _leaves.scalar_dtype()),
            mean=jax.tree.map(lambda p: _zeros_of(Partial(_identity), p, mu_dtype), params),
            biased_variance=jax.tree.map(lambda p: _zeros_of(Partial(square), p, nu_dtype), params),
        )

    def begin(leaves: Leaves, state: Any, params: Any, extra_args: dict[str, Any]) -> Step:
        del params, extra_args
        observations = _leaves.increment(state.observations)
        weights = call(Partial(_weights), weight, observations, state.sum_of_squared_weights)

        def close(kept: Sequence[tuple[jax.Array, jax.Array]]) -> RunningMomentsState:
            averages = leaves.join_all(kept, 2)
            return RunningMomentsState(observations, weights.sum_of_squares, *averages)

        kernel = Partial(_observe_moments, weights)
        return Step(kernel, leaves.split_all(state.mean, state.biased_variance), close)

    return _leafwise.leafwise(init, begin)


class _Weights(NamedTuple):
    """The scalars of one step of `running_moments`, the same for all leaves.

    Each that is not the weight itself ends in a division, so that it is computed once.
    """

    newest: jax.Array  # w
    over_older: jax.Array  # 1 / (1 - w), or 0 where nothing is older
    sum_of_squares: jax.Array  # rho
    unbias: jax.Array  # 1 / (1 - rho), or 0 where one observation holds all the weight
    unbias_of_mean: jax.Array  # rho / (1 - rho), likewise


def _weights(weight: Partial, observations: jax.Array, sum_of_squares: jax.Array) -> _Weights:
    newest = _weigh(weight, observations).astype(sum_of_squares.dtype)
    older = 1 - newest
    # 1 - rho, without cancellation where one observation holds nearly all the weight.
    spread = older * (2 * newest + older * (1 - sum_of_squares))
    sum_of_squares = sum_of_squares + newest * (newest - (2 - newest) * sum_of_squares)
    over_spread = jnp.where(spread > 0, spread, 1)
    return _Weights(
        newest=newest,
        over_older=jnp.where(older > 0, 1, 0) / jnp.where(older > 0, older, 1),
        sum_of_squares=sum_of_squares,
        unbias=jnp.where(spread > 0, 1, 0) / over_spread,
        unbias_of_mean=jnp.where(spread > 0, sum_of_squares, 0) / over_spread,
    )


def _observe_moments(
    weights: _Weights, gradient: jax.Array, given: tuple[jax.Array, jax.Array]
) -> tuple[Moments, tuple[jax.Array, jax.Array]]:
    mean, biased_variance = given
    gradient = _measure(gradient, (Partial(_identity), mean))
    mean = toward(mean, gradient, weights.newest)
    # With d the distance from the new mean, (1 - w) (s + w (d / (1 - w))²) is s + w (d²/(1-w) - s).
    # The distance from the old mean would serve as well, were the old mean not overwritten: a
    # compiler that updates it in place has to copy it first.
    distance = gradient - mean
    weights = jax.tree.map(lambda w: w.astype(_leaves.real_dtype(mean.dtype)), weights)
    # No infinity meets a zero: where nothing is older, the distance is 0.
    squared_distance = saturate(absolute_square(distance) * weights.over_older)
    biased_variance = toward(biased_variance, squared_distance, weights.newest)
    moments = _moments(mean, biased_variance, weights.unbias, weights.unbias_of_mean)
    kept_mean = _leaves.narrow(mean, given[0].dtype)
    return moments, (kept_mean, _leaves.narrow(biased_variance, given[1].dtype))


def _moments(
    mean: jax.Array, biased_variance: jax.Array, unbias: jax.Array, unbias_of_mean: jax.Array
) -> Moments:
    return Moments(
        mean=mean,
        second_moment=saturate(biased_variance + square(mean)),
        variance=saturate(biased_variance * unbias),
        variance_of_mean=saturate(biased_variance * unbias_of_mean),
    )


def moments_in(state: RunningMomentsState) -> optax.Updates:
    """The estimate that `running_moments` last gave, up to rounding: a `Moments` at each leaf.

    Args:
      state: what the estimator remembers.

    Returns:
      A tree like the parameters'.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> estimator = mo.running_moments(mo.arithmetic())
    >>> state = estimator.init(jnp.zeros(()))
    >>> for gradient in (1.0, 3.0):
    ...     moments, state = estimator.update(jnp.asarray(gradient), state)
    >>> print(mo.moments_in(state).variance)
    2.0
    """
    (rho,) = jax.tree.leaves(state.sum_of_squared_weights)  # Flax NNX boxes what it holds
    spread = jnp.where(rho < 1, 1 - rho, 1)
    unbias = jnp.where(rho < 1, 1, 0) / spread
    unbias_of_mean = jnp.where(rho < 1, rho, 0) / spread
    return jax.tree.map(
        lambda m, s: _moments(
            *(_leaves.widen(x) for x in (m, s)),
            *(x.astype(_leaves.wide_dtype(s.dtype)) for x in (unbias, unbias_of_mean)),
        ),
        state.mean,
        state.biased_variance,
    )


class RunningMaxState(NamedTuple):
    """What `running_max` remembers.

    Attributes:
      maximum: the largest estimate so far, element by element.
      inner_state: the state of the estimator.
    """

    maximum: optax.Updates
    inner_state: optax.OptState


def running_max(
    estimator: optax.GradientTransformation, *, dtype: jax.typing.DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the largest value that an estimate has had: AMSGrad's long memory.

    .. math::
        \hat v_t = \max(\hat v_{t-1}, v_t), \qquad \hat v_0 = 0

    where :math:`v_t` is what `estimator` estimates, a quantity that is never negative.

    Args:
      estimator: an estimator, such as `running_average(exponential(0.999), of=square)`.
      dtype: the dtype in which the maximum is kept; None is that of the estimate.

    Returns:
      An estimator whose estimate is the maximum.

    Raises:
      TypeError: if `estimator` is no gradient transformation.
      ValueError: if `dtype` is no floating-point dtype.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> estimator = mo.running_max(mo.running_average(mo.exponential(0.0), of=mo.square))
    >>> state = estimator.init(jnp.zeros(()))
    >>> for gradient in (1.0, 3.0, 2.0):
    ...     estimate, state = estimator.update(jnp.asarray(gradient), state)
    >>> print(estimate)
    9.0

    Source: Reddi et al., *On the Convergence of Adam and Beyond* (2018), algorithm 2.
    """
    _checks.check_transformation("estimator", estimator)
    _checks.check_dtypes(dtype=dtype)
    inner = optax.with_extra_args_support(estimator)

    def init(params: optax.Params) -> RunningMaxState:
        state = inner.init(params)
        # The estimate of zeros has the shapes, dtypes and shardings of any estimate.
        zeros = jax.tree.map(_leaves.zeros_like, params)
        estimate, _ = inner.update(zeros, state, zeros)
        maximum = jax.tree.map(
            lambda e: _leaves.zeros_like(e, _leaves.kept_dtype(e.dtype, dtype)), estimate
        )
        return RunningMaxState(maximum, state)

    def begin(leaves: Leaves, state: Any, params: Any, extra_args: dict[str, Any]) -> Step:
        step = _leafwise.begin_any(inner, leaves, state.inner_state, params, extra_args)

        def close(kept: Sequence[tuple[Any, Any]]) -> RunningMaxState:
            maximum = leaves.join([one for one, _ in kept])
            return RunningMaxState(maximum, step.close([one for _, one in kept]))

        given = list(zip(leaves.split(state.maximum), step.given, strict=True))
        return Step(Partial(_keep_larger, step.kernel), given, close)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RunningMaxState]:
        estimate, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        maximum, kept = _larger(estimate, state.maximum)
        return maximum, RunningMaxState(kept, inner_state)

    if _leafwise.leafwise_of(inner):
        return _leafwise.combined([inner], init, begin)
    return optax.GradientTransformationExtraArgs(init, update)  # whatever tree it estimates


def _larger(estimate: Any, before: Any) -> tuple[Any, Any]:
    """The larger of each two numbers; and the same, in the dtype that it is kept in."""
    maximum = jax.tree.map(jnp.maximum, estimate, before)
    return maximum, jax.tree.map(lambda m, b: _leaves.narrow(m, b.dtype), maximum, before)


def _keep_larger(
    kernel: Partial, gradient: jax.Array, given: tuple[Any, Any]
) -> tuple[Any, tuple[Any, Any]]:
    before, inner = given
    estimate, inner_kept = kernel(gradient, inner)
    maximum, kept = _larger(estimate, before)
    return maximum, (kept, inner_kept)


class BiasCorrectedState(NamedTuple):
    """What `bias_corrected` remembers.

    Attributes:
      observations: how many gradients the estimator has seen, int32.
      inner_state: the state of the estimator.
    """

    observations: jax.Array
    inner_state: optax.OptState


def bias_corrected(
    estimator: optax.GradientTransformation, decay: jax.typing.ArrayLike
) -> optax.GradientTransformationExtraArgs:
    r"""Divides an exponential average that started at zero by the weight of what it has seen.

    .. math::
        \hat v_t = \frac{v_t}{1 - \beta^t}

    where :math:`v_t` is what `estimator` estimates and :math:`\beta` is `decay`. Around a mere
    `running_average(exponential_from_zero(decay))` it gives what `exponential(decay)` gives at
    once; around the `running_max` of one, AMSGrad as PyTorch has it: the maximum is taken of the
    biased averages, and corrected afterwards. It counts all gradients: an average with
    `count_nonzero` has counts of its own, and `exponential(decay)` is what corrects that.

    Args:
      estimator: an estimator of what `exponential_from_zero(decay)` averages.
      decay: the number :math:`\beta` in [0, 1), the same as the estimator's.

    Returns:
      An estimator of the corrected quantity.

    Raises:
      TypeError: if `estimator` is no gradient transformation, or `decay` no real scalar.
      ValueError: if `decay` is outside of [0, 1).

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> average = mo.running_average(mo.exponential_from_zero(0.9), of=mo.square)
    >>> estimator = mo.bias_corrected(average, 0.9)
    >>> estimate, _ = estimator.update(jnp.asarray(3.0), estimator.init(jnp.zeros(())))
    >>> print(f"{estimate:.4f}")
    9.0000

    Source: Kingma and Ba, *Adam* (2015), section 3.
    """
    _checks.check_transformation("estimator", estimator)
    _checks.check_decays(decay=decay)
    inner = optax.with_extra_args_support(estimator)

    def init(params: optax.Params) -> BiasCorrectedState:
        return BiasCorrectedState(jnp.zeros([], jnp.int32), inner.init(params))

    def begin(leaves: Leaves, state: Any, params: Any, extra_args: dict[str, Any]) -> Step:
        step = _leafwise.begin_any(inner, leaves, state.inner_state, params, extra_args)
        observations = _leaves.increment(state.observations)
        correction = bias_correction(decay, observations)
        return Step(
            Partial(_correct, correction, step.kernel),
            step.given,
            lambda kept: BiasCorrectedState(observations, step.close(kept)),
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, BiasCorrectedState]:
        estimate, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        observations = _leaves.increment(state.observations)
        corrected = _divided_by(bias_correction(decay, observations), estimate)
        return corrected, BiasCorrectedState(observations, inner_state)

    if _leafwise.leafwise_of(inner):
        return _leafwise.combined([inner], init, begin)
    return optax.GradientTransformationExtraArgs(init, update)  # whatever tree it estimates


def _divided_by(correction: jax.Array, estimate: Any) -> Any:
    return jax.tree.map(
        lambda e: saturate(e / correction.astype(_leaves.real_dtype(e.dtype))), estimate
    )


def _correct(
    correction: jax.Array, kernel: Partial, gradient: jax.Array, given: Any
) -> tuple[Any, Any]:
    estimate, kept = kernel(gradient, given)
    return _divided_by(correction, estimate), kept
