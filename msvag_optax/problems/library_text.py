"""A text that every machine has: sources of Python's own standard library."""

import hashlib
import platform
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILES = (
    "argparse.py",
    "difflib.py",
    "doctest.py",
    "enum.py",
    "inspect.py",
    "mailbox.py",
    "pickle.py",
    "shutil.py",
    "statistics.py",
    "subprocess.py",
    "tarfile.py",
    "threading.py",
    "traceback.py",
    "typing.py",
)
HELD_OUT = 0.1  # the share of each file, at its end


class LibraryText(NamedTuple):
    """A text in two parts.

    Attributes:
      train: the beginnings of all files, one after the other.
      held_out: their ends.
      source: which text this is: Python's version and a hash, since the files differ by version.
    """

    train: str
    held_out: str
    source: str


def load_text(folder: Path | None = None) -> LibraryText:
    """The named `FILES` of the standard library of the Python that runs this.

    Args:
      folder: where they are, if elsewhere.

    Returns:
      The text.

    Raises:
      FileNotFoundError: if one of them is not there, as where only compiled files are installed.
    """
    folder = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    texts = []
    for name in FILES:
        try:
            texts.append((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"The text is made of Python's own sources, and {folder} has no {name}."
            ) from None
    cuts = [round(len(text) * (1 - HELD_OUT)) for text in texts]
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()
    return LibraryText(
        train="".join(text[:cut] for text, cut in zip(texts, cuts, strict=True)),
        held_out="".join(text[cut:] for text, cut in zip(texts, cuts, strict=True)),
        source=(
            f"{len(FILES)} files of the standard library of Python {platform.python_version()}, "
            f"{sum(map(len, texts)):,} characters, SHA-256 {digest[:16]}"
        ),
    )


def evenly(stop: int, count: int) -> np.ndarray:
    """`count` whole numbers from 0 to `stop` - 1, at equal distances, or all if there are fewer."""
    return np.linspace(0, stop - 1, min(count, stop)).astype(np.int32)
