"""What the clients share: the optimizers, some data, and a twin that every client is held to."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from tests import conformance, support

RATE = 0.01
STEPS = 3
DECAY = {"weight_decay": 0.1, "exclude_from_weight_decay": ("bias$",)}


def _bert_adamw(learning_rate: float, **options: Any) -> optax.GradientTransformationExtraArgs:
    return mo.bert_adamw(learning_rate, 10_000, 0, **options)


# Each takes a rate, `weight_decay` and `exclude_from_weight_decay`. One works by elements, one
# counts for each of them, one normalizes layers, and one looks at the whole tree. The others differ
# from these in a formula, which meets no client.
OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "msvag": mo.msvag,
    "expectigrad": mo.expectigrad,
    "novograd": mo.novograd,
    "bert_adamw": _bert_adamw,
}
# The state of NovoGrad has both that there is: arrays of the parameter's shape, and numbers.
EVERY = support.by_speed(OPTIMIZERS, fast=("novograd",))


def each_way(ways: Mapping[str, Any]) -> list[Any]:
    """Cases of `(build, way)`: NovoGrad in every way, and every optimizer in the first.

    The ways differ in what is done to parameters and state, not in what an optimizer does.
    """
    first = next(iter(ways))
    return [
        pytest.param(*case.values, way, id=f"{name}-{case.id}", marks=case.marks)
        for name, way in ways.items()
        for case in EVERY
        if name == first or case.id == "novograd"
    ]


_random = np.random.default_rng(0)
X = jnp.asarray(_random.normal(size=(16, 8)), jnp.float32)
Y = jnp.asarray(_random.normal(size=(16, 8)), jnp.float32)


def mean_square(outputs: jax.Array, targets: jax.Array = Y) -> jax.Array:
    return jnp.mean((outputs - targets) ** 2)


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of any framework's tree on the host, under their names."""
    names = jax.tree.leaves(mo.path_names(tree))
    return {name: np.asarray(leaf) for name, leaf in zip(names, jax.tree.leaves(tree), strict=True)}


def assert_lies_like(state: Any, params: Any) -> None:
    """Asserts that arrays of a parameter's shape lie as it does, and all others are whole.

    Args:
      state: an optimizer's.
      params: parameters of different shapes.
    """
    likes = {param.shape: param.sharding for param in jax.tree.leaves(params)}
    assert len(likes) == len(jax.tree.leaves(params))
    found = set()
    for leaf in jax.tree.leaves(state):
        if leaf.shape in likes:
            found.add(leaf.shape)
            assert leaf.sharding.is_equivalent_to(likes[leaf.shape], leaf.ndim)
        else:
            assert leaf.sharding.is_fully_replicated
    assert found == set(likes)


class Twin:
    """The same optimizer on one device, on a plain dict of the client's parameters."""

    def __init__(self, tx: optax.GradientTransformation, params: Any) -> None:
        """Takes the parameters over from any framework's tree."""
        self.tx = optax.with_extra_args_support(tx)
        self.start = self.params = jax.tree.map(jnp.asarray, by_path(params))
        self.state = self.tx.init(self.params)

    def follow(self, gradients: Any) -> None:
        """Makes the step that the client makes of these gradients."""
        gradients = jax.tree.map(jnp.asarray, by_path(gradients))
        updates, self.state = self.tx.update(gradients, self.state, self.params)
        self.params = optax.apply_updates(self.params, updates)

    def assert_is_at(self, params: Any) -> None:
        """Asserts that the client has moved, and arrived where the twin has."""
        conformance.assert_close(by_path(params), jax.tree.map(np.asarray, self.params), ulps=64)
        moved = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, self.both), strict=True)]
        assert all(moved), dict(zip(self.params, moved, strict=True))

    @property
    def both(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Where it began, and where it is."""
        return self.start, self.params
