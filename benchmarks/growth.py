"""Measures how time grows with the number of leaves and of parameters, beside optax's nearest.

python -m benchmarks.growth
"""

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.step import (
    NAMES,
    PAIRS,
    Spread,
    about_now,
    as_json,
    checked,
    compile_step,
    filled,
    interleave,
    spread,
    stepping,
    updating,
    write_down,
)
from benchmarks.trees import Shapes, many_leaves

LEAVES = 16  # of the trees that grow in width


def wide_leaves(factor: int) -> Shapes:
    """A few matrices, so many times as large as the smallest."""
    return {f"leaf_{index}": (128 * factor, 128) for index in range(LEAVES)}


# What grows, how the trees are made, and from what.
AXES: dict[str, tuple[Callable[[int], Shapes], tuple[int, ...]]] = {
    "leaves": (many_leaves, (125, 250, 500, 1_000)),
    "parameters": (wide_leaves, (1, 4, 16, 64)),
}
QUANTITIES = ("trace", "compile", "eager", "step")
Times = dict[str, tuple[list[float], list[float]]]


class Growth(NamedTuple):
    """How one quantity of an optimizer and of its peer grows.

    Attributes:
      name: of the optimizer.
      peer: the optimizer of optax.
      quantity: one of `QUANTITIES`.
      sizes: of the trees, in leaves or in parameters.
      seconds: the optimizer's medians, one of each size.
      peer_seconds: the peer's.
      ratios: of the optimizer over the peer, one of each size.
    """

    name: str
    peer: str
    quantity: str
    sizes: list[int]
    seconds: list[float]
    peer_seconds: list[float]
    ratios: list[Spread]


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power of the size that time grows with: the slope of one logarithm over the other.

    >>> exponent([1, 10, 100], [3, 300, 30_000])
    2.0
    """
    logarithms = ([math.log(x) for x in values] for values in (sizes, seconds))
    return statistics.linear_regression(*logarithms).slope


def times(name: str, shapes: Shapes, rounds: int, compilations: int) -> Times:
    """The seconds of an optimizer and of its peer, in turns, for each quantity."""
    build, _, build_peer = PAIRS[name]
    chains = build(), build_peer()
    params, gradients = filled(shapes)
    compiled = [[compile_step(tx, params) for tx in chains] for _ in range(compilations)]
    steps = [
        stepping(one.step, params, tx.init(params), gradients)
        for one, tx in zip(compiled[-1], chains, strict=True)
    ]
    eager = [updating(tx, params, gradients) for tx in chains]
    ours, theirs = zip(*compiled, strict=True)
    step, peer_step = interleave(steps, rounds)
    update, peer_update = interleave(eager, rounds)
    return {
        "trace": ([a.trace_seconds for a in ours], [b.trace_seconds for b in theirs]),
        "compile": ([a.compile_seconds for a in ours], [b.compile_seconds for b in theirs]),
        "eager": (update, peer_update),
        "step": (step, peer_step),
    }


def grow(name: str, sizes: list[int], found: list[Times]) -> list[Growth]:
    """One row for each quantity, from what was measured at each size."""
    return [
        Growth(
            name,
            PAIRS[name][1],
            quantity,
            sizes,
            [statistics.median(at[quantity][0]) for at in found],
            [statistics.median(at[quantity][1]) for at in found],
            [spread(*at[quantity]) for at in found],
        )
        for quantity in QUANTITIES
    ]


def size_of(axis: str, shapes: Shapes) -> int:
    """The number of leaves, or of parameters."""
    return len(shapes) if axis == "leaves" else sum(math.prod(shape) for shape in shapes.values())


def cell(growth: Growth) -> str:
    """Such as `0.98 (1.01): 0.95 to 1.02`."""
    mine, other = (exponent(growth.sizes, x) for x in (growth.seconds, growth.peer_seconds))
    first, last = growth.ratios[0].median, growth.ratios[-1].median
    return f"{mine:.2f} ({other:.2f}): {first:.2f} to {last:.2f}"


def in_markdown(about: str, found: dict[str, list[list[Growth]]]) -> Iterator[str]:
    """The lines of a table for each axis, and what they mean."""
    yield f"{about}."
    for axis, rows in found.items():
        sizes = ", ".join(f"{size:,}" for size in rows[0][0].sizes) if rows else ""
        fixed = "leaves of (16,) and (32, 16)" if axis == "leaves" else f"{LEAVES} matrices"
        yield f"\n**By {axis}**: {fixed} in float32, {sizes} {axis}.\n"
        yield "| optimizer | optax's | " + " | ".join(QUANTITIES) + " |"
        yield "| --- | --- |" + " --- |" * len(QUANTITIES)
        for row in rows:
            cells = " | ".join(map(cell, row))
            yield f"| {row[0].name} | {row[0].peer} | {cells} |"
    yield ""
    yield (
        "Medians of one process. `a (b): c to d`: time grows with the power a of the size, that of "
        "optax's with b; the ratio of the two is c at the least size and d at the greatest. "
        "*Eager*: an update outside of `jit`; *step*: a compiled one. A step that comes to be too "
        "large for the processor's caches grows faster than its tree. " + NAMES
    )


def in_json(about: str, found: dict[str, list[list[Growth]]]) -> dict[str, Any]:
    """What `in_markdown` shows, with the seconds."""
    return {"about": about} | {
        axis: [
            growth._asdict()
            | {
                "ratios": [as_json(ratio) for ratio in growth.ratios],
                "exponent": exponent(growth.sizes, growth.seconds),
                "peer_exponent": exponent(growth.sizes, growth.peer_seconds),
            }
            for row in rows
            for growth in row
        ]
        for axis, rows in found.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what the command line asks for, prints it, and writes it down."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--axes", nargs="+", choices=AXES, default=[*AXES])
    parser.add_argument("--optimizers", nargs="+", choices=PAIRS, default=[*PAIRS])
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each (default 10)")
    parser.add_argument("--compilations", type=int, default=2, help="of each step (default 2)")
    parser.add_argument("--output", type=Path, help="written as OUTPUT.md and OUTPUT.json as well")
    arguments = checked(parser, argv)
    about = about_now()
    found: dict[str, list[list[Growth]]] = {axis: [] for axis in arguments.axes}
    todo = len(arguments.optimizers) * sum(len(AXES[axis][1]) for axis in found)
    times(arguments.optimizers[0], many_leaves(2), 1, 1)  # what a process pays once
    with tqdm(total=todo, disable=None) as progress:
        for axis, rows in found.items():
            make, scales = AXES[axis]
            trees = [make(scale) for scale in scales]
            for name in arguments.optimizers:
                measured = []
                for shapes in trees:
                    measured.append(times(name, shapes, arguments.rounds, arguments.compilations))
                    progress.update()
                rows.append(grow(name, [size_of(axis, shapes) for shapes in trees], measured))
    tables = "\n".join(in_markdown(about, found))
    print(tables)
    write_down(arguments.output, tables, in_json(about, found))


if __name__ == "__main__":
    main()
