"""One compiled loop for a whole grid, and the best of its rates."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from msvag_optax import compare, problems
from tests.compare.outcomes import outcome


@pytest.fixture
def quadratic() -> problems.Problem:
    return problems.noisy_quadratic(dimension=6)


def test_a_grid_is_the_same_as_its_runs_one_by_one(quadratic):
    rates, steps = [0.003, 0.01, 0.03], 40
    grid = compare.train(quadratic, optax.adam, rates, steps=steps, seeds=2)
    assert grid.history["expected loss"].shape == (41, 2, 3)

    @jax.jit
    def one_step(params, state, rate, step, key):
        loss, gradient = quadratic.value_and_grad(params, step, jax.random.fold_in(key, step + 1))
        updates, state = optax.adam(rate).update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    for seed, (column, rate) in itertools.product(range(2), enumerate(rates)):
        key, losses = jax.random.key(seed), []
        params = quadratic.init(jax.random.fold_in(key, 0))
        state = optax.adam(rate).init(params)
        for step in range(steps):
            measured = grid.history["expected loss"][step, seed, column]
            expected = quadratic.metrics(params)["expected loss"]
            np.testing.assert_allclose(measured, expected, rtol=1e-4)
            params, state, loss = one_step(params, state, rate, step, key)
            losses.append(loss)
            average = grid.history["average loss"][step + 1, seed, column]
            np.testing.assert_allclose(average, np.mean(losses), rtol=1e-4)


def test_one_compilation_serves_all_rates_and_seeds_and_steps(quadratic):
    """251 steps are measured in spans of two and of three, which makes no difference either."""
    once = quadratic._replace(loss=chex.assert_max_traces(quadratic.loss, n=1))
    result = compare.train(once, optax.adam, [0.01, 0.1], steps=251, seeds=2)
    assert set(np.diff(result.steps)) == {2, 3}
    assert result.steps[-1] == 251


def test_every_step_is_reported_once(quadratic):
    counts = []
    compare.train(quadratic, optax.sgd, [0.1], steps=117, seeds=1, advanced=counts.append)
    assert sum(counts) == 117


def test_the_iterates_are_projected():
    away = optax.sgd(1e3)
    result = compare.train(problems.reddi_online(), lambda _: away, [1.0], steps=9, seeds=1)
    np.testing.assert_array_equal(result.history["x"][:, 0, 0], [0, -1, *[1] * 8])
    np.testing.assert_allclose(
        result.history["average loss"][:4, 0, 0], [np.nan, 1010, 505, (1010 - 20) / 3]
    )


def test_the_average_of_a_million_losses_is_not_rounded_away():
    """At `x = s - 1` the loss is `1010 s` once and `-10 s` a hundred times: `10 s / 101` each."""
    size = 0.7123
    problem = problems.reddi_online()._replace(init=lambda key: jnp.float32(size - 1))
    stay = optax.set_to_zero()
    result = compare.train(problem, lambda _: stay, [1.0], steps=2_020_000, seeds=1)
    np.testing.assert_allclose(result.history["average loss"][-1], 10 * size / 101, rtol=1e-3)


def test_every_seed_starts_elsewhere_and_the_same_for_every_optimizer(quadratic):
    starts = [
        compare.train(quadratic, build, [0.1, 0.2], steps=1, seeds=3).history["expected loss"][0]
        for build in (optax.sgd, optax.adam)
    ]
    np.testing.assert_array_equal(*starts)
    assert len(np.unique(starts[0])) == 3


@pytest.mark.parametrize(("build", "copies"), [(optax.sgd, 0), (optax.adam, 2), (optax.amsgrad, 3)])
def test_state_bytes_are_counted_for_each_parameter(quadratic, build, copies):
    result = compare.train(quadratic, build, [0.1], steps=1, seeds=1)
    assert result.state_bytes == 4 * copies
    assert result.parameters == 6


def test_the_best_rate_has_the_lowest_final_mean():
    assert (
        outcome(losses=[[0.2, 0.4, 0.3], [0.4, 0.1, 0.3]], rates=[1, 2, 3]).best("expected loss")
        == 1
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_rate_at_which_a_seed_diverged_is_never_the_best(bad):
    assert outcome(losses=[[0.0, 0.4], [bad, 0.4]]).best("expected loss") == 1
    assert outcome(losses=[[bad, np.inf], [bad, bad]]).best("expected loss") is None


@pytest.mark.parametrize(
    ("losses", "wrong"),
    [
        ([[1.1, 1.2], [1.1, 1.2]], True),
        ([[0.8, 1.2], [1.1, 1.2]], False),  # on average, the first rate is no worse than the start
        ([[np.nan, 1.2], [1.1, 1.2]], True),
        ([[np.nan, 0.9], [1.1, 0.9]], False),
        ([[np.nan, np.inf], [1.1, 1.2]], False),  # it diverged, which is told elsewhere
    ],
    ids=["up", "down_at_one", "up_or_diverged", "down_or_diverged", "diverged"],
)
def test_who_went_wrong_at_every_rate(losses, wrong):
    assert outcome(losses=losses).went_wrong("expected loss") is wrong


def test_adam_goes_wrong_on_reddis_problem_and_amsgrad_does_not():
    ways = {
        build: compare.train(
            problems.reddi_online(),
            functools.partial(build, b2=0.99),
            [0.003, 0.01],
            steps=20_200,
            seeds=1,
            measurements=1,
        ).went_wrong("x")
        for build in (optax.adam, mo.amsgrad)
    }
    assert ways == {optax.adam: True, mo.amsgrad: False}


def test_real_divergence_is_seen(quadratic):
    result = compare.train(quadratic, optax.sgd, [0.1, 1e9], steps=50, seeds=2)
    assert not np.isfinite(result.history["expected loss"][-1, :, 1]).any()
    assert result.best("expected loss") == 0


def test_a_run_is_measured_as_often_as_asked(quadratic):
    many = compare.train(quadratic, optax.adam, [0.1], steps=30, seeds=1)
    few = compare.train(quadratic, optax.adam, [0.1], steps=30, seeds=1, measurements=2)
    assert few.steps.tolist() == [0, 15, 30]
    for key, values in few.history.items():
        np.testing.assert_array_equal(values, many.history[key][::15])
    with pytest.raises(ValueError, match="`measurements` must be an integer >= 1, got 0"):
        compare.train(quadratic, optax.adam, [0.1], steps=30, seeds=1, measurements=0)
