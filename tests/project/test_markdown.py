"""Every Python example in the README and the documentation runs, in the order of its page.

The examples of a page share their names, as they do for a reader. A block that shows `>>>` is a
doctest; any other has to run without an error. What should not run, since it belongs to another
library, say, is fenced as `py` instead of `python`.
"""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
]
BLOCK = re.compile(r"^```(?:python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# These replay the references' trajectories at length, or train in many ways.
LONG = {"migrating", "optimizers", "recipes.md"}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run_doctest(block: str, names: dict, page: Path, line: int) -> None:
    test = doctest.DocTestParser().get_doctest(block, {}, name_of(page), str(page), line)
    test.globs = names
    report: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append, clear_globs=False)
    assert not report, "".join(report)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=[pytest.mark.slow] * bool({p.parent.name, p.name} & LONG))
        for p in PAGES
    ],
    ids=name_of,
)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    names: dict = {"__name__": "__main__"}
    for match in BLOCK.finditer(text):
        block, line = match[1], text.count("\n", 0, match.start(1))
        if ">>> " in block:
            run_doctest(block, names, page, line)
        else:  # The blank lines make a traceback point into the page.
            exec(compile("\n" * line + block, str(page), "exec"), names)
