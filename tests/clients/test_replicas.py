"""Several copies of one training: `pmap`, as older programs have it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import jax_utils

from tests import conformance
from tests.clients import programs

DEVICES = 8


@pytest.mark.parametrize("build", programs.EVERY)
def test_replicas_of_pmap_stay_alike(build):
    """Each device has all parameters, its own share of the data, and the mean of the gradients."""
    tx = build(programs.RATE, **programs.DECAY)
    params = {"kernel": jnp.full((8, 8), 0.1), "bias": jnp.zeros(8)}
    shares = [x.reshape(DEVICES, -1, 8) for x in (programs.X, programs.Y)]

    def loss_of(params, x, y):
        return programs.mean_square(x @ params["kernel"] + params["bias"], y)

    def step(params, state, x, y):
        gradients = jax.lax.pmean(jax.grad(loss_of)(params, x, y), "devices")
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, gradients

    on_each = jax.pmap(step, axis_name="devices")
    replicas = jax_utils.replicate((params, tx.init(params)))
    twin = programs.Twin(tx, params)
    for _ in range(programs.STEPS):
        *replicas, gradients = on_each(*replicas, *shares)
        twin.follow(jax_utils.unreplicate(gradients))
    params, state = jax_utils.unreplicate(replicas)
    twin.assert_is_at(params)
    conformance.assert_close(state, twin.state, ulps=64)
    for leaf in jax.tree.leaves(replicas):
        assert leaf.shape[0] == DEVICES
        assert np.all(np.asarray(leaf) == np.asarray(leaf)[0])
