"""State is sharded like the parameters, whatever wraps the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import msvag_optax as mo
from msvag_optax.wrappers.gradientless import skip_gradientless
from msvag_optax.wrappers.precision import full_precision
from tests.conformance import assert_same, assert_same_types
from tests.meshes import KINDS, assert_sharded_like, entered, mesh_of
from tests.support import by_speed

# Each is cut along another axis, so that neither's place can be taken for the other's.
SPECS = {"kernel": P(None, "devices"), "bias": P("devices")}
WHOLE = {
    "kernel": np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32),
    "bias": np.random.default_rng(1).normal(size=8).astype(np.float32),
}

# Averages, a factored second moment, a number a layer, several links, numbers of the whole tree.
OPTAX = {
    "adafactor": optax.adafactor(0.1),
    "adam": optax.adam(0.1),
    "muon": optax.contrib.muon(0.1),
    "novograd": optax.novograd(0.1),
    "prodigy": optax.contrib.prodigy(0.1),
}
OURS = {
    "dependable": mo.dependable,
    "full_precision": full_precision,
    "kept_in": lambda tx: mo.kept_in(tx, jnp.bfloat16),
    "lazy_rows": mo.lazy_rows,
    "shard_like_params": mo.shard_like_params,
    "skip_gradientless": skip_gradientless,
    "variance_adapted": mo.variance_adapted,
}
ROUND_OURS = {
    "MultiSteps": mo.shard_like_params(  # The gradients that it holds back are its own.
        optax.MultiSteps(mo.msvag(0.1), 2).gradient_transformation()
    ),
    "apply_if_finite": optax.apply_if_finite(mo.amsgrad(0.1), 3),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), mo.novograd(0.1)),
    "conditionally_transform": optax.conditionally_transform(
        mo.expectigrad(0.1), lambda step, *_, **__: jnp.less(step, 1)
    ),
    "ema": optax.chain(mo.novograd(0.1), mo.shard_like_params(optax.ema(0.9))),
    "inject_hyperparams": optax.inject_hyperparams(mo.msvag)(learning_rate=0.1),
    "masked": optax.chain(
        optax.masked(mo.svag(0.1), {"kernel": True, "bias": False}),
        mo.shard_like_params(optax.trace(0.9)),
    ),
    "partition": optax.partition(
        {"a": mo.adamw(0.1), "b": mo.novograd(0.1)}, {"kernel": "a", "bias": "b"}
    ),
    "sam": optax.contrib.sam(mo.msvag(0.1), optax.sgd(0.01), sync_period=2),
    "schedule_free": optax.contrib.schedule_free(mo.adamw(0.1, b1=0.0), 0.1),
}
FAST = ("adam", "lazy_rows", "MultiSteps")


def params_on(mesh):
    return jax.device_put(WHOLE, {k: NamedSharding(mesh, spec) for k, spec in SPECS.items()})


def check(tx, kind, *, jits):
    """State is sharded like the parameters from the first, and the updates are one device's.

    For each of `jits`, which say whether the state is made under `jit`.
    """
    mesh = mesh_of({"devices": 8}, kind)
    desired, alone = {}, tx.init(WHOLE)
    step = jax.jit(tx.update)
    for _ in range(2):
        desired, alone = step(WHOLE, alone, WHOLE)
    for jit in jits:
        with entered(mesh):
            params = params_on(mesh)
            states = [(jax.jit(tx.init) if jit else tx.init)(params)]
            for _ in range(2):
                updates, state = step(params, states[-1], params)
                states.append(state)
            for tree in (*states, updates):
                assert_sharded_like(tree, params)
            # Made outside of `jit`, scalars lie on the first device until the first step.
            assert_same_types(states[0 if jit else 1], states[2])
        for name, update in desired.items():
            # A norm is a sum of 64 squares, in another order: 64 half units in the last place at
            # most.
            np.testing.assert_allclose(updates[name], update, rtol=64 * 2.0**-24, atol=0)


@pytest.mark.parametrize("tx", by_speed(OPTAX, FAST))
def test_optax_s_own_state_is_sharded(tx):
    mesh = mesh_of({"devices": 8}, AxisType.Auto)
    params = params_on(mesh)
    wrapped = mo.shard_like_params(tx)
    state = jax.jit(wrapped.init)(params)
    assert_sharded_like(state, params)
    assert_same(state, tx.init(WHOLE))
    _, new_state = jax.jit(wrapped.update)(params, state, params)
    assert_sharded_like(new_state, params)


def test_somebody_has_to_shard_optax_s_state():
    """Of each optimizer of optax, `jit(init)` puts some array on all devices."""
    params = params_on(mesh_of({"devices": 8}, AxisType.Auto))
    replicated = []
    for tx in (optax.adam(0.1), optax.lion(0.1), optax.sgd(0.1, momentum=0.9)):
        state = jax.jit(tx.init)(params)
        replicated += [x.sharding.is_fully_replicated for x in jax.tree.leaves(state) if x.shape]
    assert any(replicated), (
        "JAX or optax shards the state by itself now. Then `shard_like_params` may go, in "
        "`dependable` too, and what README and docs/recipes.md say of state made under `jit`."
    )


@pytest.mark.parametrize("wrap", by_speed(OURS, FAST))
def test_our_wrappers_keep_what_is_sharded(wrap):
    adam = optax.scale_by_adam()
    check(wrap(mo.shard_like_params(adam)), AxisType.Auto, jits=(True,))
    check(mo.shard_like_params(wrap(adam)), AxisType.Auto, jits=(True,))
    check(wrap(adam), AxisType.Auto, jits=(False,))


@pytest.mark.parametrize("wrap", by_speed(OURS, FAST))
def test_our_wrappers_on_explicit_axes(wrap):
    check(wrap(optax.scale_by_adam()), AxisType.Explicit, jits=(False, True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dependable", "shard_like_params", "variance_adapted"])
def test_these_wrappers_need_no_help(name):
    check(OURS[name](optax.scale_by_adam()), AxisType.Auto, jits=(True,))


@pytest.mark.parametrize("tx", by_speed(ROUND_OURS, FAST))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_optax_s_wrappers_keep_our_state_sharded(tx, kind):
    check(tx, kind, jits=(False, True))


@pytest.mark.slow
def test_what_a_wrapper_accumulates_is_sharded():
    accumulating = optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()
    check(mo.shard_like_params(accumulating), AxisType.Auto, jits=(True,))
    with pytest.raises(AssertionError, match="but the parameter has"):
        check(accumulating, AxisType.Auto, jits=(True,))  # if this passes, see above
