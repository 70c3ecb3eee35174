"""State that is sharded like the parameters."""

import optax

from msvag_optax import _checks
from msvag_optax._trees import arrays
from msvag_optax._trees.rules import wrapper_of


def shard_like_params(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Shards the state of a transformation like the parameters, also when `init` runs under `jit`.

    Inside `jit`, zeros have no sharding until XLA chooses one, and on a mesh it chooses none: one
    device, or each, would hold the whole state. Here each array of the state that has its
    parameter's shape is tied to its parameter's sharding. Outside of `jit` nothing changes.

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
        return arrays.init_like_params(inner, params)

    return wrapper_of(inner, init, inner.update)
