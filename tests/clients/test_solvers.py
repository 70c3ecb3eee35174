"""Libraries that run an optimizer in a loop of their own: optimistix and numpyro."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optimistix as optx
import pytest
from numpyro import distributions
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import msvag_optax as mo
from tests import support

# Rates at which each arrives; those of M-SVAG and SVAG depend on the scale of the loss.
FAST = ("msvag",)
MINIMISERS = {
    "msvag": functools.partial(mo.msvag, 0.1),
    "svag": functools.partial(mo.svag, 0.1),
    "expectigrad": functools.partial(mo.expectigrad, 0.1),
    "novograd": functools.partial(mo.novograd, 0.02, b2=0.98),
    "amsgrad": functools.partial(mo.amsgrad, 0.1),
    "adamw": functools.partial(mo.adamw, 0.1, weight_decay=0.0),
}
GUIDES = MINIMISERS | {
    "msvag": functools.partial(mo.msvag, 1e-3),
    "svag": functools.partial(mo.svag, 1e-3),
}


@pytest.mark.parametrize("build", support.by_speed(MINIMISERS, FAST))
def test_optimistix_minimises_with_it(build):
    """And its derivative is that of the minimum, whatever the optimizer was."""

    def distance(y, target):
        return jnp.sum((y["x"] - target) ** 2) + jnp.sum(y["z"] ** 2)

    @jax.jit
    def minimum(target):
        solver = optx.OptaxMinimiser(build(), rtol=1e-6, atol=1e-6)
        start = {"x": jnp.zeros(3), "z": jnp.ones(())}
        return optx.minimise(distance, solver, start, target, max_steps=2_000).value

    np.testing.assert_allclose(minimum(2.0)["x"], 2.0, atol=0.02)
    assert abs(minimum(2.0)["z"]) < 0.02
    slope = jax.jvp(minimum, (2.0,), (1.0,))[1]["x"]
    np.testing.assert_allclose(slope, 1.0, atol=1e-4)


@pytest.mark.parametrize("build", support.by_speed(GUIDES, FAST))
def test_numpyro_infers_a_mean_with_it(build):
    data = 3.0 + np.random.default_rng(0).normal(size=100).astype(np.float32)

    def model(data):
        mean = numpyro.sample("mean", distributions.Normal(0.0, 10.0))
        numpyro.sample("data", distributions.Normal(mean, 1.0), obs=data)

    optimizer = numpyro.optim.optax_to_numpyro(build())
    svi = SVI(model, AutoNormal(model), optimizer, Trace_ELBO(num_particles=8))
    result = svi.run(jax.random.key(0), 800, data, progress_bar=False)
    np.testing.assert_allclose(result.params["mean_auto_loc"], data.mean(), atol=0.1)
    np.testing.assert_allclose(result.params["mean_auto_scale"], 0.1, atol=0.05)
    assert result.losses[-1] < result.losses[0]
