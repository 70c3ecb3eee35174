"""What an optimizer may promise of its formula: a reference, its scale, the reach of a gradient."""

from typing import Any

import jax
import numpy as np

from msvag_optax.testing.runs import NotRunError, Row, trajectory
from msvag_optax.testing.trees import GRADIENTS, PARAMS, RATE, STEPS, assert_close, assert_same


def _updates(row: Row, gradients: Any) -> Any:
    # The same parameters throughout: decay answers them, and not the gradient.
    return trajectory(row)(RATE, PARAMS, gradients).updates


def check_reference(row: Row) -> None:
    """The updates are those of another optimizer, to rounding."""
    if row.reference is None:
        raise NotRunError("it promises the steps of no other optimizer")
    updates = _updates(row, GRADIENTS)
    assert all(np.isfinite(update).all() for update in jax.tree.leaves(updates))
    assert_close(updates, _updates(Row("reference", row.reference), GRADIENTS), ulps=64)


def check_scaled_gradients(row: Row) -> None:
    """All gradients times a number: the updates too are times that number, or stay."""
    if row.scale is None:
        raise NotRunError("it promises nothing of scaled gradients")
    scaled = _updates(row, jax.tree.map(lambda g: 4 * g, GRADIENTS))
    factor = 4.0 if row.scale == "equivariant" else 1.0
    assert_close(scaled, jax.tree.map(lambda u: factor * u, _updates(row, GRADIENTS)), ulps=64)


def check_reach(row: Row) -> None:
    """The gradient of one element moves no more than the promised part of the tree."""
    if row.reach == "tree":
        raise NotRunError("it promises nothing of how far a gradient is felt")
    i, j = 5, 1
    other = GRADIENTS | {"kernel": GRADIENTS["kernel"].at[STEPS // 2, i, j].add(3.0)}
    before, after = _updates(row, GRADIENTS), _updates(row, other)
    assert_same(after["bias"], before["bias"])
    moved = np.any(np.asarray(before["kernel"]) != np.asarray(after["kernel"]), axis=0)
    assert moved[i, j], "the gradient of an element does not move it"
    reached = {"element": np.s_[i, j], "row": np.s_[i], "leaf": np.s_[:]}[row.reach]
    moved[reached] = False
    assert not np.any(moved), f"it moves the elements {np.argwhere(moved).tolist()} too"
