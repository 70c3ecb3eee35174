"""Numbers of many leaves are moved apart or together, to the same place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import msvag_optax as mo
from msvag_optax import _leaves


def both(x, y):
    return x * y, x + y


@pytest.fixture
def columns():
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-15, 15, (2, 7))
    return [list(map(jnp.float32, column)) for column in scales * rng.standard_normal((2, 7))]


def test_together_is_apart(columns):
    apart = _leaves._apart(Partial(both), *columns)
    together = _leaves._together(Partial(both), *columns)
    np.testing.assert_array_equal(together, apart)
    np.testing.assert_array_equal(_leaves.map_numbers(Partial(both), *columns), apart)


def test_norms_that_are_moved_together_are_those_that_are_moved_apart(monkeypatch):
    rng = np.random.default_rng(1)
    params = {name: jnp.asarray(rng.standard_normal((3, 4)), jnp.float32) for name in "abc"}
    params["huge"] = jnp.full(4, 1e30)
    tx = mo.running_average(mo.exponential_from_first(0.9), of=mo.layer_square_norm())

    def run():
        state = tx.init(params)
        for scale in (1.0, 3.0, 0.0):
            _, state = tx.update(jax.tree.map(lambda p, s=scale: s * p, params), state)
        return state.average

    apart = run()
    monkeypatch.setattr(_leaves, "map_numbers", _leaves._together)
    together = run()
    assert apart["huge"] > 1e37
    # A kernel of vectors may round a product and a sum once, one of numbers twice.
    for name, value in apart.items():
        np.testing.assert_allclose(together[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(("platform", "vectors"), [("cpu", False), ("cuda", True), ("tpu", False)])
def test_only_a_gpu_is_given_vectors(columns, platform, vectors):
    lowered = _leaves.map_numbers.trace(Partial(both), *columns).lower(
        lowering_platforms=(platform,)
    )
    assert ("stablehlo.concatenate" in lowered.as_text()) == vectors
