import gc
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from msvag_optax._trees import driver


def run(tx, gradients, params=None):
    state = tx.init(jnp.zeros_like(gradients[0]) if params is None else params)
    updates = []
    for gradient in gradients:
        update, state = tx.update(gradient, state, params)
        updates.append(update)
    return jnp.stack(updates)


@pytest.fixture
def gradients():
    return jnp.asarray(0.5 + np.random.default_rng(0).standard_normal((15, 6)), jnp.float32)


def test_every_estimator_sees_the_gradient(gradients):
    tx = mo.from_estimates(
        lambda gradient, first, second: gradient + 10 * first + 100 * second,
        first=optax.scale(2.0),
        second=optax.scale(3.0),
    )
    np.testing.assert_allclose(run(tx, gradients), 321 * gradients, rtol=1e-6)


def test_estimators_are_given_parameters_and_extra_arguments():
    def update(updates, state, params=None, *, factor, **extra_args):
        return jax.tree.map(lambda p: factor * p, params), state

    tx = mo.from_estimates(
        lambda gradient, decay: gradient + decay,
        decay=optax.GradientTransformationExtraArgs(optax.init_empty_state, update),
    )
    params = {"w": jnp.asarray(3.0)}
    updates, _ = tx.update({"w": jnp.asarray(1.0)}, tx.init(params), params, factor=2.0)
    assert updates["w"] == 7


def test_formula_and_estimators_must_fit():
    average = mo.running_average(mo.arithmetic())
    with pytest.raises(TypeError, match="does not fit a gradient and estimates named variance"):
        mo.from_estimates(mo.over_rms(0.1), variance=average)
    with pytest.raises(TypeError, match="does not fit"):
        mo.from_estimates(mo.over_rms(0.1), mean=average)
    with pytest.raises(TypeError, match="needs at least one estimator"):
        mo.from_estimates(lambda gradient: gradient)
    with pytest.raises(TypeError, match="`formula` must be a function"):
        mo.from_estimates(3, mean=average)
    with pytest.raises(TypeError, match="`second_moment` must be a GradientTransformation"):
        mo.from_estimates(mo.over_rms(0.1), second_moment=mo.square)


def test_what_a_formula_returns_is_checked():
    def read(formula):
        tx = mo.optimizer(mo.from_estimates(formula, m=mo.running_average(mo.arithmetic())), 0.1)
        return tx.update(jnp.ones(2), tx.init(jnp.ones(2)))

    with pytest.raises(TypeError, match=r"`formula` returned None, .* lack a `return`"):
        read(lambda gradient, m: None)
    with pytest.raises(ValueError, match=r"has shape \(\), .*: a formula must return an array of"):
        read(lambda gradient, m: m.sum())
    with pytest.raises(TypeError, match=r"\(eps, eps_root\), which .*Did you forget to call it"):
        mo.from_estimates(mo.over_rms, m=mo.running_average(mo.arithmetic()))


def test_svag_and_msvag_are_adapted_directions(gradients):
    svag = optax.chain(mo.variance_adapted(optax.identity(), 0.8), optax.scale(-0.1))
    np.testing.assert_allclose(run(svag, gradients), run(mo.svag(0.1, 0.8), gradients), rtol=1e-6)
    mean = mo.running_average(mo.exponential(0.8))
    msvag = optax.chain(mo.variance_adapted(mean, 0.8, of_mean=True), optax.scale(-0.1))
    np.testing.assert_allclose(run(msvag, gradients), run(mo.msvag(0.1, 0.8), gradients), rtol=1e-6)


@pytest.mark.parametrize("of_mean", [False, True])
@pytest.mark.parametrize(
    "direction",
    [
        optax.trace(0.9),
        optax.trace(0.9, nesterov=True),
        optax.scale_by_sign(),
        optax.scale_by_lion(),
        optax.chain(optax.trace(0.9), optax.scale_by_sign()),
    ],
    ids=["momentum", "nesterov", "sign", "lion", "sign of momentum"],
)
def test_any_direction_is_multiplied_by_the_factor(direction, of_mean, gradients):
    moments = run_moments(gradients, 0.7)
    variance = moments.variance_of_mean if of_mean else moments.variance
    factor = mo.variance_adaptation_factor(moments.mean, variance)
    ours = run(mo.variance_adapted(direction, 0.7, of_mean=of_mean), gradients)
    np.testing.assert_allclose(ours, run(direction, gradients) * factor, rtol=1e-5, atol=1e-7)


def run_moments(gradients, beta):
    estimator = mo.running_moments(mo.exponential(beta))
    state, results = estimator.init(gradients[0]), []
    for gradient in gradients:
        estimate, state = estimator.update(gradient, state)
        results.append(estimate)
    return jax.tree.map(lambda *x: jnp.stack(x), *results)


def test_chained_estimators_have_each_others_shapes():
    norms = mo.running_average(mo.exponential(0.0), of=mo.layer_square_norm())
    estimator = mo.chain_estimators(norms, mo.running_moments(mo.arithmetic()))
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}
    state = estimator.init(params)
    assert jax.tree.map(jnp.shape, state[1].mean) == {"a": (), "b": ()}
    for scale in (1.0, 2.0):
        gradient = jax.tree.map(lambda p, s=scale: s * p, params)
        estimate, state = estimator.update(gradient, state)
    np.testing.assert_allclose(estimate["a"].mean, (6 + 24) / 2)
    np.testing.assert_allclose(estimate["b"].variance, np.var([4, 16], ddof=1), rtol=1e-6)


def test_chained_estimators_must_be_estimators():
    with pytest.raises(TypeError, match="at least one"):
        mo.chain_estimators()
    with pytest.raises(TypeError, match=r"`estimators\[1\]` must be a GradientTransformation"):
        mo.chain_estimators(optax.identity(), mo.square)


def test_variance_adapted_refuses_what_is_no_direction():
    with pytest.raises(TypeError, match="`direction` must be a GradientTransformation"):
        mo.variance_adapted(0.9)
    with pytest.raises(ValueError, match="`beta` must be a number in"):
        mo.variance_adapted(optax.identity(), beta=1.0)
    with pytest.raises(TypeError, match="`of_mean` must be True or False"):
        mo.variance_adapted(optax.identity(), of_mean="yes")


class Gain(eqx.Module):
    """A formula that is compared by value, as Equinox modules are."""

    factor: jax.Array

    def __call__(self, gradient, mean):
        return self.factor * mean


def test_formula_that_holds_arrays_is_differentiated():
    def loss(factor):
        tx = mo.from_estimates(Gain(factor), mean=mo.running_average(mo.exponential(0.9)))
        return tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0].sum()

    assert loss(jnp.float32(3.0)) == 6
    assert jax.grad(loss)(jnp.float32(3.0)) == 2
    assert jax.grad(loss)(jnp.float32(4.0)) == 2
    assert loss(jnp.float32(5.0)) == 10


def test_closures_go_with_their_transformation():
    captured = jnp.ones(1000)
    alive = weakref.ref(captured)
    tx = mo.from_estimates(
        lambda gradient, mean, c=captured: mean + c.sum(),
        mean=mo.running_average(mo.exponential(0.9), of=lambda g, c=captured: g + c[0]),
    )
    before = driver._shared_kernel._cache_size()
    tx.update(jnp.ones((2, 23)), tx.init(jnp.ones((2, 23))))
    assert driver._shared_kernel._cache_size() == before
    del tx, captured
    gc.collect()
    assert alive() is None


def test_traced_closures_do_not_leak():
    def update(factor):
        tx = mo.from_estimates(
            lambda gradient, mean: factor * mean, mean=mo.running_average(mo.arithmetic())
        )
        return tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0]

    with jax.checking_leaks():
        np.testing.assert_array_equal(jax.jit(update)(2.0), [2.0, 2.0])


@pytest.mark.parametrize("name", ["tree", "function", "updates", "rest"])
def test_any_name_is_an_estimators(name):
    formula = eval(f"lambda gradient, {name}: {name}")
    tx = mo.from_estimates(formula, **{name: mo.running_average(mo.arithmetic())})
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    np.testing.assert_array_equal(updates, [1.0, 1.0])


def test_new_hyperparameters_are_no_new_compilation():
    """Outside of `jit`, a kernel is compiled once for all epsilons, decays and rates."""
    gradient = jnp.ones((3, 17))

    def build(eps, decay):
        return mo.amsgrad(0.1, b1=decay, b2=decay, eps=eps)

    def update(tx):
        return tx.update(gradient, tx.init(gradient))

    at_first = driver._shared_kernel._cache_size()
    update(build(1e-3, 0.5))
    before = driver._shared_kernel._cache_size()
    assert before > at_first
    update(build(1e-4, 0.6))
    assert driver._shared_kernel._cache_size() == before
