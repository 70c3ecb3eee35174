"""The digits: an honest division into training and test images, and a loss that falls."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets

from msvag_optax.problems import Problem, digits


@pytest.fixture(scope="module")
def problem() -> Problem:
    return digits.digits()


@pytest.fixture(scope="module")
def params(problem):
    return jax.jit(problem.init)(jax.random.key(0))


def test_every_image_is_in_one_part():
    train, test = digits.load_split()
    assert (len(train.labels), len(test.labels)) == (1347, 450)
    # Sorted by their pixels, the images of both parts together are the data set's.
    parts = np.concatenate([np.c_[part.images * 16, part.labels] for part in (train, test)])
    pixels, labels = datasets.load_digits(return_X_y=True)
    everything = np.c_[pixels, labels]
    np.testing.assert_array_equal(parts[np.lexsort(parts.T)], everything[np.lexsort(everything.T)])


def test_the_division_is_the_same_every_time_and_another_with_another_seed():
    first, again, other = (digits.load_split(seed=seed)[1].images for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_both_parts_have_each_digit_in_the_same_share():
    shares = [
        np.bincount(part.labels, minlength=10) / len(part.labels) for part in digits.load_split()
    ]
    np.testing.assert_allclose(shares[0], shares[1], atol=2e-3)


def test_pixels_are_between_0_and_1():
    for part in digits.load_split():
        assert part.images.dtype == jnp.float32
        assert part.images.min() == 0
        assert part.images.max() == 1


def test_a_batch_is_drawn_by_the_key_alone(problem, params):
    loss = jax.jit(problem.loss)
    losses = [loss(params, step, jax.random.key(7)) for step in (0, 1, 50)]
    assert len(set(map(float, losses))) == 1
    assert losses[0] != loss(params, 0, jax.random.key(8))


class Linear(nn.Module):
    """Softmax regression, whose gradient is known in closed form."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(images)


def test_the_gradient_of_all_batches_together_is_that_of_softmax_regression():
    """For `p` the probabilities and `y` the labels in one-hot form, it is `images' (p - y) / n`."""
    problem = digits.digits(Linear())
    params = jax.jit(problem.init)(jax.random.key(0))
    train, _ = digits.load_split()
    weights = params["Dense_0"]
    errors = jax.nn.softmax(train.images @ weights["kernel"] + weights["bias"]) - jax.nn.one_hot(
        train.labels, 10
    )

    gradient = jax.jit(jax.grad(lambda params: problem.metrics(params)["train loss"]))(params)
    metric = gradient["Dense_0"]
    np.testing.assert_allclose(metric["kernel"], train.images.T @ errors / 1347, atol=1e-6)
    np.testing.assert_allclose(metric["bias"], errors.mean(axis=0), atol=1e-6)

    # Batches are drawn with replacement: their gradients are right on average.
    keys = jax.random.split(jax.random.key(1), 500)
    _, gradients = jax.jit(jax.vmap(lambda key: problem.value_and_grad(params, 0, key)))(keys)
    mean = gradients["Dense_0"]["kernel"].mean(axis=0)
    standard_error = gradients["Dense_0"]["kernel"].std(axis=0) / np.sqrt(len(keys))
    assert (np.abs(mean - metric["kernel"]) <= 5 * standard_error).all()


def test_a_network_that_has_learned_nothing_is_right_one_time_in_ten(problem, params):
    zero = jax.tree.map(jnp.zeros_like, params)
    metrics = problem.metrics(zero)
    np.testing.assert_allclose(metrics["train loss"], np.log(10), rtol=1e-5)
    assert 0.08 < metrics["test accuracy"] < 0.12


def test_it_can_be_learned(problem):
    tx = optax.adam(0.01)

    @jax.jit
    def learn(key):
        def step(t, carry):
            params, state = carry
            _, gradient = problem.value_and_grad(params, t, jax.random.fold_in(key, t))
            updates, state = tx.update(gradient, state, params)
            return problem.project(optax.apply_updates(params, updates)), state

        params = problem.init(key)
        params, _ = jax.lax.fori_loop(0, 150, step, (params, tx.init(params)))
        return problem.metrics(params)

    metrics = learn(jax.random.key(0))
    assert metrics["train loss"] < 0.2
    assert metrics["test accuracy"] > 0.9
