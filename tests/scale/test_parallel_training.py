"""Training on a mesh is training on one device, and the state lies where it lay at first."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests import meshes, support
from tests.conformance import ROWS, Row, assert_same_types
from tests.meshes import entered, mesh_of

STEPS, RATE, BATCH = 12, 0.05, 32
SHAPES = {
    "first/kernel": (32, 16),
    "first/bias": (16,),
    "second/kernel": (16, 8),
    "second/bias": (8,),
}


class Layout(NamedTuple):
    """The axes of a mesh, and how each parameter is cut; batches are cut over the axis `data`."""

    axes: dict[str, int]
    specs: dict[str, P]


LAYOUTS = {
    "data-parallel": Layout({"data": 8}, {k: P(*[None] * len(s)) for k, s in SHAPES.items()}),
    "FSDP": Layout({"data": 8}, {k: P("data", *[None] * (len(s) - 1)) for k, s in SHAPES.items()}),
    "tensor-parallel": Layout(
        {"data": 2, "model": 4},
        {
            "first/kernel": P(None, "model"),
            "first/bias": P("model"),
            "second/kernel": P("model", None),
            "second/bias": P(None),
        },
    ),
}
# An elementwise optimizer, one that normalizes layers, one that looks at the whole tree, one that
# looks at rows, and one that counts for each element. Other formulas of the same pieces meet no
# mesh in another way than these.
KINDS = ("msvag", "novograd", "bert_adamw", "lazy_rows", "expectigrad")
TRAINED = [row for row in ROWS if row.name in KINDS]


def weights(seed: int, dtype: Any) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {k: (random.normal(size=s) / 4).astype(dtype) for k, s in SHAPES.items()}


def batches(dtype: Any, error: float = 0.0) -> Iterator[tuple[Any, ...]]:
    """Sparse inputs, as of words, and what a noisy teacher says; each number off by `error`."""
    random, errors = np.random.default_rng(0), np.random.default_rng(1)
    teacher = weights(2, np.float64)
    for _ in range(STEPS):
        x = random.normal(size=(BATCH, 32)) * (random.random((BATCH, 32)) < 0.3)
        x[:, random.integers(32, size=8)] = 0.0  # rows of the first kernel without gradient
        hidden = np.tanh(x @ teacher["first/kernel"])
        y = hidden @ teacher["second/kernel"] + 0.1 * random.normal(size=(BATCH, 8))
        yield tuple(
            (a * (1 + error * errors.uniform(-1, 1, a.shape))).astype(dtype) for a in (x, y)
        )


def loss_of(params: Any, batch: Any, *, explicit: bool = False) -> jax.Array:
    """A mean over the batch; on explicit axes it says what the compiler finds out by itself."""
    x, y = batch
    if explicit:
        params = jax.tree.map(gathered, params)
    hidden = jnp.tanh(x @ params["first/kernel"] + params["first/bias"])
    sharding = P("data", None) if explicit else None
    output = jnp.dot(hidden, params["second/kernel"], out_sharding=sharding)
    return jnp.mean(jnp.square(output + params["second/bias"] - y))


def gathered(param: jax.Array) -> jax.Array:
    """A parameter that is not cut over the axis over which the batch is."""
    spec = jax.typeof(param).sharding.spec
    return jax.sharding.reshard(param, P(*[None if name == "data" else name for name in spec]))


def step_of(tx: Any, *, explicit: bool = False) -> Any:
    def step(params: Any, state: Any, batch: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, batch, explicit=explicit)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


@functools.cache
def alone(row: Row, dtype: Any) -> tuple[list[Any], float]:
    """The parameters after each step on one device, and how far rounding can move them.

    Sums over a batch and over the pieces of a layer that are made in another order differ by the
    rounding of some `BATCH` terms. An optimizer may enlarge that, where it divides by something
    small, and so may the next steps. How much it does is seen by training once more, on data of
    which each number is off by as much; a bound is four times as far, and 8 units in the last place
    for those, such as the sign, that nothing moves.
    """
    tx = row.build(RATE)
    step = jax.jit(step_of(tx))

    def train(data: Any) -> list[Any]:
        params, state = weights(0, dtype), tx.init(weights(0, dtype))
        trajectory = []
        for batch in data:
            params, state, _ = step(params, state, batch)
            trajectory.append(jax.tree.map(np.asarray, params))
        return trajectory

    eps = float(jnp.finfo(dtype).eps)
    exact, rounded = train(batches(dtype)), train(batches(dtype, BATCH * eps))
    return exact, 4 * distance(exact, rounded) + 8 * eps


def distance(one: Any, other: Any) -> float:
    """The largest difference of any element."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return float(np.max([np.max(np.abs(x - y)) for x, y in pairs]))  # NaN if there is any


def abstract(tree: Any, shardings: Any) -> Any:
    def shape_of(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(shape_of, tree, shardings)


def begin(tx: Any, layout: Layout, mesh: jax.sharding.Mesh, dtype: Any) -> tuple[Any, Any]:
    """Parameters and state on the mesh, where the state is what its types had promised."""
    shardings = {name: NamedSharding(mesh, spec) for name, spec in layout.specs.items()}
    params = jax.device_put(weights(0, dtype), shardings)
    promised = abstract(params, shardings)
    state = jax.jit(tx.init)(params)
    compiled = jax.jit(tx.init).lower(promised).compile()
    assert_same_types(state, abstract(jax.eval_shape(tx.init, promised), compiled.output_shardings))
    meshes.assert_sharded_like(state, params)
    return params, state


def check(row: Row, layout: Layout, kind: AxisType, dtype: Any) -> None:
    expected, bound = alone(row, dtype)
    tx = row.build(RATE)
    mesh = mesh_of(layout.axes, kind)
    with entered(mesh):
        params, state = first = begin(tx, layout, mesh, dtype)
        data = [jax.device_put(b, NamedSharding(mesh, P("data", None))) for b in batches(dtype)]
        step = jax.jit(step_of(tx, explicit=kind == AxisType.Explicit), donate_argnums=(0, 1))
        # Compiled for abstract values, it refuses whatever has another type or lies elsewhere.
        types = jax.tree.map(lambda x: x.sharding, (*first, data[0]))
        compiled = step.lower(*abstract((*first, data[0]), types)).compile()
        first = jax.tree.map(jnp.copy, first)
        for batch, desired in zip(data, expected, strict=True):
            params, state, _ = compiled(params, state, batch)
            assert distance(params, desired) <= bound
            assert_same_types(first, (params, state))


def cases(*, fast: tuple[str, ...], layouts: tuple[str, ...]) -> list[Any]:
    return [
        pytest.param(row, name, id=f"{row.name}-{name}", marks=[pytest.mark.slow] * (not quick))
        for row in TRAINED
        for name in layouts
        for quick in [row.name in fast and name == "FSDP"]
    ]


@pytest.mark.parametrize(("row", "layout"), cases(fast=KINDS[1:2], layouts=tuple(LAYOUTS)))
@pytest.mark.usefixtures("float64")
def test_a_mesh_trains_like_one_device(row, layout):
    check(row, LAYOUTS[layout], AxisType.Auto, np.float64)


@pytest.mark.parametrize(("row", "layout"), cases(fast=KINDS[1:2], layouts=("FSDP",)))
@pytest.mark.usefixtures("float64")
def test_explicit_axes_train_like_one_device(row, layout):
    check(row, LAYOUTS[layout], AxisType.Explicit, np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("row", TRAINED, ids=lambda r: r.name)
@pytest.mark.parametrize("layout", ["data-parallel", "tensor-parallel"])
@pytest.mark.usefixtures("float64")
def test_all_layouts_train_with_explicit_axes(row, layout):
    check(row, LAYOUTS[layout], AxisType.Explicit, np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("row", TRAINED, ids=lambda r: r.name)
def test_float32_is_as_good(row):
    check(row, LAYOUTS["FSDP"], AxisType.Auto, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("row", TRAINED, ids=lambda r: r.name)
@pytest.mark.parametrize(
    ("layout", "kind"), [("FSDP", AxisType.Explicit), ("tensor-parallel", AxisType.Auto)]
)
@pytest.mark.usefixtures("float64")
def test_a_scan_over_steps_trains_like_one_device(row, layout, kind):
    expected, bound = alone(row, np.float64)
    tx = row.build(RATE)
    mesh = mesh_of(LAYOUTS[layout].axes, kind)
    step = step_of(tx, explicit=kind == AxisType.Explicit)

    @jax.jit
    def train(params: Any, state: Any, data: Any) -> Any:
        def body(carry: Any, batch: Any) -> Any:
            return step(*carry, batch)[:2], None

        return jax.lax.scan(body, (params, state), data)[0]

    with entered(mesh):
        first = begin(tx, LAYOUTS[layout], mesh, np.float64)
        data = jax.tree.map(lambda *x: np.stack(x), *batches(np.float64))
        last = train(*first, jax.device_put(data, NamedSharding(mesh, P(None, "data", None))))
        assert_same_types(first, last)
    assert distance(last[0], expected[-1]) <= bound


@pytest.mark.slow
def test_the_bounds_are_narrow():
    """What rounding may do is nothing beside what training does."""
    for row in TRAINED:
        with support.float64():
            trajectory, bound = alone(row, np.float64)
        assert bound < 1e-11 * distance(trajectory[-1], weights(0, np.float64))
