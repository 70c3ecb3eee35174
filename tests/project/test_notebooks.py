"""The notebooks as they are kept: with their outputs, and with the cells of their scripts."""

import ast
import base64
import json
import re
from pathlib import Path

import pytest

from docs import notebook_files
from tests.project.test_pages import MARKDOWN, block_faults, inline_faults, math_faults

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(notebook_files.FOLDER.glob("*.py"))
EXECUTED = sorted(notebook_files.FOLDER.glob("*.ipynb"))
ALL_TOGETHER = 6e6  # bytes, images included
LONGEST = 400  # lines of code and text
MARKER = re.compile(r"# %%(?P<text> \[markdown\])?(?: tags=(?P<tags>\[.*\]))?")


def stem(path):
    return path.stem


def loaded(name):
    return json.loads((notebook_files.FOLDER / name).with_suffix(".ipynb").read_text())


def cells_of_script(text):
    """What jupytext makes of a script: (type, tags, source) for each cell."""
    cells = []
    for line in text.splitlines():
        if line.startswith("# %%"):
            marker = MARKER.fullmatch(line)
            tags = json.loads(marker["tags"] or "[]")
            cells.append(("markdown" if marker["text"] else "code", tags, []))
        else:
            kind, _, lines = cells[-1]
            lines.append(line.removeprefix("#").removeprefix(" ") if kind == "markdown" else line)
    return [(kind, tags, "\n".join(lines).strip("\n")) for kind, tags, lines in cells]


def cells_of_notebook(notebook):
    return [
        (cell["cell_type"], cell["metadata"].get("tags", []), "".join(cell["source"]).strip("\n"))
        for cell in notebook["cells"]
    ]


def outputs(notebook):
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def complaints(notebook):
    """All that must not be kept."""
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and cell["execution_count"] is None:
            found.append("not executed")
    for output in outputs(notebook):
        if output["output_type"] == "error":
            found.append("an error")
        if output.get("name") == "stderr":
            found.append("a warning")
        if "image/png" in output.get("data", {}):
            if not output["metadata"].get("image/png", {}).get("alt"):
                found.append("a figure without alt text")
            if base64.b64decode(output["data"]["image/png"])[25] != 3:
                found.append("a PNG without a palette")
        if re.search(r"(^|[^\w.])/(home|root|Users|tmp|work)/", json.dumps(output)):
            found.append("a place on somebody's machine")
    if notebook["metadata"]["kernelspec"]["name"] != "python3":
        found.append("a kernel that not everybody has")
    return found


def test_every_script_has_a_notebook():
    assert len(SCRIPTS) == 7
    assert list(map(stem, SCRIPTS)) == list(map(stem, EXECUTED))


@pytest.mark.parametrize("script", SCRIPTS, ids=stem)
def test_a_notebook_and_its_script_hold_the_same_cells(script):
    """Else: `make notebooks-update`."""
    assert cells_of_script(script.read_text()) == cells_of_notebook(loaded(script.stem))


@pytest.mark.parametrize("script", SCRIPTS, ids=stem)
def test_a_notebook_is_kept_executed_without_errors(script):
    assert complaints(loaded(script.stem)) == []


def picture(colour_type, **metadata):
    data = base64.b64encode(bytes(25) + bytes([colour_type])).decode()
    return {"output_type": "display_data", "metadata": metadata, "data": {"image/png": data}}


def printed(name, text):
    return {"output_type": "stream", "name": name, "text": [text]}


FAULTS = {
    "not executed": {"execution_count": None},
    "an error": {"outputs": [{"output_type": "error"}]},
    "a warning": {"outputs": [printed("stderr", "")]},
    "a place on somebody's machine": {"outputs": [printed("stdout", f"in {Path('/', 'home')}/x")]},
    "a figure without alt text": {"outputs": [picture(3)]},
    "a PNG without a palette": {"outputs": [picture(2, **{"image/png": {"alt": "a curve"}})]},
}


@pytest.mark.parametrize(("fault", "change"), FAULTS.items(), ids=FAULTS)
def test_what_must_not_be_kept_is_found(fault, change):
    cell = {"cell_type": "code", "metadata": {}, "execution_count": 1, "outputs": []} | change
    kernel = {"kernelspec": {"name": "python3"}}
    assert complaints({"cells": [cell], "metadata": kernel}) == [fault]
    assert complaints({"cells": [cell], "metadata": {"kernelspec": {"name": "my-venv"}}})[1:]


@pytest.mark.parametrize("script", SCRIPTS, ids=stem)
def test_a_notebook_opens_with_its_question_its_answer_and_its_figure(script):
    notebook = loaded(script.stem)
    title, answer, figure = cells_of_notebook(notebook)[0][2].split("\n\n")
    assert re.fullmatch(r"# .+\?", title)
    assert len(re.findall(r"[.!](\s|$)", answer)) == 2, "two sentences"
    assert re.fullmatch(rf"!\[.+\]\(images/{script.stem}\.png\)", figure, re.DOTALL)
    image = notebook_files.FOLDER / "images" / f"{script.stem}.png"
    assert image.read_bytes() == notebook_files.answer(notebook)


@pytest.mark.parametrize("script", SCRIPTS, ids=stem)
def test_a_notebook_reads_where_it_is_kept(script):
    """Its links lead somewhere, its images have alt texts, and its formulas survive Markdown."""
    found = []
    for kind, _, text in cells_of_notebook(loaded(script.stem)):
        if kind == "markdown":
            tokens = MARKDOWN.parse(text)
            found += [fault for token in tokens for fault in block_faults(token)]
            inlines = [token for token in tokens if token.type == "inline"]
            found += [fault for token in inlines for fault in inline_faults(token, script, text)]
            found += [fault for token in inlines for fault in math_faults(token)]
    assert found == []


@pytest.mark.parametrize("script", SCRIPTS, ids=stem)
def test_a_notebook_is_short_and_draws_elsewhere(script):
    text = script.read_text()
    assert sum(bool(line.strip("# ")) for line in text.splitlines()) <= LONGEST
    imported = {
        node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)
    }
    assert "notebooks.helpers" in imported
    assert "pyplot" not in text


def test_all_notebooks_begin_by_installing_what_is_missing():
    first = [cells_of_script(script.read_text())[1] for script in SCRIPTS]
    assert first == [first[0]] * len(SCRIPTS)
    kind, _, text = first[0]
    assert kind == "code"
    assert "pip" in text


def test_all_notebooks_together_are_small():
    files = [*EXECUTED, *notebook_files.FOLDER.glob("images/*")]
    assert len(files) == 2 * len(SCRIPTS)
    assert sum(file.stat().st_size for file in files) < ALL_TOGETHER


def test_the_site_gets_alt_texts_and_links_of_its_own(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    (folder / "images").mkdir(parents=True)
    output = {"data": {"image/png": "AA=="}, "metadata": {"image/png": {"alt": "a curve"}}}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["See [it](../docs/design.md)."]},
        {"cell_type": "code", "metadata": {}, "outputs": [output]},
    ]
    (folder / "x.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(notebook_files, "FOLDER", folder)
    notebook_files.copy_to(tmp_path / "docs" / "notebooks")
    text, code = json.loads((tmp_path / "docs/notebooks/x.ipynb").read_text())["cells"]
    assert text["source"] == "See [it](../design.md)."
    assert code["metadata"] == {"mystnb": {"image": {"alt": "a curve"}}}
