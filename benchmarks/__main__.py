"""Prints a table: each optimizer beside optax's nearest. `python -m benchmarks --help`."""

import argparse
import math
import platform

import jax
import optax
from tqdm import tqdm

from benchmarks.step import PAIRS, measure
from benchmarks.trees import TREES


def main() -> None:
    """Measures what the command line asks for, and prints it in Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Optimizers beside optax's nearest; every ratio is of one process.",
    )
    parser.add_argument("--tree", choices=TREES, default="transformer")
    parser.add_argument("--optimizers", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each (default 20)")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"argument --rounds: must be at least 1, got {arguments.rounds}")
    shapes = TREES[arguments.tree]()
    rows = [
        measure(name, shapes, arguments.rounds) for name in tqdm(arguments.optimizers, disable=None)
    ]
    size = sum(math.prod(shape) for shape in shapes.values())
    print(
        f"{TREES[arguments.tree].__doc__} {size:,} parameters in {len(shapes)} leaves. "
        f"{jax.devices()[0].device_kind}, {platform.machine()}, "
        f"jax {jax.__version__}, optax {optax.__version__}.\n"
    )
    print("| optimizer | optax's | step time | trace | compile | state bytes/param | temporaries |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row.name} | {row.peer} "
            f"| {row.step_ratio:.2f} ({row.step_ratio_least:.2f} to {row.step_ratio_most:.2f}) "
            f"| {row.trace_ratio:.2f} | {row.compile_ratio:.2f} "
            f"| {row.state_bytes_per_parameter:.2f} | {row.temporary_bytes} B |"
        )
    print("\nTimes are ratios to optax's: medians, and in brackets the least and greatest pair.")


if __name__ == "__main__":
    main()
