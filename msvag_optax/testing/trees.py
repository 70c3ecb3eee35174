"""What the checks run on, and what they assert of trees."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STEPS = 6
RATE = 0.1

# A small tree, whose leaves eight devices can share, and a few gradients.

_random = np.random.default_rng(0)
SHAPES = {"bias": (8,), "kernel": (8, 2)}
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


def decreasing(count: Any) -> Any:
    """A schedule."""
    return RATE / (1 + count)


def stacked(trees: Any) -> Any:
    """Trees of one structure as one tree, whose leaves have a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def copied(tree: Any) -> Any:
    """The same arrays at other places, which may be donated."""
    return jax.tree.map(jnp.copy, tree)


def cast(tree: Any, dtype: Any) -> Any:
    """All leaves in another dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """All leaves under their paths, for messages that say where."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def values_of(leaf: Any) -> Any:
    """What can be compared of a leaf: of random keys, their data."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def assert_same(actual: Any, desired: Any) -> None:
    """Asserts that two trees have the same structure and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    pairs = zip(leaves_by_name(actual).items(), jax.tree.leaves(desired), strict=True)
    for (name, x), y in pairs:
        np.testing.assert_array_equal(values_of(x), values_of(y), err_msg=name, strict=True)


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
            np.testing.assert_array_equal(values_of(x), values_of(y), err_msg=name)
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
