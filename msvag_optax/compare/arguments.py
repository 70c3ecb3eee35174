"""The arguments of the command line: what it takes, and what it refuses in one sentence."""

import argparse
import errno
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from msvag_optax.compare.experiments import EXPERIMENTS
from msvag_optax.compare.files import temporary
from msvag_optax.compare.optimizers import OPTIMIZERS, USUAL
from msvag_optax.compare.picture import FORMATS

PROGRAM = "python -m msvag_optax.compare"
_ENDINGS = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
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
  {PROGRAM}
  {PROGRAM} --problem reddi-online
  {PROGRAM} --optimizers msvag adam --learning-rates 0.003 0.01 0.03
  {PROGRAM} --steps 200 --seeds 1 --output quick.png
"""


class _Parser(argparse.ArgumentParser):
    """Refuses in one sentence; the usage is for those who ask for it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def make_parser() -> argparse.ArgumentParser:
    """The command line: what it takes, what it refuses and what it says about itself."""
    parser = _Parser(
        prog=PROGRAM,
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
        help="which of the optimizers below, split by spaces or commas (default: the problem's)",
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
        type=_writable_picture,
        default="compare.png",
        metavar="FILE",
        help=f"where to write the picture, which ends in {_ENDINGS} (default: %(default)s)",
    )
    return parser


def plural(count: int, noun: str) -> str:
    """`count` of something whose plural ends in s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _epilog() -> str:
    lines = ["problems, and their defaults:"]
    for name, experiment in EXPERIMENTS.items():
        rates = experiment.learning_rates
        lines.append(f"  {name:17} {experiment.summary}")
        lines.append(
            f"  {'':17} {plural(experiment.steps, 'step')}, {plural(experiment.seeds, 'seed')}, "
            f"{plural(len(rates), 'rate')} from {rates[0]:g} to {rates[-1]:g}"
            + (" (*)" if experiment.gradient_size != 1 else "")
        )
        if experiment.besides:
            lines.append(f"  {'':17} also compared here: {', '.join(experiment.besides)}")
    others = {name: o for name, o in OPTIMIZERS.items() if name not in USUAL}
    for title, optimizers in {"usual optimizers:": USUAL, "other optimizers:": others}.items():
        lines += ["", title]
        for name, optimizer in optimizers.items():
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


def _writable_picture(text: str) -> Path:
    """A path where a picture can be written; to know it before the training, it tries."""
    path = Path(text)
    if path.suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"a picture's name must end in {_ENDINGS}, not {text!r}.")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with temporary(path) as beside:
            beside.touch(exist_ok=False)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}.") from None
    return path
