"""What every optimizer may be expected to keep, however it is run, restored and fed."""

import importlib.util
import pickle
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msvag_optax.testing.runs import (
    NotRunError,
    Row,
    compiled_step,
    run_compiled,
    run_eagerly,
    trajectory,
)
from msvag_optax.testing.trees import (
    GRADIENTS,
    PARAMS,
    RATE,
    STEPS,
    STREAM,
    assert_close,
    assert_same,
    assert_same_types,
    cast,
    copied,
    leaves_by_name,
    stacked,
    values_of,
)


def check_eager_and_jit_agree(row: Row) -> None:
    """Updates, parameters and state are the same under `jit`; one compilation serves all steps."""
    eager = run_eagerly(row.build(RATE))
    state = row.build(RATE).init(PARAMS)
    assert_close(run_compiled(row, STREAM, PARAMS, state), eager)


def check_eager_and_scan_agree(row: Row) -> None:
    """Updates, parameters and state are the same in a `jax.lax.scan`."""
    eager = run_eagerly(row.build(RATE))
    scan = trajectory(row)(RATE, PARAMS, GRADIENTS)
    updates = [jax.tree.map(lambda u, i=i: u[i], scan.updates) for i in range(STEPS)]
    assert_close(scan._replace(updates=updates), eager)


def check_vmap(row: Row) -> None:
    """Two runs under one `jax.vmap`, with a rate each, equal two separate runs."""
    rates = jnp.asarray([0.0, 1.0])
    streams = [GRADIENTS, stacked(STREAM[::-1])]
    run = trajectory(row)
    together = jax.vmap(run, in_axes=(0, None, 0))(rates, PARAMS, stacked(streams))
    apart = [run(rate, PARAMS, stream) for rate, stream in zip(rates, streams, strict=True)]
    assert_close(together, stacked(apart))


def check_donation(row: Row) -> None:
    """A step can overwrite parameters and state that are donated to it."""
    params = copied(PARAMS)
    state = row.build(RATE).init(params)
    for gradient in STREAM[:2]:
        old = jax.tree.leaves((params, state))
        _, params, state = compiled_step(row)(gradient, params, state)
        assert all(leaf.is_deleted() for leaf in old)


def check_init_under_jit(row: Row) -> None:
    """A state has the same types from `init`, from a traced `init`, and after an update."""
    tx = row.build(RATE)
    state = tx.init(PARAMS)
    abstract = jax.eval_shape(tx.init, PARAMS)
    assert_same_types(state, abstract)
    assert_same_types(state, jax.eval_shape(tx.update, STREAM[0], state, PARAMS)[1])


def check_extra_arguments_are_accepted(row: Row) -> None:
    """Extra arguments that are meant for other links of a chain make no difference."""
    tx = optax.with_extra_args_support(row.build(RATE))
    state = tx.init(PARAMS)
    plain = tx.update(STREAM[0], state, PARAMS)
    assert_same(tx.update(STREAM[0], state, PARAMS, value=1.0, anything=None), plain)


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


def check_empty_trees(row: Row) -> None:
    """A tree without leaves is accepted."""
    tx = row.build(RATE)
    for empty in ({}, [], (), {"a": {}}):
        state = tx.init(empty)
        updates, new_state = tx.update(empty, state, empty)
        assert updates == empty
        assert_same_types(state, new_state)


def check_pickled_run_continues(row: Row) -> None:
    """From the pickled leaves of a state, a run continues bit for bit."""
    tx = row.build(RATE)
    middle = run_compiled(row, STREAM[:3], PARAMS, tx.init(PARAMS))
    unbroken = run_compiled(row, STREAM[3:], middle.params, middle.state)
    leaves, treedef = jax.tree.flatten(middle.state)
    state = treedef.unflatten(pickle.loads(pickle.dumps(leaves)))
    assert_same_types(middle.state, state)
    assert_same(run_compiled(row, STREAM[3:], middle.params, state), unbroken)


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise NotRunError(f"{package} is not installed")


def _saved_state(row: Row) -> Any:
    return row.build(RATE).update(STREAM[0], row.build(RATE).init(PARAMS), PARAMS)[1]


def check_restored_by_flax(row: Row) -> None:
    """`flax.serialization` gives back the state that it was given."""
    _need("flax")
    from flax import serialization

    state = _saved_state(row)
    restored = serialization.from_bytes(row.build(RATE).init(PARAMS), serialization.to_bytes(state))
    restored = jax.tree.map(jnp.asarray, restored)
    assert_same_types(state, restored)
    assert_same(restored, state)


def check_restored_by_equinox(row: Row) -> None:
    """`equinox.tree_deserialise_leaves` gives back the state that was saved."""
    _need("equinox")
    import equinox

    state = _saved_state(row)
    with tempfile.TemporaryDirectory() as folder:
        equinox.tree_serialise_leaves(Path(folder) / "state.eqx", state)
        like = row.build(RATE).init(PARAMS)
        restored = equinox.tree_deserialise_leaves(Path(folder) / "state.eqx", like)
    assert_same_types(state, restored)
    assert_same(restored, state)


def check_restored_by_orbax(row: Row) -> None:
    """`orbax.checkpoint` gives back the state that was saved."""
    _need("orbax")
    from orbax import checkpoint

    state = _saved_state(row)
    with tempfile.TemporaryDirectory() as folder, checkpoint.StandardCheckpointer() as saver:
        saver.save(Path(folder) / "state", state)
        saver.wait_until_finished()
        restored = saver.restore(Path(folder) / "state", row.build(RATE).init(PARAMS))
    assert_same_types(state, restored)
    assert_same(restored, state)


def check_types_in_low_precision(row: Row) -> None:
    """Updates have the dtypes of the gradients, and a state keeps those that it began with."""
    tx = row.build(RATE)
    for dtype in (jnp.bfloat16, jnp.float16):
        params, gradient = cast(PARAMS, dtype), cast(STREAM[0], dtype)
        state = tx.init(params)
        updates, later = jax.eval_shape(tx.update, gradient, state, params)
        assert_same_types(state, later)
        assert_same_types(gradient, updates)


def check_state_stays_finite(row: Row) -> None:
    """State and updates stay finite, however small or large gradients are, up to 1e18."""
    tx = row.build(RATE)
    for sizes in ((0.0, 0.0, 1.0), (1e-30, 1e15, 1e-30), (1e18, 0.0, 1.0)):
        stream = [jax.tree.map(lambda g, c=c: c * g, STREAM[0]) for c in sizes]
        updates, _, state = run_eagerly(tx, stream)
        for name, leaf in leaves_by_name((updates, state)).items():
            finite = np.all(np.isfinite(values_of(leaf)))
            assert finite, f"{name} is not finite after gradients of {sizes}"


def check_leaves_that_are_none(row: Row) -> None:
    """A parameter may be None, an `optax.MaskedNode`, or an array without elements."""
    without = {"kernel": PARAMS["kernel"], "none": None, "masked": optax.MaskedNode()}
    gradients = without | {"kernel": STREAM[0]["kernel"]}
    tx, alone = row.build(RATE), {"kernel": PARAMS["kernel"]}
    updates, _ = tx.update(gradients, tx.init(without), without)
    assert jax.tree.structure(updates) == jax.tree.structure(gradients)
    desired, _ = tx.update({"kernel": STREAM[0]["kernel"]}, tx.init(alone), alone)
    assert_same(updates["kernel"], desired["kernel"])
    empty = without | {"empty": jnp.zeros((0, 3))}
    updates, _ = tx.update(gradients | {"empty": jnp.zeros((0, 3))}, tx.init(empty), empty)
    assert updates["empty"].shape == (0, 3)


def check_integer_parameters(row: Row) -> None:
    """A step with `jax.grad(..., allow_int=True)` and `apply_updates` leaves an integer alone."""
    params: Any = PARAMS | {"steps": jnp.arange(3)}
    gradients = STREAM[0] | {"steps": np.zeros(3, jax.dtypes.float0)}
    tx = row.build(RATE)
    updates, _ = tx.update(gradients, tx.init(params), params)
    moved: Any = optax.apply_updates(params, updates)
    assert_same(moved["steps"], params["steps"])
