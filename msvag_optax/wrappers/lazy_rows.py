"""Rows of a parameter that have no gradient at a step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _checks
from msvag_optax._trees.rules import wrapper_of
from msvag_optax.wrappers.gradientless import skip_gradientless


def lazy_rows(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Leaves alone the rows without gradient: their parameters and their rows of the state.

    A row of a leaf :math:`g` is :math:`g_i`, one index of its leading axis: one word of an
    embedding. Where :math:`g_i = 0` at a step, the parameter's row gets no update (no momentum, no
    decay), and what the state holds for that row stays (nothing is averaged, nothing counted). What
    the state holds for a whole layer or tree is updated as usual: NovoGrad's norm, and the count of
    steps by which an average is corrected. So the averages of a row that is first seen late are
    corrected as if it had seen zeros before; `count_nonzero` averages, such as Expectigrad's second
    moment, count for each element. A scalar is a row of its own.

    Inside of `shard_map` rows must be whole, since each device looks only at what it holds: shard
    parameters along their leading axis there.

    Args:
      tx: any transformation whose state `optax.tree.map_params` can take apart, such as a named
        optimizer. To be lazy with the embedding only, use `optax.partition`.

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
            _of_rows,
            state,
            seen,
            transform_non_params=lambda _: True,
            is_leaf=_is_masked,
        )
        return new_updates, jax.tree.map(_choose, seen_in_state, new_state, state)

    return skip_gradientless(wrapper_of(inner, inner.init, update))


def _rows_with_gradient(gradient: jax.Array) -> jax.Array:
    """Whether a row has any gradient, with the shape (rows, 1, ..., 1)."""
    axes = tuple(range(1, jnp.ndim(gradient)))
    return jnp.any(jnp.asarray(gradient) != 0, axis=axes, keepdims=True)


def _of_rows(kept: Any, seen: Any) -> jax.Array | bool:
    """Which rows of what is kept are seen: all, where it has no rows of the parameter's."""
    if _is_masked(kept):
        return True
    (seen,) = jax.tree.leaves(seen)  # It may be in a box.
    has_rows = jnp.ndim(kept) == seen.ndim and jnp.shape(kept)[:1] == seen.shape[:1]
    return seen if has_rows else True


def _choose(seen: Any, new: jax.Array, old: jax.Array) -> jax.Array:
    return new if seen is True else jnp.where(seen, new, old)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
