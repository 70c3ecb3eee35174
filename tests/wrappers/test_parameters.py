"""Parameters in low precision become exactly what their wrappers say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import msvag_optax as mo
from msvag_optax._trees.rounding import Chances, array_number, draw, round_to_nearest
from msvag_optax._trees.slices import Slices
from tests.meshes import KINDS, entered, mesh_of

DTYPES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
BOTH = pytest.mark.parametrize("wrap", [mo.rounded_parameters, mo.master_copy])
RNG = np.random.default_rng(0)


def params_of(dtype):
    return {
        "bias": jnp.asarray(RNG.normal(size=8), jnp.float32),
        "kernel": jnp.asarray(RNG.normal(size=(16, 8)), dtype),
    }


def sums(dtype, count=200_000):
    """Parameters and updates of all sizes: some far apart, some that nearly cancel."""
    rng = np.random.default_rng(1)
    exponents = rng.integers(-14, 14, count)
    param = jnp.asarray(rng.normal(size=count) * 2.0**exponents, dtype)
    far = rng.normal(size=count) * 2.0 ** rng.integers(-30, 14, count)
    near = -np.asarray(param, np.float64) * (1 + rng.normal(size=count) * 2.0**-9)
    cancels = rng.random(count) < 0.5
    return param, jnp.asarray(np.where(cancels, near, far), jnp.float32)


def step(tx, params, update, compiled=True):
    """What a parameter becomes where the transformation's update is this."""

    def run(params, update):
        updates, state = tx.update(update, tx.init(params), params)
        return optax.apply_updates(params, updates), updates, state

    return (jax.jit(run) if compiled else run)(params, update)


@DTYPES
@pytest.mark.parametrize("compiled", [True, False])
def test_a_parameter_becomes_the_rounded_sum(dtype, compiled):
    param, update = sums(dtype)
    new, updates, state = step(mo.rounded_parameters(optax.identity()), param, update, compiled)
    assert updates.dtype == jnp.float32
    key = Chances(0, None).key_of_step(jnp.asarray(0))
    number = array_number("parameter/")
    expected = draw(param.astype(jnp.float32) + update, dtype, key, number, Slices())
    assert new.dtype == dtype
    np.testing.assert_array_equal(new, expected)
    assert [x.shape for x in jax.tree.leaves(state)] == [()]


@DTYPES
def test_a_parameter_becomes_the_rounded_copy(dtype):
    rounded, update = sums(dtype, 2_000_000)
    copy = rounded.astype(jnp.float32) * (
        1 + jnp.asarray(RNG.uniform(-(2**-12), 2**-12, 2_000_000))
    )
    param = copy.astype(dtype)
    tx = mo.master_copy(optax.identity())

    @jax.jit
    def run(copy, param, update):
        updates, state = tx.update(update, tx.init(param)._replace(copy=copy), param)
        return optax.apply_updates(param, updates), updates, state

    new, updates, state = run(copy, param, update)
    assert updates.dtype == state.copy.dtype == jnp.float32
    np.testing.assert_array_equal(state.copy, copy + update)
    expected, new, param = (
        np.asarray(x).astype(dtype).astype(np.float64) for x in (state.copy, new, param)
    )
    # What is smaller is off the grid of what can be added to the parameter, and less than a step.
    reached = np.abs(expected) >= 2**-12 * np.abs(param)
    assert 0.5 < np.mean(reached) < 1
    np.testing.assert_array_equal(new[reached], expected[reached])
    assert np.all(np.abs(new - expected) <= 2**-24 * np.abs(param))


@DTYPES
def test_without_chance_the_nearest_number_is_the_one_that_numpy_has(dtype):
    patterns = np.random.default_rng(2).integers(0, 1 << 32, 300_000, np.uint32)
    middles = patterns & np.uint32(0xFFFF0000) | np.uint32(0x8000)
    x = np.concatenate([patterns, middles, patterns & np.uint32(0xFFFFF000)]).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(dtype)
    largest = float(jnp.finfo(dtype).max)
    held = np.abs(x) <= largest
    rounded = np.asarray(round_to_nearest(jnp.asarray(x), dtype))
    np.testing.assert_array_equal(rounded[held], expected[held])
    finite = np.isfinite(x) & ~held
    np.testing.assert_array_equal(np.abs(rounded[finite].astype(np.float32)), largest)


def test_a_copy_adds_up_as_in_float32():
    """Where gradients do not depend on the parameters, its steps are those of float32."""
    params = params_of(jnp.bfloat16)
    tx, plain = mo.master_copy(mo.adamw(0.01)), mo.adamw(0.01)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    state, plain_state = tx.init(params), plain.init(wide)
    for _ in range(5):
        gradients = jax.tree.map(lambda p: jnp.ones_like(p) / 3, wide)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        updates, plain_state = plain.update(gradients, plain_state, wide)
        wide = optax.apply_updates(wide, updates)
        np.testing.assert_allclose(state.copy["kernel"], wide["kernel"], rtol=1e-6)
        np.testing.assert_array_equal(params["kernel"], state.copy["kernel"].astype(jnp.bfloat16))
    np.testing.assert_allclose(params["bias"], wide["bias"], rtol=1e-6)
    np.testing.assert_array_equal(state.copy["bias"], params["bias"])


def test_the_copy_is_a_tree_like_the_parameters():
    """So that specs can be mapped over a state; and it can be donated beside the parameters."""
    params = params_of(jnp.bfloat16)
    tx = mo.master_copy(mo.adamw(0.1))
    specs = {"bias": P("model"), "kernel": P("data", "model")}
    state = tx.init(params)
    assert optax.tree.map_params(tx, lambda _, spec: spec, state, specs).copy == specs
    gradients = jax.tree.map(jnp.ones_like, params)

    def train(params, state):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    expected = train(params, state)
    donated = jax.jit(train, donate_argnums=(0, 1))(params, state)  # No array may be twice there.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), donated, expected)


@BOTH
def test_parameters_may_be_numbers(wrap):
    params = {"a": 1.5, "w": jnp.ones(2, jnp.bfloat16)}
    tx = wrap(optax.sgd(0.5))
    updates, _ = tx.update({"a": 1.0, "w": jnp.ones(2, jnp.bfloat16)}, tx.init(params), params)
    assert optax.apply_updates(params, updates)["a"] == 1.0


@BOTH
@pytest.mark.parametrize("compiled", [True, False])
def test_the_state_of_what_is_inside_is_refused_in_words(wrap, compiled):
    params, tx = params_of(jnp.bfloat16), wrap(mo.adamw(0.1))
    update = jax.jit(tx.update) if compiled else tx.update
    with pytest.raises(ValueError, match=r"The state is not one of this optimizer .* it lacks"):
        update(params, mo.adamw(0.1).init(params), params)


@BOTH
def test_steps_are_dropped_inside(wrap):
    params = params_of(jnp.bfloat16)
    tx = wrap(optax.apply_if_finite(mo.adamw(0.1), 3))
    nan = jax.tree.map(lambda p: p * jnp.nan, params)
    updates, _ = tx.update(nan, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, optax.apply_updates(params, updates), params)


@BOTH
@DTYPES
def test_many_small_updates_add_up(wrap, dtype):
    """200 steps of 1e-3 from 1.0; rounded to nearest, bfloat16 stays where it is."""
    params = jnp.ones(10_000, dtype)
    tx = wrap(optax.sgd(1e-3))

    def one(carry, _):
        params, state = carry
        updates, state = tx.update(jnp.ones_like(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(one, (params, tx.init(params)), length=200)
    # The standard error of the mean is 4e-4 in bfloat16; its nearest number is 0.8 + 8e-4.
    assert abs(params.astype(jnp.float32).mean() - 0.8) < 2e-3


@BOTH
def test_what_has_float32_stays_as_it_is(wrap):
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params_of(jnp.float32))
    tx = mo.adamw(0.1)
    expected, _ = tx.update(params, tx.init(params), params)
    wrapped = wrap(tx)
    updates, state = wrapped.update(params, wrapped.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    extra = 1 if wrap is mo.rounded_parameters else len(params)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(tx.init(params))) + extra


@BOTH
def test_leaves_without_gradient_stay(wrap):
    params = params_of(jnp.bfloat16) | {"steps": jnp.arange(3), "frozen": jnp.ones(2, jnp.bfloat16)}
    gradients = params | {"steps": np.zeros(3, jax.dtypes.float0), "frozen": None}
    tx = wrap(mo.adamw(0.1))
    updates, _ = tx.update(gradients, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    for name in ("steps", "frozen"):
        np.testing.assert_array_equal(new[name], params[name])
        assert new[name].dtype == params[name].dtype
    assert jnp.any(new["kernel"] != params["kernel"])


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_eight_devices_do_as_one_does(wrap, kind):
    params = params_of(jnp.bfloat16)
    tx = wrap(mo.kept_in(mo.adamw(0.1), jnp.bfloat16, "stochastic"))

    @jax.jit
    def train(params):
        state = tx.init(params)
        for _ in range(2):
            # In float32: XLA may or may not round what is between two operations in bfloat16.
            gradients = jax.tree.map(lambda p: 2 * p.astype(jnp.float32) + 1, params)
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    alone = train(params)
    mesh = mesh_of({"data": 2, "model": 4}, kind)
    specs = {"bias": P("model"), "kernel": P("data", "model")}
    with entered(mesh):
        shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
        together = train(jax.device_put(params, shardings))
    jax.tree.map(np.testing.assert_array_equal, together, alone)


def test_inside_of_shard_map_a_parameter_is_told_its_place_or_refused():
    param, update = params_of(jnp.bfloat16)["kernel"], 1e-2 * jnp.ones((16, 8))
    mesh = mesh_of({"data": 2, "model": 4}, AxisType.Auto)
    spec = P("data", "model")

    def run(tx):
        mapped = jax.shard_map(
            lambda p, u: step(tx, p, u)[0], mesh=mesh, in_specs=(spec, spec), out_specs=spec
        )
        return mapped(param, update)

    expected = step(mo.rounded_parameters(optax.identity()), param, update)[0]
    together = run(mo.rounded_parameters(optax.identity(), specs=spec))
    np.testing.assert_array_equal(together, expected)
    with pytest.raises(ValueError, match="give `specs`"):
        run(mo.rounded_parameters(optax.identity()))
    nearest = step(mo.master_copy(optax.identity()), param, update)[0]
    np.testing.assert_array_equal(run(mo.master_copy(optax.identity())), nearest)


@BOTH
def test_strict_promotion_is_refused(wrap):
    params = params_of(jnp.bfloat16)
    tx = wrap(mo.adamw(0.1))
    state = tx.init(params)
    with jax.numpy_dtype_promotion("strict"):
        with pytest.raises(TypeError, match="no float32 update can be added"):
            tx.update(params, state, params)
        wide = {"w": jnp.ones(2)}
        tx.update(wide, tx.init(wide), wide)  # Here nothing is promoted.


@BOTH
def test_what_cannot_be_done_is_refused(wrap):
    params = params_of(jnp.bfloat16)
    tx = wrap(mo.adamw(0.1))
    with pytest.raises(ValueError, match="`update` needs `params`"):
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match="The dtype of 'w' must have 16 bits or more"):
        tx.init({"w": jnp.ones(2, jnp.float8_e4m3fn)})
    with pytest.raises(TypeError, match="`inner` must be a GradientTransformation"):
        wrap(mo.adamw)
    norm = wrap(mo.running_average(mo.arithmetic(), of=mo.layer_square_norm()))
    with pytest.raises(ValueError, match=r"'bias' has shape \(\), its gradient .*`from_estimates`"):
        norm.update(params, norm.init(params), params)


def test_a_copy_of_a_shape_is_refused():
    """Filled with zeros, it would take the parameters' place at the first step."""
    tx, params = mo.master_copy(mo.adamw(0.1)), params_of(jnp.bfloat16)
    shapes = params | {"kernel": jax.ShapeDtypeStruct((16, 8), jnp.bfloat16)}
    with pytest.raises(ValueError, match=r"values of 'kernel', got a shape.*`jax\.eval_shape"):
        tx.init(shapes)
    expected = jax.tree.map(jax.typeof, tx.init(params))
    assert jax.tree.map(jax.typeof, jax.eval_shape(tx.init, shapes)) == expected


def test_specs_have_to_fit():
    tx = mo.rounded_parameters(mo.adamw(0.1), specs={"bias": P()})
    with pytest.raises(ValueError, match="`specs` must have a PartitionSpec for 'kernel'"):
        tx.init(params_of(jnp.bfloat16))
