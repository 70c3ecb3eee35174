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


def end(tx, start, strength):
    """A sum over the parameters after some updates, of which the last has no gradient at all."""
    params = {"w": jnp.asarray([1.0, -0.5, 0.3]) + start, "dead": jnp.asarray([0.2, 0.1])}
    alive = jnp.asarray([1.0, 1.0, 0.0])

    def step(carry, inputs):
        params, state = carry
        slope, drift = inputs
        gradients = {
            "w": strength * alive * (slope * params["w"] + drift),
            "dead": jnp.zeros(2) * params["dead"],
        }
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    slopes = np.cos(3.0 * np.arange(STEPS))
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), (slopes, DRIFTS))
    return jnp.sum(params["w"] * jnp.asarray([1.0, 2.0, 3.0])) + jnp.sum(params["dead"])


class Case(NamedTuple):
    """An optimizer, which of its arguments are decays, and its epsilon if it has any."""

    build: Callable[..., optax.GradientTransformation]
    decays: tuple[str, ...]
    epsilon: dict[str, float]


def case(build: Any, *decays: str, eps: float | None = None, **options: Any) -> Case:
    epsilon = {} if eps is None else {"eps": eps}
    return Case(functools.partial(build, **options), decays, epsilon)


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


class Derivatives(NamedTuple):
    """A loss at some points of a line, and its derivatives at each of them.

    Attributes:
      values: the losses.
      reverse: in reverse mode, with respect to each number.
      forward: in forward mode, along the line.
    """

    values: jax.Array
    reverse: dict[str, jax.Array]
    forward: jax.Array


@functools.cache
def derivatives_of(name: str) -> Callable[..., Derivatives]:
    """From numbers, a direction and distances to derivatives; compiled once for all tests.

    The numbers are rate, decays and epsilon of the optimizer, a shift of the first parameters, and
    the strength of all gradients.
    """

    def loss(numbers: dict[str, Any]) -> jax.Array:
        options = {k: x for k, x in numbers.items() if k not in ("rate", "start", "strength")}
        tx = CASES[name].build(numbers["rate"], **options)
        return end(tx, numbers["start"], numbers["strength"])

    def along(numbers: Any, direction: Any, distance: Any) -> Derivatives:
        point = jax.tree.map(lambda x, d: x + distance * d, numbers, direction)
        value, reverse = jax.value_and_grad(loss)(point)
        return Derivatives(value, reverse, jax.jvp(loss, (point,), (direction,))[1])

    return jax.jit(jax.vmap(along, in_axes=(None, None, 0)))


def derivatives(name: str, argument: str, distances: Any, **numbers: float) -> Derivatives:
    """The derivatives of a case with respect to one argument, with these numbers."""
    numbers = numbers_of(name) | numbers
    direction = {k: jnp.asarray(float(k == argument)) for k in numbers}
    numbers = jax.tree.map(jnp.asarray, numbers)
    return derivatives_of(name)(numbers, direction, jnp.asarray(distances))


def numbers_of(name: str) -> dict[str, float]:
    options = {"beta": 0.9, "b1": 0.9, "b2": 0.999}
    numbers = {decay: options[decay] for decay in CASES[name].decays} | CASES[name].epsilon
    return {"rate": 0.1, "start": 0.0, "strength": 1.0, **numbers}


def assert_derivative(name: str, argument: str, x: float, rtol: float = 1e-4) -> None:
    """Against a difference quotient of the fourth order: one-sided, since no decay is negative."""
    h = 1e-3 if x else 2e-4
    weights = np.asarray([-25, 48, -36, 16, -3]) / 12
    found = derivatives(name, argument, h * np.arange(5), **{argument: x})
    assert np.isfinite(found.values).all()
    both = [found.reverse[argument][0], found.forward[0]]
    np.testing.assert_allclose(both, weights @ found.values / h, rtol=rtol, atol=1e-7)


def cases(*without: str) -> list[Any]:
    return by_speed({name: name for name in CASES if name not in without}, FAST)


def decay_cases() -> list[Any]:
    return [
        pytest.param(name, decay, x, marks=[] if name in FAST and x == 0 else [pytest.mark.slow])
        for name, case in CASES.items()
        for decay in case.decays
        for x in (0.0, 0.6)
        if x or name not in JUMP_AT_ZERO
    ]


@pytest.mark.parametrize(("name", "decay", "value"), decay_cases())
def test_with_respect_to_a_decay(name, decay, value):
    assert_derivative(name, decay, value)


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("name", cases())
def test_with_respect_to_the_rate(name, rate):
    assert_derivative(name, "rate", rate)


@pytest.mark.parametrize("name", cases(*JUMP_AT_ZERO))
def test_with_respect_to_the_first_parameters(name):
    assert_derivative(name, "start", 0.0)


@pytest.mark.parametrize("name", cases(*JUMP_AT_ZERO))
def test_at_gradients_of_zero(name):
    """There, the quotient has the derivative of its numerator over the epsilon."""
    assert_derivative(name, "strength", 0.0, rtol=2e-3)


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

    numbers = {"rate": 0.1, "start": 0.0, "strength": 0.0, **arguments}
    for argument in numbers:
        found = derivatives(name, argument, np.zeros(5), **numbers)
        assert np.isfinite([found.reverse[argument], found.forward]).all(), argument
