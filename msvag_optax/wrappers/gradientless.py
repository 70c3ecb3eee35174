"""Parameters without a gradient: those that never have one, and those that lack it at a step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msvag_optax import _checks
from msvag_optax._trees import arrays, mismatch

_NUMBERS = (bool, int, np.ndarray, np.generic, jax.Array)


def skip_gradientless(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Hides from a transformation the leaves that have no gradient.

    Integer parameters (whose gradients have dtype `float0`), random keys, booleans and non-arrays
    get no state, and a zero update of their gradient's own dtype. A parameter whose gradient is
    `None` at one step keeps its value and its state at that step: no momentum moves it, nothing
    decays. That needs `params` in `update`. Where the state has no array it has `None`, which a
    caller's `jax.tree.map` over it sees with `is_leaf=lambda x: x is None`.

    Args:
      inner: any transformation.

    Returns:
      The same transformation, for trees with such leaves.

    Raises:
      ValueError: in `update`, if updates and parameters differ in structure or in a shape.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> from msvag_optax.wrappers.gradientless import skip_gradientless
    >>> params = {"weight": jnp.ones(2), "steps": jnp.asarray(3)}
    >>> tx = skip_gradientless(optax.trace(0.9))
    >>> state = tx.init(params)
    >>> state.trace
    {'steps': None, 'weight': Array([0., 0.], dtype=float32)}
    >>> _, state = tx.update({"weight": jnp.ones(2), "steps": None}, state, params)
    >>> _, state = tx.update({"weight": None, "steps": None}, state, params)
    >>> state.trace["weight"]
    Array([1., 1.], dtype=float32)
    """
    _checks.check_transformation("inner", inner)
    inner = optax.with_extra_args_support(inner)

    def hide(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda p: p if arrays.is_inexact(p) else None, params)

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(hide(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            visible = hide(updates)
            new_updates, new_state = _update(inner, visible, state, None, extra_args)
            return _restore(updates, new_updates), new_state
        if mismatch.check_fits_params(updates, params):
            return _update(inner, updates, state, params, extra_args)
        params = hide(params)
        missing = _map_visible(lambda u, _: u is None, updates, params)
        visible = _map_visible(lambda u, p: jnp.zeros_like(p) if u is None else u, updates, params)
        new_updates, new_state = _update(inner, visible, state, params, extra_args)
        if any(jax.tree.leaves(missing)):
            new_state = _keep_where(missing, inner, state, new_state)
        return _restore(updates, new_updates), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _update(
    inner: optax.GradientTransformationExtraArgs,
    updates: optax.Updates,
    state: optax.OptState,
    params: optax.Params | None,
    extra_args: dict[str, Any],
) -> tuple[optax.Updates, optax.OptState]:
    """`inner.update`, where updates that do not fit the state fail with a sentence."""
    try:
        new_updates, new_state = inner.update(updates, state, params, **extra_args)
    except (TypeError, ValueError):
        mismatch.check_fits_state(inner, updates, state)
        raise
    # What the state holds for another parameter may broadcast, and would grow.
    if _shapes(new_state) != _shapes(state):
        mismatch.check_fits_state(inner, updates, state)
    return new_updates, new_state


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [arrays.shape_of(leaf) for leaf in jax.tree.leaves(tree)]


def _map_visible(function: Any, updates: optax.Updates, params: optax.Params) -> Any:
    """Maps `function` over updates and parameters, but not where the parameter is hidden."""
    return jax.tree.map(
        lambda u, p: None if p is None else function(u, p),
        updates,
        params,
        is_leaf=_is_none,
    )


def _keep_where(
    flags: Any,
    inner: optax.GradientTransformation,
    state: optax.OptState,
    new_state: optax.OptState,
) -> optax.OptState:
    """The new state, with the old one of each parameter whose flag is set."""
    state_flags = optax.tree.map_params(
        inner.init,
        lambda _, flag: flag,
        state,
        flags,
        transform_non_params=lambda _: False,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    return jax.tree.map(lambda keep, new, old: old if keep else new, state_flags, new_state, state)


def _restore(updates: optax.Updates, new_updates: optax.Updates) -> optax.Updates:
    """The new updates, and for hidden leaves their gradient's own zeros."""

    def restore(old: Any, new: Any) -> Any:
        if old is None:
            return None
        if new is not None:
            return new
        if getattr(old, "dtype", None) == jax.dtypes.float0 or not isinstance(old, _NUMBERS):
            return old
        return jnp.zeros_like(old)

    return jax.tree.map(restore, updates, new_updates, is_leaf=_is_none)


def _is_none(node: Any) -> bool:
    return node is None
