"""The command line: trains, prints a table and leaves a picture behind."""

import argparse
import functools
import itertools
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import optax

from msvag_optax.compare.arguments import PROGRAM, make_parser, plural
from msvag_optax.compare.experiments import EXPERIMENTS, Experiment
from msvag_optax.compare.files import write_whole
from msvag_optax.compare.optimizers import OPTIMIZERS, Optimizer, Settings
from msvag_optax.compare.picture import draw, render
from msvag_optax.compare.table import format_table
from msvag_optax.compare.training import Outcome, train
from msvag_optax.problems import PROBLEMS, Problem

INTERRUPTED = 130  # The exit status that shells know for it.
_PACKAGES = {
    "flax": "flax",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
    "tqdm": "tqdm",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`, by default the program's own.

    Args:
      argv: the arguments without the program's name.

    Returns:
      The exit status: 0, or 1 if the data could not be read or the results not be written, or 130
      after an interruption.

    Raises:
      SystemExit: with status 2 if `argv` asks for what cannot be done, or 0 after `--help`.
    """
    parser = make_parser()
    try:
        arguments = parser.parse_args(argv)
        missing = [name for module, name in _PACKAGES.items() if not find_spec(module)]
        if missing:
            parser.error(
                f"this needs {', '.join(missing)}: install the `demo` extra, from a clone of the "
                "repository by pip install '.[demo]'."
            )
        return _compare(arguments)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr, flush=True)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the table has left (`| head`), and Python must not flush to nobody at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def train_all(problem: Problem, experiment: Experiment, names: Sequence[str]) -> list[Outcome]:
    """Trains `problem` with each optimizer named, with a progress bar for each on standard error.

    Args:
      problem: what to train.
      experiment: the steps, seeds and learning rates.
      names: of `OPTIMIZERS`.

    Returns:
      The outcomes, in the order of `names`.
    """
    from tqdm import tqdm

    settings = Settings(experiment.steps, experiment.b2, experiment.weight_decay)
    outcomes = []
    for name in names:
        optimizer = OPTIMIZERS[name]
        rates = experiment.rates_for(optimizer)
        with tqdm(
            desc=f"{name:14}",
            total=experiment.steps,
            unit=" steps",
            unit_scale=True,
            disable=None,
        ) as bar:
            # Without a terminal no bar moves (and a closed one says that it does not either).
            hidden = bar.disable
            outcome = train(
                problem,
                functools.partial(_build, optimizer, settings),
                rates,
                steps=experiment.steps,
                seeds=experiment.seeds,
                name=optimizer.label(name, settings),
                measurements=experiment.measurements,
                advanced=bar.update,
            )
        outcomes.append(outcome)
        if hidden:
            print(f"{name}: {experiment.steps:,} steps done.", file=sys.stderr, flush=True)
    return outcomes


def _build(optimizer: Optimizer, settings: Settings, rate: Any) -> optax.GradientTransformation:
    return optimizer.build(rate, settings)


def _compare(arguments: argparse.Namespace) -> int:
    experiment = EXPERIMENTS[arguments.problem]
    names = experiment.optimizers
    if arguments.optimizers:
        names = list(dict.fromkeys(itertools.chain(*arguments.optimizers)))
    if arguments.learning_rates:
        rates = tuple(sorted(set(itertools.chain(*arguments.learning_rates))))
        experiment = experiment._replace(learning_rates=rates, gradient_size=1.0)
    experiment = experiment._replace(
        steps=arguments.steps or experiment.steps, seeds=arguments.seeds or experiment.seeds
    )
    try:
        problem = PROBLEMS[arguments.problem]()
    except OSError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    if problem.source:
        print(f"Data: {problem.source}.", flush=True)
    outcomes = train_all(problem, experiment, names)
    print(f"\n{format_table(outcomes, experiment.columns)}\n", flush=True)

    title = (
        f"{arguments.problem}: {experiment.summary}\n"
        f"{plural(len(experiment.learning_rates), 'learning rate')}, "
        f"{plural(experiment.seeds, 'seed')}, {plural(experiment.steps, 'step')}"
    )
    try:
        write_whole(
            arguments.output,
            render(draw(outcomes, experiment, title, problem.source), arguments.output.suffix),
        )
    except OSError as error:
        print(f"{PROGRAM}: cannot write {arguments.output}: {error.strerror}.", file=sys.stderr)
        return 1
    print(f"Wrote {arguments.output}.", flush=True)
    return 0
