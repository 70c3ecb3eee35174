"""Parameters without a gradient: those that never have one, and those that lack it at a step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _checks
from msvag_optax._trees import arrays, mismatch
from msvag_optax._trees.rules import wrapper_of


def skip_gradientless(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Hides from a transformation the leaves that have no gradient.

    Integer parameters (whose gradients have dtype `float0`), random keys, booleans and non-arrays
    get no state. A parameter whose gradient is `None` at one step keeps its value and its state at
    that step: no momentum moves it, nothing decays; that needs `params` in `update`. The update of
    a number without a gradient is a zero that can be added to it, if `params` are given; a key's or
    a non-array's is whatever was given as its gradient. Where the state has no array it has
    `None`, which a caller's `jax.tree.map` over it sees with `is_leaf=lambda x: x is None`.

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
            return _restore(updates, new_updates, updates), new_state
        if mismatch.check_fits_params(updates, params):
            return _update(inner, updates, state, params, extra_args)
        seen = hide(params)
        missing = _map_visible(lambda u, _: u is None, updates, seen)
        visible = _map_visible(lambda u, p: jnp.zeros_like(p) if u is None else u, updates, seen)
        parts = {name: _fill(missing, visible, extra) for name, extra in extra_args.items()}
        new_updates, new_state = _update(inner, visible, state, seen, parts)
        if any(jax.tree.leaves(missing)):
            new_state = _keep_where(missing, inner, state, new_state)
        return _restore(updates, new_updates, params), new_state

    return wrapper_of(inner, init, update)


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
    except mismatch.ForeignStateError:
        raise
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


def _fill(missing: Any, visible: optax.Updates, extra: Any) -> Any:
    """An extra argument; if it is a tree like the updates, with zeros where it and they have None.

    The inner transformation sees a gradient there, and must not miss the part.
    """
    places = jax.tree.structure(missing, is_leaf=_is_none)
    if extra is None or jax.tree.structure(extra, is_leaf=_is_none) != places:
        return extra
    return jax.tree.map(
        lambda is_missing, u, part: jnp.zeros_like(u.real) if part is None and is_missing else part,
        missing,
        visible,
        extra,
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
        lambda _, flag: any(jax.tree.leaves(flag)),  # it may be in a box
        state,
        flags,
        transform_non_params=lambda _: False,
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    return jax.tree.map(lambda keep, new, old: old if keep else new, state_flags, new_state, state)


def _restore(
    updates: optax.Updates, new_updates: optax.Updates, params: optax.Params
) -> optax.Updates:
    """The new updates, and without a gradient a zero, or what stands in the gradient's place."""

    def restore(old: Any, new: Any, param: Any) -> Any:
        if old is not None and new is not None:
            return new
        # Neither None nor `float0` can be added to a parameter; a zero of its own dtype can.
        nothing = old is None or getattr(old, "dtype", None) == jax.dtypes.float0
        like = param if nothing else old
        return jnp.zeros_like(like) if _is_number(like) else old

    return jax.tree.map(restore, updates, new_updates, params, is_leaf=_is_none)


def _is_number(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, bool | int | float | complex)
    return jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)


def _is_none(node: Any) -> bool:
    return node is None
