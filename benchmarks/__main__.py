"""Measures each optimizer beside optax's nearest. `python -m benchmarks --help`."""

import argparse
import datetime
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from benchmarks.step import (
    NAMES,
    PAIRS,
    Eager,
    Row,
    Spread,
    as_json,
    checked,
    machine,
    measure,
    measure_eagerly,
    versions,
    write_down,
)
from benchmarks.trees import TREES, many_leaves

DTYPES = ("float32", "bfloat16")
EAGER_LEAVES = 400
# What an update outside of `jit` costs depends on the leaves: XLA:CPU cuts larger kernels in parts
# for other threads.
TINY, SMALL = (16, 8), (32, 16)

COLUMNS = ("step", "over floor", "optax's over floor", "trace", "compile", "state", "temporaries")

R = TypeVar("R", Row, Eager)


class Results(NamedTuple):
    """All that has been measured.

    Attributes:
      machine: on what.
      versions: of the libraries.
      date: when.
      trees: a row for each optimizer, by the name of the tree and the dtype of its parameters.
      eager: updates outside of `jit`, a row for each optimizer.
      runs: what each process has measured, if there were several.
    """

    machine: str
    versions: str
    date: str
    trees: dict[tuple[str, str], list[Row]]
    eager: list[Eager]
    runs: "tuple[Results, ...]" = ()


def describe(tree: str) -> str:
    """What a tree is, and how large."""
    shapes = TREES[tree]()
    size = sum(math.prod(shape) for shape in shapes.values())
    return f"{TREES[tree].__doc__} {size:,} parameters in {len(shapes):,} leaves."


def run(arguments: argparse.Namespace) -> Results:
    """Measures what the command line asks for, in this process."""
    cases = [(tree, dtype) for tree in arguments.trees for dtype in arguments.dtypes]
    today = f"{datetime.date.today():%Y-%m-%d}"
    results = Results(machine(), versions(), today, {case: [] for case in cases}, [])
    todo = len(arguments.optimizers) * (len(cases) + arguments.eager)
    # What a process pays once is not counted.
    measure(arguments.optimizers[0], many_leaves(2), "float32", rounds=1, compilations=1)
    with tqdm(total=todo, disable=None) as progress:
        for (tree, dtype), rows in results.trees.items():
            for name in arguments.optimizers:
                shapes = TREES[tree]()
                rows.append(measure(name, shapes, dtype, arguments.rounds, arguments.compilations))
                progress.update()
        for name in arguments.optimizers if arguments.eager else ():
            tiny, small = (many_leaves(EAGER_LEAVES, matrix) for matrix in (TINY, SMALL))
            results.eager.append(measure_eagerly(name, tiny, small, arguments.rounds))
            progress.update()
    return results


def merge_rows(rows: Sequence[R]) -> R:
    """The medians of several runs: their median, the least and the greatest."""
    merged: dict[str, Any] = {}
    for field, value in rows[0]._asdict().items():
        if isinstance(value, Spread):
            medians = [getattr(row, field).median for row in rows]
            merged[field] = Spread(statistics.median(medians), min(medians), max(medians))
    return rows[0]._replace(**merged)


def merge(runs: Sequence[Results]) -> Results:
    """What several runs have found, row by row; one is left as it is."""
    if len(runs) == 1:
        return runs[0]
    return runs[-1]._replace(
        trees={
            case: [
                merge_rows(rows) for rows in zip(*(run.trees[case] for run in runs), strict=True)
            ]
            for case in runs[0].trees
        },
        eager=[merge_rows(rows) for rows in zip(*(run.eager for run in runs), strict=True)],
        runs=tuple(runs),
    )


def run_afresh(arguments: Sequence[str]) -> Results:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        alone = [*arguments, "--runs", "1", "--output", str(output)]
        command = [sys.executable, "-m", "benchmarks", *alone]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return from_json(json.loads(output.with_suffix(".json").read_text()))


def in_markdown(results: Results) -> Iterator[str]:
    """The lines of all tables."""
    yield f"{results.machine}; {results.versions}; {results.date}."
    for (tree, dtype), rows in results.trees.items():
        yield f"\n**{describe(tree)}** Parameters in {dtype}.\n"
        yield "| optimizer | optax's |" + "".join(f" {column} |" for column in COLUMNS)
        yield "| --- | --- |" + " --- |" * len(COLUMNS)
        for row in rows:
            cells = [*map(str, row[:7]), f"{row.state:.2f} ({row.peer_state:.2f})"]
            cells += [f"{row.temporaries:,} ({row.peer_temporaries:,})"]
            yield "| " + " | ".join(cells) + " |"
    if results.eager:
        yield f"\n**Outside of `jit`**, {EAGER_LEAVES} leaves in float32, by their shapes.\n"
        sizes = [f"(16,) and {matrix}" for matrix in (TINY, SMALL)]
        yield "| optimizer | optax's |" + "".join(f" {x} | {x}, over adam |" for x in sizes)
        yield "| --- | --- | --- | --- | --- | --- |"
        for row in results.eager:
            yield "| " + " | ".join(map(str, row)) + " |"
    several = len(results.runs)
    yield ""
    yield (
        "Times are ratios within one process, medians"
        + (f" of the medians of {several} processes" if several else "")
        + ", in brackets the least and the greatest"
        + (" process. " if several else " round. ")
        + "*Step*, *trace* and *compile*: the time here over that of the optimizer of optax that "
        "is named, which keeps as many arrays or does the same; below 1, this library is faster. "
        "*Over floor*: the step over the time of reading and writing once what it must, in one "
        "kernel for each array of parameters and state, and beside it optax's step over its own "
        "floor; on many small leaves the floor is the time to start so many kernels, and a step "
        "is as fast. *State*: bytes a parameter; *temporaries*: bytes; in brackets optax's. "
        "*Outside of `jit`*: the time of an update over that of optax's optimizer, and over that "
        "of `optax.adam`. " + NAMES
    )


def in_json(results: Results) -> dict[str, Any]:
    """What `in_markdown` shows, to more digits and for programs."""
    return results._asdict() | {
        "trees": [
            {"tree": tree, "dtype": dtype, **as_json(row)}
            for (tree, dtype), rows in results.trees.items()
            for row in rows
        ],
        "eager": [as_json(row) for row in results.eager],
        "runs": [in_json(run) for run in results.runs],
    }


def from_json(found: dict[str, Any]) -> Results:
    """What `in_json` was given."""

    def values(row: dict[str, Any]) -> dict[str, Any]:
        return {key: Spread(**x) if isinstance(x, dict) else x for key, x in row.items()}

    trees: dict[tuple[str, str], list[Row]] = {}
    for tree, dtype, row in ((row.pop("tree"), row.pop("dtype"), row) for row in found["trees"]):
        trees.setdefault((tree, dtype), []).append(Row(**values(row)))
    eager = [Eager(**values(row)) for row in found["eager"]]
    runs = tuple(from_json(run) for run in found["runs"])
    return Results(**found | {"trees": trees, "eager": eager, "runs": runs})


def write(results: Results, output: Path | None) -> str:
    """Writes all down, if there is a place for it, and returns the tables."""
    tables = "\n".join(in_markdown(results))
    write_down(output, tables, in_json(results))
    return tables


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what the command line asks for, prints it, and writes it down."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Optimizers beside optax's nearest; every ratio is of one process.",
    )
    parser.add_argument("--trees", nargs="+", choices=TREES, default=[*TREES])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=[*DTYPES])
    parser.add_argument("--optimizers", nargs="+", choices=PAIRS, default=[*PAIRS])
    parser.add_argument("--runs", type=int, default=5, help="processes, one by one (default 5)")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each (default 20)")
    parser.add_argument("--compilations", type=int, default=2, help="of each step (default 2)")
    parser.add_argument("--no-eager", dest="eager", action="store_false", help="only under `jit`")
    parser.add_argument("--output", type=Path, help="written as OUTPUT.md and OUTPUT.json as well")
    arguments = checked(parser, argv)
    again, runs, tables = sys.argv[1:] if argv is None else argv, [], ""
    for _ in range(arguments.runs):
        runs.append(run(arguments) if arguments.runs == 1 else run_afresh(again))
        tables = write(merge(runs), arguments.output)  # after each, so that a failure loses little
    print(tables)


if __name__ == "__main__":
    main()
