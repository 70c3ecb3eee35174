"""Memories of your own, the estimate before, counts, mean squares of parts, and `cautious`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import msvag_optax as mo
from tests.meshes import KINDS, entered, mesh_of

B1, B2 = 0.9, 0.99
GRADIENTS = np.random.default_rng(0).normal(0.3, 1.0, (20, 4, 6)).astype(np.float32)


def run(estimator, gradients=GRADIENTS, **extra):
    """The estimates after each gradient, and the last state."""
    state = estimator.init(jnp.zeros_like(gradients[0]))
    step, estimates = jax.jit(estimator.update), []
    for gradient in gradients:
        estimate, state = step(jnp.asarray(gradient), state, **extra)
        estimates.append(estimate)
    return jax.tree.map(lambda *x: jnp.stack(x), *estimates), state


def averages():
    return {
        "average": mo.running_average(mo.exponential(B1)),
        "nonzero": mo.running_average(mo.arithmetic(), of=mo.square, count_nonzero=True),
        "norm": mo.running_average(mo.exponential(B1), of=mo.layer_square_norm()),
        "moments": mo.running_moments(mo.exponential(B1)),
        "maximum": mo.running_max(mo.running_average(mo.exponential(B2), of=mo.square)),
        "corrected": mo.bias_corrected(mo.running_average(mo.exponential_from_zero(B1)), B1),
        "recurrence": mo.recurrence(lambda s, g: 0.5 * s + g),
    }


# Before.


@pytest.mark.parametrize("name", averages())
def test_before_gives_the_estimate_of_the_step_before(name):
    estimator = averages()[name]
    now, _ = run(estimator)
    past, _ = run(mo.before(estimator))
    assert not any(jnp.any(x[0]) for x in jax.tree.leaves(past))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1:], b[:-1], rtol=2e-6, atol=1e-6), past, now
    )


@pytest.mark.parametrize("name", averages())
def test_before_needs_no_state_of_its_own(name):
    estimator, params = averages()[name], {"w": jnp.zeros((4, 6))}
    bare, past = (jax.eval_shape(e.init, params) for e in (estimator, mo.before(estimator)))
    assert jax.tree.structure(bare) == jax.tree.structure(past)
    assert mo.state_bytes(estimator, params) == mo.state_bytes(mo.before(estimator), params)


# Observations.


def ages(gradient, t, mean):
    return t.astype(gradient.dtype) + 0 * mean


def test_observations_count_from_one():
    tx = mo.from_estimates(ages, t=mo.observations(), mean=mo.running_average(mo.arithmetic()))
    update, _ = run(tx)
    np.testing.assert_array_equal(update[:, 0, 0], np.arange(1, 21))


def test_observations_are_the_optimizers_count_and_no_state():
    direction = mo.from_estimates(
        ages, t=mo.observations(), mean=mo.running_average(mo.arithmetic())
    )
    tx, params = mo.optimizer(direction, 1.0), {"w": jnp.zeros((4, 6))}
    bytes_of = mo.state_bytes(tx, params)
    assert bytes_of.shared == {"count": 4, "direction/mean/observations": 4}
    state = tx.init(params)._replace(count=jnp.int32(6))
    update, state = tx.update({"w": jnp.ones((4, 6))}, state, params)
    np.testing.assert_array_equal(update["w"], -7)
    largest = jnp.iinfo(jnp.int32).max
    update, state = tx.update(update, state._replace(count=jnp.int32(largest)), params)
    assert state.count == largest
    np.testing.assert_array_equal(update["w"], np.float32(-largest))


# Recurrences.


def test_recurrence_is_an_average_where_its_step_is_one():
    def step(mean, gradient):
        return B1 * mean + (1 - B1) * gradient

    ours, _ = run(mo.recurrence(step))
    theirs, _ = run(mo.running_average(mo.exponential_from_zero(B1)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_recurrence_starts_where_it_is_told_and_may_have_several_arrays():
    def step(memory, gradient):
        total, largest = memory
        return total + gradient, jnp.maximum(largest, jnp.max(gradient))

    starts = (lambda param: 2 * jnp.ones_like(param), lambda param: jnp.zeros([]))
    several = mo.recurrence(step, starts)
    (total, largest), state = run(several)
    np.testing.assert_allclose(total[-1], 2 + GRADIENTS.sum(0), rtol=1e-5)
    np.testing.assert_allclose(largest[-1], GRADIENTS.max())
    assert [x.shape for x in jax.tree.leaves(state)] == [(4, 6), ()]
    numbers = mo.recurrence(lambda memory, gradient: memory, (1, 0.5))
    estimate, _ = run(numbers)
    assert [float(x[-1, 0, 0]) for x in estimate] == [1, 0.5]


def test_several_arrays_of_a_leaf_go_where_one_goes():
    """In a missing gradient's step, in lazy rows, and kept in another dtype."""

    def step(memory, gradient):
        return memory[0] + gradient, memory[1] + 1

    pair = mo.recurrence(step, (0.0, 0.0))
    tx = mo.optimizer(mo.from_estimates(lambda gradient, pair: pair[0], pair=pair), 0.1)
    params = {"w": jnp.ones((4, 2)), "b": jnp.ones(2)}
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    _, later = tx.update(params | {"b": None}, state, params)
    for before, after in zip(*(optax.tree.get(s, "memory") for s in (state, later)), strict=True):
        np.testing.assert_array_equal(before["b"], after["b"])
        assert np.all(np.asarray(after["w"]) != np.asarray(before["w"]))
    for wrapped in (mo.lazy_rows(tx), mo.kept_in(tx, jnp.bfloat16, "stochastic")):
        wrapped.update(params, wrapped.init(params), params)


def test_a_memory_that_starts_at_the_parameter_is_no_parameter():
    """A step that is given both may overwrite both."""
    start = mo.recurrence(lambda start, gradient: start, lambda param: param)
    tx = mo.optimizer(mo.from_estimates(lambda gradient, start: start, start=start), 0.1)
    params = jnp.ones(3)
    state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(jnp.ones(3), state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(params, state)
    np.testing.assert_allclose(params, 0.9 * np.ones(3))


def test_a_memory_of_integers_stays_one():
    integer = mo.recurrence(lambda n, g: n + 1, lambda param: jnp.zeros(param.shape, jnp.int32))
    assert integer.update(jnp.ones(2), integer.init(jnp.ones(2)))[1].memory.dtype == jnp.int32
    float_ = mo.recurrence(lambda n, g: n + g, lambda param: jnp.zeros(param.shape, jnp.int32))
    with pytest.raises(
        ValueError, match=r"'w' .* returned a state of float32, and was given int32"
    ):
        float_.update({"w": jnp.ones(2)}, float_.init({"w": jnp.ones(2)}))


def test_an_optimizer_is_no_direction_of_another():
    for wrap in (mo.cautious, mo.variance_adapted):
        with pytest.raises(TypeError, match="`direction` must point uphill, and got an optimizer"):
            wrap(mo.adamw(0.1))
        with pytest.raises(TypeError, match="`direction` must be a transformation to updates"):
            wrap(mo.running_moments(mo.arithmetic()))


def test_axes_and_heads_that_cannot_be():
    kernel = {"query": jnp.ones((4, 32))}
    for of, message in (
        (mo.mean_square({-1: 2, 1: 4}), "`axes` has an axis of 'query' of shape .* twice: 1"),
        (mo.mean_square(mo.adam_mini_axes(64)), "`heads` must divide the last axis of 'query'"),
    ):
        with pytest.raises(ValueError, match=message):
            mo.running_average(mo.arithmetic(), of=of).init(kernel)


def test_recurrence_keeps_float32_beside_bfloat16_parameters():
    estimator = mo.recurrence(lambda s, g: s + g, 1.0)
    params = {"w": jnp.zeros(3, jnp.bfloat16)}
    state = estimator.init(params)
    estimate, state = estimator.update({"w": jnp.full(3, 1e-3, jnp.bfloat16)}, state)
    assert state.memory["w"].dtype == estimate["w"].dtype == jnp.float32
    assert jnp.all(state.memory["w"] > 1)


def test_recurrence_is_refused_where_it_cannot_run():
    with pytest.raises(TypeError, match="`step` must be a function of memory and gradient"):
        mo.recurrence(lambda memory: memory)
    with pytest.raises(ValueError, match=r"`start` must be a number in \(-inf, inf\), got inf"):
        mo.recurrence(lambda s, g: s, float("inf"))
    with pytest.raises(TypeError, match="`start` must be a number"):
        mo.recurrence(lambda s, g: s, (0.0, "one"))
    for nothing in (None, ()):
        with pytest.raises(TypeError, match="`start` must be a number, a function, or a tuple"):
            mo.recurrence(lambda memory, gradient: memory, nothing)
    with pytest.raises(TypeError, match="`start` must be a function of one parameter"):
        mo.recurrence(lambda s, g: s, lambda: 0.0)
    longer = mo.recurrence(lambda memory, gradient: (memory, memory))
    with pytest.raises(TypeError, match="`step` must return a memory like the one given"):
        longer.update(jnp.ones(2), longer.init(jnp.ones(2)))


# Mean squares of parts.


def means_of(axes, gradient):
    estimator = mo.running_average(mo.exponential(0.0), of=mo.mean_square(axes))
    estimate, _ = estimator.update(gradient, estimator.init(gradient))
    return estimate


PARTS = {
    "element": ((), lambda g: g**2),
    "output unit": (0, lambda g: (g**2).mean(0, keepdims=True)),
    "input unit": (-1, lambda g: (g**2).mean(1, keepdims=True)),
    "layer": (None, lambda g: (g**2).mean(keepdims=True)),
    "both axes": ((0, 1), lambda g: (g**2).mean(keepdims=True)),
    "block": ({0: 2, 1: 3}, lambda g: (g.reshape(2, 2, 2, 3) ** 2).mean((1, 3))),
    "heads": ({0: 4, -1: 2}, lambda g: (g.reshape(4, 3, 2) ** 2).mean((0, 2))[None]),
}


@pytest.mark.parametrize("part", PARTS)
def test_mean_square_is_the_mean_of_each_part(part):
    axes, expected = PARTS[part]
    gradient = GRADIENTS[0]
    means = means_of(axes, jnp.asarray(gradient))
    np.testing.assert_allclose(means, expected(gradient.astype(np.float64)), rtol=1e-6)
    # Over the root of its part, each part has a mean square of 1.
    update = mo.over_rms(0.0)(jnp.asarray(gradient), second_moment=means)
    np.testing.assert_allclose(means_of(axes, update), np.ones_like(means), rtol=1e-5)


def test_adam_is_at_one_end_and_the_layer_at_the_other():
    def direction(of):
        mean = mo.running_average(mo.exponential(B1))
        second_moment = mo.running_average(mo.exponential(B2), of=of)
        return mo.from_estimates(mo.over_rms(1e-8), mean=mean, second_moment=second_moment)

    adam, _ = run(direction(mo.square))
    elements, _ = run(direction(mo.mean_square(())))
    np.testing.assert_array_equal(adam, elements)
    layer, _ = run(direction(mo.mean_square(None)))
    norm, _ = run(direction(mo.layer_square_norm()))
    np.testing.assert_allclose(layer, norm * GRADIENTS[0].size ** 0.5, rtol=1e-5)
    # Means, so that a rate serves both: the steps of all have a root mean square of about one.
    for update in (adam, layer):
        assert 0.2 < jnp.sqrt(jnp.mean(update**2)) < 1.2


def test_mean_square_has_a_rule_of_names_and_shapes():
    params = {
        "embed": {"embedding": (8, 4)},
        "attention": {"query": {"kernel": (4, 2, 3)}, "key": {"w": (4, 6)}, "out": (2, 3, 4)},
        "monkey": (4, 6),
        "lm_head": {"kernel": (4, 8)},
    }
    shapes = jax.tree.map(jnp.zeros, params, is_leaf=lambda x: isinstance(x, tuple))
    of = mo.mean_square(mo.adam_mini_axes(heads=2))
    state = mo.running_average(mo.exponential(B2), of=of).init(shapes)
    assert jax.tree.map(jnp.shape, state.average) == {
        "embed": {"embedding": (8, 4)},
        "attention": {"query": {"kernel": (1, 2, 1)}, "key": {"w": (1, 2)}, "out": (1, 1, 1)},
        "monkey": (1, 1),
        "lm_head": {"kernel": (4, 8)},
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_parts_may_lie_on_several_devices(kind):
    """Also blocks, where no cut goes through one."""
    mesh, kernel = mesh_of({"rows": 4, "columns": 2}, kind), GRADIENTS[:8, 0]
    sharding = NamedSharding(mesh, P("rows", "columns"))
    for axes in (0, None, {0: 2}, {0: 2, 1: 3}, {0: 8, 1: 3}):
        second_moment = mo.running_average(mo.exponential(B2), of=mo.mean_square(axes))
        tx = mo.optimizer(mo.from_estimates(mo.over_rms(0.0), second_moment=second_moment), 1.0)
        expected, _ = tx.update(kernel, tx.init(kernel), kernel)
        with entered(mesh):
            placed = jax.device_put(kernel, sharding)
            update, _ = jax.jit(lambda p, tx=tx: tx.update(p, tx.init(p), p))(placed)
        np.testing.assert_allclose(update, expected, rtol=1e-6)
        assert update.sharding.is_equivalent_to(sharding, 2)


def test_mean_square_bears_huge_numbers_and_nothing():
    assert jnp.isfinite(means_of(None, jnp.full((4, 6), 1e37))).all()
    assert jnp.isfinite(means_of({0: 2}, jnp.full((4, 6), 1e37))).all()
    assert means_of(None, jnp.zeros((0, 3))).shape == (1, 1)
    assert not jnp.isnan(means_of(0, jnp.zeros((0, 3)))).any()
    assert means_of(None, jnp.asarray(3.0)) == 9


def test_mean_square_is_refused_where_it_has_no_parts():
    with pytest.raises(TypeError, match="`axes` must be an integer, a sequence"):
        mo.mean_square(0.5)
    with pytest.raises(TypeError, match="`axes` must be an integer, a sequence"):
        mo.mean_square("rows")
    with pytest.raises(ValueError, match="`axes` must be an integer >= 1, got 0"):
        mo.mean_square({0: 0})
    with pytest.raises(TypeError, match="`axes` must be a function of a parameter's name and"):
        mo.mean_square(lambda name: 0)
    params = {"w": jnp.zeros((4, 6))}
    for axes, error in ((2, "has 2, and 'w' of shape"), ({1: 4}, "blocks of 4 along axis 1")):
        with pytest.raises(ValueError, match=error):
            mo.running_average(mo.arithmetic(), of=mo.mean_square(axes)).init(params)
    fused = {"query": {"kernel": jnp.zeros((4, 6))}}
    average = mo.running_average(mo.arithmetic(), of=mo.mean_square(mo.adam_mini_axes()))
    with pytest.raises(TypeError, match="`adam_mini_axes` needs `heads` for 'query/kernel'"):
        average.init(fused)
    with pytest.raises(ValueError, match="`heads` must be an integer >= 1, got 0"):
        mo.adam_mini_axes(0)


# Caution.

DIRECTIONS = {
    "momentum": mo.momentum(0.9),
    "nesterov": optax.trace(0.9, nesterov=True),
    "lion": optax.scale_by_lion(),
    "adam": optax.scale_by_adam(),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_caution_never_goes_uphill_and_keeps_the_rest(name):
    bare, _ = run(DIRECTIONS[name])
    kept, _ = run(mo.cautious(DIRECTIONS[name]))
    agrees = np.sign(bare) * np.sign(GRADIENTS) > 0
    assert 0 < agrees.sum() < agrees.size  # or this would test nothing
    scale = GRADIENTS[0].size / (agrees.sum((1, 2), keepdims=True) + 1)
    np.testing.assert_allclose(kept, np.where(agrees, bare * scale, 0), rtol=1e-6)
    assert (np.asarray(kept) * GRADIENTS >= 0).all()


def test_caution_has_no_state_of_its_own():
    params = {"w": jnp.zeros((4, 6))}
    for direction in DIRECTIONS.values():
        total = mo.state_bytes(mo.cautious(direction), params).total
        assert total == mo.state_bytes(direction, params).total


def test_caution_is_seen_through_by_what_is_not_finite():
    tx = mo.cautious(mo.momentum(0.5))
    gradient = jnp.asarray([1.0, jnp.nan, jnp.inf])
    update, _ = tx.update(gradient, tx.init(gradient))
    np.testing.assert_array_equal(np.isfinite(update), [True, False, False])


def test_caution_works_for_complex_numbers_and_small_ones():
    tx = mo.cautious(mo.momentum(0.9))
    state = tx.init(jnp.zeros(2, jnp.complex64))
    for gradient in ([1 + 1j, 1 + 1j], [1 + 1j, -0.1 - 0.1j]):  # the second has turned
        update, state = tx.update(jnp.asarray(gradient, jnp.complex64), state)
    np.testing.assert_allclose(update, [1.9 + 1.9j, 0], rtol=1e-6)
    tiny = jnp.full(3, 1e-30)
    update, _ = tx.update(tiny, tx.init(tiny))
    np.testing.assert_allclose(update, 0.75e-30, rtol=1e-6)  # 3 / (3 + 1)


def test_cautious_needs_a_direction():
    with pytest.raises(TypeError, match="`direction` must be a GradientTransformation"):
        mo.cautious(optax.scale_by_adam)
