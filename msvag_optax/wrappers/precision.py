"""The dtype in which an optimizer computes."""

from typing import Any

import jax
import optax

from msvag_optax import _checks
from msvag_optax._trees import arrays, mismatch, paths
from msvag_optax._trees.rules import wrapper_of


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
    >>> from msvag_optax.wrappers.precision import full_precision
    >>> params = jnp.zeros(3, jnp.bfloat16)
    >>> tx = full_precision(optax.trace(0.9))
    >>> update, state = tx.update(params, tx.init(params))
    >>> update.dtype.name, optax.tree.get(state, "trace").dtype.name
    ('bfloat16', 'float32')
    """
    _checks.check_transformation("inner", inner)
    inner = optax.with_extra_args_support(inner)

    def widen(tree: Any) -> Any:
        return jax.tree.map(arrays.widen, tree)

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(widen(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        wide_params = None if params is None else widen(params)
        with arrays.standard_promotion():
            new_updates, state = inner.update(widen(updates), state, wide_params, **extra_args)
        return _narrow(new_updates, updates), state

    return wrapper_of(inner, init, update)


def _narrow(updates: optax.Updates, gradients: optax.Updates) -> optax.Updates:
    """The updates in the gradients' dtypes, if they have their shapes, as an estimate may not."""
    old, treedef = jax.tree.flatten(gradients)
    narrow = []
    for index, (gradient, new) in enumerate(zip(old, treedef.flatten_up_to(updates), strict=True)):
        try:
            mismatch.check_is_update(gradient, new)
        except mismatch.NoUpdateError as error:
            raise error.of(paths.names(gradients)[index]) from None
        narrow.append(arrays.narrow(new, arrays.dtype_of(gradient)))
    return treedef.unflatten(narrow)
