"""Inside of `shard_map` and `pmap`, the norm of a layer is exact however the layer is cut."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import msvag_optax as mo

STEPS = 3


def novograd(**layers):
    """NovoGrad whose layers may be cut."""
    norms = mo.running_average(
        mo.exponential_from_first(0.9), of=mo.layer_square_norm(**layers), count_nonzero=False
    )
    return mo.dependable(
        optax.chain(
            mo.from_estimates(mo.over_rms(1e-7), second_moment=norms),
            optax.trace(0.9),
            optax.scale_by_learning_rate(0.1),
        )
    )


PARAMS = {
    "blocks": jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 4)), jnp.float32),
    "kernel": jnp.asarray(np.random.default_rng(1).normal(size=(8, 4)), jnp.float32),
    "bias": jnp.asarray(np.random.default_rng(2).normal(size=4), jnp.float32),
}
SPECS = {
    "rows": {"blocks": P(None, "model"), "kernel": P("model"), "bias": P()},
    "both axes": {"blocks": P(None, "data", "model"), "kernel": P(("data", "model")), "bias": P()},
}


def train(tx, params, steps=STEPS):
    """A few steps downhill, where the gradient of each element is a function of it alone."""
    state = tx.init(params)
    for _ in range(steps):
        gradients = jax.tree.map(lambda p: 3 * p + 1, params)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


def by_hand(tx, specs, check_vma=True, kind=AxisType.Auto, steps=STEPS):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    mapped = jax.shard_map(
        partial(train, tx, steps=steps),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=specs,
        check_vma=check_vma,
    )
    shardings = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
    return jax.jit(mapped), jax.device_put(PARAMS, shardings)


def assert_close(params, expected):
    for name in expected:
        np.testing.assert_allclose(params[name], expected[name], rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [pytest.param("rows", marks=pytest.mark.slow), "both axes"])
@pytest.mark.parametrize("stacked", [(), ("blocks",)])
def test_pieces_make_the_norm_of_the_layer(spec, stacked, kind):
    tx = novograd(stacked=stacked, axis_name=("data", "model"))
    run, params = by_hand(tx, SPECS[spec], kind=kind)
    assert_close(run(params), train(novograd(stacked=stacked), PARAMS))


def test_a_step_sums_all_layers_in_one_all_reduce():
    run, params = by_hand(novograd(axis_name=("data", "model")), SPECS["both axes"], steps=1)
    compiled = run.lower(params).compile().as_text()
    assert len(re.findall(r" all-reduce(?:-start)?\(", compiled)) == 1


def test_without_tracking_a_rule_says_which_parameters_are_cut():
    rule = {"kernel$": ("data", "model"), "blocks": ("data", "model")}
    run, params = by_hand(novograd(axis_name=rule), SPECS["both axes"], check_vma=False)
    assert_close(run(params), train(novograd(), PARAMS))


def test_in_pmap_a_rule_says_which_parameters_are_cut():
    tx = novograd(axis_name={"kernel": "model"})
    params = {"kernel": PARAMS["kernel"], "bias": jnp.broadcast_to(PARAMS["bias"], (8, 4))}
    trained = jax.pmap(partial(train, tx), axis_name="model")(params)
    expected = train(novograd(), {"kernel": PARAMS["kernel"], "bias": PARAMS["bias"]})
    np.testing.assert_allclose(trained["kernel"], expected["kernel"], rtol=2e-6)
    np.testing.assert_allclose(trained["bias"][3], expected["bias"], rtol=2e-6)


def test_axes_that_are_left_to_the_compiler_are_not_summed_over():
    tx = novograd(axis_name=("data", "model"))
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    params = {"kernel": PARAMS["kernel"]}
    cut = jax.NamedSharding(mesh, P(("data", "model")))
    mapped = jax.shard_map(
        partial(train, tx),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
        axis_names={"data"},
    )
    trained = jax.jit(mapped)(jax.device_put(params, cut))
    assert_close(trained, train(novograd(), params))


def test_what_is_read_from_a_state_is_read_from_all_of_it():
    def read(params):
        tx = mo.msvag(0.1)
        _, state = tx.update(params, tx.init(params))
        return mo.signal_to_noise(state), mo.noise_scale(state)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    kernel = {"kernel": PARAMS["kernel"]}
    for specs in (P(), P("data")):
        mapped = jax.jit(jax.shard_map(read, mesh=mesh, in_specs=specs, out_specs=P()))
        if specs == P():
            mapped(kernel)
        else:
            with pytest.raises(ValueError, match=r"may differ along .*'data'.*outside"):
                mapped(kernel)


def test_outside_of_shard_map_layers_are_whole():
    assert_close(train(novograd(axis_name="model"), PARAMS), train(novograd(), PARAMS))


def test_the_named_optimizer_refuses_a_piece():
    run, params = by_hand(mo.novograd(0.1), SPECS["rows"])
    with pytest.raises(ValueError, match=r"may differ along the mesh axes 'model'.*axis_name"):
        run(params)


def test_bert_refuses_to_clip_by_the_norm_of_a_piece():
    run, params = by_hand(mo.bert_adamw(0.1, 100, 0), SPECS["rows"])
    with pytest.raises(ValueError, match=r"may differ along the mesh axes 'model'.*max_grad_norm"):
        run(params)
    unclipped = mo.bert_adamw(0.1, 100, 0, max_grad_norm=None)
    run, params = by_hand(unclipped, SPECS["rows"])
    assert_close(run(params), train(unclipped, PARAMS))


def test_a_device_may_have_layers_of_its_own():
    """An ensemble with a member on each device is as good as its members one by one."""
    tx = novograd(axis_name=())
    mesh = jax.make_mesh((8,), ("member",), axis_types=(AxisType.Auto,))
    members = {"kernel": jnp.arange(1.0, 33.0).reshape(8, 4)}
    mapped = jax.shard_map(
        partial(train, tx), mesh=mesh, in_specs=(P("member"),), out_specs=P("member")
    )
    trained = jax.jit(mapped)(members)["kernel"]
    alone = [train(novograd(), {"kernel": row[None]})["kernel"] for row in members["kernel"]]
    np.testing.assert_allclose(trained, jnp.concatenate(alone), rtol=2e-6)


def test_an_axis_that_the_mesh_does_not_have_is_an_error():
    run, params = by_hand(novograd(axis_name="modle"), SPECS["rows"])
    with pytest.raises(NameError, match="modle"):
        run(params)


def test_a_rule_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"`axis_name` has the pattern 'kernle'.*'kernel'"):
        novograd(axis_name={"kernle": "model"}).init(PARAMS)


@pytest.mark.parametrize("axis_name", [3, ["model", 1], {"kernel": 2}])
def test_what_is_no_name_is_an_error(axis_name):
    with pytest.raises(TypeError, match="`axis_name` must be the name of a mesh axis"):
        mo.layer_square_norm(axis_name=axis_name)
