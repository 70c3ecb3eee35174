import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import msvag_optax as mo


def run(tx, gradients, params):
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(len(jax.tree.leaves(gradients)[0])):
        gradient = jax.tree.map(lambda g, i=step: g[i], gradients)
        updates, state = update(gradient, state, params)
    return updates, state


@pytest.fixture
def gradients():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((400, 50))
    return {"a": jnp.asarray(2.0 + noise), "b": jnp.asarray(0.5 + 3 * noise)}


PARAMS = {"a": jnp.ones(50), "b": jnp.ones(50)}


@pytest.mark.parametrize(
    "tx",
    [
        mo.msvag(0.1, 0.99),
        mo.svag(0.1, 0.99),
        optax.chain(mo.variance_adapted(optax.trace(0.9), 0.99), optax.scale(-0.1)),
        optax.chain(mo.watch_moments(mo.exponential(0.99)), optax.adam(0.1)),
        optax.chain(mo.watch_moments(mo.arithmetic()), mo.novograd(0.1)),
    ],
    ids=["msvag", "svag", "variance_adapted", "adam", "novograd"],
)
def test_ratios_and_scale_are_the_samples(tx, gradients):
    _, state = run(tx, gradients, PARAMS)
    ratios = mo.signal_to_noise(state)
    np.testing.assert_allclose(ratios["a"], 2.0, rtol=0.1)
    np.testing.assert_allclose(ratios["b"], 0.5 / 3, rtol=0.2)
    np.testing.assert_allclose(mo.noise_scale(state), (1 + 9) / (4 + 0.25), rtol=0.1)


def test_noise_alone_has_no_signal():
    """The mean of n gradients is not zero either: what noise adds to its square is taken off."""
    noise = np.random.default_rng(1).standard_normal((100, 10_000))
    tx = mo.watch_moments(mo.arithmetic())
    _, state = run(tx, jnp.asarray(noise), jnp.ones(10_000))
    assert mo.signal_to_noise(state) < 0.03


def test_noise_scale_does_not_ask_how_elements_are_divided_into_leaves():
    """Also where a leaf has less signal than noise alone would show."""
    observed = np.asarray([[1.0, 3.0, 1.0], [-1.0, 1.0, 0.1]], np.float32)  # no mean; 2; 0.55
    tx = mo.watch_moments(mo.arithmetic())
    _, together = run(tx, jnp.asarray(observed), jnp.ones(3))
    leaves = {str(i): jnp.asarray(observed[:, i]) for i in range(3)}
    _, apart = run(tx, leaves, dict.fromkeys(leaves, jnp.ones(())))
    np.testing.assert_allclose(mo.noise_scale(apart), mo.noise_scale(together), rtol=1e-6)
    assert mo.signal_to_noise(apart)["0"] == 0


def test_watching_changes_no_update(gradients):
    watched = optax.chain(mo.watch_moments(mo.exponential(0.9)), optax.adam(0.1))
    for a, b in zip(
        jax.tree.leaves(run(watched, gradients, PARAMS)[0]),
        jax.tree.leaves(run(optax.adam(0.1), gradients, PARAMS)[0]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_no_gradient_no_signal_no_noise():
    tx = mo.watch_moments(mo.arithmetic())
    params = {"unused": jnp.ones(3), "empty": jnp.ones((0, 2)), "huge": jnp.ones(2)}
    gradients = {k: jnp.stack([0 * p, 0 * p]) for k, p in params.items()}
    gradients["huge"] = jnp.asarray([[1e25, 1e25], [-1e25, 1e25]])
    _, state = run(tx, gradients, params)
    ratios = mo.signal_to_noise(state)
    assert ratios["unused"] == ratios["empty"] == 0
    assert jnp.isfinite(ratios["huge"])
    _, state = run(tx, {"unused": gradients["unused"]}, {"unused": params["unused"]})
    assert mo.noise_scale(state) == 0


def test_read_from_flax_nnx():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, mo.msvag(0.1), wrt=nnx.Param)
    for scale in (1.0, 3.0):
        x = scale * jnp.ones((4, 3))
        optimizer.update(model, nnx.grad(lambda m, x=x: jnp.sum(m(x)))(model))
    ratios = mo.signal_to_noise(optimizer.opt_state)
    assert not any(jnp.isnan(leaf) for leaf in jax.tree.leaves(ratios))
    assert jnp.isfinite(mo.noise_scale(optimizer.opt_state))


def test_moments_must_be_in_one_place():
    with pytest.raises(ValueError, match="got a state that keeps none"):
        mo.signal_to_noise(optax.adam(0.1).init(PARAMS))
    twice = optax.chain(mo.watch_moments(mo.arithmetic()), mo.msvag(0.1)).init(PARAMS)
    with pytest.raises(ValueError, match="got a state that keeps them in 2"):
        mo.noise_scale(twice)


def test_stacked_layers_have_ratios_of_their_own():
    noise = np.random.default_rng(0).normal(size=(50, 3, 4, 2)).astype(np.float32)
    gradients = noise + np.asarray([0.1, 1.0, 10.0], np.float32)[:, None, None]

    def ratios(observed, **options):
        params = jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), observed)
        _, state = run(mo.msvag(0.1), jax.tree.map(jnp.asarray, observed), params)
        return mo.signal_to_noise(state, **options)

    stacked = ratios({"blocks": gradients, "head": gradients[:, 0]}, stacked=["^blocks"])
    apart = ratios({str(layer): gradients[:, layer] for layer in range(3)})
    np.testing.assert_allclose(stacked["blocks"], [apart[str(i)] for i in range(3)], rtol=1e-5)
    np.testing.assert_allclose(stacked["head"], apart["0"], rtol=1e-5)


def test_a_pattern_of_stacked_layers_must_fit():
    state = mo.msvag(0.1).init({"scale": jnp.zeros(()), "blocks": jnp.zeros((2, 2))})
    with pytest.raises(ValueError, match=r"`stacked` has the pattern 'layers'.*'blocks', 'scale'"):
        mo.signal_to_noise(state, stacked=["layers"])
    with pytest.raises(ValueError, match="`stacked` matches 'scale', a scalar"):
        mo.signal_to_noise(state, stacked=["scale"])
    with pytest.raises(TypeError, match="`stacked` must be a list of regular"):
        mo.signal_to_noise(state, stacked="blocks")


def test_the_docstring_has_what_the_benchmark_has_found():
    table = Path(__file__).parents[2] / "benchmarks" / "results" / "noise.md"
    rows = re.findall(r"^\| \d+ \| (.+?) \|.*\| (\d+ of \d+) \|", table.read_text(), re.M)
    over = {found for source, found in rows if source == "over steps"}
    within = {found for source, found in rows if source in ("examples", "4 microbatches")}
    assert (over, within) == ({"1 of 24"}, {"24 of 24"})
    said = " ".join((mo.signal_to_noise.__doc__ or "").split())
    assert "finds a signal in 1 of 24 readings over steps, and in all within steps" in said
