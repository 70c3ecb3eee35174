"""A tree of any node classes, of flax and of Equinox, gives the numbers that a dict gives.

What has not its parameter's shape, as a layer's norm, stands outside of the box in which flax keeps
an array with what it says of the array's axes.
"""

import equinox as eqx
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding

import msvag_optax as mo
from tests import conformance
from tests.conformance import PARAMS, RATE, ROWS, SHAPES, STREAM, TYPICAL
from tests.support import by_speed

NAMES = {name: ("devices", None)[: len(shape)] for name, shape in SHAPES.items()}
FAST = ("novograd-stacked", "novograd-amsgrad", "expectigrad", "lazy_rows", "adapted-lion")


class Layer(eqx.Module):
    """Whose node can be called, as any module's."""

    bias: jax.Array
    kernel: jax.Array

    def __call__(self, x):
        return x @ self.kernel + self.bias


def partitioned(tree):
    return {name: nn.Partitioned(x, NAMES[name]) for name, x in tree.items()}


def logically_partitioned(tree):
    return {name: nn.LogicallyPartitioned(x, NAMES[name]) for name, x in tree.items()}


def nnx_state(tree):
    return nnx.State({name: nnx.Param(x) for name, x in tree.items()})


def module(tree):
    return Layer(**tree)


def _is_box(x):
    return isinstance(x, nn.Partitioned)


NODES = [partitioned, logically_partitioned, nnx_state, module]
# The others differ from these in a formula, which is handed arrays whatever the tree is made of.
CHOSEN = {row.name: row for row in ROWS if row.name in {*TYPICAL, *FAST}}
rows = pytest.mark.parametrize("row", by_speed(CHOSEN, FAST))


def plain(tree):
    return dict(zip(sorted(SHAPES), jax.tree.leaves(tree), strict=True))


@rows
@pytest.mark.parametrize("node", NODES)
def test_any_nodes_give_the_numbers_of_a_dict(row, node):
    tx = row.build(RATE)
    desired = conformance.run_eagerly(tx)
    actual = conformance.run_eagerly(tx, [node(gradient) for gradient in STREAM], node(PARAMS))
    conformance.assert_same([*map(plain, actual.updates)], desired.updates)
    conformance.assert_same_types(tx.init(node(PARAMS)), actual.state)
    for found, expected in zip(*map(jax.tree.leaves, (actual.state, desired.state)), strict=True):
        np.testing.assert_array_equal(found, expected)


@rows
@pytest.mark.parametrize("node", NODES[:2])
def test_a_box_holds_what_has_its_parameters_shape(row, node):
    """So that the names of its axes are those of what it holds."""
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    tx = row.build(RATE)

    @jax.jit
    def init(params):
        state = tx.init(params)
        specs = nn.get_partition_spec(state)
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        return jax.lax.with_sharding_constraint(state, shardings)

    state = init(node(PARAMS))
    conformance.assert_same(state, tx.init(node(PARAMS)))
    for path, x in jax.tree.leaves_with_path(state, is_leaf=_is_box):
        if _is_box(x):
            assert x.value.shape == SHAPES[path[-1].key]
        else:
            assert x.shape in ((), (8, 1))  # counts and norms


@rows
def test_a_box_may_lack_its_gradient(row):
    tx, params = row.build(RATE), partitioned(PARAMS)
    _, state = tx.update(partitioned(STREAM[0]), tx.init(params), params)
    without = partitioned(STREAM[1]) | {"kernel": nn.Partitioned(None, NAMES["kernel"])}
    updates, later = tx.update(without, state, params)
    assert not np.any(updates["kernel"].value)
    conformance.assert_same_types(state, later)
    alone = tx.update(STREAM[0], tx.init(PARAMS), PARAMS)[1]
    desired, desired_state = tx.update(STREAM[1] | {"kernel": None}, alone, PARAMS)
    conformance.assert_same(updates["bias"].value, desired["bias"])
    for found, expected in zip(*map(jax.tree.leaves, (later, desired_state)), strict=True):
        np.testing.assert_array_equal(found, expected)


WRAPPERS = {
    "kept_in": lambda tx: mo.kept_in(tx, jnp.bfloat16, "stochastic"),
    "master_copy": mo.master_copy,
    "rounded_parameters": mo.rounded_parameters,
    "of optax's": lambda tx: mo.kept_in(optax.chain(optax.identity(), tx), jnp.bfloat16),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_meet_what_stands_outside_of_boxes(wrap):
    """The norm of a layer, where its parameter is in a box."""
    tx = wrap(mo.novograd(RATE))

    def step(node):
        params, gradients = (node(conformance.cast(x, jnp.bfloat16)) for x in (PARAMS, STREAM[0]))
        return jax.tree.leaves(tx.update(gradients, tx.init(params), params))

    desired = step(dict)
    for node in NODES:
        conformance.assert_same(step(node), desired)


@pytest.mark.parametrize("node", NODES[:3])
def test_the_state_beside_boxes_can_be_saved_and_mapped(node):
    tx, params = mo.novograd(RATE, amsgrad=True), node(PARAMS)
    state = tx.update(node(STREAM[0]), tx.init(params), params)[1]
    saved = flax.serialization.to_bytes(jax.tree.leaves(state))
    restored = flax.serialization.from_bytes(jax.tree.leaves(state), saved)
    conformance.assert_same(jax.tree.map(jnp.asarray, restored), jax.tree.leaves(state))
    doubled = optax.tree.map_params(tx, lambda x: 2 * x, state)
    norms = optax.tree.get(doubled, "maximum"), optax.tree.get(state, "maximum")
    for two, one in zip(*map(jax.tree.leaves, norms), strict=True):
        assert two == 2 * one


def test_layers_are_stacked_in_any_nodes():
    """Functions and patterns select them alike."""
    estimates = []
    for stacked in (["kernel"], lambda name, shape: shape.ndim == 2):
        norms = mo.running_average(mo.arithmetic(), of=mo.layer_square_norm(stacked=stacked))
        for node in (dict, nnx_state, module):
            params = node(PARAMS)
            estimates.append(plain(norms.update(params, norms.init(params))[0]))
    assert jnp.shape(estimates[0]["kernel"]) == (8, 1)
    for estimate in estimates[1:]:
        conformance.assert_same(estimate, estimates[0])
