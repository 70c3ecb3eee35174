"""What our own optimizers promise beyond that: precision, one count, error messages, minima."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msvag_optax import _compat
from msvag_optax.testing.runs import Row, run_eagerly
from msvag_optax.testing.trees import (
    PARAMS,
    RATE,
    STEPS,
    STREAM,
    assert_close,
    assert_same,
    assert_same_types,
    cast,
    decreasing,
    leaves_by_name,
    raised,
)


def _mixed(tree: Any) -> Any:
    dtypes = {"bias": jnp.float16, "kernel": jnp.bfloat16}
    return {name: x.astype(dtypes[name]) for name, x in tree.items()}


def _assert_dtypes(row: Row, params: Any, gradients: Any) -> None:
    tx = row.build(RATE)
    state = tx.init(params)
    widest = jnp.result_type(*params.values())
    for name, leaf in leaves_by_name(state).items():
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            owns = [p.dtype for key, p in params.items() if f"'{key}'" in name]
            least = jnp.promote_types((owns or [widest])[0], jnp.float32)
            bits = jnp.finfo(leaf.dtype).bits, jnp.finfo(least).bits
            assert bits[0] >= bits[1], f"{name}: {leaf.dtype} instead of {least}"
        else:
            assert leaf.dtype == jnp.int32, f"{name}: {leaf.dtype}"
    updates, new_state = jax.eval_shape(tx.update, gradients, state, params)
    assert_same_types(state, new_state)
    dtypes = jax.tree.map(lambda u: u.dtype, updates)
    assert dtypes == jax.tree.map(lambda g: g.dtype, gradients)


def check_dtypes(row: Row) -> None:
    """State is float32 or wider, and updates have the gradients' dtypes, in mixed trees, too."""
    gradients = STREAM[0]
    _assert_dtypes(row, cast(PARAMS, jnp.bfloat16), cast(gradients, jnp.bfloat16))
    _assert_dtypes(row, _mixed(PARAMS), _mixed(gradients))
    _assert_dtypes(row, _mixed(PARAMS), gradients)
    _assert_dtypes(row, PARAMS, _mixed(gradients))


def check_dtypes_in_double_precision(row: Row) -> None:
    """State is in double precision for the parameters that are, and for no others."""
    with _compat.enable_x64():
        for dtype in (np.float64, np.float32):
            params = {name: jnp.asarray(np.asarray(p, dtype)) for name, p in PARAMS.items()}
            gradients = {name: jnp.asarray(np.asarray(g, dtype)) for name, g in STREAM[0].items()}
            _assert_dtypes(row, params, gradients)


def _assert_rounded_once(rounded: Any, exact: Any) -> None:
    """Asserts that a tree is another one, but for half a unit in the last place of its dtype.

    Two programs may round otherwise in float32, by some units of that.
    """
    for (name, x), y in zip(leaves_by_name(rounded).items(), jax.tree.leaves(exact), strict=True):
        finfo, y = jnp.finfo(x.dtype), np.asarray(y, np.float64)
        size = np.maximum(np.abs(y), float(finfo.tiny))
        half_unit = float(finfo.eps) * 2.0 ** np.floor(np.log2(size)) / 2
        slack = 16 * float(np.finfo(np.float32).eps) * np.max(np.abs(y), initial=0.0)
        error = np.abs(np.asarray(x, np.float64) - y)
        assert np.all(error <= half_unit + slack), f"{name}: {np.max(error / half_unit) / 2} units"


def check_low_precision_is_rounded_once(row: Row) -> None:
    """Everything is computed in float32, and only the update is rounded."""
    tx = row.build(RATE)
    params, stream = cast(PARAMS, jnp.bfloat16), cast(STREAM, jnp.bfloat16)
    low, wide = tx.init(params), tx.init(cast(params, jnp.float32))
    for gradient in stream:
        updates, low = tx.update(gradient, low, params)
        exact, wide = tx.update(cast(gradient, jnp.float32), wide, cast(params, jnp.float32))
        _assert_rounded_once(updates, exact)
    assert_close(low, wide)


def check_takes_extra_arguments_itself(row: Row) -> None:
    """It accepts extra arguments without `optax.with_extra_args_support`."""
    assert isinstance(row.build(RATE), optax.GradientTransformationExtraArgs)


def check_state_can_be_read(row: Row) -> None:
    """`optax.tree.get` finds one count, with a schedule too, and the promised fields."""
    rates = (RATE, decreasing) if row.schedules else (RATE,)
    for state in (run_eagerly(row.build(rate)).state for rate in rates):
        if row.clock:
            assert optax.tree.get(state, "count") == STEPS
        for name in row.state:
            assert optax.tree.get(state, name) is not None, f"there is no {name} in {state}"


def check_leaves_without_gradient(row: Row) -> None:
    """Integers, keys, holes, numbers, and complex and empty arrays may be in one tree."""
    kernel = {"kernel": PARAMS["kernel"], "bias": None}
    params = kernel | {
        "complex": jnp.asarray([1 + 2j, 3j]),
        "empty": jnp.zeros((0, 3)),
        "integer": jnp.arange(2),
        "key": jax.random.key(0),
        "masked": optax.MaskedNode(),
        "none": None,
        "bias": 1.5,
    }
    float0 = jax.dtypes.float0
    gradients = params | {
        "complex": jnp.asarray([3 - 4j, 0j]),
        "integer": np.zeros(2, float0),
        "key": np.zeros((), float0),
        "bias": 0.5,
    }
    tx = row.build(RATE)
    state, alone = tx.init(params), tx.init(kernel)
    for _ in range(2):
        updates, new_state = tx.update(gradients, state, params)
        assert_same_types(state, new_state)
        state = new_state
        assert jax.tree.structure(updates) == jax.tree.structure(gradients)
        assert updates["complex"].dtype == jnp.complex64
        assert updates["empty"].shape == (0, 3)
        assert updates["key"].dtype == float0
        assert_same(updates["integer"], jnp.zeros(2, jnp.int32))
        assert np.shape(updates["bias"]) == ()
        assert np.all(np.isfinite(updates["bias"]))
        if row.reach != "tree":
            desired, alone = tx.update(kernel, alone, kernel)
            assert_same(updates["kernel"], desired["kernel"])


def check_missing_gradient_keeps_state(row: Row) -> None:
    """A parameter without a gradient keeps its value and its state."""
    tx = row.build(RATE)
    _, state = tx.update(STREAM[0], tx.init(PARAMS), PARAMS)
    updates, new_state = tx.update(STREAM[1] | {"kernel": None}, state, PARAMS)
    moved: Any = optax.apply_updates(PARAMS, updates)
    assert_same(moved["kernel"], PARAMS["kernel"])
    assert_same_types(state, new_state)
    new_leaves = leaves_by_name(new_state)
    for name, leaf in leaves_by_name(state).items():
        if "'kernel'" in name:
            np.testing.assert_array_equal(leaf, new_leaves[name], err_msg=name)
    moved, _ = tx.update(STREAM[1], state, PARAMS)
    if row.reach != "tree":
        assert_same(updates["bias"], moved["bias"])


def _no_params_message() -> str:
    decay = optax.add_decayed_weights(0.1)
    return str(raised(decay.update, PARAMS, decay.init(PARAMS), None))


def check_params_are_asked_for(row: Row) -> None:
    """Where `params` are needed and not given, the error is optax's."""
    tx = row.build(RATE)
    state = tx.init(PARAMS)
    if row.needs_params:
        error = raised(tx.update, STREAM[0], state)
        assert isinstance(error, ValueError), repr(error)
        assert str(error) == _no_params_message()
    else:
        desired = tx.update(STREAM[0], state, PARAMS)
        assert_same(tx.update(STREAM[0], state), desired)


def check_missing_gradient_asks_for_params(row: Row) -> None:
    """A missing gradient without `params` is answered in one line."""
    tx = row.build(RATE)
    error = raised(tx.update, STREAM[0] | {"kernel": None}, tx.init(PARAMS))
    assert isinstance(error, ValueError), repr(error)
    assert "`params`" in str(error)
    assert "\n" not in str(error)


def check_mismatched_trees_are_refused(row: Row) -> None:
    """Trees and shapes that do not fit are refused in one line that names a parameter."""
    tx = row.build(RATE)
    state = tx.init(PARAMS)
    fewer = {"kernel": STREAM[0]["kernel"]}
    more = STREAM[0] | {"extra": jnp.ones(2)}
    for gradient in (fewer, more):
        for params in (PARAMS, gradient, None):
            if params is None and row.needs_params:
                continue
            error = raised(tx.update, gradient, state, params)
            assert isinstance(error, ValueError), repr(error)
            assert "structure" in str(error)
            assert "\n" not in str(error)
            assert "Array(" not in str(error), "the message shows the arrays' values"
    # What does not fit is the parameter, or what the state holds for it: a norm has another shape.
    held = [x for name, x in leaves_by_name((PARAMS, state)).items() if "'kernel'" in name]
    for shape in ((1, 2), (3, 2), (8, 2, 1)):
        gradient = STREAM[0] | {"kernel": jnp.ones(shape)}
        for params in (PARAMS, gradient, None):
            if params is None and row.needs_params:
                continue
            error = raised(tx.update, gradient, state, params)
            assert isinstance(error, ValueError), repr(error)
            assert "'kernel'" in str(error)
            assert str(shape) in str(error)
            possible = held if params is not PARAMS else held[:1]
            assert any(f"shape {x.shape}" in str(error) for x in possible)


def _loss(params: Any) -> jax.Array:
    """A bowl, Rosenbrock's valley, and a bowl over complex numbers."""
    bowl = jnp.sum(jnp.square(params["kernel"] - jnp.asarray([[1.0], [-1.0], [2.0]])))
    x, y = params["bias"]
    valley = jnp.square(1 - x) + 10 * jnp.square(y - jnp.square(x))
    return bowl + valley + jnp.square(jnp.abs(params["scale"] - (1 + 2j)))


def check_convergence(row: Row) -> None:
    """It gets to three minima within 2,000 steps, at rates that decrease linearly."""
    start = {
        "kernel": jnp.asarray([[-1.0], [10.0], [1.0]]),
        "bias": jnp.zeros(2),
        "scale": jnp.zeros((), jnp.complex64),
    }
    steps = 2000

    def step(carry: Any, i: jax.Array) -> Any:
        params, state = carry
        # JAX's gradient of a real function of complex numbers is the conjugate of the direction up.
        gradient = jax.tree.map(jnp.conj, jax.grad(_loss)(params))
        tx = row.build(row.rate * (1 - i / steps))
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    state = row.build(row.rate).init(start)
    (end, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps)))(
        (start, state)
    )
    np.testing.assert_allclose(end["kernel"], [[1.0], [-1.0], [2.0]], atol=0.02)
    np.testing.assert_allclose(end["bias"], [1.0, 1.0], atol=0.02)
    np.testing.assert_allclose(end["scale"], 1 + 2j, atol=0.02)
