"""Derivatives through many updates are right in both modes, wherever the formula has one.

Rates, decays, epsilons and initial parameters are learned by gradients through training. Where the
parameter of a formula is at the end of its range, at a decay of 0 or a rate of 0, or a gradient is
0, a guard against 0/0 may hide a derivative that exists. Truth is a difference quotient.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from tests.support import by_speed

pytestmark = pytest.mark.usefixtures("float64")

STEPS = 3
DRIFTS = jnp.asarray([[0.7, -0.4, 0.0], [-0.2, 0.9, 0.0], [0.5, 0.3, 0.0]])


def end(tx, start, strength=1.0):
    """A sum over the parameters after some updates, of which the last has no gradient at all."""
    params = {"w": jnp.asarray([1.0, -0.5, 0.3]) + start, "dead": jnp.asarray([0.2, 0.1])}
    state = tx.init(params)
    for step in range(STEPS):
        alive = jnp.asarray([1.0, 1.0, 0.0])
        gradients = {
            "w": strength * alive * (jnp.cos(3.0 * step) * params["w"] + DRIFTS[step]),
            "dead": jnp.zeros(2) * params["dead"],
        }
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return jnp.sum(params["w"] * jnp.asarray([1.0, 2.0, 3.0])) + jnp.sum(params["dead"])


def assert_derivative(f: Callable[[Any], jax.Array], x: float, rtol: float = 1e-4) -> None:
    """Against a difference quotient of the fourth order: one-sided, since no decay is negative."""
    h = 1e-3 if x else 2e-4
    weights = np.asarray([-25, 48, -36, 16, -3]) / 12

    @jax.jit
    def values_and_derivatives(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        forward = jax.jvp(f, (x,), (jnp.ones_like(x),))[1]
        return jax.vmap(f)(x + h * jnp.arange(5)), jax.grad(f)(x), forward

    values, reverse, forward = values_and_derivatives(jnp.asarray(x))
    assert np.isfinite(values).all()
    np.testing.assert_allclose([reverse, forward], weights @ values / h, rtol=rtol, atol=1e-7)


class Case(NamedTuple):
    """An optimizer, and which of its arguments are decays."""

    build: Callable[..., optax.GradientTransformation]
    decays: tuple[str, ...]


def case(build: Any, *decays: str, **options: Any) -> Case:
    return Case(functools.partial(build, **options), decays)


def bert_adamw(rate: Any, **options: Any) -> optax.GradientTransformation:
    return mo.bert_adamw(rate, 10, 0, **options)


# Large epsilons, since a small one bends the quotient within a step of the difference.
E = {"eps": 0.3}
CASES = {
    "msvag": case(mo.msvag, "beta"),
    "svag": case(mo.svag, "beta"),
    "expectigrad": case(mo.expectigrad, "beta", **E),
    "expectigrad, dense": case(mo.expectigrad, "beta", sparse_counter=False, **E),
    "novograd": case(mo.novograd, "b1", "b2", **E),
    "novograd, averaging": case(mo.novograd, "b1", "b2", grad_averaging=True, **E),
    "novograd, amsgrad": case(mo.novograd, "b1", "b2", amsgrad=True, **E),
    "amsgrad": case(mo.amsgrad, "b1", "b2", **E),
    "amsgrad, uncorrected": case(mo.amsgrad, "b1", "b2", bias_correction=False, **E),
    "amsgrad, corrected": case(mo.amsgrad, "b1", "b2", correct_before_max=True, **E),
    "adamw": case(mo.adamw, "b1", "b2", **E),
    "adamw, uncorrected": case(mo.adamw, "b1", "b2", bias_correction=False, **E),
    "bert_adamw": case(bert_adamw, "b1", "b2", max_grad_norm=0.5, **E),
    "bert_adamw, unclipped": case(bert_adamw, "b1", "b2", max_grad_norm=None, **E),
}
FAST = ("msvag", "novograd", "adamw", "bert_adamw")
JUMP_AT_ZERO = ("msvag", "svag")  # at a decay of 0


def cases(*without: str) -> list[Any]:
    return by_speed({name: name for name in CASES if name not in without}, FAST)


def decay_cases() -> list[Any]:
    return [
        pytest.param(name, decay, x, marks=[] if name in FAST and x == 0 else [pytest.mark.slow])
        for name, (_, decays) in CASES.items()
        for decay in decays
        for x in (0.0, 0.6)
        if x or name not in JUMP_AT_ZERO
    ]


@pytest.mark.parametrize(("name", "decay", "value"), decay_cases())
def test_with_respect_to_a_decay(name, decay, value):
    assert_derivative(lambda x: end(CASES[name].build(0.1, **{decay: x}), 0.0), value)


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("name", cases())
def test_with_respect_to_the_rate(name, rate):
    assert_derivative(lambda x: end(CASES[name].build(x), 0.0), rate)


@pytest.mark.parametrize("name", cases(*JUMP_AT_ZERO))
def test_with_respect_to_the_first_parameters(name):
    assert_derivative(lambda x: end(CASES[name].build(0.1), x), 0.0)


@pytest.mark.parametrize("name", cases(*JUMP_AT_ZERO))
def test_at_gradients_of_zero(name):
    """There, the quotient has the derivative of its numerator over the epsilon."""
    assert_derivative(lambda x: end(CASES[name].build(0.1), 0.0, strength=x), 0.0, rtol=2e-3)


@pytest.mark.parametrize("name", ["msvag", "svag"])
def test_at_a_first_gradient_of_zero_the_derivative_is_the_rate(name):
    def step(gradient):
        tx = CASES[name].build(0.1)
        params = jnp.asarray([1.0, 2.0])
        gradients = gradient * jnp.asarray([0.0, 1.0])
        updates, _ = tx.update(gradients, tx.init(params), params)
        return updates.sum()

    assert jax.grad(step)(0.0) == pytest.approx(-0.1)
    assert jax.jvp(step, (0.0,), (1.0,))[1] == pytest.approx(-0.1)


@pytest.mark.parametrize("name", cases())
def test_where_there_is_no_derivative_it_is_finite(name):
    """At a decay of 0 where the optimizer jumps, and without epsilons at gradients of 0."""
    arguments = {"beta": 0.0} if name in JUMP_AT_ZERO else {}
    if "expectigrad" not in name and name not in JUMP_AT_ZERO:  # Expectigrad's may not be 0.
        arguments["eps"] = 0.0

    def loss(values):
        built = CASES[name].build(values["rate"], **{k: values[k] for k in arguments})
        return end(built, values["start"], strength=values["strength"])

    values = {"rate": 0.1, "start": 0.0, "strength": 0.0, **arguments}
    values = jax.tree.map(jnp.asarray, values)
    for mode in (jax.grad, jax.jacfwd):
        derivatives = jax.jit(mode(loss))(values)
        assert all(np.isfinite(x) for x in derivatives.values()), derivatives
