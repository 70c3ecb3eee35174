"""Every optimizer of the table passes every check."""

import itertools
from typing import Any

import orbax.checkpoint
import pytest

import msvag_optax as mo
from tests import conformance
from tests.conformance import PARAMS, RATE, ROWS

# Between them, these rows do all that the others do; the fast tests hold them alone to the checks
# that take long.
TYPICAL = {
    "adamw",
    "adapted-lion",
    "amsgrad",
    "bert_adamw",
    "expectigrad",
    "lazy_rows",
    "msvag",
    "novograd-averaging",
    "novograd-stacked",
}


def cases() -> list[Any]:
    """All pairs of a row and a check; few of those that take long are among the fast tests."""
    return [
        pytest.param(
            row,
            check,
            id=f"{row.name}-{check.__name__.removeprefix('check_')}",
            marks=[pytest.mark.slow]
            if check in conformance.SLOW_CHECKS and row.name not in TYPICAL
            else [],
        )
        for row, check in itertools.product(ROWS, conformance.CHECKS)
    ]


@pytest.mark.parametrize(("row", "check"), cases())
def test_optimizer(row, check):
    check(row)


def test_every_named_optimizer_has_a_row():
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
    assert {row.name for row in ROWS} >= TYPICAL
    for optimizer in ("adamw", "amsgrad", "bert_adamw", "expectigrad", "msvag", "novograd", "svag"):
        assert optimizer in names
    for field in mo.Dissection._fields:
        assert f"dissection-{field}" in names


def test_orbax_restores_all_states(tmp_path):
    states, fresh = {}, {}
    for row in ROWS:
        tx = row.build(RATE)
        fresh[row.name] = tx.init(PARAMS)
        states[row.name] = conformance.run_eagerly(tx).state
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", states)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "states", fresh)
    conformance.assert_same(restored, states)
    conformance.assert_same_types(restored, states)
