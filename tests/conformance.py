"""One table of optimizers, and the checks that every one of them passes.

`tests/laws/test_conformance.py` runs the core checks on each row and all on the typical ones, and
`tests/laws/test_laws.py` the laws. To hold an optimizer of your own to the same standard, add a row
to `ROWS`, or run the checks elsewhere::

    from tests.conformance import Row, check_optimizer

    check_optimizer(Row("mine", my_optimizer))

`my_optimizer` takes a learning rate first, under the name `learning_rate`, and has defaults for
whatever else it takes. A row says what the optimizer promises beyond that: see `Row`. Each check is
a function of one row, and raises AssertionError where the promise is broken.
"""

import functools
import inspect
import pickle
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import msvag_optax as mo
from msvag_optax import _compat

STEPS = 6
RATE = 0.1


class Row(NamedTuple):
    """An optimizer and what it promises.

    Attributes:
      name: what the tests call it.
      build: makes the optimizer; see the module's docstring.
      scale: what happens to the update if all gradients are scaled by one positive number: it is
        scaled too ("equivariant"), it stays ("invariant"), or neither (None).
      reach: how far the gradient of one element is felt: by itself alone ("element"), by its index
        of the leaf's leading axis ("row"), by its leaf, or by the whole tree.
      needs_params: whether `update` needs `params`.
      schedules: whether `learning_rate` may be a schedule.
      clock: whether `optax.tree.get(state, "count")` finds one count of the updates made.
      state: what else `optax.tree.get` finds in the state.
      rate: the learning rate at which the optimizer reaches the targets of `check_convergence`.
    """

    name: str
    build: Callable[..., Any]
    scale: Literal["equivariant", "invariant"] | None = None
    reach: Literal["element", "row", "leaf", "tree"] = "element"
    needs_params: bool = False
    schedules: bool = True
    clock: bool = True
    state: tuple[str, ...] = ()
    rate: float = 0.1


def _bert_adamw(
    learning_rate: Any, weight_decay: Any = 0.01, max_grad_norm: Any = 1.0
) -> optax.GradientTransformationExtraArgs:
    return mo.bert_adamw(
        learning_rate, 100_000, 2, weight_decay=weight_decay, max_grad_norm=max_grad_norm
    )


def _dissected(name: str) -> Callable[..., optax.GradientTransformationExtraArgs]:
    def build(learning_rate: Any, beta: Any = 0.9) -> optax.GradientTransformationExtraArgs:
        return getattr(mo.dissection(learning_rate, beta), name)

    return build


def _adapted(
    direction: optax.GradientTransformation, of_mean: bool = False
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    def build(learning_rate: Any, beta: Any = 0.9) -> optax.GradientTransformationExtraArgs:
        return mo.dependable(
            optax.chain(
                mo.variance_adapted(direction, beta, of_mean=of_mean),
                optax.scale_by_learning_rate(learning_rate),
            )
        )

    return build


def _lazy_adamw(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, weight_decay: Any = 0.01
) -> optax.GradientTransformationExtraArgs:
    return mo.lazy_rows(mo.adamw(learning_rate, b1, b2, weight_decay=weight_decay))


def _adapted_over_largest_norm(
    gradient: jax.Array, moments: mo.Moments, second_moment: jax.Array
) -> jax.Array:
    return mo.adapted_mean(gradient, moments) / jnp.maximum(jnp.sqrt(second_moment), 1e-30)


def adapted_novograd(learning_rate: Any, beta: Any = 0.9) -> optax.GradientTransformationExtraArgs:
    """A mixture that no paper proposed: M-SVAG's mean over the layer's largest norm so far.

    The norms are averaged like Expectigrad's squares and kept like AMSGrad's, and a layer's first
    zeros are no observations.
    """
    norms = mo.running_average(mo.arithmetic(), of=mo.layer_square_norm(), count_nonzero=True)
    return mo.dependable(
        optax.chain(
            mo.from_estimates(
                _adapted_over_largest_norm,
                moments=mo.running_moments(mo.exponential(beta)),
                second_moment=mo.running_max(norms),
            ),
            optax.scale_by_learning_rate(learning_rate),
        )
    )


_MOMENTS = ("observations", "sum_of_squared_weights", "mean", "biased_variance")
_partial = functools.partial

ROWS = (
    Row("msvag", mo.msvag, "equivariant", state=_MOMENTS),
    Row(
        "msvag-decay",
        _partial(mo.msvag, weight_decay=1e-3, exclude_from_weight_decay=("bias",)),
        needs_params=True,
        state=_MOMENTS,
    ),
    Row("svag", mo.svag, "equivariant", state=_MOMENTS),
    Row("expectigrad", _partial(mo.expectigrad, eps=1e-30), "invariant", state=("momentum",)),
    Row(
        "expectigrad-dense",
        _partial(mo.expectigrad, eps=1e-30, sparse_counter=False),
        "invariant",
        state=("momentum",),
    ),
    Row(
        "novograd",
        _partial(mo.novograd, eps=0.0),
        "invariant",
        reach="leaf",
        state=("trace", "observations"),
    ),
    Row(
        "novograd-averaging",
        _partial(mo.novograd, weight_decay=1e-3, grad_averaging=True),
        reach="leaf",
        needs_params=True,
        state=("momentum",),
    ),
    Row(
        "novograd-amsgrad",
        _partial(mo.novograd, eps=0.0, amsgrad=True),
        "invariant",
        reach="leaf",
        state=("trace", "maximum"),
    ),
    Row(
        "novograd-stacked",
        _partial(mo.novograd, eps=0.0, stacked=("kernel",)),
        "invariant",
        reach="row",
        state=("trace", "observations"),
    ),
    Row("amsgrad", _partial(mo.amsgrad, eps=0.0), "invariant", state=("maximum",)),
    Row(
        "amsgrad-uncorrected",
        _partial(mo.amsgrad, eps=0.0, bias_correction=False),
        "invariant",
        state=("maximum",),
    ),
    Row(
        "amsgrad-correct-before-max",
        _partial(mo.amsgrad, eps=0.0, correct_before_max=True),
        "invariant",
        state=("maximum",),
    ),
    Row("adamw", mo.adamw, needs_params=True),
    Row(
        "adamw-uncorrected",
        _partial(mo.adamw, weight_decay=0.0, eps=0.0, bias_correction=False),
        "invariant",
    ),
    Row("bert_adamw", _bert_adamw, reach="tree", needs_params=True, schedules=False),
    Row("dissection-momentum_sgd", _dissected("momentum_sgd"), "equivariant", state=_MOMENTS),
    Row("dissection-m_ssd", _dissected("m_ssd"), "invariant", state=_MOMENTS),
    Row("dissection-adam", _dissected("adam"), "invariant", state=_MOMENTS),
    Row("dissection-msvag", _dissected("msvag"), "equivariant", state=_MOMENTS),
    Row(
        "adapted-trace",
        _adapted(optax.trace(0.9)),
        "equivariant",
        clock=False,
        state=("trace", *_MOMENTS),
    ),
    Row(
        "adapted-nesterov",
        _adapted(optax.trace(0.9, nesterov=True), of_mean=True),
        "equivariant",
        clock=False,
        state=("trace", *_MOMENTS),
        rate=0.01,
    ),
    Row(
        "adapted-sign",
        _adapted(optax.scale_by_sign()),
        "invariant",
        clock=False,
        state=_MOMENTS,
    ),
    Row(
        "adapted-lion",
        _adapted(optax.scale_by_lion(), of_mean=True),
        "invariant",
        clock=False,
        state=("mu", *_MOMENTS),
    ),
    Row("lazy_rows", _lazy_adamw, reach="row", needs_params=True),
    Row(
        "adapted_novograd",
        adapted_novograd,
        "invariant",
        reach="leaf",
        clock=False,
        state=("sum_of_squared_weights", "maximum"),
    ),
)

# One row for each way in which code is shared: moments, counts for each element, norms of layers,
# maxima, decay, a link that looks at the whole tree, optax's transformations inside, and rows that
# are skipped. What holds for these holds for the others, which are made of the same pieces.
TYPICAL = (
    "msvag",
    "expectigrad",
    "novograd-stacked",
    "amsgrad",
    "adamw",
    "bert_adamw",
    "adapted-lion",
    "lazy_rows",
)


# What the checks run on: a few gradients of a small tree. Each leaf costs most checks some kernels
# to compile, and so there are two: a scalar, and a matrix that eight devices can share.

_random = np.random.default_rng(0)
SHAPES = {"bias": (), "kernel": (8, 2)}
PARAMS = {
    name: jnp.asarray(_random.normal(3.0, size=shape), jnp.float32)
    for name, shape in SHAPES.items()
}


def _gradients() -> dict[str, jax.Array]:
    """STEPS gradients, stacked: some elements' first ones are zero, and some later ones."""
    gradients = {name: _random.normal(size=(STEPS, *shape)) for name, shape in SHAPES.items()}
    gradients["kernel"][:2, :3] = 0.0
    gradients["kernel"][4, 3:] = 0.0
    return {name: jnp.asarray(gradient, jnp.float32) for name, gradient in gradients.items()}


GRADIENTS = _gradients()
STREAM = [{name: gradient[i] for name, gradient in GRADIENTS.items()} for i in range(STEPS)]


class Trajectory(NamedTuple):
    """All updates, stacked or in a list, and where they led."""

    updates: Any
    params: Any
    state: Any


@functools.cache
def trajectory(row: Row) -> Callable[[Any, Any, Any], Trajectory]:
    """A compiled scan from learning rate, parameters and stacked gradients to a trajectory.

    It is compiled once for all who run it on the same shapes.
    """

    @jax.jit
    def run(rate: Any, params: Any, gradients: Any) -> Trajectory:
        tx = row.build(rate)

        def step(carry: Any, gradient: Any) -> Any:
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), updates

        (params, state), updates = jax.lax.scan(step, (params, tx.init(params)), gradients)
        return Trajectory(updates, params, state)

    return run


@functools.cache
def compiled_step(row: Row) -> Callable[[Any, Any, Any], tuple[Any, Any, Any]]:
    """From gradient, parameters and state, both donated, to updates and the new two.

    It refuses to be traced twice.
    """
    tx = row.build(RATE)
    traces = []

    def step(gradient: Any, params: Any, state: Any) -> tuple[Any, Any, Any]:
        traces.append(jax.tree.map(jax.typeof, state))
        assert len(traces) == 1, f"compiled anew; the types of the state were {traces}"
        updates, state = tx.update(gradient, state, params)
        return updates, optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(1, 2))


def run_eagerly(tx: Any, stream: Any = STREAM, params: Any = PARAMS) -> Trajectory:
    """The trajectory of one `update` after the other, outside of `jit`."""
    state = tx.init(params)
    collected = []
    for gradient in stream:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        collected.append(updates)
    return Trajectory(collected, params, state)


def run_compiled(row: Row, stream: Any, params: Any, state: Any) -> Trajectory:
    """The trajectory of `compiled_step`; what it is given survives."""
    params, state = copied(params), copied(state)
    collected = []
    for gradient in stream:
        updates, params, state = compiled_step(row)(gradient, params, state)
        collected.append(updates)
    return Trajectory(collected, params, state)


def stacked(trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """All leaves under their paths, for messages that say where."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def assert_same(actual: Any, desired: Any) -> None:
    """Asserts that two trees have the same structure and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    pairs = zip(leaves_by_name(actual).items(), jax.tree.leaves(desired), strict=True)
    for (name, x), y in pairs:
        np.testing.assert_array_equal(x, y, err_msg=name, strict=True)


def assert_close(actual: Any, desired: Any, ulps: float = 16) -> None:
    """Asserts that two trees are equal but for rounding.

    The bound is `ulps` units in the last place of each element and of its leaf's largest one.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    pairs = zip(leaves_by_name(actual).items(), jax.tree.leaves(desired), strict=True)
    for (name, x), y in pairs:
        assert x.shape == y.shape, f"{name}: {x.shape} against {y.shape}"
        assert x.dtype == y.dtype, f"{name}: {x.dtype} against {y.dtype}"
        if not jnp.issubdtype(y.dtype, jnp.inexact):
            np.testing.assert_array_equal(x, y, err_msg=name)
            continue
        eps = float(jnp.finfo(y.dtype).eps)
        wide = np.complex128 if jnp.iscomplexobj(y) else np.float64
        x, y = np.asarray(x).astype(wide), np.asarray(y).astype(wide)
        largest = float(np.max(np.abs(y), initial=0.0))
        np.testing.assert_allclose(x, y, rtol=ulps * eps, atol=ulps * eps * largest, err_msg=name)


def assert_same_types(before: Any, after: Any) -> None:
    """Asserts that structure, shapes, dtypes, weak types and shardings are the same."""
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for (name, x), y in zip(leaves_by_name(before).items(), jax.tree.leaves(after), strict=True):
        assert jax.typeof(x) == jax.typeof(y), f"{name}: {jax.typeof(x)} became {jax.typeof(y)}"
        assert not jax.typeof(x).weak_type, f"{name} is weakly typed"
        if isinstance(x, jax.Array) and isinstance(y, jax.Array):
            same = x.sharding.is_equivalent_to(y.sharding, x.ndim)
            assert same, f"{name}: {x.sharding} became {y.sharding}"


def raised(function: Callable[..., Any], *arguments: Any, **named: Any) -> Exception:
    """What calling `function` raises."""
    try:
        function(*arguments, **named)
    except Exception as error:
        return error
    raise AssertionError("Nothing was raised.")


# How it is run makes no difference.


def check_eager_and_jit_agree(row: Row) -> None:
    eager = run_eagerly(row.build(RATE))
    state = row.build(RATE).init(PARAMS)
    assert_close(run_compiled(row, STREAM, PARAMS, state), eager)


def check_eager_and_scan_agree(row: Row) -> None:
    eager = run_eagerly(row.build(RATE))
    scan = trajectory(row)(RATE, PARAMS, GRADIENTS)
    updates = [jax.tree.map(lambda u, i=i: u[i], scan.updates) for i in range(STEPS)]
    assert_close(scan._replace(updates=updates), eager)


def check_vmap(row: Row) -> None:
    rates = jnp.asarray([0.0, 1.0])
    streams = [STREAM, STREAM[::-1]]

    def run(rate: jax.Array, stream: Any) -> Trajectory:
        return run_eagerly(row.build(rate), stream)

    together = jax.vmap(run)(rates, stacked(streams))
    apart = [run(rate, stream) for rate, stream in zip(rates, streams, strict=True)]
    assert_close(together, stacked(apart))


def check_donation(row: Row) -> None:
    params = copied(PARAMS)
    state = row.build(RATE).init(params)
    for gradient in STREAM[:2]:
        old = jax.tree.leaves((params, state))
        _, params, state = compiled_step(row)(gradient, params, state)
        assert all(leaf.is_deleted() for leaf in old)


def check_init_under_jit(row: Row) -> None:
    tx = row.build(RATE)
    state = tx.init(PARAMS)
    abstract = jax.eval_shape(tx.init, PARAMS)
    assert_same_types(state, abstract)
    assert_same_types(state, jax.eval_shape(tx.update, STREAM[0], state, PARAMS)[1])


def check_restored_run_continues(row: Row) -> None:
    tx = row.build(RATE)
    middle = run_compiled(row, STREAM[:3], PARAMS, tx.init(PARAMS))
    unbroken = run_compiled(row, STREAM[3:], middle.params, middle.state)
    state = pickle.loads(pickle.dumps(middle.state))
    assert_same_types(middle.state, state)
    assert_same(run_compiled(row, STREAM[3:], middle.params, state), unbroken)
    # The import changes JAX's settings, and so what has been compiled is not found again after it.
    import flax.serialization

    saved = flax.serialization.to_bytes(middle.state)
    state = jax.tree.map(jnp.asarray, flax.serialization.from_bytes(tx.init(PARAMS), saved))
    assert_same_types(middle.state, state)
    assert_same(state, middle.state)


# Meshes.


def check_init_from_shapes(row: Row) -> None:
    """Shapes, with and without shardings, make the state that arrays make."""
    tx = row.build(RATE)
    on_mesh = _sharded(PARAMS, _mesh(AxisType.Auto))
    for params in (PARAMS, on_mesh):
        shapes = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params
        )
        desired = tx.init(params)
        for given in (shapes, shapes | {"kernel": params["kernel"]}):
            assert_same_types(desired, tx.init(given))
            assert_same(tx.init(given), desired)


def _mesh(axis_type: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(axis_type,))


def _sharded(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """All leaves spread over the devices by their first axis; scalars on all of them."""

    def put(x: jax.Array) -> jax.Array:
        names = ("devices", *[None] * (x.ndim - 1)) if x.ndim else ()
        return jax.device_put(x, NamedSharding(mesh, P(*names)))

    return jax.tree.map(put, tree)


def _spec(leaf: Any) -> tuple[Any, ...]:
    """Over which axes of the mesh each axis of a leaf is spread."""
    spec = tuple(getattr(leaf.sharding, "spec", ()))
    return spec + (None,) * (len(leaf.shape) - len(spec))


def _assert_state_is_sharded_like_params(state: Any, params: Any) -> None:
    for name, leaf in leaves_by_name(state).items():
        likes = [p for key, p in params.items() if f"'{key}'" in name and p.shape == leaf.shape]
        if not leaf.shape:
            whole = leaf.sharding is None or leaf.sharding.is_fully_replicated
            assert whole, f"{name}: {leaf.sharding}"
        elif likes:
            specs = _spec(leaf), _spec(likes[0])
            assert specs[0] == specs[1], f"{name}: {specs[0]}, but the parameter has {specs[1]}"


def check_sharded_by_the_compiler(row: Row) -> None:
    mesh = _mesh(AxisType.Auto)
    params = _sharded(PARAMS, mesh)
    tx = row.build(RATE)
    step = jax.jit(tx.update)
    states = [jax.jit(tx.init)(params)]
    collected = []
    for gradient in STREAM[:2]:
        updates, state = step(_sharded(gradient, mesh), states[-1], params)
        collected.append(updates)
        states.append(state)
    _assert_state_is_sharded_like_params(tx.init(params), params)
    for state in states:
        _assert_state_is_sharded_like_params(state, params)
        assert_same_types(states[0], state)
    for updates in collected:
        _assert_state_is_sharded_like_params(updates, params)
    state = tx.init(PARAMS)
    for gradient, updates in zip(STREAM, collected, strict=False):
        alone, state = tx.update(gradient, state, PARAMS)
        assert_close(updates, alone)
    assert_close(states[-1], state)


def _state_after_scan(tx: optax.GradientTransformation) -> Callable[[Any, Any], Any]:
    def run(gradient: Any, params: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            return tx.update(gradient, state, params)[1], None

        return jax.lax.scan(step, tx.init(params), length=2)[0]

    return run


def check_sharded_explicitly(row: Row) -> None:
    mesh = _mesh(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params, gradient = _sharded(PARAMS, mesh), _sharded(STREAM[0], mesh)
        tx = row.build(RATE)
        state = tx.init(params)
        updates, new_state = tx.update(gradient, state, params)
        _assert_state_is_sharded_like_params(state, params)
        _assert_state_is_sharded_like_params(updates, params)
        assert_same_types(state, new_state)
        # Here shardings are part of the types of tracers, and a scan demands that they stay.
        traced = jax.eval_shape(_state_after_scan(tx), gradient, params)
        _assert_state_is_sharded_like_params(traced, params)
    alone, _ = tx.update(STREAM[0], tx.init(PARAMS), PARAMS)
    assert_close(updates, alone)


# Other transformations, around and beside it.


def check_masked(row: Row) -> None:
    tx = row.build(RATE)
    masked = optax.masked(tx, {"bias": False, "kernel": True})
    alone = run_eagerly(
        tx, [gradient | {"bias": None} for gradient in STREAM], PARAMS | {"bias": None}
    )
    both = run_eagerly(masked)
    for actual, desired, gradient in zip(both.updates, alone.updates, STREAM, strict=True):
        assert_same(actual, desired | {"bias": gradient["bias"]})


def check_partition(row: Row) -> None:
    tx = row.build(RATE)
    labels = {"bias": "sgd", "kernel": "own"}
    partitioned = optax.partition({"own": tx, "sgd": optax.sgd(0.5)}, labels)
    alone = run_eagerly(
        tx, [gradient | {"bias": None} for gradient in STREAM], PARAMS | {"bias": None}
    )
    both = run_eagerly(partitioned)
    for actual, desired, gradient in zip(both.updates, alone.updates, STREAM, strict=True):
        assert_same(actual, desired | {"bias": -0.5 * gradient["bias"]})


def _with_rounded_hyperparameters(row: Row, hyperparams: Mapping[str, Any]) -> Any:
    """The optimizer whose numbers are those that `inject_hyperparams` made of its own.

    Decays that were rounded to 1 count as the largest float32 below it.
    """
    numbers = {name: float(value) for name, value in hyperparams.items()}
    decays = {name for name in numbers if name in ("b1", "b2", "beta")}
    below_one = 1 - 2**-24
    return row.build(**numbers | {name: min(numbers[name], below_one) for name in decays})


def check_injected_hyperparameters(row: Row) -> None:
    """In bfloat16, where 0.999 is 1; how it goes in float32, `check_injected_schedule` says."""
    injected = optax.inject_hyperparams(row.build)(learning_rate=RATE)
    params, stream = cast(PARAMS, jnp.bfloat16), cast(STREAM, jnp.bfloat16)
    actual = run_eagerly(injected, stream, params)
    rate = optax.tree.get(actual.state, "learning_rate")
    assert rate.dtype == jnp.bfloat16
    assert rate == jnp.asarray(RATE, jnp.bfloat16)
    same = _with_rounded_hyperparameters(row, actual.state.hyperparams)
    desired = run_eagerly(same, stream, params)
    assert_close(actual.updates, desired.updates, ulps=2)
    assert_same_types(injected.init(params), actual.state)


def decreasing(count: Any) -> Any:
    """A schedule."""
    return RATE / (1 + count)


def check_injected_schedule(row: Row) -> None:
    injected: Any = optax.inject_hyperparams(row.build)(learning_rate=decreasing)
    state, alone = injected.init(PARAMS), row.build(RATE).init(PARAMS)
    assert_same_types(state, jax.eval_shape(injected.update, STREAM[0], state, PARAMS)[1])
    for i, gradient in enumerate(STREAM):
        updates, state = injected.update(gradient, state, PARAMS)
        np.testing.assert_allclose(state.hyperparams["learning_rate"], decreasing(i), rtol=1e-6)
        desired, alone = row.build(decreasing(i)).update(gradient, alone, PARAMS)
        assert_close(updates, desired, ulps=64)


def check_scheduled_learning_rate(row: Row) -> None:
    if not row.schedules:
        return
    scheduled = row.build(decreasing)
    state, alone = scheduled.init(PARAMS), row.build(RATE).init(PARAMS)
    for i, gradient in enumerate(STREAM):
        updates, new_state = scheduled.update(gradient, state, PARAMS)
        assert_same_types(state, new_state)
        state = new_state
        desired, alone = row.build(decreasing(i)).update(gradient, alone, PARAMS)
        assert_close(updates, desired)
    if row.clock:
        assert optax.tree.get(state, "count") == STEPS


def check_scheduled_weight_decay(row: Row) -> None:
    if "weight_decay" not in inspect.signature(row.build).parameters:
        return
    rate = decreasing if row.schedules else lambda count: RATE
    scheduled = row.build(rate if row.schedules else RATE, weight_decay=decreasing)
    state, alone = scheduled.init(PARAMS), row.build(RATE, weight_decay=RATE).init(PARAMS)
    for i, gradient in enumerate(STREAM):
        updates, new_state = scheduled.update(gradient, state, PARAMS)
        assert_same_types(state, new_state)
        state = new_state
        now = row.build(rate(i), weight_decay=decreasing(i))
        desired, alone = now.update(gradient, alone, PARAMS)
        assert_close(updates, desired)
    assert optax.tree.get(state, "count") == STEPS


def check_multi_steps(row: Row) -> None:
    tx = row.build(RATE)
    accumulating = optax.MultiSteps(tx, every_k_schedule=2)
    update = jax.jit(accumulating.update)
    state = accumulating.init(PARAMS)
    alone = tx.init(PARAMS)
    for first, second in zip(STREAM[::2], STREAM[1::2], strict=True):
        updates, state = update(first, state, PARAMS)
        assert_same(updates, optax.tree.zeros_like(PARAMS))
        updates, state = update(second, state, PARAMS)
        mean = jax.tree.map(lambda x, y: (x + y) / 2, first, second)
        desired, alone = tx.update(mean, alone, PARAMS)
        assert_close(updates, desired, ulps=64)
    assert_same_types(accumulating.init(PARAMS), state)


def check_apply_if_finite(row: Row) -> None:
    guarded = optax.apply_if_finite(row.build(RATE), max_consecutive_errors=3)
    update = jax.jit(guarded.update)
    _, state = update(STREAM[0], guarded.init(PARAMS), PARAMS)
    for bad in (np.nan, np.inf, -np.inf):
        gradient = STREAM[1] | {"kernel": STREAM[1]["kernel"].at[5, 1].set(bad)}
        updates, kept = update(gradient, state, PARAMS)
        assert_same(updates, optax.tree.zeros_like(PARAMS))
        assert_same(kept.inner_state, state.inner_state)
    updates, _ = update(STREAM[1], kept, PARAMS)
    assert_same(updates, update(STREAM[1], state, PARAMS)[0])


def check_chain_with_clipping(row: Row) -> None:
    tx = row.build(RATE)
    clip = optax.clip_by_global_norm(1.0)
    clipped = [clip.update(gradient, clip.init(PARAMS))[0] for gradient in STREAM]
    desired = run_eagerly(tx, clipped)
    assert_same(run_eagerly(optax.chain(clip, tx)).updates, desired.updates)


def check_extra_arguments_are_accepted(row: Row) -> None:
    tx = row.build(RATE)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    state = tx.init(PARAMS)
    plain = tx.update(STREAM[0], state, PARAMS)
    assert_same(tx.update(STREAM[0], state, PARAMS, value=1.0, anything=None), plain)


# The state: what it is made of, and what can be found in it.


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
    """The mixed trees hold float16 and bfloat16."""
    gradients = STREAM[0]
    _assert_dtypes(row, cast(PARAMS, jnp.bfloat16), cast(gradients, jnp.bfloat16))
    _assert_dtypes(row, _mixed(PARAMS), _mixed(gradients))
    _assert_dtypes(row, _mixed(PARAMS), gradients)
    _assert_dtypes(row, PARAMS, _mixed(gradients))


def check_dtypes_in_double_precision(row: Row) -> None:
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
    """All is computed in float32, and only the update is rounded."""
    tx = row.build(RATE)
    params, stream = cast(PARAMS, jnp.bfloat16), cast(STREAM, jnp.bfloat16)
    low, wide = tx.init(params), tx.init(cast(params, jnp.float32))
    for gradient in stream:
        updates, low = tx.update(gradient, low, params)
        exact, wide = tx.update(cast(gradient, jnp.float32), wide, cast(params, jnp.float32))
        _assert_rounded_once(updates, exact)
    assert_close(low, wide)


def check_state_can_be_read(row: Row) -> None:
    state = run_eagerly(row.build(RATE)).state
    if row.clock:
        assert optax.tree.get(state, "count") == STEPS
    for name in row.state:
        assert optax.tree.get(state, name) is not None, f"there is no {name} in {state}"


def check_map_params(row: Row) -> None:
    """`optax.tree.map_params` meets each array of the state with its own parameter."""
    tx = row.build(RATE)
    state = tx.init(PARAMS)
    names = {name: name for name in PARAMS}
    assert_same(optax.tree.map_params(tx, lambda leaf: leaf, state), state)
    met = optax.tree.map_params(
        tx, lambda _, name: name, state, names, transform_non_params=lambda _: "none"
    )
    for path, name in leaves_by_name(met).items():
        own = [key for key in names if f"'{key}'" in path]
        assert name == (own or ["none"])[0], f"{path} was met with {name}"


# Trees as they come.


def check_leaves_without_gradient(row: Row) -> None:
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


def check_empty_trees(row: Row) -> None:
    tx = row.build(RATE)
    for empty in ({}, [], (), {"a": {}}):
        state = tx.init(empty)
        updates, new_state = tx.update(empty, state, empty)
        assert updates == empty
        assert_same_types(state, new_state)


def check_missing_gradient_keeps_state(row: Row) -> None:
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


# What is wrong is said.


def _no_params_message() -> str:
    decay = optax.add_decayed_weights(0.1)
    return str(raised(decay.update, PARAMS, decay.init(PARAMS), None))


def check_params_are_asked_for(row: Row) -> None:
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
    tx = row.build(RATE)
    error = raised(tx.update, STREAM[0] | {"kernel": None}, tx.init(PARAMS))
    assert isinstance(error, ValueError), repr(error)
    assert "`params`" in str(error)
    assert "\n" not in str(error)


def check_mismatched_trees_are_refused(row: Row) -> None:
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
    for shape in ((1, 2), (3, 2), (8, 2, 1)):
        gradient = STREAM[0] | {"kernel": jnp.ones(shape)}
        for params in (PARAMS, gradient, None):
            if params is None and row.needs_params:
                continue
            error = raised(tx.update, gradient, state, params)
            assert isinstance(error, ValueError), repr(error)
            assert "'kernel'" in str(error)
            assert str(shape) in str(error)
            assert "(8, 2)" in str(error)


# It optimizes.


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


CHECKS: tuple[Callable[[Row], None], ...] = tuple(
    function for name, function in list(globals().items()) if name.startswith("check_")
)
# What could hold for one optimizer and fail for another. The other checks are of what all share:
# how trees are walked, and what optax's wrappers hand on.
CORE_CHECKS = (
    check_donation,
    check_dtypes,
    check_eager_and_jit_agree,
    check_empty_trees,
    check_extra_arguments_are_accepted,
    check_init_from_shapes,
    check_init_under_jit,
    check_low_precision_is_rounded_once,
    check_map_params,
    check_missing_gradient_keeps_state,
    check_params_are_asked_for,
    check_restored_run_continues,
    check_scheduled_learning_rate,
    check_state_can_be_read,
)


def check_optimizer(row: Row) -> None:
    """Runs all checks on one row."""
    for check in CHECKS:
        check(row)
