"""The recipe for different optimizers in different parts of a model, in each framework."""

import re
from pathlib import Path

import equinox as eqx
import flax.linen
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import msvag_optax as mo
from tests.clients import programs

RECIPES = Path(__file__).parents[2] / "docs" / "recipes.md"


def recipe(title):
    """The code of a recipe, as the page has it, without what it does to the page's model."""
    section = re.search(rf"^### {title}\n.*?```python\n(.*?)```", RECIPES.read_text(), re.M | re.S)
    lines = [line for line in section[1].splitlines() if not re.search("train|^assert", line)]
    return "\n".join(lines)


def optimizers():
    """The optimizer of each part, and both together, which are found on the page."""
    names = {"jax": jax, "mo": mo, "optax": optax}
    exec(recipe("Different optimizers for different parts"), names)
    both = names["tx"]
    exec(recipe("Freeze a part"), names)
    return both, names["tx"]


# Each returns parameters, and what makes steps: `(tx) -> (parameters, gradients)` after each one.


def plain_jax():
    def loss_of(params):
        hidden = jnp.tanh(programs.X @ params["body"]["kernel"] + params["body"]["bias"])
        return programs.mean_square(hidden @ params["head"]["kernel"] + params["head"]["bias"])

    def layer(seed):
        kernel = jax.random.normal(jax.random.key(seed), (8, 8))
        return {"kernel": kernel, "bias": jnp.zeros(8)}

    return {"body": layer(0), "head": layer(1)}, loss_of


def linen():
    class Network(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x):
            hidden = flax.linen.tanh(flax.linen.Dense(8, name="body")(x))
            return flax.linen.Dense(8, name="head")(hidden)

    def loss_of(params):
        return programs.mean_square(Network().apply({"params": params}, programs.X))

    return Network().init(jax.random.key(0), programs.X)["params"], loss_of


def haiku():
    def network(x):
        return hk.Linear(8, name="head")(jnp.tanh(hk.Linear(8, name="body")(x)))

    init, apply = hk.without_apply_rng(hk.transform(network))
    params = init(jax.random.key(0), programs.X)
    return params, lambda params: programs.mean_square(apply(params, programs.X))


class Module(eqx.Module):
    """Callable, and with an activation among its leaves."""

    body: eqx.nn.Linear
    head: eqx.nn.Linear
    activation: object = jax.nn.tanh

    def __call__(self, x):
        return self.head(self.activation(self.body(x)))


def equinox():
    keys = jax.random.split(jax.random.key(0))
    model = Module(*[eqx.nn.Linear(8, 8, key=key) for key in keys])
    params, static = eqx.partition(model, eqx.is_inexact_array)
    assert callable(params)

    def loss_of(params):
        return programs.mean_square(jax.vmap(eqx.combine(params, static))(programs.X))

    return params, loss_of


def steps_of_a_function(params, loss_of):
    def run(tx):
        @jax.jit
        def step(params, state):
            gradients = jax.grad(loss_of)(params)
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, gradients

        now, state = params, tx.init(params)
        for _ in range(programs.STEPS):
            now, state, gradients = step(now, state)
            yield now, gradients

    return params, run


def nnx_steps():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.body = nnx.Linear(8, 8, rngs=rngs)
            self.head = nnx.Linear(8, 8, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.tanh(self.body(x)))

    def run(tx):
        model = Network(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            gradients = nnx.grad(lambda model: programs.mean_square(model(programs.X)))(model)
            optimizer.update(model, gradients)
            return gradients

        for _ in range(programs.STEPS):
            gradients = step(model, optimizer)
            yield nnx.state(model, nnx.Param), gradients

    return nnx.state(Network(nnx.Rngs(0)), nnx.Param), run


FRAMEWORKS = {
    "plain JAX": lambda: steps_of_a_function(*plain_jax()),
    "Linen": lambda: steps_of_a_function(*linen()),
    "NNX": nnx_steps,
    "Haiku": lambda: steps_of_a_function(*haiku()),
    "Equinox": lambda: steps_of_a_function(*equinox()),
}


def part(tree, name):
    return {path: x for path, x in programs.by_path(tree).items() if path.startswith(f"{name}/")}


@pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS)
def test_each_part_is_trained_by_its_optimizer(framework):
    params, run = framework()
    both, _ = optimizers()
    twins = {
        "body": programs.Twin(mo.novograd(0.01), part(params, "body")),
        "head": programs.Twin(mo.adamw(1e-3), part(params, "head")),
    }
    assert [len(twin.params) for twin in twins.values()] == [2, 2]
    for now, gradients in run(both):
        for name, twin in twins.items():
            twin.follow(part(gradients, name))
            twin.assert_is_at(part(now, name))


@pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS)
def test_a_frozen_part_stays(framework):
    params, run = framework()
    _, frozen = optimizers()
    twin = programs.Twin(mo.msvag(0.1), part(params, "head"))
    for now, gradients in run(frozen):
        twin.follow(part(gradients, "head"))
        twin.assert_is_at(part(now, "head"))
        for path, x in part(now, "body").items():
            np.testing.assert_array_equal(x, part(params, "body")[path])
