"""On a mesh of whatever devices there are: state sharded like parameters, and the same numbers."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from msvag_optax.testing.runs import NotRunError, Row
from msvag_optax.testing.trees import (
    PARAMS,
    RATE,
    STREAM,
    assert_close,
    assert_same,
    assert_same_types,
    leaves_by_name,
)


def check_init_from_shapes(row: Row) -> None:
    """Shapes, with and without shardings, make the state that arrays make."""
    tx = row.build(RATE)
    several = jax.device_count() > 1
    for params in (PARAMS, *([_sharded(PARAMS, _mesh(AxisType.Auto))] if several else [])):
        shapes = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params
        )
        desired = tx.init(params)
        for given in (shapes, shapes | {"kernel": params["kernel"]}):
            made = tx.init(given)
            assert_same_types(desired, made)
            assert_same(made, desired)


def _mesh(axis_type: AxisType) -> jax.sharding.Mesh:
    if jax.device_count() == 1:
        raise NotRunError("there is one device, and all arrays are whole")
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
    """On a mesh that is left to the compiler, state is sharded like the parameters."""
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
    """On a mesh of explicit axes, state is sharded like the parameters, and a scan type-checks."""
    mesh = _mesh(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params, gradient = _sharded(PARAMS, mesh), _sharded(STREAM[0], mesh)
        tx = row.build(RATE)
        state = tx.init(params)
        updates, new_state = jax.jit(tx.update)(gradient, state, params)
        _assert_state_is_sharded_like_params(state, params)
        _assert_state_is_sharded_like_params(updates, params)
        assert_same_types(state, new_state)
        # Here shardings are part of the types of tracers, and a scan demands that they stay.
        traced = jax.eval_shape(_state_after_scan(tx), gradient, params)
        _assert_state_is_sharded_like_params(traced, params)
    alone, _ = tx.update(STREAM[0], tx.init(PARAMS), PARAMS)
    assert_close(updates, alone)
