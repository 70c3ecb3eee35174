"""The figures of the pages: `NAME.py` here computes and draws what `NAME.png` beside it shows.

Each is a module of two functions, `compute`, which takes the size of the experiment, and `draw`,
which takes what was computed. `python -m docs.figures` draws them all.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
PAGES = {
    "overview": ["README.md", "docs/index.md"],
    "choosing": ["docs/choosing.md"],
    "msvag": ["docs/optimizers/msvag.md"],
    "expectigrad": ["docs/optimizers/expectigrad.md"],
    "novograd": ["docs/optimizers/novograd.md"],
    "amsgrad": ["docs/optimizers/amsgrad.md"],
    "adamw": ["docs/optimizers/adamw.md"],
    "dissection": ["docs/optimizers/dissection.md"],
}
"""The pages that show each figure."""
