"""Writes the pages of the API reference from what the package exports.

One page for each module that a public name comes from: what the module says of itself, then its
names in the order of its source. Whatever is exported is thereby documented. What the library never
imports itself, the checks and the demo, has a page for each package.
"""

import inspect
import itertools
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import msvag_optax as mo
from msvag_optax import compare, problems, testing
from msvag_optax.problems import char_lm, digits, rare_words

PARTS = (testing, problems, digits, char_lm, rare_words, compare)
ROOT = Path(__file__).parents[1]
# The headings of the overview, and the beginnings of the names of their modules, in this order.
GROUPS = {
    "Pieces": [
        *(f"pieces.{name}" for name in ("weightings", "quantities", "running_average")),
        *(f"pieces.{name}" for name in ("running_moments", "around", "formulas", "from_estimates")),
        "pieces.",
    ],
    "Optimizers": [
        *(f"optimizers.{name}" for name in ("optimizer", "msvag", "expectigrad", "novograd")),
        "optimizers.",
    ],
    "Around optimizers": [
        *("wrappers.", "diagnostics", "noise", "microbatches", "recorder", "memory", "trees"),
    ],
    "Checks for any optimizer": ["testing"],
    "The demonstration": ["problems", "compare"],
}


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
        parts = getattr(mo, name).__module__.split(".")
        if parts[1].startswith("_"):  # A private package has one page.
            parts = parts[:2]
        modules.setdefault(".".join(parts), []).append(name)
    for names in modules.values():
        names.sort(key=lambda name: _line(getattr(mo, name)))
    return modules


def part_names(package: ModuleType) -> list[str]:
    """The public functions, classes and tables of such a package."""
    own = package.__name__
    return [
        name
        for name, thing in vars(package).items()
        if not name.startswith("_")
        and (_is_table(package, name) or str(getattr(thing, "__module__", "")).startswith(own))
    ]


def _is_table(package: ModuleType, name: str) -> bool:
    # Sphinx finds what a table says of itself only in the module that defines it.
    return name.isupper() and f"\n{name}: " in inspect.getsource(package)


def pages() -> dict[str, str]:
    """The text of every page, in reStructuredText as the docstrings are, by its name."""
    entries = {
        module: [_entry(getattr(mo, name), f"msvag_optax.{name}") for name in names]
        for module, names in names_by_module().items()
    } | {
        part.__name__: [
            _entry(getattr(part, name), f"{part.__name__}.{name}") for name in part_names(part)
        ]
        for part in PARTS
    }
    return {_title(module): _page(module, texts) for module, texts in entries.items()}


def overview() -> str:
    """All public names by their modules, a line for each, in Markdown; with a table of contents."""
    modules = {module: (mo, names) for module, names in names_by_module().items()}
    modules |= {part.__name__: (part, part_names(part)) for part in PARTS}
    lines, contents = [], []
    for group, beginnings in GROUPS.items():
        lines += [f"## {group}", ""]
        for module in _in_order(modules, beginnings):
            home, names = modules[module]
            lines += [f"**[{_title(module)}]({_file(module)})**: {_first_line(module)}", ""]
            for name in names:
                shown = name if home is mo else f"{module}.{name}"
                lines.append(f"* `{shown}`: {_first_line(module, home, name)}")
            lines.append("")
            contents.append(f"api/{_title(module)}")
    return "\n".join([*lines, "<!-- toctree", *contents, "-->"])


def write(folder: Path) -> None:
    """Writes all pages to `folder` and touches none that is as it should be."""
    folder.mkdir(exist_ok=True)
    wanted = {folder / f"{name}.rst": text for name, text in pages().items()}
    for stale in set(folder.glob("*.rst")) - set(wanted):
        stale.unlink()
    for path, text in wanted.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def _in_order(modules: Iterable[str], beginnings: list[str]) -> list[str]:
    # A name that two beginnings fit is where the first of them is.
    found = [sorted(m for m in modules if _title(m).startswith(x)) for x in beginnings]
    return list(dict.fromkeys(itertools.chain.from_iterable(found)))


def _file(module: str) -> str:
    """Where the source of a module is, as seen from `docs/`."""
    file = Path(inspect.getfile(import_module(module))).relative_to(ROOT)
    return f"../{file.parent if file.name == '__init__.py' else file}"


def _first_line(module: str, home: ModuleType | None = None, name: str = "") -> str:
    """What a module, or a name in it, says of itself first."""
    thing = getattr(home, name) if home else import_module(module)
    says = inspect.getdoc(thing) or ""
    if home and not callable(thing):
        # A table's own docstring is that of its type.
        says = re.split(rf'(?s)\n{name}: .*?\n"""', inspect.getsource(home))[1].partition('"""')[0]
    return re.sub(":math:`(.*?)`", r"$\1$", says.partition("\n")[0])


def _line(thing: Any) -> int:
    return inspect.findsource(inspect.unwrap(thing))[1]


def _entry(thing: Any, path: str) -> str:
    if inspect.isclass(thing):
        return f".. autoclass:: {path}"
    if inspect.isroutine(inspect.unwrap(thing)):
        return f".. autofunction:: {path}"
    return f".. autodata:: {path}\n   :no-value:"


def _title(module: str) -> str:
    return module.removeprefix("msvag_optax.").removeprefix("_")


def _page(module: str, entries: list[str]) -> str:
    title = _title(module)
    head = f"{title}\n{'=' * len(title)}\n\n.. automodule:: {module}\n   :no-members:"
    return "\n\n".join([head, *entries]) + "\n"
