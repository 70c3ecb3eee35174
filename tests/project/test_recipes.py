"""Pages show the recipes as the source has them."""

import ast
import inspect
import textwrap
from pathlib import Path

import pytest

import msvag_optax as mo

ROOT = Path(__file__).parents[2]
PAGES = {
    mo.msvag: ["optimizers/msvag.md", "design.md"],
    mo.expectigrad: ["optimizers/expectigrad.md", "design.md"],
    mo.novograd: ["optimizers/novograd.md", "design.md"],
    mo.amsgrad: ["optimizers/amsgrad.md"],
    mo.adamw: ["optimizers/adamw.md", "design.md"],
}


def recipe(function):
    """The lines of a function that follow its docstring and its checks."""
    source = textwrap.dedent(inspect.getsource(function))
    body = ast.parse(source).body[0].body[1:]

    def checks(node):
        refuses = isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise)
        return refuses or ast.unparse(node).startswith("_checks.")

    start = next(node for node in body if not checks(node)).lineno
    return textwrap.dedent("\n".join(source.splitlines()[start - 1 :])).strip()


@pytest.mark.parametrize(
    ("function", "page"),
    [(function, page) for function, pages in PAGES.items() for page in pages],
)
def test_a_page_shows_the_recipe(function, page):
    text = (ROOT / "docs" / page).read_text()
    lines = [line.strip() for line in text.splitlines()]
    assert "\n".join(map(str.strip, recipe(function).splitlines())) in "\n".join(lines)


@pytest.mark.parametrize("function", [*PAGES, mo.svag])
def test_a_recipe_is_short(function):
    """As the formatter lays it out, with a line for each argument of the finish."""
    assert len(recipe(function).splitlines()) <= 15
