"""Every optimizer of optax, and this library's, under the checks of `msvag_optax.testing`.

    python -m benchmarks.contract [--output benchmarks/results/contract.md] [NAME ...]

An optimizer is a function of `optax` or `optax.contrib` that takes a `learning_rate` and has
defaults for all else.
"""

import argparse
import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import optax
import optax.contrib

import msvag_optax as mo
from docs import sections


def optimizers() -> dict[str, Callable[..., Any]]:
    """All optimizers, under their qualified names."""
    found = {}
    for package in (mo, optax, optax.contrib):
        for name, build in sorted(vars(package).items()):
            if not name.startswith(("_", "scale_by")) and _is_optimizer(build):
                found[f"{package.__name__}.{name}"] = build
    return found


def _is_optimizer(build: Any) -> bool:
    if not inspect.isfunction(build):
        return False
    names, parameters = zip(
        *inspect.signature(build).parameters.items() or [("", None)], strict=True
    )
    if names[0] != "learning_rate" or any(map(_is_required, parameters[1:])):
        return False
    try:
        return isinstance(build(0.1), optax.GradientTransformation)
    except (TypeError, ValueError):
        return False


def _is_required(parameter: inspect.Parameter) -> bool:
    kinds = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in kinds


def lines_of(reports: Iterator[Any]) -> Iterator[str]:
    """The table, line by line."""
    yield f"jax {jax.__version__}, optax {optax.__version__}, {jax.device_count()} devices.\n"
    yield "| optimizer | passed | failed | which |"
    yield "| --- | --- | --- | --- |"
    for report in reports:
        which = ", ".join(name.removeprefix("check_") for name in report.failed)
        yield f"| `{report.name}` | {len(report.passed)} | {len(report.failed)} | {which} |"


def reports_of(names: list[str]) -> Iterator[Any]:
    """The reports, each when it is done."""
    from msvag_optax import testing  # which makes arrays: the devices are to be set before

    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What optax deprecates is not asked here.
            yield testing.check(optimizers()[name], name=name)
        jax.clear_caches()


def main(arguments: list[str] | None = None) -> None:
    """Prints the table, and writes it to a file if one is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contract", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as optax.adam; all if none")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    parsed = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    unknown = set(parsed.names) - optimizers().keys()
    if unknown:
        parser.error(f"there is no optimizer {sorted(unknown)[0]!r} that can be built by a rate")
    printed = []
    for line in lines_of(reports_of(parsed.names or [*optimizers()])):
        print(line, flush=True)
        printed.append(line)
    if parsed.output:
        sections.keep(parsed.output, "\n".join(printed))


if __name__ == "__main__":
    main()
