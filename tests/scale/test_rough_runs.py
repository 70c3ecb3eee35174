"""Runs as they come: gradients that are not finite, float16 with a loss scale, 5,000 leaves."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from benchmarks.step import donated_step
from tests.conformance import (
    PARAMS,
    RATE,
    ROWS,
    SHAPES,
    TYPICAL,
    Row,
    assert_close,
    assert_same,
    assert_same_types,
    cast,
    leaves_by_name,
)
from tests.support import by_speed

# They count for each element, for all and for layers; the others are left to the slow tests.
FAST = {"expectigrad", "msvag", "novograd-stacked"}
rows = pytest.mark.parametrize(
    "row", by_speed({row.name: row for row in ROWS if row.name in TYPICAL}, FAST)
)

# Steps with gradients that are not finite.

STEPS = 60


def spoil(gradients: dict[str, np.ndarray], step: int, random: np.random.Generator) -> None:
    """Makes one element, one leaf or all leaves of a step's gradient not finite."""
    bad = random.choice([np.nan, np.inf, -np.inf])
    leaf = random.choice(list(SHAPES))
    match random.integers(3):
        case 0:
            gradient = gradients[leaf][step, ...]
            gradient.flat[random.integers(gradient.size)] = bad
        case 1:
            gradients[leaf][step] = bad
        case 2:
            for gradient in gradients.values():
                gradient[step] = bad


@functools.cache
def rough_gradients() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Stacked gradients, some of them spoiled, and the steps whose gradients are good."""
    random = np.random.default_rng(0)
    gradients = {
        name: random.normal(size=(STEPS, *shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    # The first, the last, two and four in a row, and one in eight of the others.
    bad = {0, 20, 21, 40, 41, 42, 43, STEPS - 1, *np.flatnonzero(random.random(STEPS) < 1 / 8)}
    for step in bad:
        spoil(gradients, int(step), random)
    return gradients, np.asarray([step for step in range(STEPS) if step not in bad])


class Run(NamedTuple):
    params: Any
    state: Any
    updates: Any


@functools.cache
def guarded_run(row: Row) -> Any:
    """A compiled scan over as many steps as there are, of which `count` are taken, in `order`."""
    guarded = optax.apply_if_finite(row.build(RATE), max_consecutive_errors=STEPS)

    @jax.jit
    def run(params: Any, gradients: Any, order: Any, count: Any) -> Run:
        updates = jax.tree.map(jnp.zeros_like, gradients)
        start = Run(params, guarded.init(params), updates)

        def step(i: Any, run: Run) -> Run:
            gradient = jax.tree.map(lambda g: g[order[i]], gradients)
            updates, state = guarded.update(gradient, run.state, run.params)
            return Run(
                optax.apply_updates(run.params, updates),
                state,
                jax.tree.map(lambda all_, u: all_.at[order[i]].set(u), run.updates, updates),
            )

        return jax.lax.fori_loop(0, count, step, start)

    return run


@rows
def test_bad_steps_that_are_skipped_leave_no_trace(row):
    """One trajectory, bit for bit, whether bad steps are skipped or were never there."""
    gradients, good = rough_gradients()
    with_bad = guarded_run(row)(PARAMS, gradients, np.arange(STEPS), np.int32(STEPS))
    order = np.resize(good, STEPS)
    without = guarded_run(row)(PARAMS, gradients, order, np.int32(good.size))
    assert_same(with_bad.updates, without.updates)
    assert_same(with_bad.params, without.params)
    assert_same(with_bad.state.inner_state, without.state.inner_state)
    assert with_bad.state.total_notfinite == STEPS - good.size
    assert without.state.total_notfinite == 0
    if row.clock:
        assert optax.tree.get(with_bad.state.inner_state, "count") == good.size
    # It is a run: no bad step moves anything, every good one does, but BERT's first, at rate 0.
    moves = sum(np.abs(u).reshape(STEPS, -1).sum(axis=1) for u in with_bad.updates.values())
    assert set(good[1:]) <= set(np.flatnonzero(moves)) <= set(good)


@functools.cache
def compiled_update(row: Row) -> Any:
    return jax.jit(row.build(RATE).update)


def spoiled_by(bad: float, row: Row) -> tuple[Any, Any]:
    """Where updates and state are not finite, five steps after one element of a gradient was."""
    gradients, good = rough_gradients()
    stream = [jax.tree.map(lambda g, i=i: g[i], gradients) for i in good[:8]]
    stream[2]["kernel"] = stream[2]["kernel"].copy()
    stream[2]["kernel"][5, 1] = bad
    # The parameters stay, as decay would carry their NaN into any update.
    state, updates = row.build(RATE).init(PARAMS), {}
    for gradient in stream:
        updates, state = compiled_update(row)(gradient, state, PARAMS)
    in_state = {name: np.zeros(shape, bool) for name, shape in SHAPES.items()}
    for path, leaf in leaves_by_name(state).items():
        for name, where in in_state.items():
            if path.endswith(f"['{name}']"):
                where |= ~np.isfinite(leaf)
    return {name: ~np.isfinite(update) for name, update in updates.items()}, in_state


def elements_in_reach(row: Row) -> dict[str, np.ndarray]:
    """What one element of the kernel is felt by; `lazy_rows` looks at rows, but mixes none."""
    everywhere = row.reach == "tree"
    reached = {name: np.full(shape, everywhere) for name, shape in SHAPES.items()}
    own: Any = {"element": (5, 1), "row": 5, "leaf": ..., "tree": ...}[row.reach]
    reached["kernel"][(5, 1) if row.name == "lazy_rows" else own] = True
    return reached


@rows
def test_without_a_guard_nan_stays_and_spoils_what_its_element_reaches(row):
    in_updates, in_state = spoiled_by(np.nan, row)
    reached = elements_in_reach(row)
    jax.tree.map(np.testing.assert_array_equal, in_updates, reached)
    jax.tree.map(np.testing.assert_array_equal, in_state, reached)


@rows
def test_without_a_guard_an_infinity_stays_and_spoils_no_more_than_nan(row):
    in_updates, in_state = spoiled_by(np.inf, row)
    assert in_updates["kernel"][5, 1]
    for name, reached in elements_in_reach(row).items():
        assert not np.any((in_updates[name] | in_state[name]) & ~reached)


# Float16, with a loss scale that finds its size by itself.

TRAINING_STEPS = 400
NAMED = {  # by elements, with a count for each, by layers, and of the whole tree
    "msvag": lambda: mo.msvag(0.5),
    "expectigrad": lambda: mo.expectigrad(0.01),
    "novograd": lambda: mo.novograd(0.01, b2=0.98),
    "bert_adamw": lambda: mo.bert_adamw(0.02, 2 * TRAINING_STEPS, 20),
}


@functools.cache
def task() -> tuple[Any, ...]:
    """Parameters of a small network, its inputs, and what it is to make of them."""
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 8))
    data = x, np.sin(x @ random.normal(size=(8, 1)))
    kernels = {"body": (8, 16), "head": (16, 1)}
    params = {
        name: {"kernel": 0.3 * random.normal(size=shape), "bias": np.zeros(shape[1])}
        for name, shape in kernels.items()
    }
    return cast((params, *data), np.float32)


def loss_of(params: Any, x: Any, y: Any) -> Any:
    hidden = jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"])
    return jnp.mean(jnp.square(hidden @ params["head"]["kernel"] + params["head"]["bias"] - y))


class Training(NamedTuple):
    params: Any
    state: Any
    scale: Any
    good_steps: Any


def trained(optimizer: str, kept: Any, computed: Any) -> tuple[Training, np.ndarray]:
    """The end of a training with a loss scale, and the scales on its way.

    The parameters are kept in one dtype, and loss and gradients computed in another.
    """
    tx: Any = optax.apply_if_finite(NAMED[optimizer](), max_consecutive_errors=TRAINING_STEPS)

    @jax.jit
    def train(params: Any, x: Any, y: Any) -> Any:
        def scaled_loss(params: Any, scale: Any) -> Any:
            return loss_of(*cast((params, x, y), computed)) * scale.astype(computed)

        def step(now: Training, _: None) -> Any:
            gradients = jax.grad(scaled_loss)(now.params, now.scale)
            gradients = jax.tree.map(lambda g: g.astype(jnp.float32) / now.scale, gradients)
            updates, state = tx.update(gradients, now.state, now.params)
            good_steps = jnp.where(state.last_finite, now.good_steps + 1, 0)
            grown = jnp.where(good_steps % 50 == 0, 2 * now.scale, now.scale)
            scale = jnp.where(state.last_finite, grown, now.scale / 2)
            params = optax.apply_updates(now.params, updates)
            return Training(params, state, scale, good_steps), scale

        start = Training(params, tx.init(params), jnp.float32(2.0**20), jnp.int32(0))
        return jax.lax.scan(step, start, length=TRAINING_STEPS)

    params, x, y = task()
    end, scales = train(cast(params, kept), x, y)
    return end, np.asarray(scales)


@pytest.mark.parametrize(
    "optimizer",
    [pytest.param(name, marks=[] if name == "msvag" else [pytest.mark.slow]) for name in NAMED],
)
def test_float16_with_a_loss_scale_trains_like_float32(optimizer):
    params, x, y = task()
    first = loss_of(params, x, y)
    wide, _ = trained(optimizer, jnp.float32, jnp.float32)
    for kept in (jnp.float32, jnp.float16):
        end, scales = trained(optimizer, kept, jnp.float16)
        # It is a training, and float16 costs no more than a hundredth of what there was to learn.
        last = [loss_of(*cast((p, x, y), jnp.float32)) for p in (wide.params, end.params)]
        assert last[0] < first / 100
        assert last[1] < last[0] + first / 100
        # The scale fell from where it was too large, rose, and fell again.
        changes = np.diff(scales)
        falls, rises = np.flatnonzero(changes < 0), np.flatnonzero(changes > 0)
        assert falls.size > 0
        assert rises.size > 0
        assert falls[0] < rises[0] < falls[-1]
        # Each step that overflowed was skipped, and no other.
        skipped = falls.size + 1  # the first scale is not among the scales
        assert end.state.total_notfinite == skipped
        assert optax.tree.get(end.state.inner_state, "count") == TRAINING_STEPS - skipped
        for leaf in jax.tree.leaves(end.state.inner_state):
            assert leaf.dtype in (jnp.float32, jnp.int32)
            assert np.all(np.isfinite(leaf))


# Up to a million parameters in 5,000 leaves.

# What finds a leaf its way is the same for all. These count for all, for each element, for layers.
DECAYING = {"msvag": mo.msvag, "expectigrad": mo.expectigrad, "novograd": mo.novograd}


def many_leaves(seed: int, stages: int) -> Any:
    """Stages of 25 blocks of two layers, which have a kernel and a bias each."""
    random = np.random.default_rng(seed)

    def layer(rows: int, columns: int) -> dict[str, jax.Array]:
        return {
            "kernel": jnp.asarray(random.normal(size=(rows, columns)), jnp.float32),
            "bias": jnp.asarray(random.normal(size=columns), jnp.float32),
        }

    return {
        f"stage_{i}": {
            f"block_{j}": {"up": layer(16, 24), "down": layer(24, 16)} for j in range(25)
        }
        for i in range(stages)
    }


def one_block(tree: Any) -> Any:
    return {"stage_1": {"block_11": tree["stage_1"]["block_11"]}}


def optimizer_with_exclusions(name: str) -> Any:
    # Biases do not decay, nor do some kernels of the first ten stages.
    excluded = ["bias$", r"^stage_\d/.*/up/kernel$"]
    return DECAYING[name](0.1, weight_decay=0.01, exclude_from_weight_decay=excluded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stages"), [(name, 50 if name == "msvag" else 5) for name in DECAYING]
)
def test_a_block_among_many_leaves_goes_its_own_way(name, stages):
    """Among 5,000 leaves for one optimizer, among 500 for the others."""
    params, gradients = many_leaves(0, stages), many_leaves(1, stages)
    assert len(jax.tree.leaves(params)) == 100 * stages
    tx = optimizer_with_exclusions(name)
    state, alone = tx.init(params), tx.init(one_block(params))
    for _ in range(2):
        updates, state = tx.update(gradients, state, params)
        desired, alone = tx.update(one_block(gradients), alone, one_block(params))
        assert_same(one_block(updates), desired)
    traced = donated_step(tx).trace(params, state, gradients)
    assert_same_types((params, state), jax.tree.map(lambda x: x, traced.out_info))


@pytest.mark.slow
def test_novograd_has_a_norm_for_each_of_hundreds_of_leaves():
    params, gradients = many_leaves(0, stages=5), many_leaves(1, stages=5)
    tx = optimizer_with_exclusions("novograd")
    _, state = tx.update(gradients, tx.init(params), params)
    norms = optax.tree.get(state, "second_moment").average
    assert jax.tree.structure(norms) == jax.tree.structure(params)
    for norm, gradient in zip(jax.tree.leaves(norms), jax.tree.leaves(gradients), strict=True):
        assert norm.shape == ()
        # A sum of up to 384 squares takes that many roundings at most.
        exact = np.sum(np.square(gradient, dtype=np.float64))
        np.testing.assert_allclose(norm, exact, rtol=385 * 2.0**-24)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECAYING)
def test_hundreds_of_leaves_are_compiled_once_and_updated_in_place(name):
    params, gradients = many_leaves(0, stages=2), many_leaves(1, stages=2)
    tx = optimizer_with_exclusions(name)
    state = tx.init(params)
    few = jax.tree.map(jnp.copy, one_block(params))
    alone = tx.init(few)
    step, step_alone = donated_step(tx), donated_step(tx)
    for count in (1, 2):
        old = jax.tree.leaves((params, state))
        params, state = step(params, state, gradients)
        assert all(leaf.is_deleted() for leaf in old)
        few, alone = step_alone(few, alone, one_block(gradients))
        assert_close(one_block(params), few)
        assert optax.tree.get(state, "count") == count
    assert step._cache_size() == 1
