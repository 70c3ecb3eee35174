"""Wrappers that make any optax transformation bear what real parameter trees hold.

Each is one idea; `dependable` is all of them, and stands round every optimizer of this library.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msvag_optax import _checks, _compat, _leafwise, _leaves, paths
from msvag_optax._leafwise import Leaves, Step

_NUMBERS = (bool, int, np.ndarray, np.generic, jax.Array)


def _is_none(node: Any) -> bool:
    return node is None


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is a number or array that a gradient can move."""
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, float | complex) if dtype is None else _leaves.is_inexact(dtype)


def full_precision(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation in float32 or wider, whatever the dtypes of gradients and parameters.

    Gradients and parameters of bfloat16 and float16 are widened on the way in, so that all that
    `inner` keeps and computes is float32 at least, and updates are rounded to the gradient's dtype
    once, on the way out. Float64 and complex leaves keep their width.

    Args:
      inner: any transformation.

    Returns:
      The same transformation, whose updates have the dtypes of the gradients.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> params = jnp.zeros(3, jnp.bfloat16)
    >>> tx = mo.full_precision(optax.trace(0.9))
    >>> update, state = tx.update(params, tx.init(params))
    >>> update.dtype.name, optax.tree.get(state, "trace").dtype.name
    ('bfloat16', 'float32')
    """
    _checks.check_transformation("inner", inner)
    inner = optax.with_extra_args_support(inner)

    def widen(tree: Any) -> Any:
        return jax.tree.map(_leaves.widen, tree)

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(widen(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        wide_params = None if params is None else widen(params)
        new_updates, state = inner.update(widen(updates), state, wide_params, **extra_args)
        return _narrow(new_updates, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _narrow(updates: optax.Updates, gradients: optax.Updates) -> optax.Updates:
    """The updates in the gradients' dtypes, if they have their shapes, as an estimate may not."""
    leaves = Leaves(gradients)
    narrow = []
    for old, new in zip(leaves.values, leaves.treedef.flatten_up_to(updates), strict=True):
        if getattr(new, "shape", None) != _leaves.shape_of(old):
            made = f"shape {new.shape}" if hasattr(new, "shape") else f"type {type(new).__name__}"
            raise ValueError(
                f"The update of {paths.names(gradients)[len(narrow)]!r} has {made}, its gradient "
                f"has shape {jnp.shape(old)}: an estimate is made an update by `from_estimates`."
            )
        narrow.append(_leaves.narrow(new, _leaves.dtype_of(old)))
    return leaves.join(narrow)


def kept_in(
    inner: optax.GradientTransformation, dtype: jax.typing.DTypeLike | None
) -> optax.GradientTransformationExtraArgs:
    """Keeps the real floating-point arrays of a transformation's state in another dtype.

    The state is widened on the way in and rounded on the way out, so that only what is remembered
    from step to step loses digits, and nothing that is computed. Integers and complex arrays of
    the state stay as they are.

    Args:
      inner: any transformation.
      dtype: the dtype to keep its state in; None changes nothing.

    Returns:
      The same transformation.

    Raises:
      TypeError: if `dtype` is no dtype.
      ValueError: if `dtype` is no real floating-point dtype.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = mo.kept_in(optax.trace(0.9), jnp.bfloat16)
    >>> update, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
    >>> update.dtype.name, state.trace.dtype.name
    ('float32', 'bfloat16')
    """
    _checks.check_dtypes(dtype=dtype)
    _checks.check_transformation("inner", inner)
    inner = optax.with_extra_args_support(inner)

    if dtype is None:
        return inner

    def keep(state: optax.OptState) -> optax.OptState:
        return jax.tree.map(
            lambda x: _leaves.narrow(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            state,
        )

    def init(params: optax.Params) -> optax.OptState:
        return keep(inner.init(params))

    def widen(state: optax.OptState) -> optax.OptState:
        return jax.tree.map(lambda x: _leaves.widen(x) if is_inexact(x) else x, state)

    def begin(leaves: Leaves, state: Any, params: Any, extra_args: dict[str, Any]) -> Step:
        step = _leafwise.begin_any(inner, leaves, widen(state), params, extra_args)
        return step._replace(close=lambda kept: keep(step.close(kept)))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = inner.update(updates, widen(state), params, **extra_args)
        return updates, keep(state)

    if _leafwise.leafwise_of(inner):
        return _leafwise.combined([inner], init, begin)
    return optax.GradientTransformationExtraArgs(init, update)


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
    >>> import msvag_optax as mo
    >>> params = {"weight": jnp.ones(2), "steps": jnp.asarray(3)}
    >>> tx = mo.skip_gradientless(optax.trace(0.9))
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
        return jax.tree.map(lambda p: p if is_inexact(p) else None, params)

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
        if _all_have_gradients(updates, params):
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
        _check_fits_state(inner, updates, state)
        raise
    # What the state holds for another parameter may broadcast, and would grow.
    if _shapes(new_state) != _shapes(state):
        _check_fits_state(inner, updates, state)
    return new_updates, new_state


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [_leaves.shape_of(leaf) for leaf in jax.tree.leaves(tree)]


def _check_fits_state(
    inner: optax.GradientTransformation, updates: optax.Updates, state: optax.OptState
) -> None:
    """Raises unless `init` would make such a state for parameters like these updates."""
    names = paths.names(updates)
    try:
        expected = jax.eval_shape(inner.init, updates)
    except ValueError:  # a pattern that only the right tree matches, say
        expected = None
    if jax.tree.structure(expected) != jax.tree.structure(state):
        if any(_is_none(leaf) for leaf in jax.tree.leaves(updates, is_leaf=_is_none)):
            raise ValueError(
                "A gradient is None where the state has something to keep: pass `params` to "
                "`update`, which tell what that is."
            )
        some = ", ".join(repr(name) for name in names[:5]) or "nothing"
        raise ValueError(
            "The updates have another tree structure than the state that they meet: `init` was "
            f"given another tree than that of {some}{', ...' if len(names) > 5 else ''}."
        )
    for path, made, kept in zip(
        jax.tree.leaves(paths.path_names(state)),
        jax.tree.leaves(expected),
        jax.tree.leaves(state),
        strict=True,
    ):
        if made.shape != jnp.shape(kept):
            name = max((n for n in names if path.endswith(n)), key=len, default=path)
            shapes = dict(zip(names, jax.tree.leaves(updates, is_leaf=paths.is_hole), strict=True))
            shape = getattr(shapes.get(name), "shape", made.shape)
            raise _leaves.LeafMismatchError(shape, jnp.shape(kept), name)


def _all_have_gradients(updates: optax.Updates, params: optax.Params) -> bool:
    """Whether no leaf is to be hidden; raises unless the updates are such as the parameters."""
    update_leaves, update_tree = jax.tree.flatten(updates, is_leaf=_is_none)
    param_leaves, param_tree = jax.tree.flatten(params, is_leaf=_is_none)
    if update_tree != param_tree:
        raise _leaves.structure_mismatch(updates, params, "the parameters")
    hidden = 0
    for index, (update, param) in enumerate(zip(update_leaves, param_leaves, strict=True)):
        if update is None or not is_inexact(param):
            hidden += 1
            continue
        if not is_inexact(update):
            raise ValueError(
                f"The update of {paths.names(updates)[index]!r} must be of a floating-point dtype, "
                f"got {getattr(update, 'dtype', type(update).__name__)}."
            )
        if _leaves.shape_of(update) != _leaves.shape_of(param):
            raise ValueError(
                f"The update of {paths.names(updates)[index]!r} has shape {jnp.shape(update)}, "
                f"its parameter has shape {jnp.shape(param)}."
            )
    return not hidden


def _map_visible(function: Any, updates: optax.Updates, params: optax.Params) -> Any:
    """Maps `function` over updates and parameters, but not where the parameter is hidden."""
    return jax.tree.map(
        lambda u, p: None if p is None else function(u, p), updates, params, is_leaf=_is_none
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
        is_leaf=_is_masked,
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


def lazy_rows(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Leaves alone the rows without gradient: their parameters and their rows of the state.

    A row of a leaf :math:`g` is :math:`g_i`, one index of its leading axis: one word of an
    embedding. Where :math:`g_i = 0` at a step, the parameter's row gets no update (no momentum, no
    decay), and what the state holds for that row stays (nothing is averaged, nothing counted).
    What the state holds for a whole layer or tree moves as ever: NovoGrad's norm, and the count of
    steps by which an average is corrected. So a row that is first seen late has averages that
    believe to have seen zeros before; `count_nonzero` averages, such as Expectigrad's second
    moment, count for each element. A scalar is a row of its own.

    Inside of `shard_map` rows are to be whole, since each device looks at those that it sees: cut
    parameters along their leading axis there.

    Args:
      tx: any transformation whose state `optax.tree.map_params` can take apart, such as a named
        optimizer. To be lazy with the embedding only, hand it to `optax.partition`.

    Returns:
      The same transformation, lazy.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> params = jnp.ones((2, 2))
    >>> tx = mo.lazy_rows(mo.adamw(0.1, weight_decay=0.5))
    >>> state = tx.init(params)
    >>> for gradient in (jnp.ones((2, 2)), jnp.asarray([[1.0, 1.0], [0.0, 0.0]])):
    ...     updates, state = tx.update(gradient, state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> print(params.round(3))  # the second row has moved once
    [[0.708 0.708]
     [0.85  0.85 ]]

    Source: TensorFlow's sparse gradients, under which an optimizer visits the rows that were looked
    up and no others.
    """
    _checks.check_transformation("tx", tx)
    inner = optax.with_extra_args_support(tx)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        seen = jax.tree.map(_rows_with_gradient, updates)
        new_updates, new_state = inner.update(updates, state, params, **extra_args)
        new_updates = jax.tree.map(
            lambda s, u: jnp.where(s, u, 0).astype(u.dtype), seen, new_updates
        )
        seen_in_state = optax.tree.map_params(
            inner.init,
            lambda kept, s: s if _has_rows_of(kept, s) else True,
            state,
            seen,
            transform_non_params=lambda _: True,
            is_leaf=_is_masked,
        )
        return new_updates, jax.tree.map(_choose, seen_in_state, new_state, state)

    return skip_gradientless(optax.GradientTransformationExtraArgs(inner.init, update))


def _rows_with_gradient(gradient: jax.Array) -> jax.Array:
    """Whether a row has any gradient, with the shape (rows, 1, ..., 1)."""
    axes = tuple(range(1, jnp.ndim(gradient)))
    return jnp.any(jnp.asarray(gradient) != 0, axis=axes, keepdims=True)


def _has_rows_of(kept: Any, rows: jax.Array) -> bool:
    return (
        not _is_masked(kept)
        and jnp.ndim(kept) == rows.ndim
        and jnp.shape(kept)[:1] == rows.shape[:1]
    )


def _choose(seen: Any, new: jax.Array, old: jax.Array) -> jax.Array:
    return new if seen is True else jnp.where(seen, new, old)


def shard_like_params(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Shards the state of a transformation like the parameters, also when `init` runs under `jit`.

    Inside `jit`, zeros have no sharding until XLA chooses one, and on a mesh it chooses none: some
    device would hold the whole state of all. Here each array of the state that has its parameter's
    shape is tied to its parameter's sharding. Outside of `jit` nothing changes.

    Args:
      inner: any transformation whose state `optax.tree.map_params` can take apart, as it can all
        that keep trees like the parameters' (`optax.lbfgs` and `optax.sm3` keep others).

    Returns:
      The same transformation.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ("x",)), jax.P("x"))
    >>> params = jax.device_put(jnp.zeros(8), sharding)
    >>> tx = mo.shard_like_params(optax.trace(0.9))
    >>> jax.jit(tx.init)(params).trace.sharding.spec == sharding.spec
    True
    """
    _checks.check_transformation("inner", inner)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.OptState:
        state = inner.init(params)
        if not any(map(_compat.is_tracer, jax.tree.leaves(params))):
            return state  # arrays, unlike tracers, have shardings that zeros can copy
        return optax.tree.map_params(
            inner.init, _leaves.shard_like, state, params, is_leaf=_is_masked
        )

    return optax.GradientTransformationExtraArgs(init, inner.update)


def dependable(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation bear low precision, leaves without gradient, and meshes.

    Args:
      inner: any transformation of updates to updates (an estimator's output is none) that
        `shard_like_params` can wrap.

    Returns:
      `skip_gradientless(full_precision(shard_like_params(inner)))`.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> params = {"weight": jnp.ones(2, jnp.bfloat16), "steps": jnp.asarray(3)}
    >>> tx = mo.dependable(optax.scale_by_adam())
    >>> optax.tree.get(tx.init(params), "nu")
    {'steps': None, 'weight': Array([0., 0.], dtype=float32)}
    """
    return skip_gradientless(full_precision(shard_like_params(inner)))
