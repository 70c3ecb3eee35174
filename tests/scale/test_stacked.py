"""A model that scans over its layers trains like the same model with one leaf a layer.

And norms of smaller parts than layers: of rows, of columns and of blocks.
"""

import functools
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import msvag_optax as mo
from msvag_optax import testing
from tests.conformance import ROWS, TYPICAL, Row, assert_same_types
from tests.meshes import KINDS, assert_sharded_like, entered, mesh_of

LAYERS, WIDTH, STEPS, RATE = 4, 8, 10, 0.05
BLOCKS = ["^blocks/"]
NOVOGRAD: dict[str, dict[str, Any]] = {
    "plain": {},
    "amsgrad": {"amsgrad": True},
    "averaging": {"grad_averaging": True},
    "decay": {"weight_decay": 0.1, "exclude_from_weight_decay": ["bias$"]},
    "all": {
        "amsgrad": True,
        "grad_averaging": True,
        "weight_decay": lambda count: 0.1 / (1 + count),
        "exclude_from_weight_decay": ["bias$"],
    },
}
# In float64 the two programs round differently by some units in the last place, 2e-16, and ten
# steps enlarge that (tests/scale/test_parallel_training.py) by less than a hundred. One norm for
# all layers makes a difference of more than 1e-3, see below.
BOUND = 1e-12


def stack() -> Any:
    random = np.random.default_rng(0)
    # Layers of different scales have gradients of different lengths.
    scales = np.geomspace(0.1, 1.0, LAYERS)[:, None, None]
    return {
        "blocks": {
            "kernel": scales * random.normal(size=(LAYERS, WIDTH, WIDTH)),
            "bias": 0.1 * random.normal(size=(LAYERS, WIDTH)),
        },
        "head": random.normal(size=(WIDTH, 4)),
    }


def unrolled(params: Any) -> Any:
    blocks = [jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(LAYERS)]
    return params | {"blocks": blocks}


def block(hidden: jax.Array, params: Any) -> jax.Array:
    return hidden + jnp.tanh(hidden @ params["kernel"] + params["bias"])


def loss_of(params: Any, batch: Any) -> jax.Array:
    """The loss of the stacked or of the unrolled model."""
    x, y = batch
    if isinstance(params["blocks"], list):
        hidden = functools.reduce(block, params["blocks"], x)
    else:
        hidden, _ = jax.lax.scan(lambda h, p: (block(h, p), None), x, params["blocks"])
    return jnp.mean(jnp.square(hidden @ params["head"] - y))


def batches() -> list[Any]:
    random = np.random.default_rng(1)
    return [(random.normal(size=(16, WIDTH)), random.normal(size=(16, 4))) for _ in range(STEPS)]


def train(tx: Any, params: Any, state: Any = None) -> tuple[Any, Any]:
    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        updates, state = tx.update(jax.grad(loss_of)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params) if state is None else state
    states = [state]
    for batch in batches():
        params, state = step(params, states[-1], batch)
        states.append(state)
    assert_same_types(states[1], states[-1])
    return params, states[-1]


@functools.cache
def novograd_unrolled(options: str) -> Any:
    return train(mo.novograd(RATE, 0.9, 0.8, **NOVOGRAD[options]), unrolled(stack()))[0]


def largest_difference(params: Any, desired: Any) -> float:
    """Between the parameters of a stacked model and of an unrolled one."""
    pairs = zip(jax.tree.leaves(unrolled(params)), jax.tree.leaves(desired), strict=True)
    # NaN if there is any, unlike Python's maximum.
    return float(np.max([np.max(np.abs(np.asarray(x) - np.asarray(y))) for x, y in pairs]))


@pytest.mark.parametrize(
    "options", [n if n == "all" else pytest.param(n, marks=pytest.mark.slow) for n in NOVOGRAD]
)
@pytest.mark.usefixtures("float64")
def test_stacked_layers_train_like_layers(options):
    stacked = mo.novograd(RATE, 0.9, 0.8, stacked=BLOCKS, **NOVOGRAD[options])
    desired = novograd_unrolled(options)
    assert largest_difference(train(stacked, stack())[0], desired) < BOUND


@pytest.mark.usefixtures("float64")
def test_one_norm_for_all_layers_is_another_optimizer():
    params, _ = train(mo.novograd(RATE, 0.9, 0.8, **NOVOGRAD["all"]), stack())
    assert largest_difference(params, novograd_unrolled("all")) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.name in TYPICAL and row.reach in ("element", "tree")],
    ids=lambda row: row.name,
)
@pytest.mark.usefixtures("float64")
def test_other_optimizers_need_not_know(row):
    params, _ = train(row.build(RATE), stack())
    desired, _ = train(row.build(RATE), unrolled(stack()))
    assert largest_difference(params, desired) < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("options", ["plain", "all"])
@pytest.mark.parametrize("axis", [0, 1], ids=["over layers", "inside of layers"])
@pytest.mark.usefixtures("float64")
def test_stacked_layers_may_be_cut(axis, options):
    tx = mo.novograd(RATE, 0.9, 0.8, stacked=BLOCKS, **NOVOGRAD[options])
    mesh = mesh_of({"devices": LAYERS}, AxisType.Auto)
    sharding = NamedSharding(mesh, P(*[None] * axis, "devices"))
    whole = stack()
    params = jax.device_put(whole, {"blocks": sharding, "head": NamedSharding(mesh, P("devices"))})
    state = jax.jit(tx.init)(params)
    trained, last = train(tx, params, state)
    assert largest_difference(trained, novograd_unrolled(options)) < BOUND
    assert_same_types((params, state), (trained, last))
    assert_sharded_like(last, params["blocks"])
    # Whoever holds a layer holds its norm; of layers that are cut, everybody holds the norms.
    norms = optax.tree.get(last, "average" if options == "plain" else "maximum")["blocks"]["kernel"]
    assert norms.shape == (LAYERS, 1, 1)
    assert norms.sharding.is_fully_replicated == (axis == 1)


@pytest.mark.usefixtures("float64")
def test_diagnostics_of_stacked_layers():
    tx = optax.chain(mo.watch_moments(mo.exponential(0.8)), mo.novograd(RATE, stacked=BLOCKS))
    _, together = train(tx, stack())
    watched = optax.chain(mo.watch_moments(mo.exponential(0.8)), mo.novograd(RATE))
    _, apart = train(watched, unrolled(stack()))
    ratios, desired = mo.signal_to_noise(together, stacked=BLOCKS), mo.signal_to_noise(apart)
    assert jnp.shape(ratios["blocks"]["bias"]) == (LAYERS,)
    jax.tree.map(
        lambda r, d: np.testing.assert_allclose(r, d, rtol=1e-9), unrolled(ratios), desired
    )
    np.testing.assert_allclose(mo.noise_scale(together), mo.noise_scale(apart), rtol=1e-9)


def report_on(params: Any) -> str:
    file = io.StringIO()
    mo.weight_decay_report(params, exclude_from_weight_decay=["bias$"], file=file)
    return file.getvalue()


def test_the_same_elements_decay():
    together, apart = report_on(stack()), report_on(unrolled(stack()))
    decaying = LAYERS * WIDTH * WIDTH + WIDTH * 4
    total = f"{decaying} of {decaying + LAYERS * WIDTH} elements decay, in "
    assert f"{total}2 of 3 parameters." in together
    assert f"{total}{LAYERS + 1} of {2 * LAYERS + 1} parameters." in apart


# Norms of parts.


def of_rows(gradient: jax.Array) -> jax.Array:
    """The squared norm of each index of the leading axis."""
    axes = tuple(range(1, gradient.ndim))
    return mo.saturate(jnp.sum(mo.square(gradient), axis=axes, keepdims=True))


def of_columns(gradient: jax.Array) -> jax.Array:
    """The squared norm of each index of the last axis; what has one axis is taken by elements."""
    axes = tuple(range(gradient.ndim - 1))
    return mo.saturate(jnp.sum(mo.square(gradient), axis=axes, keepdims=True))


def in_pairs(x: jax.Array) -> jax.Array:
    return x.reshape(-1, 2, *x.shape[1:]) if x.ndim > 1 else x


def of_pairs(gradient: jax.Array) -> jax.Array:
    """The squared norm of each pair of rows."""
    if gradient.ndim < 2:
        return mo.square(gradient)
    pairs = in_pairs(gradient)
    axes = tuple(range(1, pairs.ndim))
    return mo.saturate(jnp.sum(mo.square(pairs), axis=axes, keepdims=True))


def over_pairs(gradient: jax.Array, second_moment: jax.Array) -> jax.Array:
    quotient = mo.over_rms(0.0)(in_pairs(gradient), second_moment=second_moment)
    return quotient.reshape(gradient.shape)


def by_parts(learning_rate: Any, of: Any = of_rows, formula: Any = None) -> Any:
    """NovoGrad with a norm for each part of a leaf."""
    norms = mo.running_average(mo.exponential_from_first(0.9), of=of)
    return mo.dependable(
        optax.chain(
            mo.from_estimates(formula or mo.over_rms(0.0), second_moment=norms),
            optax.trace(0.9),
            optax.scale_by_learning_rate(learning_rate),
        )
    )


PARTS = {
    "rows": (of_rows, None, (8, 1)),
    "columns": (of_columns, None, (1, 16)),
    "pairs": (of_pairs, over_pairs, (4, 1, 1)),
}


def parts_of(name: str, matrix: Any) -> Any:
    """The parts that have norms of their own, in rows."""
    return {"rows": matrix, "columns": matrix.T, "pairs": matrix.reshape(4, -1)}[name]


@pytest.mark.parametrize("name", PARTS)
def test_each_part_has_a_norm_of_its_own(name):
    of, formula, shape = PARTS[name]
    gradient = np.random.default_rng(0).normal(size=(8, 16)) * np.geomspace(1e-3, 1e3, 8)[:, None]
    params = {"kernel": jnp.asarray(gradient, jnp.float32), "bias": jnp.ones(3)}
    tx = by_parts(1.0, of, formula)
    state = tx.init(params)
    assert optax.tree.get(state, "average")["kernel"].shape == shape
    updates, _ = tx.update(params, state, params)
    lengths = np.linalg.norm(parts_of(name, np.asarray(updates["kernel"])), axis=1)
    # A sum of at most 32 squares, a root and a quotient.
    np.testing.assert_allclose(lengths, 1.0, rtol=40 * 2.0**-24)
    np.testing.assert_array_equal(updates["bias"], -1.0)


# Over which axis of the mesh each axis of a norm is cut, by how its parameter is cut.
WHERE = {
    ("rows", 0): ("devices",),
    ("rows", 1): (),
    ("columns", 0): (),
    ("columns", 1): (None, "devices"),
    ("pairs", 0): ("devices",),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("name", "axis"),
    [
        case if case == ("rows", 0) else pytest.param(*case, marks=pytest.mark.slow)
        for case in WHERE
    ],
)
def test_whoever_holds_a_part_holds_its_norm(name, axis, kind):
    mesh = mesh_of({"devices": 4}, kind)
    whole = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    tx = by_parts(1.0, *PARTS[name][:2])
    desired, _ = tx.update({"kernel": whole}, tx.init({"kernel": whole}))
    sharding = NamedSharding(mesh, P(*("devices" if i == axis else None for i in range(2))))
    with entered(mesh):
        params = {"kernel": jax.device_put(whole, sharding)}
        state = jax.jit(tx.init)(params)
        updates, new_state = jax.jit(tx.update)(params, state)
        assert_sharded_like(state, params)
        assert_same_types(state, new_state)
    norms = optax.tree.get(state, "average")["kernel"]
    expected = NamedSharding(mesh, P(*WHERE[name, axis]))
    assert norms.sharding.is_equivalent_to(expected, norms.ndim)
    np.testing.assert_allclose(updates["kernel"], desired["kernel"], rtol=16 * 2.0**-24)


@pytest.mark.slow
@pytest.mark.parametrize(("of", "reach"), [(of_rows, "row"), (of_columns, "leaf")])
def test_norms_of_parts_conform(of, reach):
    def build(learning_rate: Any) -> Any:
        return by_parts(learning_rate, of)

    row = Row(f"by parts {of.__name__}", build, "invariant", reach, clock=False, state=("trace",))
    testing.check(**row._asdict(), house=True).require()
