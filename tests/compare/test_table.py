"""An honest table: the best first, with its spread, and what it cannot say."""

import numpy as np
import pytest

from msvag_optax import compare
from tests.compare.outcomes import COLUMNS, outcome


def test_the_table_says_what_was_measured_best_first():
    table = compare.format_table(
        [
            outcome("sgd", [[0.2, 0.5, 9], [0.4, 0.5, 9]], [0.01, 0.1, 1]),
            outcome("adam", [[0.9, 0.1, 9], [0.9, 0.2, 9]], [0.01, 0.1, 1])._replace(
                state_bytes=8.02
            ),
            outcome("svag", np.full((2, 3), np.nan), [0.01, 0.1, 1]),
        ],
        COLUMNS,
    )
    lines = table.splitlines()
    assert lines[0].split() == [
        *("optimizer", "best", "rate", "expected", "loss"),
        *("time/step/run", "state", "bytes/param"),
    ]
    assert lines[2].split() == ["adam", "0.1", "0.150", "±", "0.0500", "1.23", "µs", "8.0"]
    assert lines[3].split() == ["sgd", "0.01*", "0.300", "±", "0.100", "1.23", "µs", "4.0"]
    assert lines[4].split() == ["svag", "diverged", "-", "1.23", "µs", "4.0"]
    # Columns line up: every line ends where the last column ends.
    assert len({len(line) for line in lines[:5]}) == 1
    assert "lowest final expected loss, averaged over 2 seeds" in table
    assert "* the best rate is at an edge" in table
    assert "all 6 runs" in table


def test_the_least_of_wrong_ways_is_no_best_rate():
    """It is at an edge of the grid, the slowest, and a better one is not to be sought beyond it."""
    wrong = outcome("adam", [[1.1, 1.5, 2.0]] * 2, [0.01, 0.1, 1])
    table = compare.format_table([wrong], COLUMNS)
    assert table.splitlines()[2].split()[:3] == ["adam", "0.01†", "1.10"]
    assert "† no rate is good" in table
    assert "may lie beyond" not in table
    assert "†" not in compare.format_table([outcome()], COLUMNS)


def test_bytes_a_parameter_are_not_told_of_a_single_parameter():
    table = compare.format_table([outcome()._replace(parameters=1)], COLUMNS)
    assert "bytes" not in table
    assert table.splitlines()[2].split()[-2:] == ["1.23", "µs"]


def test_a_single_seed_has_no_spread():
    table = compare.format_table([outcome(losses=[[0.2, 0.4]])], COLUMNS)
    assert "±" not in table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.5, "2.50 s"),
        (0.0123, "12.3 ms"),
        (4.56e-5, "45.6 µs"),
        (1.2e-4, " 120 µs"),
        (2.4e-9, "2 ns"),
    ],
)
def test_durations_have_a_unit_that_suits_them(seconds, text):
    assert text in compare.format_table([outcome()._replace(seconds=seconds)], COLUMNS)
