import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import msvag_optax as mo
from msvag_optax._trees import mismatch
from msvag_optax.testing.meshes import check_init_from_shapes
from msvag_optax.testing.runs import Row
from msvag_optax.wrappers.gradientless import skip_gradientless
from msvag_optax.wrappers.precision import full_precision
from tests import conformance

MIXED = {
    "low": jnp.ones(3, jnp.bfloat16),
    "half": jnp.ones(3, jnp.float16),
    "single": jnp.ones(3, jnp.float32),
    "complex": jnp.ones(3, jnp.complex64),
}


@pytest.mark.parametrize("tx", [optax.trace(0.9), optax.scale_by_adam(), optax.scale_by_amsgrad()])
def test_full_precision_widens_inside_and_rounds_outside(tx):
    wide = full_precision(tx)
    state = wide.init(MIXED)
    updates, new_state = wide.update(MIXED, state, MIXED)
    assert jax.tree.map(lambda x: x.dtype, updates) == jax.tree.map(lambda x: x.dtype, MIXED)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(new_state), strict=True):
        assert old.dtype == new.dtype
        assert old.dtype in (jnp.float32, jnp.complex64, jnp.int32)


def test_rounding_to_float16_keeps_finite_updates_finite():
    gradients = jnp.asarray([1.0, -1.0, jnp.inf, jnp.nan], jnp.float16)
    tx = full_precision(optax.scale(1e6))
    updates, _ = tx.update(gradients, tx.init(gradients))
    np.testing.assert_array_equal(updates, jnp.asarray([65504, -65504, jnp.inf, jnp.nan]))


def test_numpys_gradients_are_taken_in_the_dtype_that_jax_has():
    """Without `jax_enable_x64`, float64 is float32; and no cast overflows."""
    gradients = {"w": np.ones(2)}
    tx = mo.adamw(0.1, weight_decay=0.0)
    updates, _ = tx.update(gradients, tx.init(gradients), gradients)
    assert updates["w"].dtype == jnp.float32


def test_a_state_of_other_parameters_does_not_grow():
    """Where its shape broadcasts, nothing else would stop it."""
    tx = skip_gradientless(optax.trace(0.9))
    state = tx.init({"w": jnp.ones(())})
    with pytest.raises(ValueError, match=r"The update of 'w' has shape \(3,\).* has shape \(\)"):
        tx.update({"w": jnp.ones(3)}, state, {"w": jnp.ones(3)})


def test_kept_in_rounds_only_what_is_remembered():
    tx = mo.kept_in(optax.scale_by_adam(), jnp.bfloat16)
    params = jnp.ones(3)
    state = tx.init(params)
    updates, new_state = tx.update(params, state)
    for tree in (state, new_state):
        assert [x.dtype for x in jax.tree.leaves(tree)] == [jnp.int32, jnp.bfloat16, jnp.bfloat16]
    reference, _ = optax.scale_by_adam().update(params, optax.scale_by_adam().init(params))
    np.testing.assert_array_equal(updates, reference)


def test_kept_in_nothing_is_the_transformation():
    tx = mo.kept_in(optax.trace(0.9), None)
    assert tx.init(jnp.ones(2, jnp.bfloat16)).trace.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="`dtype` must be None or a real floating-point dtype"):
        mo.kept_in(optax.trace(0.9), jnp.int8)


def test_leaves_without_gradient_get_no_state():
    params = {"w": jnp.ones(2), "n": jnp.arange(3), "key": jax.random.key(0), "flag": jnp.bool_(1)}
    updates = {
        "w": jnp.ones(2),
        "n": np.zeros(3, jax.dtypes.float0),
        "key": None,
        "flag": np.zeros((), jax.dtypes.float0),
    }
    tx = skip_gradientless(optax.trace(0.9))
    state = tx.init(params)
    assert len(jax.tree.leaves(state)) == 1
    new, _ = tx.update(updates, state)
    np.testing.assert_array_equal(new["w"], [1.0, 1.0])
    assert new["n"] is updates["n"]
    assert new["flag"] is updates["flag"]
    new, _ = tx.update(updates, state, params)
    assert new.pop("key") is None
    del params["key"]
    moved = optax.apply_updates(params, new)
    np.testing.assert_array_equal(moved.pop("w"), [2.0, 2.0])
    conformance.assert_same(moved, {name: params[name] for name in ("n", "flag")})


def test_integer_gradient_makes_a_zero_update():
    tx = skip_gradientless(optax.trace(0.9))
    new, _ = tx.update({"n": jnp.arange(3)}, tx.init({"n": jnp.arange(3)}), {"n": jnp.arange(3)})
    np.testing.assert_array_equal(new["n"], [0, 0, 0])
    assert new["n"].dtype == jnp.int32


@pytest.mark.parametrize(
    "tx", [mo.msvag(0.1), mo.novograd(0.1, weight_decay=0.1), mo.expectigrad(0.1), mo.amsgrad(0.1)]
)
def test_missing_gradient_leaves_parameter_and_state(tx):
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    gradients = {"a": jnp.full(2, 3.0), "b": jnp.full(2, 3.0)}
    updates, later = tx.update(gradients | {"b": None}, state, params)
    np.testing.assert_array_equal(optax.apply_updates(params, updates)["b"], params["b"])
    both, everywhere = tx.update(gradients, state, params)
    np.testing.assert_array_equal(updates["a"], both["a"])
    changed = set()
    for (path, old), new, moved in zip(
        jax.tree_util.tree_leaves_with_path(state),
        jax.tree.leaves(later),
        jax.tree.leaves(everywhere),
        strict=True,
    ):
        if jax.tree_util.keystr(path).endswith("['b']"):
            np.testing.assert_array_equal(new, old)
            changed.add(bool((moved != old).any()))
        else:
            np.testing.assert_array_equal(new, moved)
    assert True in changed  # with a gradient, b's state would have moved


def test_mismatched_trees_are_told_apart():
    tx = skip_gradientless(optax.trace(0.9))
    params = {"a": {"w": jnp.ones(3)}}
    state = tx.init(params)
    with pytest.raises(ValueError, match="another tree structure than the parameters") as caught:
        tx.update({"b": jnp.ones(3)}, state, params)
    assert "only the updates have 'b'; only the parameters have 'a/w'" in str(caught.value)
    with pytest.raises(ValueError, match=r"The update of 'a/w' has shape \(1,\), .* \(3,\)"):
        tx.update({"a": {"w": jnp.ones(1)}}, state, params)


@pytest.mark.parametrize(
    "wrap",
    [
        mo.dependable,
        full_precision,
        mo.lazy_rows,
        mo.shard_like_params,
        skip_gradientless,
        lambda tx: mo.kept_in(tx, jnp.bfloat16),
    ],
)
def test_factory_is_no_transformation(wrap):
    with pytest.raises(TypeError, match="must be a GradientTransformation such as"):
        wrap(mo.msvag)


@pytest.mark.parametrize(
    ("estimator", "made"),
    [
        (mo.running_average(mo.arithmetic(), of=mo.layer_square_norm()), r"shape \(\)"),
        (mo.running_moments(mo.arithmetic()), "type Moments"),
    ],
)
def test_estimate_is_no_update(estimator, made):
    tx = mo.dependable(optax.chain(estimator, optax.identity()))
    params = {"a": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match=f"'a' has {made}, its gradient .*`from_estimates`"):
        tx.update(params, tx.init(params), params)


def test_integers_are_no_gradient_of_a_float():
    tx = mo.msvag(0.1)
    with pytest.raises(
        ValueError, match="update of 'a' must be of a floating-point dtype, got int"
    ):
        tx.update({"a": jnp.arange(3)}, tx.init({"a": jnp.ones(3)}), {"a": jnp.ones(3)})


def test_error_of_a_formula_is_not_taken_for_another():
    """Also where parameters without gradient have holes in the state."""

    def formula(gradient, mean):
        raise TypeError("this formula has a mistake")

    tx = mo.dependable(mo.from_estimates(formula, mean=optax.trace(0.9)))
    params = {"a": jnp.ones(3), "none": None, "integer": jnp.asarray(3)}
    with pytest.raises(TypeError, match="this formula has a mistake"):
        tx.update(params, tx.init(params), params)


def test_many_differences_are_told_in_few_words():
    tx = mo.msvag(0.1)
    params = {f"layer_{i}": jnp.ones(1) for i in range(500)}
    with pytest.raises(ValueError, match="and 494 more") as caught:
        tx.update({"layer_7": jnp.ones(1)}, tx.init(params), params)
    assert len(str(caught.value)) < 300


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(mismatch.LeafMismatchError(((1,), (3,)), "bias")))
    assert "'bias' has shape (1,)" in str(error)


@pytest.mark.parametrize("tx", [optax.sm3(0.1), optax.adafactor(0.1), optax.contrib.muon(0.1)])
def test_dependable_is_the_transformation(tx):
    """Also where the state is no tree like the parameters'."""
    params = {"a": jnp.ones((4, 3)), "b": jnp.ones(3)}
    updates, _ = tx.update(params, tx.init(params), params)
    wrapped = mo.dependable(tx)
    ours, _ = wrapped.update(params, wrapped.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, ours, updates)


def test_tree_that_state_does_not_know():
    tx = mo.msvag(0.1)
    state = tx.init({"a": jnp.ones(3)})
    with pytest.raises(ValueError, match="another tree structure than the state") as caught:
        tx.update({"b": jnp.ones(3)}, state)
    assert "Array" not in str(caught.value)


@pytest.mark.parametrize("tx", [optax.scale_by_adam(), mo.msvag(0.1), optax.trace(0.9)])
def test_state_is_sharded_like_the_parameters(tx):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.P("x"))
    params = jax.device_put(jnp.ones((16, 3)), sharding)
    for leaf in jax.tree.leaves(jax.jit(mo.shard_like_params(tx).init)(params)):
        assert leaf.ndim == 0 or leaf.sharding.is_equivalent_to(sharding, 2)


# The expected values of tensorflow-addons' own tests of sparse NovoGrad.
@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({}, [0.71, 2.0], [3.0, 3.71]),
        ({"weight_decay": 0.1}, [0.6821, 2.0], [3.0, 3.5954]),
        ({"grad_averaging": True}, [0.8, 2.0], [3.0, 3.8]),
    ],
    ids=["plain", "decay", "averaging"],
)
def test_lazy_rows_reproduce_sparse_novograd(options, first, second):
    params = {"var0": jnp.asarray([1.0, 2.0]), "var1": jnp.asarray([3.0, 4.0])}
    gradients = {"var0": jnp.asarray([0.1, 0.0]), "var1": jnp.asarray([0.0, 0.4])}
    tx = mo.lazy_rows(mo.novograd(0.1, **options))
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["var0"], first, rtol=1e-5)
    np.testing.assert_allclose(params["var1"], second, rtol=1e-5)


@pytest.mark.parametrize("name", ["msvag", "svag", "expectigrad", "amsgrad", "adamw"])
def test_lazy_rows_are_rows_of_their_own(name):
    """A row that is seen at some steps moves as if the other steps had not been."""
    tx = getattr(mo, name)(0.1, weight_decay=0.1)
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((10, 2, 3)).astype(np.float32)
    gradients[[1, 2, 5], 1] = 0
    lazy = mo.lazy_rows(tx)
    params = jnp.ones((2, 3))
    state = lazy.init(params)
    for gradient in jnp.asarray(gradients):
        before, before_state = params, state
        updates, state = lazy.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        if gradient[1].any():
            continue
        np.testing.assert_array_equal(params[1], before[1])
        for old, new in zip(jax.tree.leaves(before_state), jax.tree.leaves(state), strict=True):
            if old.ndim == 2:
                np.testing.assert_array_equal(new[1], old[1])
                assert (new[0] != old[0]).any()
    eager = jnp.ones((1, 3))
    eager_state = tx.init(eager)
    if name == "expectigrad":  # its momentum and count of steps are the whole leaf's
        return
    for gradient in gradients:
        updates, eager_state = tx.update(jnp.asarray(gradient[:1]), eager_state, eager)
        eager = optax.apply_updates(eager, updates)
    np.testing.assert_allclose(params[:1], eager, rtol=1e-6)


def test_lazy_rows_do_not_count_where_nothing_was_seen():
    tx = mo.lazy_rows(mo.expectigrad(0.1))
    params = jnp.ones((2, 2))
    _, state = tx.update(jnp.asarray([[1.0, 0.0], [0.0, 0.0]]), tx.init(params), params)
    np.testing.assert_array_equal(
        optax.tree.get(state, "second_moment").observations, [[1, 0], [0, 0]]
    )
    np.testing.assert_array_equal(optax.tree.get(state, "momentum").average[1], [0.0, 0.0])


def test_kept_in_keeps_the_digits_of_what_all_leaves_share():
    tx = mo.kept_in(mo.running_moments(mo.exponential(0.9)), jnp.bfloat16)
    _, state = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
    assert state.mean.dtype == state.biased_variance.dtype == jnp.bfloat16
    assert state.sum_of_squared_weights.dtype == jnp.float32


SHAPED = {
    "bias_corrected": lambda average: mo.bias_corrected(average, 0.9),
    "kept_in": lambda average: mo.kept_in(average, jnp.bfloat16, "stochastic"),
    "of optax's": lambda _: mo.kept_in(mo.lazy_rows(optax.adam(0.1)), jnp.bfloat16, "stochastic"),
    "recurrence": lambda _: mo.recurrence(lambda memory, g: memory, (0.5, jnp.ones_like)),
    "rounded_parameters": lambda _: mo.rounded_parameters(mo.novograd(0.1, stacked=["kernel"])),
    "running_max": mo.running_max,
    "running_moments": lambda _: mo.running_moments(mo.exponential(0.9)),
    "shard_like_params": lambda _: mo.shard_like_params(optax.novograd(0.1)),
    "variance_adapted": lambda _: mo.variance_adapted(optax.trace(0.9)),
    "watch_noise": lambda _: mo.watch_noise(mo.exponential(0.9), stacked=["kernel"]),
}


@pytest.mark.parametrize("build", SHAPED.values(), ids=SHAPED)
def test_shapes_make_the_state_that_arrays_make(build):
    """Of pieces and wrappers; the table of optimizers has the optimizers."""
    tx = build(mo.running_average(mo.exponential(0.9), of=mo.layer_square_norm()))
    check_init_from_shapes(Row("shaped", lambda rate: tx))


def test_kept_in_and_dependable_are_the_same_transformation():
    """What a chain supports is supported, and an init that was replaced is used."""
    chain = mo.kept_in(mo.chain(mo.momentum(0.9)), jnp.bfloat16)
    params = {"w": jnp.ones(2, jnp.bfloat16), "n": jnp.asarray(3)}
    gradients = {"w": params["w"], "n": np.zeros((), jax.dtypes.float0)}
    updates, _ = chain.update(gradients, chain.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16

    def from_ones(params):
        return optax.TraceState(jax.tree.map(jnp.ones_like, params))

    replaced = mo.momentum(0.9)._replace(init=from_ones)
    for tx in (mo.dependable(replaced), mo.kept_in(replaced, jnp.bfloat16)):
        assert jax.tree.leaves(tx.init({"w": jnp.zeros(1)})) == [1]
