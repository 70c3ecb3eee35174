"""Writes where jax and optax document each name, from clones of their repositories.

    python -m docs.inventories PATH/TO/jax PATH/TO/optax

The site links to these places, and is built without a network. The files are plain text: the first
version of Sphinx's own format. Names that the installed versions lack are left out.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "inventories"
SITES = {
    "jax": "https://docs.jax.dev/en/latest/",
    "optax": "https://optax.readthedocs.io/en/latest/",
}
# The pages of their sources that are read. NumPy's functions, say, are of no use here.
SOURCES = {
    "jax": ["jax", *(f"jax.{x}" for x in ("distributed", "lax", "random", "sharding", "tree*"))],
    "optax": ["api/*"],
}


def documented(page: Path, docs: Path) -> Iterator[tuple[str, str]]:
    """The names that a page documents, or has a page made for each, with the place of that page."""
    module = folder = ""
    for line in page.read_text().splitlines():
        if match := re.match(r"\.\. (?:current|auto)module:: (\S+)", line):
            module, folder = match[1], ""
        elif match := re.match(r"\.\. auto(?:class|function):: (\w+)", line):
            yield f"{module}.{match[1]}", page.relative_to(docs).with_suffix(".html").as_posix()
        elif match := re.match(r" +:toctree: (\w+)", line):
            folder = (page.parent.relative_to(docs) / match[1]).as_posix()
        elif (match := re.fullmatch(r" +([\w.]+)", line)) and folder:
            name = f"{module}.{match[1]}"
            yield name, f"{folder}/{name}.html"
        elif line and not line.startswith(" "):
            folder = ""


def kind(name: str) -> str:
    """Whether it is a class, a function or data; nothing where it is not installed."""
    try:
        thing = importlib.import_module(name.partition(".")[0])
        for part in name.split(".")[1:]:
            thing = getattr(thing, part)
    except AttributeError:
        return ""
    if inspect.isclass(thing):
        return "class"
    return "function" if callable(thing) else "data"


def write(project: str, docs: Path) -> None:
    """Writes the inventory of a project."""
    pages = (page for source in SOURCES[project] for page in docs.glob(f"{source}.rst"))
    found = sorted({entry for page in pages for entry in documented(page, docs)})
    head = ["# Sphinx inventory version 1", f"# Project: {project}", "# Version: latest"]
    lines = [f"{name} {kind(name)} {place}" for name, place in found if kind(name)]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{project}.txt").write_text("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    for clone in map(Path, sys.argv[1:]):
        write(clone.name, clone / "docs")
