"""Moments at half the bytes: rounded at random, they are right on average."""

import functools
import pickle
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import msvag_optax as mo
from tests.meshes import KINDS, assert_sharded_like, entered, mesh_of
from tests.support import by_speed, float64

DTYPES = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
RNG = np.random.default_rng(0)
PARAMS = {
    "bias": jnp.asarray(RNG.normal(size=8), jnp.float32),
    "kernel": jnp.asarray(RNG.normal(size=(16, 8)), jnp.float32),
}


def adam(keep=lambda estimator: estimator, b2=0.999):
    """Adam, whose averages are made by `keep`."""
    return mo.from_estimates(
        mo.over_rms(1e-8),
        mean=keep(mo.running_average(mo.exponential(0.9))),
        second_moment=keep(mo.running_average(mo.exponential(b2), of=mo.square)),
    )


def by_chance(inner, dtype=jnp.bfloat16, **options):
    return mo.kept_in(inner, dtype, "stochastic", **options)


def with_options(**options):
    return functools.partial(by_chance, **options)


BUILDS = {
    "each average": lambda keep: mo.optimizer(adam(keep), 0.1),
    "a direction": lambda keep: mo.optimizer(keep(adam()), 0.1),
    "an optimizer": lambda keep: keep(mo.adamw(0.1)),
    # All products are exact, so that it does not matter what is fused.
    "optax's": lambda keep: keep(optax.sgd(0.125, momentum=0.5)),
}
EVERY = pytest.mark.parametrize("build", by_speed(BUILDS, {"a direction", "an optimizer"}))


def train(tx, params=PARAMS, steps=2, state=None, update=None):
    """A few steps downhill, where the gradient of each element is a function of it alone."""
    state = tx.init(params) if state is None else state
    for _ in range(steps):
        gradients = jax.tree.map(lambda p: 2 * p + 1, params)
        updates, state = (update or tx.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def narrow_names(state):
    """The names of what a state keeps in 16 bits."""
    names = jax.tree.leaves(mo.path_names(state))
    return [n for n, x in zip(names, jax.tree.leaves(state), strict=True) if x.dtype.itemsize == 2]


def second_moment_after_a_fall(keep):
    """Over float32's, on average, when gradients have been a hundredth for 3,000 steps."""

    def run(tx):
        def step(state, size):
            return tx.update(size * jnp.ones(20_000), state)[1], None

        sizes = jnp.where(jnp.arange(4_000) < 1_000, 1.35, 0.0135)
        state, _ = jax.lax.scan(step, tx.init(jnp.ones(20_000)), sizes)
        return optax.tree.get(state, "average").astype(jnp.float32).mean()

    average = mo.running_average(mo.exponential(0.999), of=mo.square)
    return float(run(keep(average)) / run(average))


def test_a_second_moment_falls_as_in_float32():
    assert abs(second_moment_after_a_fall(by_chance) - 1) < 0.02


@pytest.mark.slow
def test_a_second_moment_falls_as_in_float32_in_float16_too():
    assert abs(second_moment_after_a_fall(lambda e: by_chance(e, jnp.float16)) - 1) < 0.02


@pytest.mark.slow
def test_rounded_to_nearest_a_second_moment_stays():
    assert second_moment_after_a_fall(lambda e: mo.kept_in(e, jnp.bfloat16)) > 10


@EVERY
@DTYPES
def test_averages_are_kept_from_the_start(build, dtype):
    tx = build(with_options(dtype=dtype))
    state = tx.init(PARAMS)
    names = narrow_names(state)
    after = train(tx)[1]
    assert len(names) == (4 if optax.tree.get(state, "trace") is None else 2)
    assert narrow_names(after) == names
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_what_is_no_average_of_an_element_keeps_its_digits():
    for tx in (by_chance(mo.novograd(0.1)), mo.optimizer(by_chance(norms()), 0.1)):
        state = train(tx)[1]
        norm = optax.tree.get(state, "average")
        assert {x.dtype for x in jax.tree.leaves(norm)} == {jnp.dtype(jnp.float32)}
        assert all("trace" in name for name in narrow_names(state))
    moments = by_chance(mo.running_moments(mo.exponential(0.9)))
    state = moments.update(PARAMS, moments.init(PARAMS))[1]
    assert optax.tree.get(state, "sum_of_squared_weights").dtype == jnp.float32
    assert len(narrow_names(state)) == 4


def norms():
    """NovoGrad's direction."""
    average = mo.running_average(mo.exponential(0.9), of=mo.layer_square_norm())
    return mo.chain(mo.from_estimates(mo.over_rms(1e-7), second_moment=average), mo.momentum(0.9))


def test_counts_of_elements_stay_whole():
    average = mo.running_average(mo.arithmetic(), of=mo.square, count_nonzero=True)
    state = by_chance(average).init(PARAMS)
    assert optax.tree.get(state, "observations")["kernel"].dtype == jnp.int32


RANDOM = jnp.asarray(np.random.default_rng(1).normal(size=(200, 500)), jnp.float32)


def largest(tx, name, gradients=RANDOM):
    """A maximum after these gradients."""
    step = jax.jit(lambda state, g: (tx.update(g, state)[1], None))
    state, _ = jax.lax.scan(step, tx.init(gradients[0]), gradients)
    return optax.tree.get(state, name)


def test_our_maximum_is_the_largest_number_rounded():
    estimator = mo.running_max(mo.running_average(mo.exponential(0.9), of=mo.square))
    exact = largest(estimator, "maximum")
    kept = largest(by_chance(estimator, exclude=("average",)), "maximum")
    assert kept.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kept, exact.astype(jnp.bfloat16))


def test_an_average_may_be_called_maximum():
    """It is a maximum's type, not its name, that has it rounded to nearest."""

    def mean_of(estimator, params):
        step = jax.jit(lambda _, state: estimator.update(params, state)[1])
        state = jax.lax.fori_loop(0, 1_000, step, estimator.init(params))
        return optax.tree.get(state, "average")["maximum"].astype(jnp.float32).mean()

    average = mo.running_average(mo.exponential_from_zero(0.999))
    params = {"maximum": jnp.ones(1_000)}
    named = mo.from_estimates(lambda g, maximum: g, maximum=average)
    for tx in (named, mo.optimizer(named, 0.1)):
        assert abs(mean_of(by_chance(tx), params) - (1 - 0.999**1_000)) < 0.01


def test_the_maximum_of_an_optimizer_is_found():
    tx = mo.amsgrad(0.1)
    kept = by_chance(tx)
    wide, narrow = tx.init(PARAMS), kept.init(PARAMS)
    _, wide = tx.update(PARAMS, wide, PARAMS)
    _, narrow = kept.update(PARAMS, narrow, PARAMS)
    exact, rounded = (optax.tree.get(state, "maximum") for state in (wide, narrow))
    assert_equal(rounded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact))


@pytest.mark.slow
def test_another_maximum_creeps_by_less_than_a_step_unless_it_is_named():
    tx = optax.scale_by_amsgrad(b2=0.9)
    same = jnp.broadcast_to(RANDOM[0], RANDOM.shape)  # The maximum is met again and again.
    exact = largest(tx, "nu_max", same)
    kept = largest(by_chance(tx, exclude=("nu",)), "nu_max", same)
    step = 2.0 ** (jnp.floor(jnp.log2(exact)) - 7)
    assert kept.dtype == jnp.bfloat16
    assert jnp.all(jnp.abs(kept.astype(jnp.float32) - exact) < step)
    assert jnp.mean((kept.astype(jnp.float32) - exact) / step) > 0.25  # It does creep.
    named = largest(by_chance(tx, exclude=("nu", "nu_max")), "nu_max", same)
    np.testing.assert_allclose(named, exact, rtol=1e-6)


@EVERY
def test_parameters_can_be_named(build):
    state = train(build(with_options(exclude=("bias",))))[1]
    assert {name.split("/")[-1] for name in narrow_names(state)} == {"kernel"}


@EVERY
def test_only_what_is_remembered_is_rounded(build):
    """The first update reads averages that have not been rounded yet."""
    kept, wide = build(by_chance), build(lambda tx: tx)
    updates, _ = kept.update(PARAMS, kept.init(PARAMS), PARAMS)
    expected, _ = wide.update(PARAMS, wide.init(PARAMS), PARAMS)
    assert_equal(updates, expected)


@EVERY
def test_runs_agree_bit_for_bit(build):
    tx = build(by_chance)
    eager = train(tx)
    assert_equal(train(tx, update=jax.jit(tx.update)), eager)
    assert_equal(train(build(by_chance)), eager)
    with pytest.raises(AssertionError):
        assert_equal(train(build(with_options(seed=1))), eager)


@EVERY
def test_a_run_that_is_resumed_goes_on_as_it_would_have(build, tmp_path):
    tx = build(by_chance)
    params, state = train(tx, steps=2)
    fresh = tx.init(PARAMS)
    expected = train(tx, params, 2, state)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", fresh)
    saved = flax.serialization.to_bytes(state)
    for resumed in (
        restored,
        flax.serialization.from_bytes(fresh, saved),
        pickle.loads(pickle.dumps(jax.device_get(state))),
    ):
        assert_equal(train(build(by_chance), params, 2, resumed), expected)


@functools.cache
def alone(build):
    """The compiled run on one device."""
    return jax.jit(lambda params: train(build(by_chance), params))(PARAMS)


SPECS = {"bias": P("model"), "kernel": P("data", "model")}


@EVERY
@pytest.mark.parametrize("kind", KINDS)
def test_eight_devices_round_as_one_does(build, kind):
    mesh = mesh_of({"data": 2, "model": 4}, kind)
    tx = build(by_chance)
    with entered(mesh):
        shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
        params = jax.device_put(PARAMS, shardings)
        together = jax.jit(lambda params: train(tx, params))(params)
        assert_sharded_like(together, params)
    assert_equal(together, alone(build))


def by_hand(tx, specs=SPECS, check_vma=True):
    mesh = mesh_of({"data": 2, "model": 4}, AxisType.Auto)
    return jax.jit(
        jax.shard_map(
            lambda params: train(tx, params)[0],
            mesh=mesh,
            in_specs=(specs,),
            out_specs=specs,
            check_vma=check_vma,
        )
    )


@EVERY
def test_inside_of_shard_map_each_element_is_told_its_place(build):
    expected, _ = alone(build)
    tx = build(with_options(specs=SPECS))
    for check_vma in (True, False):
        assert_equal(by_hand(tx, check_vma=check_vma)(PARAMS), expected)
    assert_equal(jax.jit(lambda params: train(tx, params))(PARAMS)[0], expected)


@EVERY
def test_inside_of_shard_map_a_parameter_that_is_cut_needs_its_spec(build):
    with pytest.raises(ValueError, match=r"along the mesh axes .*give `specs`"):
        by_hand(build(by_chance))(PARAMS)
    with pytest.raises(ValueError, match=r"along the mesh axes .*give `specs`"):
        by_hand(build(with_options(specs=P("data"))))(PARAMS)
    with pytest.raises(ValueError, match=r"does not track.*give `specs`"):
        by_hand(build(by_chance), check_vma=False)(PARAMS)
    whole = {"bias": P(), "kernel": P()}
    expected, _ = alone(build)
    assert_equal(by_hand(build(by_chance), whole)(PARAMS), expected)
    assert_equal(by_hand(build(with_options(specs=P())), whole, check_vma=False)(PARAMS), expected)


def test_an_axis_may_be_cut_over_two_axes_of_the_mesh():
    build, specs = BUILDS["a direction"], {"bias": P(), "kernel": P(("model", "data"))}
    assert_equal(by_hand(build(with_options(specs=specs)), specs)(PARAMS), alone(build)[0])


@EVERY
def test_seeds_may_be_mapped_over(build):
    def run(seed, params):
        return train(build(with_options(seed=seed)), params)

    runs = jax.jit(jax.vmap(run, (0, None)))(jnp.arange(2), PARAMS)
    second = jax.jit(functools.partial(run, 1))(PARAMS)
    assert_equal(runs, jax.tree.map(lambda *x: np.stack(x), alone(build), second))


def test_a_step_that_is_dropped_rounds_nothing():
    """What the dtype holds stays: neither a skipped step nor a leaf without gradient moves it."""
    tx = optax.apply_if_finite(by_chance(mo.adamw(0.1)), 3)
    params, state = train(tx)
    bad = jax.tree.map(lambda p: p * jnp.nan, params)
    _, after = tx.update(bad, state, params)
    assert_equal(after.inner_state, state.inner_state)
    tx = by_chance(mo.adamw(0.1))
    params, state = train(tx)
    _, after = tx.update({"bias": None, "kernel": params["kernel"]}, state, params)
    for name in ("mean", "second_moment"):
        was, now = (optax.tree.get(s, name).average["bias"] for s in (state, after))
        np.testing.assert_array_equal(now, was)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_updates_have_the_dtypes_of_gradients(rounding):
    params = {"low": jnp.ones(4, jnp.bfloat16), "wide": jnp.ones(4)}
    tx = optax.apply_if_finite(mo.kept_in(optax.adam(0.1), jnp.bfloat16, rounding), 3)
    updates, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(lambda x: x.dtype, params)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_an_estimate_stays_as_it_is(rounding):
    estimator = mo.running_average(mo.exponential(0.9), of=mo.square)
    behind = mo.chain_estimators(optax.identity(), estimator)
    low = jnp.ones(4, jnp.bfloat16)
    tx = mo.kept_in(behind, jnp.bfloat16, rounding)
    estimate, _ = tx.update(low, tx.init(low))
    assert estimate.dtype == jnp.float32


@pytest.mark.parametrize("inner", [mo.momentum(0.9), mo.adamw(0.1)], ids=["piece", "optimizer"])
def test_the_state_of_what_is_inside_is_refused_in_words(inner):
    with pytest.raises(ValueError, match=r"The state is not one of this optimizer .* it lacks"):
        by_chance(inner).update(PARAMS, inner.init(PARAMS), PARAMS)


LABELS = {"bias": "sgd", "kernel": "own"}
AROUND = {
    "partition": lambda tx: optax.partition({"own": tx, "sgd": optax.sgd(0.1)}, LABELS),
    "masked": lambda tx: optax.masked(tx, {"bias": False, "kernel": True}),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "lazy_rows": mo.lazy_rows,
    "chain": lambda tx: optax.chain(optax.clip(10.0), tx),
}


@pytest.mark.parametrize("wrap", by_speed(AROUND, {"partition", "lazy_rows"}))
@EVERY
def test_it_works_inside_of_wrappers(build, wrap):
    tx = wrap(build(by_chance))
    state = train(tx)[1]
    assert narrow_names(state) == narrow_names(tx.init(PARAMS))
    assert narrow_names(state)


def test_it_works_around_wrappers():
    for name in ("partition", "masked", "chain"):
        tx = by_chance(AROUND[name](mo.adamw(0.1)))
        assert len(narrow_names(train(tx)[1])) == (4 if name == "chain" else 2)


def test_float64_is_rounded_too():
    with float64():
        x = jnp.full(100_000, 1 + 2.0**-9, jnp.float64)
        tx = by_chance(mo.running_average(mo.exponential(0.0)))
        _, state = tx.update(x, tx.init(x))
        average = optax.tree.get(state, "average")
        assert average.dtype == jnp.bfloat16
        # A quarter of a step; the standard error is 1.1e-5.
        assert abs(average.astype(jnp.float64).mean() - x[0]) < 5e-5


UP: Any = "up"
THREE: Any = 3
GENERATOR: Any = (name for name in ["trace"])
BAD = {
    "dtype": (lambda: by_chance(optax.trace(0.9), jnp.float32), "`dtype` must be bfloat16 or fl"),
    "rounding": (
        lambda: mo.kept_in(optax.trace(0.9), jnp.bfloat16, UP),
        "`rounding` must be 'nearest' or 'stochastic', got 'up'",
    ),
    "seed": (lambda: by_chance(optax.trace(0.9), seed=-1), "`seed` must be an integer >= 0"),
    "field": (
        lambda: by_chance(optax.trace(0.9), exclude=("nu",)).init(PARAMS),
        "`exclude` must have names in the paths of the state, got 'nu'; .* 'trace'",
    ),
    "field of a piece": (
        lambda: mo.kept_in(mo.momentum(0.9), jnp.bfloat16, exclude=("nu",)).init(PARAMS),
        "`exclude` must have names in the paths of the state, got 'nu'; .* 'trace'",
    ),
    "spec that is missing": (
        lambda: by_chance(mo.momentum(0.9), specs={"bias": P()}).init(PARAMS),
        r"`specs` must have a PartitionSpec for 'kernel', got \['bias'\]",
    ),
    "spec that is long": (
        lambda: by_chance(optax.trace(0.9), specs=P("data", "model")).init(PARAMS),
        r"`specs` must fit the parameters, got .* for 'bias', whose shape is \(8,\)",
    ),
}
BAD_TYPE = {
    "names": (lambda: by_chance(optax.trace(0.9), exclude="nu"), "`exclude` must be a sequence"),
    "number": (
        lambda: mo.kept_in(optax.trace(0.9), jnp.bfloat16, exclude=THREE),
        r"`exclude` must be a sequence of names such as \('nu_max',\), got 3",
    ),
    "generator": (
        lambda: mo.kept_in(optax.trace(0.9), jnp.bfloat16, exclude=GENERATOR),
        "`exclude` must be a sequence of names",
    ),
    "specs": (
        lambda: by_chance(optax.trace(0.9), specs={"bias": "data"}),
        "`specs` must be None, a PartitionSpec, or a tree of them",
    ),
    "lbfgs": (lambda: by_chance(optax.lbfgs()), "`inner` must keep trees like the parameters'"),
    "sm3": (
        lambda: by_chance(optax.sm3(0.1)).init(PARAMS),
        r"`inner` must keep trees like the parameters', .* in a state; it keeps others\.$",
    ),
}


@pytest.mark.parametrize(("build", "sentence"), BAD.values(), ids=BAD)
def test_bad_values_are_refused(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.parametrize(("build", "sentence"), BAD_TYPE.values(), ids=BAD_TYPE)
def test_bad_types_are_refused(build, sentence):
    with pytest.raises(TypeError, match=sentence):
        build()
