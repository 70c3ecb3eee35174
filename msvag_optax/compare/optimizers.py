"""The lines of the table: the named optimizers, and what they are compared with."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import optax

import msvag_optax as mo

_NO_DECAY = " (no decay)"


class Settings(NamedTuple):
    """What an optimizer may want to know about the experiment, besides the learning rate.

    Attributes:
      steps: the length of a run, for the optimizers that schedule their learning rate.
      b2: the decay of the second moment, for those that have one.
      weight_decay: the decoupled decay, for those that are named after it.
    """

    steps: int
    b2: float
    weight_decay: float


class Optimizer(NamedTuple):
    """A line of the table and a line of the picture.

    Attributes:
      build: makes the optimizer from a learning rate, which may be traced, and the `Settings`.
      summary: what it does, in a few words.
      colour: of its lines in the picture.
      follows_gradient: whether its step is proportional to the gradient. The steps of all others
        keep their length however the loss is scaled, so that their learning rates are of another
        size (see `Experiment.gradient_size`).
      baseline: whether it comes from optax; its lines are dashed.
      decays: whether it takes the decay of the `Settings`.
    """

    build: Callable[[Any, Settings], optax.GradientTransformation]
    summary: str
    colour: str
    follows_gradient: bool = False
    baseline: bool = False
    decays: bool = False

    def label(self, name: str, settings: Settings) -> str:
        """What to call it in a table: its name, and what it lacks of what the name promises."""
        return name + _NO_DECAY if self.decays and not settings.weight_decay else name


USUAL: Mapping[str, Optimizer] = MappingProxyType(
    {
        "msvag": Optimizer(
            lambda rate, _: mo.msvag(rate),
            "momentum, shortened where it is mostly noise",
            "#0064a6",
            follows_gradient=True,
        ),
        "svag": Optimizer(
            lambda rate, _: mo.svag(rate),
            "the gradient, shortened where it is mostly noise",
            "#3d9ad6",
            follows_gradient=True,
        ),
        "expectigrad": Optimizer(
            lambda rate, _: mo.expectigrad(rate),
            "divides by the root of the mean of all squares so far",
            "#cf74a4",
        ),
        "novograd": Optimizer(
            lambda rate, s: mo.novograd(rate, b2=s.b2),
            "divides each layer by its norm",
            "#009e73",
        ),
        "amsgrad": Optimizer(
            lambda rate, s: mo.amsgrad(rate, b2=s.b2),
            "Adam with a divisor that never falls",
            "#d55e00",
        ),
        "adamw": Optimizer(
            lambda rate, s: mo.adamw(rate, b2=s.b2, weight_decay=s.weight_decay),
            "Adam with decoupled weight decay",
            "#6b4e00",
            decays=True,
        ),
        "bert_adamw": Optimizer(
            lambda rate, s: mo.bert_adamw(
                rate, s.steps, s.steps // 10, b2=s.b2, weight_decay=s.weight_decay
            ),
            "AdamW as BERT trains: warm-up over a tenth of the steps, then down to 0",
            "#4b1570",
            decays=True,
        ),
        "sgd": Optimizer(
            lambda rate, _: optax.sgd(rate, momentum=0.9),
            "baseline: SGD with momentum 0.9",
            "#000000",
            follows_gradient=True,
            baseline=True,
        ),
        "adam": Optimizer(
            lambda rate, s: optax.adam(rate, b2=s.b2),
            "baseline: optax's Adam",
            "#666666",
            baseline=True,
        ),
        "optax.novograd": Optimizer(
            lambda rate, s: optax.novograd(rate, b2=s.b2),
            "baseline: optax's NovoGrad",
            "#1d4a2a",
            baseline=True,
        ),
    }
)
"""The named optimizers of this library and the baselines, which are compared on every problem."""

OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {
        **USUAL,
        "cautious_adam": Optimizer(
            lambda rate, s: mo.optimizer(mo.cautious(optax.scale_by_adam(b2=s.b2)), rate),
            "Adam without the steps that the newest gradient is against",
            "#734ae3",
        ),
        "expectigrad-dense": Optimizer(
            lambda rate, _: mo.expectigrad(rate, sparse_counter=False),
            "Expectigrad that counts zero gradients, too",
            "#4a5e86",
        ),
        "lazy_adamw": Optimizer(
            lambda rate, s: mo.lazy_rows(mo.adamw(rate, b2=s.b2, weight_decay=s.weight_decay)),
            "AdamW that leaves rows without gradient alone",
            "#502002",
            decays=True,
        ),
        "muon": Optimizer(
            lambda rate, _: optax.contrib.muon(rate),
            "baseline: optax's Muon, which makes matrices orthogonal; Adam for the rest",
            "#12a526",
            baseline=True,
        ),
        "adagrad": Optimizer(
            # Its own default, 0.1, outweighs all squares of a rare word.
            lambda rate, _: optax.adagrad(rate, initial_accumulator_value=0.0),
            "baseline: optax's AdaGrad, from an empty sum",
            "#a56050",
            baseline=True,
        ),
    }
)
"""All that can be compared: the usual ones, and those that some problems are about."""


def optimizer_of(label: str) -> Optimizer:
    """The one of `OPTIMIZERS` that has this label."""
    return OPTIMIZERS[label.removesuffix(_NO_DECAY)]
