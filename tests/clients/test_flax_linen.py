"""Flax Linen: a train state that is made on its mesh, by logical axes or by the mesh's own."""

import functools

import jax
import pytest
from flax import linen as nn
from flax.training.train_state import TrainState
from jax.sharding import AxisType

from tests import meshes
from tests.clients import programs

MESH = {"data": 2, "model": 4}
RULES = (("batch", "data"), ("embed", None), ("hidden", "model"))


class Network(nn.Module):
    """Two layers, annotated in the words of RULES or of MESH."""

    logical: bool

    @nn.compact
    def __call__(self, x):
        annotated = nn.with_logical_partitioning if self.logical else nn.with_partitioning
        embed, hidden = ("embed", "hidden") if self.logical else (None, "model")
        kernel, bias = nn.initializers.lecun_normal(), nn.initializers.zeros_init()
        up = nn.Dense(
            16,
            kernel_init=annotated(kernel, (embed, hidden)),
            bias_init=annotated(bias, (hidden,)),
            name="up",
        )
        down = nn.Dense(
            8,
            kernel_init=annotated(kernel, (hidden, embed)),
            bias_init=annotated(bias, (embed,)),
            name="down",
        )
        return down(nn.tanh(up(x)))


def create(model, tx, key):
    params = model.init(key, programs.X)["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


def create_on(mesh, model, tx):
    """The state, each array of which is born where it belongs, and its shardings."""
    make = functools.partial(create, model, tx)
    key = jax.random.key(0)
    spec = nn.get_partition_spec(jax.eval_shape(make, key))
    shardings = nn.logical_to_mesh_sharding(spec, mesh, RULES)
    return jax.jit(make, out_shardings=shardings)(key), shardings


def train_step(state):
    def loss_of(params):
        return programs.mean_square(state.apply_fn({"params": params}, programs.X))

    gradients = jax.grad(loss_of)(state.params)
    return state.apply_gradients(grads=gradients), gradients


# Whether the annotations are logical, and whether the boxes that hold them stay.
WAYS = {"logical": (True, True), "logical-unboxed": (True, False), "partitioned": (False, True)}


@pytest.mark.parametrize(("build", "way"), programs.each_way(WAYS))
def test_a_train_state_is_made_on_its_mesh(build, way):
    logical, boxed = way
    tx = build(programs.RATE, **programs.DECAY)
    mesh = meshes.mesh_of(MESH, AxisType.Auto)
    with jax.set_mesh(mesh):
        state, shardings = create_on(mesh, Network(logical), tx)
        if not boxed:
            state = nn.meta.unbox(state)
        step = jax.jit(train_step, in_shardings=(shardings,), out_shardings=(shardings, None))
        twin = programs.Twin(tx, state.params)
        for _ in range(programs.STEPS):
            state, gradients = step(state)
            twin.follow(gradients)
            twin.assert_is_at(state.params)
    programs.assert_lies_like(state.opt_state, state.params)
