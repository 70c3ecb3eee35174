"""Every optimizer of the gallery does what another implementation of it does."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from examples import gallery
from tests.gallery.cases import BOUND, CASES, build, compare, lines_of
from tests.gallery.gradients import MATRICES
from tests.support import by_speed

PAGE = (Path(__file__).parents[2] / "docs" / "gallery.md").read_text()
WORDS = {"mean", "squares", "from_zero", "from_first", "last", "orthogonal"}
FUNCTIONS = {name for name, thing in vars(gallery).items() if inspect.isfunction(thing)}
# One for each new piece, and one of each kind of reference; the others are slow.
FAST = ("adabelief", "adam", "adam_mini", "adan", "adopt", "cautious_adam")


@pytest.mark.parametrize("name", by_speed({name: name for name in CASES}, FAST))
def test_optimizer_takes_the_steps_of_its_reference(name):
    row = compare(name)
    assert row.difference <= CASES[name].bound
    assert row.ours <= row.allowed


@pytest.mark.parametrize("name", sorted(CASES))
def test_optimizer_keeps_its_types_whatever_its_parameters_are(name):
    whole = {"kernel": jnp.ones((4, 6), jnp.bfloat16)}
    rest = {"query/kernel": jnp.ones((4, 2, 3)), "bias": jnp.ones(6), "steps": jnp.asarray(3)}
    params = whole if CASES[name].leaves == MATRICES else whole | rest
    tx = build(name)
    state = jax.eval_shape(tx.init, params)
    gradients = params | ({"steps": None} if "steps" in params else {})
    updates, moved = jax.eval_shape(tx.update, gradients, state, params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (updates["kernel"], moved)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), (whole["kernel"], state)
    )


@pytest.mark.parametrize("name", sorted(CASES))
def test_optimizer_is_six_lines_at_most(name):
    assert 1 <= lines_of(name) <= 6


def test_every_optimizer_is_compared_and_shown():
    shown = re.findall(r"<!-- begin: examples/gallery\.py (.*?) -->", PAGE)
    assert FUNCTIONS == WORDS | set(CASES) == {name for names in shown for name in names.split()}


def test_a_wider_bound_has_its_reason():
    assert all(bool(case.why) == (case.bound > BOUND) for case in CASES.values())


def test_the_page_shows_a_row_for_each():
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE, re.MULTILINE)
    assert [(name, str(lines_of(name))) for name in CASES] == rows
    assert f"{len(CASES)} published optimizers" in PAGE
