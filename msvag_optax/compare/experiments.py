"""How each problem is run and shown unless the command line says otherwise."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from msvag_optax.compare.optimizers import USUAL, Optimizer
from msvag_optax.problems.reddi import PERIOD


class Metric(NamedTuple):
    """A number of a run, and how to write it.

    Attributes:
      key: its name among the metrics of the problem; `average loss`, the mean of the losses of all
        steps so far, is there for every problem.
      label: what to call it.
      spec: its format.
      log: whether its axis is logarithmic.
      marks: values worth a line of their own across the panel, with what to write there.
      falls: whether it is lower the nearer a run is to what it looks for. Where it ends above its
        start, the run has gone the wrong way.
      limits: the least and the greatest value that a panel shows, where not all are of interest.
    """

    key: str
    label: str
    spec: str = "#.3g"
    log: bool = True
    marks: tuple[tuple[float, str], ...] = ()
    falls: bool = False
    limits: tuple[float, float] | None = None


class Panel(NamedTuple):
    """One part of the picture: a metric against the steps (at the best rate) or against the rates.

    Attributes:
      metric: what is drawn.
      against: `steps` draws each optimizer's history at its best rate, `rates` its final values.
      title: what one sees.
    """

    metric: Metric
    against: Literal["steps", "rates"]
    title: str


class Experiment(NamedTuple):
    """How a problem is run and shown unless the command line says otherwise.

    Attributes:
      summary: the problem in one line.
      steps: the length of a run.
      seeds: the number of runs at each learning rate.
      learning_rates: the grid.
      columns: the metrics in the table; the first is the one by whose final value, the lower the
        better, the best learning rate is chosen.
      panels: the picture, from left to right.
      gradient_size: about how long gradients are. The grid is divided by it for the optimizers that
        follow the gradient's size.
      b2: see `Settings`.
      weight_decay: see `Settings`. It is 0 where nothing can be overfitted.
      besides: names of optimizers that are compared here besides the usual ones.
      measurements: how often each run is measured, for `train`.
    """

    summary: str
    steps: int
    seeds: int
    learning_rates: tuple[float, ...]
    columns: tuple[Metric, ...]
    panels: tuple[Panel, ...]
    gradient_size: float = 1.0
    b2: float = 0.999
    weight_decay: float = 0.0
    besides: tuple[str, ...] = ()
    measurements: int = 100

    @property
    def optimizers(self) -> list[str]:
        """The names of those that are compared here by default."""
        return [*USUAL, *self.besides]

    def rates_for(self, optimizer: Optimizer) -> tuple[float, ...]:
        """The default grid of `optimizer`."""
        size = self.gradient_size if optimizer.follows_gradient else 1.0
        return tuple(rate / size for rate in self.learning_rates)


_TRAIN_LOSS = Metric("train loss", "train loss", falls=True)
_TEST_ACCURACY = Metric("test accuracy", "test accuracy", spec=".1%", log=False, limits=(0.85, 1.0))
_WORDS = Metric(
    "held-out loss", "held-out loss", spec=".3f", log=False, falls=True, limits=(1.9, 4.2)
)
_CHARACTERS = _WORDS._replace(limits=(1.5, 4.7))
_RARE_WORDS = _WORDS._replace(key="after rare words", label="after rare words")
_EXPECTED_LOSS = Metric("expected loss", "expected loss", falls=True)
_REGRET = Metric("average loss", "average regret", spec="+.4f", log=False)
_ITERATE = Metric(
    "x",
    "x",
    spec="+.3f",
    log=False,
    marks=((-1.0, "optimum"), (1.0, "the worst point")),
    falls=True,
)
_SENSITIVITY = "A wide valley is easy to tune"


def _reddi(summary: str, seeds: int) -> Experiment:
    return Experiment(
        summary,
        steps=30_000 * PERIOD,  # So that the picture shows whole periods.
        seeds=seeds,
        learning_rates=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        columns=(_REGRET, _ITERATE._replace(label="final x")),
        panels=(
            Panel(_ITERATE, "steps", "Where each optimizer walks"),
            Panel(_REGRET, "steps", "What the walk costs: average regret"),
            Panel(_ITERATE, "rates", "Where it ends, against the learning rate"),
        ),
        gradient_size=100.0,
        b2=0.99,
    )


EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType(
    {
        "digits": Experiment(
            "a small Flax network reads scikit-learn's handwritten digits",
            steps=1_000,
            seeds=3,
            learning_rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0),
            columns=(_TRAIN_LOSS, _TEST_ACCURACY),
            panels=(
                Panel(_TRAIN_LOSS, "steps", "Learning, each at its best rate"),
                Panel(_TEST_ACCURACY, "steps", "What it is worth on images not seen"),
                Panel(_TRAIN_LOSS, "rates", _SENSITIVITY),
            ),
            weight_decay=0.01,
        ),
        "reddi-online": _reddi(
            "Reddi's counterexample: every 101st gradient is 1010, others -10", 1
        ),
        "reddi-stochastic": _reddi(
            "Reddi's counterexample: one in 100 gradients is 1010, at random", 5
        ),
        "noisy-quadratic": Experiment(
            "a bowl of 100 dimensions whose flat directions drown in gradient noise",
            steps=2_000,
            seeds=5,
            learning_rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0),
            columns=(_EXPECTED_LOSS,),
            panels=(
                Panel(_EXPECTED_LOSS, "steps", "Down to the noise, each at its best rate"),
                Panel(_EXPECTED_LOSS, "rates", _SENSITIVITY),
            ),
        ),
        "char-lm": Experiment(
            "a small Flax LSTM predicts the characters of Python's own sources",
            steps=300,
            seeds=3,
            learning_rates=(1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
            columns=(_CHARACTERS, _TRAIN_LOSS._replace(spec=".3f")),
            panels=(
                Panel(_CHARACTERS, "steps", "On text not seen, each at its best rate"),
                Panel(_CHARACTERS, "rates", _SENSITIVITY),
            ),
            weight_decay=0.01,
            besides=("cautious_adam", "muon"),
            measurements=10,
        ),
        "rare-words": Experiment(
            "a small Flax network predicts what follows two words, most of which are rare",
            steps=1_000,
            seeds=3,
            learning_rates=(1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0),
            columns=(_WORDS, _RARE_WORDS),
            panels=(
                Panel(_WORDS, "steps", "On text not seen, each at its best rate"),
                Panel(_RARE_WORDS, "steps", "The same, where the newest word is rare"),
                Panel(_WORDS, "rates", _SENSITIVITY),
            ),
            weight_decay=0.01,
            besides=("expectigrad-dense", "lazy_adamw", "adagrad"),
            measurements=20,
        ),
    }
)
"""The experiment for each problem of `msvag_optax.problems.PROBLEMS`."""
