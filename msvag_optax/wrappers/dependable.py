"""All that an optimizer needs for real parameter trees."""

from typing import Any

import optax

from msvag_optax import _checks
from msvag_optax._trees import rules
from msvag_optax.wrappers.gradientless import skip_gradientless
from msvag_optax.wrappers.precision import full_precision
from msvag_optax.wrappers.sharding import shard_like_params


def dependable(inner: optax.GradientTransformation) -> Any:
    """Makes a transformation work in low precision, with missing gradients, and on meshes.

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
    _checks.check_transformation("inner", inner)
    if not rules.is_piece(inner):
        return skip_gradientless(full_precision(shard_like_params(inner)))
    # A piece is sharded, and computes in float32 or wider, already.
    rule, estimates = rules.rule_of(inner), isinstance(inner, rules.Estimator)
    piece = rules.from_rule(rule, estimates=estimates, makes_updates=True)
    return rules.behind(skip_gradientless(piece), piece, rule)
