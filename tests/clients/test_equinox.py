"""Equinox: a model that is a tree of arrays and of other things."""

import equinox as eqx
import jax
import optax
import pytest

import msvag_optax as mo
from tests.clients import programs


class Layers(eqx.Module):
    """Nothing but arrays, so that the module itself is a tree of parameters."""

    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.up = eqx.nn.Linear(8, 16, key=first)
        self.down = eqx.nn.Linear(16, 8, key=second)

    def __call__(self, x):
        return self.down(jax.nn.tanh(self.up(x)))


def loss_of(model):
    return programs.mean_square(jax.vmap(model)(programs.X))


@pytest.mark.parametrize("build", programs.EVERY)
def test_the_arrays_of_a_model_are_filtered(build):
    """The activation of this model is a leaf, which no optimizer can take."""
    tx = build(programs.RATE, **programs.DECAY)
    model = eqx.nn.MLP(8, 8, 16, 1, key=jax.random.key(0))
    assert not all(map(eqx.is_array, jax.tree.leaves(model)))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    twin = programs.Twin(tx, eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        gradients = eqx.filter_grad(loss_of)(model)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(gradients, state, params)
        return eqx.apply_updates(model, updates), state, gradients

    for _ in range(programs.STEPS):
        model, state, gradients = step(model, state)
        twin.follow(gradients)
    twin.assert_is_at(eqx.filter(model, eqx.is_inexact_array))


@pytest.mark.parametrize("build", programs.EVERY)
def test_a_module_is_its_own_tree_of_parameters(build):
    tx = build(programs.RATE, **programs.DECAY)
    model = Layers(jax.random.key(0))
    assert callable(model)
    state = tx.init(model)
    twin = programs.Twin(tx, model)

    @jax.jit
    def step(model, state):
        gradients = jax.grad(loss_of)(model)
        updates, state = tx.update(gradients, state, model)
        return optax.apply_updates(model, updates), state, gradients

    for _ in range(programs.STEPS):
        model, state, gradients = step(model, state)
        twin.follow(gradients)
    twin.assert_is_at(model)


def test_layers_in_a_scan_have_norms_of_their_own():
    """The module can be called, and is a tree all the same."""
    tx = mo.novograd(programs.RATE, stacked=["weight", "bias"])
    keys = jax.random.split(jax.random.key(0), 3)
    layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(8, 8, key=key))(keys)
    dynamic, static = eqx.partition(layers, eqx.is_inexact_array)

    def stacked_loss(dynamic):
        def apply(x, layer):
            return jax.nn.tanh(jax.vmap(eqx.combine(layer, static))(x)), None

        return programs.mean_square(jax.lax.scan(apply, programs.X, dynamic)[0])

    state = tx.init(dynamic)
    twin = programs.Twin(tx, dynamic)
    for _ in range(programs.STEPS):
        gradients = jax.grad(stacked_loss)(dynamic)
        updates, state = tx.update(gradients, state, dynamic)
        dynamic = eqx.apply_updates(dynamic, updates)
        twin.follow(gradients)
    twin.assert_is_at(dynamic)
    norms = jax.tree.leaves(optax.tree.get(state, "second_moment"))
    assert [norm.shape[0] for norm in norms if norm.ndim] == [3, 3]
