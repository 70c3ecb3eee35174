"""Files that are written entirely or not at all."""

import contextlib
import os
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def temporary(path: Path) -> Generator[Path]:
    """A name beside `path` that nothing else uses, and that is gone in the end."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, entirely or not at all.

    The bytes go to a temporary file in the same folder, which then takes the place of `path` in one
    step. Whatever goes wrong, the temporary file is removed and an earlier `path` stays as it was.

    Args:
      path: the file.
      content: all of it.

    Raises:
      OSError: if the folder or the disk refuses.
    """
    with temporary(path) as unfinished:
        with unfinished.open("xb") as file:
            file.write(content)
        unfinished.replace(path)
