"""Measures each optimizer beside optax's nearest. `python -m benchmarks --help`."""

import argparse
import datetime
import json
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from tqdm import tqdm

from benchmarks.step import PAIRS, Row, Spread, measure, measure_eagerly
from benchmarks.trees import TREES, many_leaves

DTYPES = ("float32", "bfloat16")
EAGER_LEAVES = 400


class Results(NamedTuple):
    """All that one run has measured.

    Attributes:
      machine: on what.
      versions: of the libraries.
      date: when.
      trees: a row for each optimizer, by the name of the tree and the dtype of its parameters.
      eager: updates outside of `jit` over the peer's, by the optimizer's name.
    """

    machine: str
    versions: str
    date: str
    trees: dict[tuple[str, str], list[Row]]
    eager: dict[str, Spread]


def machine() -> str:
    """The device, as far as it says what it is."""
    device, cpuinfo = jax.devices()[0], Path("/proc/cpuinfo")
    if device.platform != "cpu":
        return device.device_kind
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def describe(tree: str) -> str:
    """What a tree is, and how large."""
    shapes = TREES[tree]()
    size = sum(math.prod(shape) for shape in shapes.values())
    return f"{TREES[tree].__doc__} {size:,} parameters in {len(shapes):,} leaves."


def run(arguments: argparse.Namespace) -> Results:
    """Measures what the command line asks for."""
    cases = [(tree, dtype) for tree in arguments.trees for dtype in arguments.dtypes]
    results = Results(
        machine(),
        f"jax {jax.__version__}, optax {optax.__version__}, Python {platform.python_version()}",
        f"{datetime.date.today():%Y-%m-%d}",
        {case: [] for case in cases},
        {},
    )
    todo = len(arguments.optimizers) * (len(cases) + arguments.eager)
    with tqdm(total=todo, disable=None) as progress:
        for (tree, dtype), rows in results.trees.items():
            for name in arguments.optimizers:
                shapes = TREES[tree]()
                rows.append(measure(name, shapes, dtype, arguments.rounds, arguments.compilations))
                progress.update()
        for name in arguments.optimizers if arguments.eager else ():
            shapes = many_leaves(EAGER_LEAVES)
            results.eager[name] = measure_eagerly(name, shapes, arguments.rounds)
            progress.update()
    return results


def in_markdown(results: Results) -> Iterator[str]:
    """The lines of all tables."""
    yield f"{results.machine}; {results.versions}; {results.date}."
    for (tree, dtype), rows in results.trees.items():
        yield f"\n**{describe(tree)}** Parameters in {dtype}.\n"
        yield "| optimizer | optax's | step | floor | trace | compile | state | temporaries |"
        yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
        for row in rows:
            yield (
                f"| {row.name} | {row.peer} | {row.step} | {row.floor} | {row.trace} "
                f"| {row.compile} | {row.state_bytes_per_parameter:.2f} | {row.temporary_bytes:,} |"
            )
    if results.eager:
        yield f"\n**Outside of `jit`**, {EAGER_LEAVES} small leaves in float32.\n"
        yield "| optimizer | optax's | update |"
        yield "| --- | --- | --- |"
        for name, ratio in results.eager.items():
            yield f"| {name} | {PAIRS[name][1]} | {ratio} |"
    yield ""
    yield (
        "Times are ratios within one process, medians, in brackets the least and the greatest. "
        "*Step*, *trace*, *compile*, *update*: over those of optax's. *Floor*: the step over the "
        "time of moving the bytes that it must read and write. *State*: bytes a parameter; "
        "*temporaries*: bytes."
    )


def in_json(results: Results) -> dict[str, Any]:
    """What `in_markdown` shows, to more digits and for programs."""

    def named(row: Any) -> Any:
        values = row._asdict().items()
        return {key: named(x) if isinstance(x, Spread) else x for key, x in values}

    trees = [
        {"tree": tree, "dtype": dtype, **named(row)}
        for (tree, dtype), rows in results.trees.items()
        for row in rows
    ]
    eager = [{"name": name, "update": named(ratio)} for name, ratio in results.eager.items()]
    return results._asdict() | {"trees": trees, "eager": eager}


def main() -> None:
    """Measures what the command line asks for, prints it, and writes it down."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Optimizers beside optax's nearest; every ratio is of one process.",
    )
    parser.add_argument("--trees", nargs="+", choices=TREES, default=[*TREES])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=[*DTYPES])
    parser.add_argument("--optimizers", nargs="+", choices=PAIRS, default=[*PAIRS])
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each (default 20)")
    parser.add_argument("--compilations", type=int, default=5, help="of each step (default 5)")
    parser.add_argument("--no-eager", dest="eager", action="store_false", help="only under `jit`")
    parser.add_argument("--output", type=Path, help="written as OUTPUT.md and OUTPUT.json as well")
    arguments = parser.parse_args()
    for name in ("rounds", "compilations"):
        if getattr(arguments, name) < 1:
            parser.error(f"argument --{name}: must be at least 1, got {getattr(arguments, name)}")
    results = run(arguments)
    tables = "\n".join(in_markdown(results)) + "\n"
    print(tables)
    if arguments.output:
        arguments.output.with_suffix(".md").write_text(tables)
        text = json.dumps(in_json(results), indent=1) + "\n"
        arguments.output.with_suffix(".json").write_text(text)


if __name__ == "__main__":
    main()
