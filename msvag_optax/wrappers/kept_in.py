"""In which dtype an optimizer remembers."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _checks
from msvag_optax._trees import arrays, rules
from msvag_optax.wrappers.dependable import dependable


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

    def keep(init: Any, state: optax.OptState) -> optax.OptState:
        # What is shared, such as a sum of weights, is a number or two: it keeps its digits.
        return optax.tree.map_params(
            init,
            lambda x: arrays.narrow(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            state,
        )

    rule = rules.rule_of(inner)
    if not rule.needs_tree:  # A piece keeps the dtypes that it begins with.
        narrow = rule._replace(init=lambda params: keep(rule.init, rule.init(params)))
        piece = rules.from_rule(narrow, estimates=isinstance(inner, rules.Estimator))
        return dependable(piece) if rules.is_wrapped(inner) else piece

    def init(params: optax.Params) -> optax.OptState:
        return keep(inner.init, inner.init(params))

    def widen(state: optax.OptState) -> optax.OptState:
        return optax.tree.map_params(
            inner.init, lambda x: arrays.widen(x) if arrays.is_inexact(x) else x, state
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        with arrays.standard_promotion():
            updates, state = inner.update(updates, widen(state), params, **extra_args)
        return updates, keep(inner.init, state)

    return optax.GradientTransformationExtraArgs(init, update)
