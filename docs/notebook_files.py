"""The notebooks as files: what is kept of an executed one, and what the site makes of those kept.

    python -m docs.notebook_files build/notebooks/mixing_pieces.ipynb

keeps an executed notebook, as `make notebooks-update` does: in `notebooks/`, without what differs
from machine to machine, and its first figure, the answer, in `notebooks/images/` as well.
"""

import base64
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"


def answer(notebook: dict[str, Any]) -> bytes:
    """The figure of the cell with the tag `answer`, which the first cell shows."""
    for cell in notebook["cells"]:
        if "answer" in cell["metadata"].get("tags", []):
            return next(
                base64.b64decode(output["data"]["image/png"])
                for output in cell["outputs"]
                if "image/png" in output.get("data", {})
            )
    raise ValueError('no cell has the tag "answer"')


def keep(executed: Path) -> None:
    """Writes a notebook that has been executed into the folder of notebooks."""
    notebook = json.loads(executed.read_text())
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = str(number)  # instead of a random one
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook["metadata"] = {"kernelspec": kernel, "language_info": {"name": "python"}}
    (FOLDER / executed.name).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    (FOLDER / "images" / f"{executed.stem}.png").write_bytes(answer(notebook))


def copy_to(site: Path) -> None:
    """Writes all notebooks for the site: with its links, and with alt texts where it wants them."""
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(FOLDER / "images", site / "images")
    for file in FOLDER.glob("*.ipynb"):
        notebook = json.loads(file.read_text())
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = re.sub(r"\]\(\.\./docs/", "](../", "".join(cell["source"]))
            for output in cell.get("outputs", []):
                alt = output.get("metadata", {}).get("image/png", {}).get("alt")
                if alt:
                    cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
        (site / file.name).write_text(json.dumps(notebook))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        keep(Path(name))
