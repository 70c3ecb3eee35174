"""Draws the figures of the pages.

python -m docs.figures           # all of them
python -m docs.figures msvag     # docs/figures/msvag.png
"""

import argparse
import importlib

from docs.figures import FOLDER, PAGES
from docs.figures.drawing import png


def main() -> None:
    """Draws those that are named, by default all."""
    parser = argparse.ArgumentParser(prog="python -m docs.figures")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PAGES)}")
    names = parser.parse_args().names or list(PAGES)
    for unknown in set(names) - set(PAGES):
        parser.error(f"there is no figure {unknown!r}; choose from {', '.join(PAGES)}.")
    for name in names:
        figure = importlib.import_module(f"docs.figures.{name}")
        path = FOLDER / f"{name}.png"
        path.write_bytes(png(figure.draw, figure.compute()))
        print(f"{path.relative_to(FOLDER.parents[1])}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
