"""Writes the pages of the API reference from what the package exports.

One page for each module that a public name comes from: what the module says of itself, then its
names in the order of its source. Whatever is exported is thereby documented.
"""

import inspect
from pathlib import Path
from typing import Any

import msvag_optax as mo


def public_names() -> list[str]:
    """All that users import from `msvag_optax` itself, its modules apart."""
    return [
        name
        for name, thing in vars(mo).items()
        if not name.startswith("_") and not inspect.ismodule(thing)
    ]


def names_by_module() -> dict[str, list[str]]:
    """The public names of each module, in the order of its source."""
    modules: dict[str, list[str]] = {}
    for name in public_names():
        module = getattr(mo, name).__module__.partition("._")[0]  # the package of a private module
        modules.setdefault(module, []).append(name)
    for names in modules.values():
        names.sort(key=lambda name: _line(getattr(mo, name)))
    return modules


def pages() -> dict[str, str]:
    """The text of every page, in reStructuredText as the docstrings are, by its name."""
    return {
        module.removeprefix("msvag_optax."): _page(module, names)
        for module, names in names_by_module().items()
    }


def write(folder: Path) -> None:
    """Writes all pages to `folder` and touches none that is as it should be."""
    folder.mkdir(exist_ok=True)
    wanted = {folder / f"{name}.rst": text for name, text in pages().items()}
    for stale in set(folder.glob("*.rst")) - set(wanted):
        stale.unlink()
    for path, text in wanted.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def _line(thing: Any) -> int:
    return inspect.findsource(inspect.unwrap(thing))[1]


def _page(module: str, names: list[str]) -> str:
    title = module.removeprefix("msvag_optax.")
    lines = [title, "=" * len(title), "", f".. automodule:: {module}", "   :no-members:", ""]
    for name in names:
        kind = "class" if inspect.isclass(getattr(mo, name)) else "function"
        lines += [f".. auto{kind}:: msvag_optax.{name}", ""]
    return "\n".join(lines)
