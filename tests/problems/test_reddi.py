"""The counterexample on which Adam goes to the worst point, and longer memories do not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from msvag_optax import problems
from msvag_optax.problems import reddi


def final_x(problem: problems.Problem, tx, steps: int, seed=0) -> jax.Array:
    key = jax.random.key(seed)

    def step(t, carry):
        x, state = carry
        _, gradient = problem.value_and_grad(x, t, jax.random.fold_in(key, t))
        updates, state = tx.update(gradient, state, x)
        return problem.project(optax.apply_updates(x, updates)), state

    x = problem.init(key)
    return jax.jit(lambda: jax.lax.fori_loop(0, steps, step, (x, tx.init(x))))()[0]


def test_the_online_gradients_are_those_of_the_paper():
    problem, key = problems.reddi_online(), jax.random.key(0)
    slopes = [problem.value_and_grad(jnp.array(0.3), step, key)[1] for step in range(203)]
    paper = [1010.0 if t % 101 == 1 else -10.0 for t in range(1, 204)]
    np.testing.assert_array_equal(slopes, paper)
    # What makes -1 the best point: a whole period pushes down, however few of its steps do.
    assert sum(paper[:101]) == 10


@pytest.mark.parametrize("x", [-1.0, -0.25, 1.0])
def test_the_loss_is_the_regret(x):
    problem, key = problems.reddi_online(), jax.random.key(0)
    for step, slope in [(0, 1010.0), (1, -10.0), (101, 1010.0)]:
        loss = problem.loss(jnp.array(x), step, key)
        np.testing.assert_allclose(loss, slope * x - slope * -1, rtol=1e-6)


def test_the_stochastic_gradients_have_the_mean_of_the_paper():
    problem = problems.reddi_stochastic()
    keys = jax.random.split(jax.random.key(1), 200_000)
    slopes = jax.vmap(lambda key: problem.value_and_grad(jnp.array(0.0), 0, key)[1])(keys)
    assert set(np.unique(slopes)) == {-10.0, 1010.0}
    # E f_t = 0.2 x. One gradient has a standard deviation of 1020 sqrt(0.01 x 0.99).
    standard_error = 1020 * np.sqrt(0.01 * 0.99 / len(keys))
    assert abs(slopes.mean() - 0.2) < 4 * standard_error


def test_the_same_key_draws_the_same_gradient_at_any_step():
    problem = problems.reddi_stochastic()
    for seed in range(20):
        key = jax.random.key(seed)
        losses = {float(problem.loss(jnp.array(0.5), step, key)) for step in (0, 1, 7)}
        assert len(losses) == 1


@pytest.mark.parametrize("make", [problems.reddi_online, problems.reddi_stochastic])
def test_iterates_start_at_0_and_stay_between_the_ends(make):
    problem = make()
    assert problem.init(jax.random.key(3)) == 0
    for x, projected in [(-7.0, -1.0), (-1.0, -1.0), (0.2, 0.2), (1.5, 1.0)]:
        assert problem.project(jnp.array(x)) == jnp.float32(projected)
        assert problem.metrics(jnp.array(x)) == {"x": x}


# Whole periods, and in what follows the decays of the paper's Figure 1.
STEPS = 2_000 * reddi.PERIOD


@pytest.mark.parametrize(
    ("tx", "end"),
    [
        pytest.param(optax.adam(0.01, b2=0.99), 1.0, id="optax.adam"),
        pytest.param(mo.adamw(0.01, b2=0.99, weight_decay=0.0), 1.0, id="adamw"),
        pytest.param(mo.amsgrad(0.01, b2=0.99), -1.0, id="amsgrad"),
        pytest.param(mo.amsgrad(0.01, b2=0.99, bias_correction=False), -1.0, id="amsgrad-paper"),
        # Corrected before the maximum, the first gradient counts in full for ever, here ten times
        # the root mean square: this one needs ten times the rate.
        pytest.param(mo.amsgrad(0.1, b2=0.99, correct_before_max=True), -1.0, id="amsgrad-optax"),
        pytest.param(mo.expectigrad(0.01), -1.0, id="expectigrad"),
        pytest.param(mo.expectigrad(0.01, sparse_counter=False), -1.0, id="expectigrad-plain"),
        pytest.param(optax.sgd(1e-5, momentum=0.9), -1.0, id="sgd"),
    ],
)
def test_online_adam_ends_at_the_worst_point_and_long_memories_at_the_best(tx, end):
    # A period moves the iterate by about ten times the rate, to and fro.
    np.testing.assert_allclose(final_x(problems.reddi_online(), tx, STEPS), end, atol=0.12)


def test_at_random_adam_ends_at_the_worst_point_and_long_memories_do_not():
    problem, seeds = problems.reddi_stochastic(), jnp.arange(6)

    def ends(tx):
        return jax.vmap(lambda seed: final_x(problem, tx, 400_000, seed))(seeds)

    assert ends(optax.adam(1e-3, b2=0.99)).min() > 0.9
    # These wander: at this rate the iterate has a stationary density of about exp(-4 x).
    assert ends(mo.amsgrad(1e-3, b2=0.99)).mean() < -0.3
    assert ends(mo.expectigrad(1e-3)).mean() < -0.3
