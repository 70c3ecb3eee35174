"""The command line: what it takes, what it refuses, and what it leaves behind."""

import argparse
import errno
import functools
import itertools
import math
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import optax

from msvag_optax.compare.experiments import EXPERIMENTS, Experiment
from msvag_optax.compare.files import temporary, write_whole
from msvag_optax.compare.optimizers import OPTIMIZERS, Optimizer, Settings
from msvag_optax.compare.picture import draw, render
from msvag_optax.compare.table import format_table
from msvag_optax.compare.training import Outcome, train
from msvag_optax.problems import PROBLEMS, Problem

_PROGRAM = "python -m msvag_optax.compare"
INTERRUPTED = 130  # The exit status that shells know for it.
_DESCRIPTION = """\
Trains one problem with many optimizers, each over a grid of learning rates and several seeds;
prints a table and draws a picture. All runs of an optimizer are one compiled loop.
"""
_ABOUT_SCALE = """\
(*) The steps of these optimizers are proportional to the gradient. Where gradients are
    about 100 long, their default rates are a hundred times smaller.
"""
_EXAMPLES = f"""\
examples:
  {_PROGRAM}
  {_PROGRAM} --problem reddi-online
  {_PROGRAM} --optimizers msvag adam --learning-rates 0.003 0.01 0.03
  {_PROGRAM} --steps 200 --seeds 1 --output quick.png
"""
_PACKAGES = {
    "flax": "flax",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
    "tqdm": "tqdm",
}


class _Parser(argparse.ArgumentParser):
    """Refuses in one sentence; the usage is for those who ask for it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def make_parser() -> argparse.ArgumentParser:
    """The command line: what it takes, what it refuses and what it says about itself."""
    parser = _Parser(
        prog=_PROGRAM,
        description=_DESCRIPTION,
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--problem",
        type=_one_of("problem", tuple(EXPERIMENTS)),
        default="digits",
        metavar="NAME",
        help="what to train, one of the problems below (default: %(default)s)",
    )
    parser.add_argument(
        "--optimizers",
        type=_separated_by_commas(_one_of("optimizer", tuple(OPTIMIZERS))),
        nargs="+",
        metavar="NAME",
        help="which of the optimizers below, separated by spaces or commas (default: all)",
    )
    parser.add_argument(
        "--learning-rates",
        type=_separated_by_commas(_learning_rate),
        nargs="+",
        metavar="RATE",
        help="the grid, the same for every optimizer (default: the problem's)",
    )
    parser.add_argument(
        "--steps",
        type=_whole_number(2**31 - 1),  # They are counted in int32.
        metavar="N",
        help="the length of each run (default: the problem's)",
    )
    parser.add_argument(
        "--seeds",
        type=_whole_number(1_000),
        metavar="N",
        help="the number of runs at each learning rate (default: the problem's)",
    )
    parser.add_argument(
        "--output",
        type=_writable_png,
        default="compare.png",
        metavar="FILE.png",
        help="where to write the picture (default: %(default)s)",
    )
    return parser


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _epilog() -> str:
    lines = ["problems, and their defaults:"]
    for name, experiment in EXPERIMENTS.items():
        rates = experiment.learning_rates
        lines.append(f"  {name:17} {experiment.summary}")
        lines.append(
            f"  {'':17} {_plural(experiment.steps, 'step')}, {_plural(experiment.seeds, 'seed')}, "
            f"{_plural(len(rates), 'rate')} from {rates[0]:g} to {rates[-1]:g}"
            + (" (*)" if experiment.gradient_size != 1 else "")
        )
    lines += ["", "optimizers:"]
    for name, optimizer in OPTIMIZERS.items():
        star = " (*)" if optimizer.follows_gradient else ""
        lines.append(f"  {name:17} {optimizer.summary}{star}")
    return "\n".join([*lines, "", _ABOUT_SCALE, _EXAMPLES])


def _one_of(kind: str, known: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(
                f"there is no {kind} {text!r}; choose from {', '.join(known)}."
            )
        return text

    return parse


def _separated_by_commas(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def parse_all(text: str) -> list[Any]:
        return [parse(part.strip()) for part in text.split(",")]

    return parse_all


def _learning_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    # As the compiled loop will see it: 1e-60 is 0 in float32, and 1e60 is infinite.
    tiny, largest = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    if not tiny <= rate <= largest:
        raise argparse.ArgumentTypeError(
            f"a learning rate must be a number > 0 and finite in float32, not {text!r}."
        )
    return rate


def _whole_number(largest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = 0
        if not 1 <= number <= largest:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from 1 to {largest}, not {text!r}."
            )
        return number

    return parse


def _writable_png(text: str) -> Path:
    """A path where a picture can be written; to know it before the training, it tries."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must be the name of a .png file, not {text!r}.")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with temporary(path) as beside:
            beside.touch(exist_ok=False)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}.") from None
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`, by default the program's own.

    Args:
      argv: the arguments without the program's name.

    Returns:
      The exit status: 0, or 1 if the results could not be written, or 130 after an interruption.

    Raises:
      SystemExit: with status 2 if `argv` asks for what cannot be done, or 0 after `--help`.
    """
    parser = make_parser()
    try:
        arguments = parser.parse_args(argv)
        missing = [name for module, name in _PACKAGES.items() if not find_spec(module)]
        if missing:
            parser.error(
                f"this needs {', '.join(missing)}: install the `demo` extra by "
                'pip install "msvag_optax[demo]".'
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
                name=name,
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
    names = list(OPTIMIZERS)
    if arguments.optimizers:
        names = list(dict.fromkeys(itertools.chain(*arguments.optimizers)))
    if arguments.learning_rates:
        rates = tuple(sorted(set(itertools.chain(*arguments.learning_rates))))
        experiment = experiment._replace(learning_rates=rates, gradient_size=1.0)
    experiment = experiment._replace(
        steps=arguments.steps or experiment.steps, seeds=arguments.seeds or experiment.seeds
    )
    outcomes = train_all(PROBLEMS[arguments.problem](), experiment, names)
    print(f"\n{format_table(outcomes, experiment.columns)}\n", flush=True)

    title = (
        f"{arguments.problem}: {experiment.summary}\n"
        f"{_plural(len(experiment.learning_rates), 'learning rate')}, "
        f"{_plural(experiment.seeds, 'seed')}, {_plural(experiment.steps, 'step')}"
    )
    try:
        write_whole(arguments.output, render(draw(outcomes, experiment, title)))
    except OSError as error:
        print(f"{_PROGRAM}: cannot write {arguments.output}: {error.strerror}.", file=sys.stderr)
        return 1
    print(f"Wrote {arguments.output}.", flush=True)
    return 0
