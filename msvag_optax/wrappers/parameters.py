"""Parameters in low precision that small updates still move."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _checks
from msvag_optax._trees import arrays, mismatch, paths
from msvag_optax._trees.exportable import exportable
from msvag_optax._trees.rounding import (
    Chances,
    RoundedState,
    array_number,
    draw,
    round_to_nearest,
)
from msvag_optax._trees.rules import wrapper_of
from msvag_optax.wrappers.gradientless import skip_gradientless
from msvag_optax.wrappers.precision import full_precision


def rounded_parameters(
    inner: optax.GradientTransformation, *, seed: jax.typing.ArrayLike = 0, specs: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Adds updates to bfloat16 and float16 parameters with stochastic rounding.

    .. math::
        p_t = \mathrm{R}_t(p_{t-1} + u_t), \qquad E[\mathrm{R}_t(x)] = x

    where :math:`u_t` is the update of `inner` and :math:`\mathrm{R}_t` rounds to a neighbour, as in
    `kept_in`. Rounded to nearest, a parameter does not move at all where an update is below
    :math:`2^{-9}` of it (bfloat16); here it moves as far on average as it should. There is no copy
    of it, and no more state than a count.

    Put it outermost: its updates are float32, and are made for `optax.apply_updates`, which adds
    them and gives exactly :math:`p_t` (Equinox's leaves the sum in float32). Anything between it
    and the parameters, such as a link of `optax.chain`, would spoil that. Whatever accumulates or
    drops steps belongs inside, such as `optax.apply_if_finite`, which fails around it, as it needs
    updates in the gradients' dtypes.
    `inner` is given gradients and parameters in float32. Parameters in float32 or wider stay as
    they are.

    Args:
      inner: any transformation to updates, such as an optimizer; not an estimator.
      seed: an integer of at least 0, for random bits that differ from run to run.
      specs: inside of `jax.shard_map`, the partition specs of the parameters, as in `kept_in`.

    Returns:
      The transformation. Its `update` needs `params`.

    Raises:
      TypeError: if an argument has the wrong type; in `update`, under
        `jax_numpy_dtype_promotion="strict"`, which lets no float32 be added to a bfloat16.
      ValueError: in `init`, if parameters have a dtype below 16 bits, or `specs` does not fit them.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> def mean_after_200_steps(tx):  # of a thousandth each
    ...     def step(_, carry):
    ...         params, state = carry
    ...         updates, state = tx.update(jnp.ones_like(params), state, params)
    ...         return optax.apply_updates(params, updates), state
    ...     params = jnp.ones(10_000, jnp.bfloat16)
    ...     params, _ = jax.lax.fori_loop(0, 200, step, (params, tx.init(params)))
    ...     return params.astype(jnp.float32).mean()
    >>> for tx in (optax.sgd(1e-3), mo.rounded_parameters(optax.sgd(1e-3))):
    ...     print(f"{mean_after_200_steps(tx):.2f}")
    1.00
    0.80

    Source: Zamirai et al., *Revisiting BFloat16 Training* (2020), section 4.
    """
    _checks.check_transformation("inner", inner)
    inner = full_precision(inner)
    chances = Chances(seed, specs)

    def init(params: optax.Params) -> RoundedState:
        _check_dtypes(params)
        paths.map_with_name(lambda name, p: chances.slices_of(name, arrays.shape_of(p)), params)
        return RoundedState(jnp.zeros([], jnp.int32), inner.init(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, RoundedState]:
        params = _given(params)

        def move(name: str, param: jax.Array, step: jax.Array) -> jax.Array:
            if not _is_low(param):
                return step
            cut = chances.slices_of(name, param.shape)
            wide = arrays.widen(param)
            number = array_number(f"parameter/{name}")
            new = draw(wide + arrays.widen(step), param.dtype, key, number, cut)
            return arrays.widen(new) - wide

        own_state = mismatch.own_state(state, RoundedState, init, params)
        with own_state, arrays.standard_promotion():
            key = chances.key_of_step(state.draws)
            steps, inner_state = inner.update(
                _widened(updates), state.inner_state, params, **extra_args
            )
            moves = jax.tree.map(move, paths.path_names(params), params, steps)
        return moves, RoundedState(arrays.increment(state.draws), inner_state)

    return skip_gradientless(wrapper_of(inner, init, update))


@exportable
class MasterCopyState(NamedTuple):
    """What `master_copy` remembers.

    Attributes:
      copy: the parameters, in float32 or wider.
      inner_state: the state of the transformation.
    """

    copy: optax.Params
    inner_state: optax.OptState


def master_copy(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Keeps bfloat16 and float16 parameters in float32 as well, where updates add up.

    .. math::
        \tilde p_t = \tilde p_{t-1} + u_t, \qquad p_t = \mathrm{N}(\tilde p_t), \qquad
        \tilde p_0 = p_0

    where :math:`u_t` is the update of `inner`, which is given the copy :math:`\tilde p_{t-1}` for
    its parameters, and :math:`\mathrm{N}` rounds to nearest. The copy costs four bytes a parameter,
    and takes the steps of training in float32 with gradients at the rounded parameters.

    Like `rounded_parameters`, put it outermost, with `optax.apply_if_finite` inside. Its float32
    updates are made for `optax.apply_updates`, which gives exactly :math:`p_t`, except where a step
    takes a parameter to less than :math:`2^{-12}` of its size. There may be no float32 that gives
    that when it is added, and the parameter is off by up to :math:`2^{-24}` of what it was, until
    the next step. Parameters in float32 or wider stay as they are. They have a copy as well, which
    is not read: it makes the copy a tree like the parameters, which sharding and checkpoints need.

    Args:
      inner: any transformation to updates, such as an optimizer; not an estimator.

    Returns:
      The transformation. Its `update` needs `params`. `optax.tree.get(state, "copy")` has the copy,
      a tree of parameters in float32.

    Raises:
      TypeError: if `inner` is no transformation; in `update`, under
        `jax_numpy_dtype_promotion="strict"`, which lets no float32 be added to a bfloat16.
      ValueError: in `init`, if parameters have a dtype below 16 bits, or one is a shape, which has
        no values to copy (`jax.eval_shape(tx.init, shapes)` gives the shapes of the state).

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = mo.master_copy(optax.sgd(1e-3))
    >>> params = jnp.ones((), jnp.bfloat16)
    >>> state = tx.init(params)
    >>> for _ in range(200):
    ...     updates, state = tx.update(jnp.ones((), jnp.bfloat16), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> print(params, f"{state.copy:.4f}")
    0.800781 0.8000

    Source: Micikevicius et al., *Mixed Precision Training* (2018), section 3.1.
    """
    _checks.check_transformation("inner", inner)
    inner = full_precision(inner)

    def init(params: optax.Params) -> MasterCopyState:
        _check_dtypes(params)
        # Arrays of their own, since parameters and state may be donated together.
        copy = paths.map_with_name(_copy, params)
        return MasterCopyState(copy, inner.init(params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, MasterCopyState]:
        params = _given(params)
        own_state = mismatch.own_state(state, MasterCopyState, init, params)
        with own_state, arrays.standard_promotion():
            exact = jax.tree.map(
                lambda p, c: c if _is_low(p) else arrays.widen(p), params, state.copy
            )
            steps, inner_state = inner.update(
                _widened(updates), state.inner_state, exact, **extra_args
            )
            copy = jax.tree.map(jnp.add, exact, steps)
            moves = jax.tree.map(_move_to, params, copy, steps)
        return moves, MasterCopyState(copy, inner_state)

    return skip_gradientless(wrapper_of(inner, init, update))


def _copy(name: str, param: Any) -> jax.Array:
    if isinstance(param, jax.ShapeDtypeStruct):
        raise ValueError(
            f"`master_copy` must be given the values of {name!r}, got a shape: use arrays, or "
            "`jax.eval_shape(tx.init, shapes)` for the shapes of the state."
        )
    return jnp.array(arrays.widen(param))


def _move_to(param: jax.Array, copy: Any, step: jax.Array) -> jax.Array:
    """What is added to a parameter so that it becomes its copy, rounded."""
    if not _is_low(param):
        return step
    return arrays.widen(round_to_nearest(copy, param.dtype)) - arrays.widen(param)


def _is_low(param: Any) -> bool:
    dtype = arrays.dtype_of(param)
    return arrays.wide_dtype(dtype) != dtype


def _widened(tree: Any) -> Any:
    return jax.tree.map(arrays.widen, tree)


def _check_dtypes(params: optax.Params) -> None:
    def check(name: str, param: Any) -> None:
        dtype = arrays.dtype_of(param)
        if _is_low(param) and jnp.finfo(dtype).bits < 16:
            raise ValueError(f"The dtype of {name!r} must have 16 bits or more, got {dtype}.")

    paths.map_with_name(check, params)


def _given(params: optax.Params | None) -> optax.Params:
    """The parameters, if there are any and updates in float32 can be added to them."""
    if params is None:
        raise ValueError("`update` needs `params`, which it rounds; it was not given them.")
    strict = jax.config.jax_numpy_dtype_promotion == "strict"
    if strict and any(map(_is_low, jax.tree.leaves(params))):
        raise TypeError(
            "Under `jax_numpy_dtype_promotion='strict'` no float32 update can be added to a "
            "parameter of lower precision, as `rounded_parameters` and `master_copy` need it: "
            "use the standard promotion, or parameters in float32."
        )
    return params
