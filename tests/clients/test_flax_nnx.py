"""Flax NNX: annotated parameters on a mesh, and LoRA."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType

from tests import conformance, meshes
from tests.clients import programs

MESH = {"data": 2, "model": 4}


def annotated(init, *axes):
    """The initializer of a parameter that is spread over these axes of a mesh."""

    def spread(*arguments):
        value = init(*arguments)
        # Before 0.12.1, flax itself spreads over Auto axes alone, and only checks the others.
        explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
        return jax.sharding.reshard(value, jax.P(*axes)) if explicit else value

    return nnx.with_partitioning(spread, axes)


class Network(nnx.Module):
    """Two layers, whose parameters say over which axes of a mesh they are spread."""

    def __init__(self, rngs):
        kernel, bias = nnx.initializers.lecun_normal(), nnx.initializers.zeros_init()
        self.up = nnx.Linear(
            8,
            16,
            kernel_init=annotated(kernel, "data", "model"),
            bias_init=annotated(bias, "model"),
            rngs=rngs,
        )
        self.down = nnx.Linear(
            16,
            8,
            kernel_init=annotated(kernel, None, "model"),
            bias_init=annotated(bias, "model"),
            rngs=rngs,
        )

    def __call__(self, x):
        return self.down(nnx.tanh(self.up(x)))


def loss_of(model):
    return programs.mean_square(model(programs.X))


@nnx.jit
def train_step(model, optimizer):
    gradients = nnx.grad(loss_of)(model)
    optimizer.update(model, gradients)
    return gradients


def create(tx):
    model = Network(nnx.Rngs(0))
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def create_with_constraint(tx):
    """As one compiled program that leaves no array whole on one device on its way."""

    @nnx.jit
    def compiled():
        model, optimizer = create(tx)
        state = nnx.state((model, optimizer))
        state = jax.lax.with_sharding_constraint(state, nnx.get_partition_spec(state))
        nnx.update((model, optimizer), state)
        return model, optimizer

    return compiled()


WAYS = {
    "eager-explicit": (create, AxisType.Explicit),
    "eager-auto": (create, AxisType.Auto),
    "constrained-auto": (create_with_constraint, AxisType.Auto),
}


@pytest.mark.parametrize(("build", "way"), programs.each_way(WAYS))
def test_annotated_parameters_on_a_mesh(build, way):
    make, kind = way
    tx = build(programs.RATE, **programs.DECAY)
    with jax.set_mesh(meshes.mesh_of(MESH, kind)):
        model, optimizer = make(tx)
        twin = programs.Twin(tx, nnx.state(model, nnx.Param))
        kernel = model.up.kernel[...]
        assert len(kernel.sharding.device_set) == 8
        assert not kernel.sharding.is_fully_replicated
        for _ in range(programs.STEPS):
            twin.follow(train_step(model, optimizer))
            twin.assert_is_at(nnx.state(model, nnx.Param))
        programs.assert_lies_like(nnx.state(optimizer.opt_state), nnx.state(model, nnx.Param))


@pytest.mark.parametrize("build", programs.EVERY)
def test_lora_trains_its_two_matrices_alone(build):
    """One of which is zero at first, so that the other one's first gradient is."""
    tx = build(programs.RATE, weight_decay=0.1, exclude_from_weight_decay=())
    rngs = nnx.Rngs(0)
    base = nnx.Linear(8, 8, rngs=rngs)
    model = nnx.LoRA(8, 2, 8, base_module=base, rngs=rngs)
    frozen = programs.by_path(nnx.state(base))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    twin = programs.Twin(tx, nnx.state(model, nnx.LoRAParam))
    assert list(twin.params) == ["lora_a", "lora_b"]

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(loss_of, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
        optimizer.update(model, gradients)
        return gradients

    for _ in range(programs.STEPS):
        twin.follow(step(model, optimizer))
    twin.assert_is_at(nnx.state(model, nnx.LoRAParam))
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(nnx.state(optimizer.opt_state)))
    conformance.assert_same(programs.by_path(nnx.state(base)), frozen)
