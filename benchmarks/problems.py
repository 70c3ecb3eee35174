"""Trains problems of the demonstration with all optimizers that it compares, for one table.

    python -m benchmarks.problems
    python -m benchmarks.problems --output benchmarks/results/problems.md

It has what `python -m msvag_optax.compare --problem NAME` prints of each, but for the times.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from docs import sections
from msvag_optax.compare import EXPERIMENTS, OPTIMIZERS, Metric, Outcome
from msvag_optax.compare.command_line import train_all
from msvag_optax.compare.optimizers import optimizer_of
from msvag_optax.problems import PROBLEMS, Problem

TRAINED = ("digits", "char-lm", "rare-words")


def in_markdown(
    outcomes: Mapping[str, Sequence[Outcome]], problems: Mapping[str, Problem]
) -> Iterator[str]:
    """The lines of the table, from the outcomes of each problem, and what they are of."""
    columns = [(name, metric) for name in outcomes for metric in EXPERIMENTS[name].columns]
    yield f"| optimizer | {' | '.join(f'{name}: {metric.label}' for name, metric in columns)} |"
    yield f"| --- |{' --- |' * len(columns)}"
    for name in OPTIMIZERS:
        cells = [
            "".join(
                _cell(outcome, problem, metric)
                for outcome in outcomes[problem]
                if optimizer_of(outcome.name) is OPTIMIZERS[name]
            )
            for problem, metric in columns
        ]
        if any(cells):
            yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield (
        "At the best rate of each, shown in brackets: the one with the lowest value of a "
        "problem's first column, in the mean of all seeds. ± is the standard deviation over these."
    )
    for name, problem in problems.items():
        experiment = EXPERIMENTS[name]
        data = f" Data: {problem.source}." if problem.source else ""
        yield ""
        yield (
            f"*{name}*: {experiment.summary}; {experiment.steps} steps, {experiment.seeds} seeds, "
            f"{len(experiment.learning_rates)} rates.{data}"
        )


def _cell(outcome: Outcome, problem: str, metric: Metric) -> str:
    first = EXPERIMENTS[problem].columns[0]
    best = outcome.best(first.key)
    if best is None:
        return "diverged"
    values = outcome.history[metric.key][-1, :, best]
    rate = f" ({outcome.rates[best]:.3g})" if metric == first else ""
    return f"{values.mean():{metric.spec}} ± {values.std():{metric.spec}}{rate}"


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, prints the table, and writes it down."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.problems", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--output", type=Path, help="a file for the table, such as found.md")
    arguments = parser.parse_args(argv)
    problems = {name: PROBLEMS[name]() for name in TRAINED}
    outcomes = {
        name: train_all(problem, EXPERIMENTS[name], EXPERIMENTS[name].optimizers)
        for name, problem in problems.items()
    }
    table = "\n".join(in_markdown(outcomes, problems))
    print(table)
    if arguments.output:
        sections.keep(arguments.output, table)


if __name__ == "__main__":
    main()
