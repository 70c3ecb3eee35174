"""The bowl: its gradient is its formula's, and its metric is what the losses average to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from msvag_optax import problems

# A problem in 8 dimensions, with the matrix that its documentation promises.
DIMENSION, CONDITION, NOISE = 8, 50.0, 0.3


def make(rotated: bool, noise: float = NOISE) -> problems.Problem:
    return problems.noisy_quadratic(DIMENSION, CONDITION, noise, rotated=rotated, seed=5)


def matrix(rotated: bool) -> jax.Array:
    """The curvature, read off the expected loss."""
    return jax.hessian(lambda x: make(rotated).metrics(x)["expected loss"])(jnp.zeros(DIMENSION))


@pytest.mark.parametrize("rotated", [False, True])
def test_the_eigenvalues_are_spread_evenly_up_to_1(rotated):
    eigenvalues = np.linalg.eigvalsh(matrix(rotated))
    np.testing.assert_allclose(eigenvalues, np.geomspace(1 / CONDITION, 1, DIMENSION), rtol=1e-4)


def test_only_a_rotation_takes_the_axes_of_the_bowl_off_the_coordinates():
    off_diagonal = ~np.eye(DIMENSION, dtype=bool)
    assert not matrix(rotated=False)[off_diagonal].any()
    assert np.abs(matrix(rotated=True)[off_diagonal]).max() > 0.05


def test_the_rotation_depends_on_the_seed_alone():
    x, key = jnp.arange(DIMENSION, dtype=jnp.float32), jax.random.key(0)

    def loss(seed):
        return problems.noisy_quadratic(DIMENSION, rotated=True, seed=seed).loss(x, 0, key)

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


@pytest.mark.parametrize("rotated", [False, True])
def test_the_gradient_is_curvature_times_point_plus_noise(rotated):
    x = jax.random.normal(jax.random.key(1), (DIMENSION,))
    exact = matrix(rotated) @ x
    _, gradient = make(rotated, noise=0.0).value_and_grad(x, 0, jax.random.key(2))
    np.testing.assert_allclose(gradient, exact, rtol=1e-5, atol=1e-6)

    keys = jax.random.split(jax.random.key(3), 20_000)
    _, gradients = jax.vmap(lambda key: make(rotated).value_and_grad(x, 0, key))(keys)
    errors = gradients - exact
    np.testing.assert_allclose(errors.mean(axis=0), 0, atol=5 * NOISE / np.sqrt(len(keys)))
    # The noise is independent and of the same size in every coordinate.
    np.testing.assert_allclose(np.cov(errors.T), NOISE**2 * np.eye(DIMENSION), atol=0.005)


@pytest.mark.parametrize("rotated", [False, True])
def test_the_expected_loss_is_what_the_losses_average_to(rotated):
    problem = make(rotated)
    x = problem.init(jax.random.key(4))
    keys = jax.random.split(jax.random.key(5), 20_000)
    losses = jax.vmap(lambda key: problem.loss(x, 0, key))(keys)
    standard_error = losses.std() / np.sqrt(len(keys))
    assert abs(losses.mean() - problem.metrics(x)["expected loss"]) < 4 * standard_error


def test_the_minimum_is_0_at_0():
    assert make(rotated=True).metrics(jnp.zeros(DIMENSION)) == {"expected loss": 0.0}


def test_sgd_does_not_notice_a_rotation():
    """Without noise, and started at the same point of the bowl, it takes the same losses."""
    losses = {}
    for rotated in (False, True):
        problem, tx = make(rotated, noise=0.0), optax.sgd(0.5)
        _, axes = np.linalg.eigh(matrix(rotated))
        # In each of these directions from the minimum, up to their signs, which do not matter.
        x = jnp.asarray(axes @ np.ones(DIMENSION))
        state, key = tx.init(x), jax.random.key(0)
        losses[rotated] = []
        for step in range(10):
            loss, gradient = problem.value_and_grad(x, step, key)
            updates, state = tx.update(gradient, state, x)
            x = problem.project(optax.apply_updates(x, updates))
            losses[rotated].append(loss)
    np.testing.assert_allclose(losses[False], losses[True], rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"dimension": 0}, "dimension"),
        ({"condition": 0.5}, "condition"),
        ({"condition": np.nan}, "condition"),
        ({"noise": -0.1}, "noise"),
        ({"noise": np.inf}, "noise"),
    ],
)
def test_impossible_bowls_are_refused_by_the_name_of_the_argument(arguments, name):
    with pytest.raises(ValueError, match=f"^`{name}` must be .* got {arguments[name]!r}"):
        problems.noisy_quadratic(**arguments)
