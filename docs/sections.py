"""Writes into the pages what is kept elsewhere: tables, parts of programs, the public names.

    python -m docs.sections

A page that shows such a thing says so in a comment, and the text up to the next comment is written
here, so that it can be read in the file itself:

    <!-- begin: benchmarks/results/cpu.md -->
    <!-- end -->

A table is the whole of the file that is named. Of a program, the names of what is shown follow. Of
a package, all its public names are listed.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTION = re.compile(
    r"(<!-- begin: (\S+)(.*?) -->\n).*?(?=^<!-- end -->$)", re.DOTALL | re.MULTILINE
)


def pages() -> list[Path]:
    """All pages that are written by hand."""
    docs = ROOT / "docs"
    built = {"_build", "api", "notebooks"}
    found = (p for p in docs.rglob("*.md") if not built & {*p.relative_to(docs).parts})
    return [ROOT / "README.md", *sorted(found)]


def filled(page: str) -> str:
    """The text of a page with its sections as they should be."""
    return SECTION.sub(lambda m: f"{m[1]}\n{_section(m[2], m[3].split())}\n\n", page)


def write(source: str = "") -> None:
    """Writes the pages that show something of `source`, by default all, where they differ."""
    for page in pages():
        text = page.read_text()
        if f"<!-- begin: {source}" in text and text != filled(text):
            page.write_text(filled(text))


def keep(path: Path, text: str) -> None:
    """Writes what a command has found to a file, and into the pages that show it."""
    path.write_text(text + "\n")
    write(str(path))


def _section(source: str, names: list[str]) -> str:
    if source == "msvag_optax":
        from docs import api_reference  # which imports JAX

        return api_reference.overview().strip()
    text = (ROOT / source).read_text()
    if source.endswith(".py"):
        # Not `python`, which is run where it stands: the rest of the program is missing here.
        return f"```py\n{_definitions(text, names)}\n```"
    return text.strip()


def _definitions(program: str, names: list[str]) -> str:
    """Some functions and classes of a program, with their decorators, as they stand there."""
    kinds = ast.FunctionDef | ast.ClassDef
    nodes = {node.name: node for node in ast.parse(program).body if isinstance(node, kinds)}
    lines = program.splitlines()
    texts = []
    for node in (nodes[name] for name in names):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        texts.append("\n".join(lines[first - 1 : node.end_lineno]))
    return "\n\n\n".join(texts)


if __name__ == "__main__":
    write()
