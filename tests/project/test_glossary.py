"""A symbol means the same on all pages: each that a page explains is in the glossary."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted({*DOCS.glob("*.md"), *DOCS.glob("*/*.md")} - {*DOCS.glob("notebooks/*")})
HEAD = re.compile(r"^\| symbol \|.*\n\|[ |-]+\n((?:\|.*\n?)+)", re.MULTILINE)


def symbols(text):
    """What stands between dollars in the first column of the tables of symbols."""
    rows = [row for table in HEAD.findall(text) for row in table.splitlines()]
    return {symbol for row in rows for symbol in re.findall(r"\$(.+?)\$", row.split("|")[1])}


GLOSSARY = symbols((DOCS / "glossary.md").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_symbols_of_a_page_are_in_the_glossary(page):
    assert symbols(page.read_text()) <= GLOSSARY


def test_symbols_are_found():
    page = "Text.\n\n| symbol | meaning |\n| --- | --- |\n| $a_t$, $b$ | $c$ |\n\n| $d$ | e |\n"
    assert symbols(page) == {"a_t", "b"}
    assert symbols((DOCS / "optimizers/msvag.md").read_text()) >= {"s_t", r"\sigma_t^2", r"\rho_t"}
