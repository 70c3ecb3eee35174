"""Every page can be read where people find it: as a plain Markdown file on a code forge.

A forge knows links, tables, fences and mathematics, and nothing of Sphinx. Some pass a formula
through Markdown before they set it, so that it must come out of that as it went in.
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from benchmarks import __main__ as benchmarks
from benchmarks import step
from docs import sections

ROOT = Path(__file__).parents[2]
PAGES = [
    *sections.pages(),
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "tests/golden/README.md",
]
MARKDOWN = MarkdownIt("commonmark").enable("table")
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
# The dollars of a formula touch it, and are not taken for those of a price.
INLINE = re.compile(r"(?<![\w$\\])\$(?![\s$])([^$]*[^\s$])\$(?![\w$])")
# GitHub refuses it.
REFUSED = re.compile(r"\\(operatorname|def|newcommand|require)\b")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def slugs(text: str) -> set[str]:
    """The anchors that a forge gives to the headings of a page."""
    found: dict[str, int] = {}
    tokens = MARKDOWN.parse(text)
    for heading, inline in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            title = plain(inline).lower()
            slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
            found[slug] = found.get(slug, -1) + 1
    return {f"{slug}-{i}" if i else slug for slug, n in found.items() for i in range(n + 1)}


def plain(inline: Token) -> str:
    """What a reader sees of a paragraph, without its markup; code stands in backticks no more."""
    breaks = {"softbreak": "\n", "hardbreak": "\n"}
    return "".join(breaks.get(child.type, child.content) for child in inline.children or [])


def prose(inline: Token) -> str:
    """What is not code, as the forge has it before it looks for formulas."""
    shown = []
    for child in inline.children or []:
        if child.type == "text":
            shown.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            shown.append("\n")
        elif child.type == "code_inline":
            shown.append("`")
    return "".join(shown)


def faults(text: str, page: Path) -> list[str]:
    """All that a reader of the file would stumble over."""
    tokens = MARKDOWN.parse(text)
    inlines = [token for token in tokens if token.type == "inline"]
    return [
        *(f for token in tokens for f in block_faults(token)),
        *(
            f
            for token in tokens
            if token.type == "inline"
            for f in inline_faults(token, page, text)
        ),
        *table_faults(tokens),
        *section_faults(text),
        *(f for token in inlines for f in math_faults(token)),
    ]


def block_faults(token: Token) -> Iterator[str]:
    if token.type == "fence" and token.info.startswith("{"):
        yield f"a directive: {token.info}"
    if token.type == "inline" and re.match(r":::|\([\w-]+\)=|\.\. \w+::", token.content):
        yield f"a directive: {token.content[:40]}"
    if token.type == "inline" and re.search(r"^: ", token.content, re.MULTILINE):
        yield f"a list of definitions: {token.content[:40]}"
    if token.type == "html_block" and re.search(r"<img(?![^>]*\balt=\"[^\"])", token.content):
        yield f"an image without alt text: {token.content[:40]}"


def inline_faults(inline: Token, page: Path, text: str) -> Iterator[str]:
    children = inline.children or []
    for before, child in zip([None, *children], children, strict=False):
        if child.type == "code_inline" and before and re.search(r"\{[\w:]+\}$", before.content):
            yield f"a role: {before.content[-12:]}`{child.content}`"
        if child.type == "image":
            if not child.content.strip():
                yield f"an image without alt text: {child.attrs['src']}"
            yield from link_faults(str(child.attrs["src"]), page, text)
        if child.type == "html_inline" and (image := re.match(r"<img\b[^>]*>", child.content)):
            if not re.search(r'\balt="[^"]', image[0]):
                yield f"an image without alt text: {child.content}"
            for source in re.findall(r'\ssrc="([^"]*)"', image[0]) or ["an image without src"]:
                yield from link_faults(source, page, text)
        if child.type == "link_open":
            yield from link_faults(str(child.attrs["href"]), page, text)


def link_faults(target: str, page: Path, text: str) -> Iterator[str]:
    if re.match(r"[a-z]+:", target):
        return
    file, _, anchor = target.partition("#")
    there = page.parent / file if file else page
    if not there.exists() or ROOT not in there.resolve().parents:
        yield f"a dead link: {target}"
    elif anchor and (
        there.suffix != ".md" or anchor not in slugs(there.read_text() if file else text)
    ):
        yield f"a dead anchor: {target}"


def table_faults(tokens: list[Token]) -> Iterator[str]:
    head: list[str] = []
    for token, inline in itertools.pairwise(tokens):
        if token.type == "thead_open":
            head = []
        if token.type == "th_open" and inline.content:
            if inline.content in head:
                yield f"two columns of one name: {inline.content}"
            head.append(inline.content)


def section_faults(text: str) -> Iterator[str]:
    begun, ended = (text.count(f"<!-- {word}") for word in ("begin: ", "end -->"))
    if begun != ended or len(sections.SECTION.findall(text)) != begun:
        yield "a section without its other end"
    for match in sections.SECTION.finditer(text):
        if not match[0].removeprefix(match[1]).strip():
            yield f"an empty section: {match[2]}"
    if text != sections.filled(text):
        yield "a section that is not as it is kept: run `python -m docs.sections`"


def math_faults(inline: Token) -> Iterator[str]:
    """Formulas that Markdown changes, that no forge finds, or that some refuse."""
    source = re.sub(r"(`+).*?\1", "`", inline.content, flags=re.DOTALL)
    shown = prose(inline)
    for pattern in (DISPLAY, INLINE):
        for formula in map(str.strip, pattern.findall(source)):
            if " ".join(formula.split()) not in " ".join(shown.split()):
                yield f"a formula that Markdown changes: {formula}"
            if REFUSED.search(formula):
                yield f"a formula that is refused: {formula}"
        source, shown = pattern.sub("", source), pattern.sub("", shown)
    if "$" in source:
        yield f"a dollar that begins no formula: {source[:60]}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_reads_as_plain_markdown(page):
    assert faults(page.read_text(), page) == []


BROKEN = {
    "a role": "see {py:func}`msvag_optax.msvag`",
    "a directive: {include}": "```{include} ../x.md\n```",
    "a directive: (label)=": "(label)=\n\n# Title",
    "a directive: :::": ":::{note}\nText\n:::",
    "a list of definitions": "`beta`\n: the decay",
    "an empty section": "<!-- begin: LICENSE -->\n\n<!-- end -->",
    "a section that is not as it is kept": "<!-- begin: LICENSE -->\nMIT\n<!-- end -->",
    "a section without its other end": "<!-- begin: LICENSE -->\nMIT\n",
    "an image without alt text: docs": "![](docs/index.md)",
    "an image without alt text: <img": 'Text <img src="docs/index.md">.',
    "a dead link": "[text](docs/no_such_page.md)",
    "a dead link: docs/no": 'Text <img src="docs/no_such.png" alt="a curve">.',
    "a dead link: ..": "[text](../../etc/passwd)",
    "a dead anchor": "[text](docs/index.md#no-such-heading)",
    "a dead anchor: #": "[text](#no-such-heading)",
    "two columns of one name": "| a | b | b |\n| --- | --- | --- |\n| 1 | 2 | 3 |",
    "a formula that Markdown changes: a": r"$a \, b$",
    "a formula that Markdown changes: \\begin": "$$\n\\begin{cases}\na \\\\\nb\n\\end{cases}\n$$",
    "a formula that Markdown changes: x*y": "$x*y$ and $u*v$",
    "a formula that Markdown changes: {": r"${\bar x}_t$ and $y_{t-1}$",
    "a formula that is refused": r"$\operatorname{sign}(m)$",
    "a dollar that begins no formula": "the $ of a shell",
    "a dollar that begins no formula: $$": "$$\na\n\nb\n$$",
}


@pytest.mark.parametrize(("fault", "text"), BROKEN.items(), ids=BROKEN)
def test_what_does_not_read_is_found(fault, text):
    assert any(found.startswith(fault) for found in faults(text, ROOT / "README.md"))


def test_what_reads_is_not_complained_of():
    text = """# A title, `code` and more

Some $x_t + y_{t-1}$, `{py:func}` in code, ![a curve](LICENSE), [here](#a-title-code-and-more).

```console
$ make test
```

$$
\\begin{aligned}
a &= b_t \\cr
c &= d_t
\\end{aligned}
$$
"""
    assert faults(text, ROOT / "README.md") == []


@pytest.mark.parametrize("name", ["cpu_newest", "cpu", "cpu_all_trees"])
def test_a_kept_table_shows_the_kept_values(name):
    kept = ROOT / "benchmarks/results" / name
    found = benchmarks.from_json(json.loads(kept.with_suffix(".json").read_text()))
    assert kept.with_suffix(".md").read_text() == "\n".join(benchmarks.in_markdown(found)) + "\n"


def test_a_command_writes_its_table_into_the_page_that_shows_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    page, other = tmp_path / "README.md", tmp_path / "docs" / "other.md"
    other.parent.mkdir()
    for at, name in ((page, "found.md"), (other, "another.md")):
        at.write_text(f"Above.\n\n<!-- begin: {name} -->\n<!-- end -->\n\nBelow.\n")
    step.write_down(Path("found"), "| a |\n| --- |\n| 1 |", {})
    section = "<!-- begin: found.md -->\n\n| a |\n| --- |\n| 1 |\n\n<!-- end -->"
    assert page.read_text() == f"Above.\n\n{section}\n\nBelow.\n"
    assert "<!-- begin: another.md -->\n<!-- end -->" in other.read_text()


def test_a_part_of_a_program_stands_in_the_page_with_its_decorators(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "ROOT", tmp_path)
    (tmp_path / "program.py").write_text("import x\n\n\n@x\ndef f():\n    pass\n\n\ny = 1\n")
    page = "<!-- begin: program.py f -->\n<!-- end -->\n"
    shown = "```py\n@x\ndef f():\n    pass\n```"
    assert sections.filled(page) == f"<!-- begin: program.py f -->\n\n{shown}\n\n<!-- end -->\n"
