"""Trains one problem with many optimizers, each over a grid of learning rates and several seeds.

    python -m msvag_optax.compare --help

All runs of an optimizer, rates times seeds, are one compiled loop: `advance` below is written for a
single run, and two `jax.vmap`s make it the whole grid. Every optimizer sees the same initial
parameters and the same mini-batches (or noise) under a given seed, so differences are its own.

The result is a table on standard output and a picture.
"""

import argparse
import contextlib
import errno
import functools
import io
import itertools
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

import msvag_optax as mo
from msvag_optax.problems import PROBLEMS, Problem
from msvag_optax.problems.reddi import PERIOD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# ------------------------------------------------------------------------- what is compared


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
    """

    build: Callable[[Any, Settings], optax.GradientTransformation]
    summary: str
    colour: str
    follows_gradient: bool = False
    baseline: bool = False


OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {
        "msvag": Optimizer(
            lambda rate, _: mo.msvag(rate),
            "momentum, shortened where it is mostly noise",
            "#0072b2",
            follows_gradient=True,
        ),
        "svag": Optimizer(
            lambda rate, _: mo.svag(rate),
            "the gradient, shortened where it is mostly noise",
            "#56b4e9",
            follows_gradient=True,
        ),
        "expectigrad": Optimizer(
            lambda rate, _: mo.expectigrad(rate),
            "divides by the root of the mean of all squares so far",
            "#cc79a7",
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
            "#e69f00",
        ),
        "bert_adamw": Optimizer(
            lambda rate, s: mo.bert_adamw(
                rate, s.steps, s.steps // 10, b2=s.b2, weight_decay=s.weight_decay
            ),
            "AdamW as BERT trains: warm-up over a tenth of the steps, then down to 0",
            "#8c510a",
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
            "#7f7f7f",
            baseline=True,
        ),
        "optax.novograd": Optimizer(
            lambda rate, s: optax.novograd(rate, b2=s.b2),
            "baseline: optax's NovoGrad",
            "#7fbf3f",
            baseline=True,
        ),
    }
)
"""The named optimizers of this library and the baselines, in the order of the default run."""


class Metric(NamedTuple):
    """A number of a run, and how to write it.

    Attributes:
      key: its name among the metrics of the problem; `average loss`, the mean of the losses of all
        steps so far, is there for every problem.
      label: what to call it.
      spec: its format.
      log: whether its axis is logarithmic.
      marks: values worth a line of their own across the panel, with what to write there.
    """

    key: str
    label: str
    spec: str = "#.3g"
    log: bool = True
    marks: tuple[tuple[float, str], ...] = ()


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

    def rates_for(self, optimizer: Optimizer) -> tuple[float, ...]:
        """The default grid of `optimizer`."""
        size = self.gradient_size if optimizer.follows_gradient else 1.0
        return tuple(rate / size for rate in self.learning_rates)


_TRAIN_LOSS = Metric("train loss", "train loss")
_TEST_ACCURACY = Metric("test accuracy", "test accuracy", spec=".1%", log=False)
_EXPECTED_LOSS = Metric("expected loss", "expected loss")
_REGRET = Metric("average loss", "average regret", spec="+.4f", log=False)
_ITERATE = Metric(
    "x", "x", spec="+.3f", log=False, marks=((-1.0, "optimum"), (1.0, "the worst point"))
)
_SENSITIVITY = "Sensitivity to the learning rate: a wide valley is easy to tune"


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
    }
)
"""The experiment for each problem of `msvag_optax.problems.PROBLEMS`."""

# -------------------------------------------------------------------------------- training

_SPANS = 100  # Each run is measured this often.
_PATIENCE = 0.2  # Seconds until the progress bar moves and Ctrl-C is heard, at the latest.


class Run(NamedTuple):
    """The state of one run.

    Attributes:
      params: the iterate.
      state: the optimizer's.
      total: the sum of the losses of all steps so far, each before its update.
      lost: what rounding has added to `total`.
    """

    params: Any
    state: optax.OptState
    total: jax.Array
    lost: jax.Array


class Outcome(NamedTuple):
    """All runs of one optimizer.

    Attributes:
      name: of the optimizer.
      rates: the learning rates, of shape `(rates,)`.
      steps: when the runs were measured, of shape `(times,)`; the first is 0, the last the end.
      history: each metric, and `average loss`, as an array of shape `(times, seeds, rates)`. What
        is not finite has diverged.
      seconds: of one step of one run: the wall-clock time of one step of the whole grid, divided by
        the number of runs in it; the median over time, without compilation.
      state_bytes: bytes of optimizer state for each parameter.
    """

    name: str
    rates: np.ndarray
    steps: np.ndarray
    history: dict[str, np.ndarray]
    seconds: float
    state_bytes: float

    def best(self, key: str) -> int | None:
        """Which rate has the lowest final `history[key]`, averaged over the seeds.

        A rate at which any seed has diverged is never the best; where that leaves none, `None`.
        """
        with np.errstate(all="ignore"):
            final = self.history[key][-1].mean(axis=0)
        if not np.isfinite(final).any():
            return None
        return int(np.argmin(np.where(np.isfinite(final), final, np.inf)))


def train(
    problem: Problem,
    build: Callable[[Any], optax.GradientTransformation],
    rates: Sequence[float],
    *,
    steps: int,
    seeds: int,
    name: str = "",
    advanced: Callable[[int], object] = lambda steps: None,
) -> Outcome:
    """Trains `problem` at every learning rate with every seed, all in one compiled loop.

    Args:
      problem: what to train.
      build: makes the optimizer from a learning rate, which is traced: the rates are one axis of
        the compiled loop, not many compilations.
      rates: the learning rates.
      steps: the length of each run.
      seeds: the number of runs at each rate. Seed `i` draws the starting point and all noise from
        `jax.random.key(i)`, whatever the rate and the optimizer.
      name: of the optimizer.
      advanced: called now and then with the number of steps since the last call.

    Returns:
      The `Outcome`.
    """

    def start(params: Any, rate: jax.Array) -> Run:
        return Run(params, build(rate).init(params), jnp.zeros([]), jnp.zeros([]))

    def advance(
        run: Run, rate: jax.Array, key: jax.Array, first: jax.Array, stop: jax.Array
    ) -> Run:
        tx = build(rate)

        def step(t: jax.Array, run: Run) -> Run:
            loss, gradient = problem.value_and_grad(run.params, t, jax.random.fold_in(key, t + 1))
            updates, state = tx.update(gradient, run.state, run.params)
            params = problem.project(optax.apply_updates(run.params, updates))
            # Kahan's sum: a plain one of a million float32 numbers rounds the many small losses of
            # an online problem all the same way, and they no longer balance the few large ones.
            term = loss - run.lost
            total = run.total + term
            return Run(params, state, total, (total - run.total) - term)

        # A scan whose length is an argument: spans of any length share one compilation.
        return jax.lax.fori_loop(first, stop, step, run)

    def measure(runs: Run, steps: int) -> dict[str, np.ndarray]:
        metrics = jax.device_get(_metrics_of_all(problem.metrics, runs.params))
        # At the start this is an average of nothing.
        average = np.asarray(runs.total, np.float64) / steps if steps else np.full(shape, np.nan)
        return metrics | {"average loss": average}

    shape = (seeds, len(rates))
    rates_array = np.asarray(rates, np.float32)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    times = np.linspace(0, steps, min(steps, _SPANS) + 1).round().astype(np.int32)

    runs = jax.jit(_grid(start, (0, None), (None, 0)))(_starts(problem.init, keys), rates_array)
    advance_all = (
        jax.jit(
            _grid(advance, (0, 0), (None, 0), (0, None), (None, None), (None, None)),
            donate_argnums=0,
        )
        .lower(runs, rates_array, keys, times[0], times[0])
        .compile()
    )
    measured, seconds, pace = [measure(runs, 0)], [], _PATIENCE
    for first, stop in itertools.pairwise(times.tolist()):
        while first < stop:
            until = min(stop, first + max(1, int(_PATIENCE / pace)))
            began = time.perf_counter()
            runs = advance_all(runs, rates_array, keys, np.int32(first), np.int32(until))
            jax.block_until_ready(runs)
            pace = max(time.perf_counter() - began, 1e-9) / (until - first)
            seconds.append(pace)
            advanced(until - first)
            first = until
        measured.append(measure(runs, stop))

    history = {key: np.stack([values[key] for values in measured]) for key in measured[0]}
    return Outcome(
        name,
        rates_array,
        times,
        history,
        float(np.median(seconds)) / math.prod(shape),
        _state_bytes_per_parameter(problem, build(float(rates[0]))),
    )


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


def _grid(function: Callable[..., Any], *axes: tuple[int | None, int | None]) -> Any:
    """`function` for all seeds and rates; `axes` are the (seed, rate) axes of each argument."""
    seed_axes, rate_axes = zip(*axes, strict=True)
    # The rates are the inner axis: what depends on the seed alone (the mini-batch, the noise) is
    # computed once for all of them.
    return jax.vmap(jax.vmap(function, in_axes=rate_axes), in_axes=seed_axes)


# These two know nothing of the optimizer: compiled for the first one, they serve the others too.


@functools.partial(jax.jit, static_argnums=0)
def _starts(init: Callable[[jax.Array], Any], keys: jax.Array) -> Any:
    return jax.vmap(lambda key: init(jax.random.fold_in(key, 0)))(keys)


@functools.partial(jax.jit, static_argnums=0)
def _metrics_of_all(metrics: Callable[[Any], dict[str, jax.Array]], params: Any) -> Any:
    return jax.vmap(jax.vmap(metrics))(params)


def _state_bytes_per_parameter(problem: Problem, tx: optax.GradientTransformation) -> float:
    params = jax.eval_shape(problem.init, jax.random.key(0))
    state = jax.eval_shape(tx.init, params)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return total / sum(leaf.size for leaf in jax.tree.leaves(params))


# ------------------------------------------------------------------------------- the table


def format_table(outcomes: Sequence[Outcome], columns: Sequence[Metric]) -> str:
    """The outcomes as a table of text, the best first.

    Args:
      outcomes: what `train` returned, on the same problem.
      columns: the metrics to show, by their final values at each optimizer's best rate; the first
        says which rate is the best.

    Returns:
      The table and the notes that explain it.
    """
    objective = columns[0]
    _, seeds, count = outcomes[0].history[objective.key].shape

    def score(outcome: Outcome) -> float:
        best = outcome.best(objective.key)
        return math.inf if best is None else outcome.history[objective.key][-1, :, best].mean()

    header = ["optimizer", "best rate", *(metric.label for metric in columns)]
    header += ["time/step/run", "state bytes/param"]
    rows = [header]
    at_an_edge = diverged = False
    for outcome in sorted(outcomes, key=score):
        best = outcome.best(objective.key)
        row = [outcome.name]
        if best is None:
            row += ["diverged", *("-" for _ in columns)]
            diverged = True
        else:
            edge = best in (0, len(outcome.rates) - 1) and len(outcome.rates) > 2
            row.append(f"{outcome.rates[best]:.3g}" + ("*" if edge else " "))
            row += [_mean_and_std(outcome.history[m.key][-1, :, best], m.spec) for m in columns]
            at_an_edge |= edge
        row += [_duration(outcome.seconds), f"{outcome.state_bytes:.1f}"]
        rows.append(row)

    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))

    notes = [f"best rate: the one with the lowest final {objective.label}"]
    notes[0] += f", averaged over {seeds} seeds." if seeds > 1 else "."
    if seeds > 1:
        notes.append("± is the standard deviation over the seeds.")
    if at_an_edge:
        notes.append("* the best rate is at an edge of the grid: a better one may lie beyond.")
    if diverged:
        notes.append("diverged: not finite with some seed at every rate.")
    notes.append(
        f"time/step/run: one step of all {seeds * count} runs of an optimizer together, divided by "
        f"{seeds * count}; compilation not included."
    )
    return "\n".join([*lines, "", *notes])


def _mean_and_std(values: np.ndarray, spec: str) -> str:
    mean = _number(values.mean(), spec)
    return mean if len(values) == 1 else f"{mean} ± {_number(values.std(), spec.lstrip('+'))}"


def _number(value: float, spec: str) -> str:
    return format(value, spec).removesuffix(".")  # "#.3g" writes 123 as "123.".


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{_number(seconds / size, '#.3g')} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


# ----------------------------------------------------------------------------- the picture


_LEGEND = (
    "Lines: median over the seeds (against the learning rate: mean, by which the best, a dot, is "
    "chosen); bands: least to greatest; dashed: optax's own. Diverged runs are left out."
)


def draw(outcomes: Sequence[Outcome], experiment: Experiment, title: str) -> "Figure":
    """The picture: each optimizer's history at its best rate, and its sensitivity to the rate.

    Lines against the steps are medians over the seeds; lines against the rates are means, because
    the mean is what the best rate, which a dot marks, is chosen by. Bands reach from the least to
    the greatest. What has diverged is missing.

    Args:
      outcomes: what `train` returned, on the same problem.
      experiment: says what is drawn.
      title: of the picture.

    Returns:
      A matplotlib figure, which belongs to no window and no `pyplot`.
    """
    from matplotlib.figure import Figure

    panels, objective = experiment.panels, experiment.columns[0].key
    figure = Figure(figsize=(2.4 + 4.8 * len(panels), 5.6), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold")
    figure.supxlabel(_LEGEND, fontsize=8.5, color="#555555")
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        ends = {}
        for outcome in outcomes:
            best = outcome.best(objective)
            values = outcome.history[panel.metric.key]
            if panel.against == "rates":
                _draw_line(ax, outcome, outcome.rates, values[-1].T, np.mean)
                if best is not None:
                    x, y = outcome.rates[best], np.mean(values[-1, :, best])
                    ax.plot(x, y, "o", color=OPTIMIZERS[outcome.name].colour, markersize=5)
            elif best is not None:
                _draw_line(ax, outcome, outcome.steps, values[:, :, best], np.median)
                ends[outcome.name] = float(np.median(values[-1, :, best]))
        _finish_panel(ax, panel, outcomes)
        if panel is panels[0]:
            _name_lines(ax, ends)
    return figure


def _draw_line(
    ax: "Axes",
    outcome: Outcome,
    x: np.ndarray,
    values: np.ndarray,
    middle: Callable[..., np.ndarray],
) -> None:
    """Draws the `middle` of `values`, of shape `(len(x), seeds)`, and the band around it."""
    # Where one seed diverged there is nothing to see, not the better half of the seeds.
    values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, np.nan)
    if np.isnan(values).all():
        return  # Not even an empty line: a logarithmic axis cannot bear it.
    style = OPTIMIZERS[outcome.name]
    dashes = (0, (4, 2)) if style.baseline else "-"
    # Baselines come last: where they agree with ours, both are seen through the gaps.
    order = 3 if style.baseline else 2
    low, high = values.min(axis=1), values.max(axis=1)
    ax.fill_between(x, low, high, color=style.colour, alpha=0.12, linewidth=0)
    ax.plot(x, middle(values, axis=1), color=style.colour, linestyle=dashes, zorder=order)


def _finish_panel(ax: "Axes", panel: Panel, outcomes: Sequence[Outcome]) -> None:
    from matplotlib.ticker import EngFormatter

    metric = panel.metric
    if not ax.has_data():
        ax.text(0.5, 0.5, "every run diverged", transform=ax.transAxes, ha="center")
    ax.set_title(panel.title, loc="left", fontsize=11)
    ax.set_ylabel(metric.label if panel.against == "steps" else f"final {metric.label}")
    ax.grid(color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if panel.against == "steps":
        ax.set_xlabel("step")
        ax.set_xlim(0, outcomes[0].steps[-1])
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        ax.set_xlabel("learning rate")
        ax.set_xscale("log")
    if metric.log:
        ax.set_yscale("log")
        # Far worse than at the start is all the same: let it leave through the top.
        worst = 2 * max(outcome.history[metric.key][0].max() for outcome in outcomes)
        if ax.dataLim.y0 < worst < ax.dataLim.y1:
            ax.set_ylim(top=worst)
    for value, text in metric.marks:
        ax.axhline(value, color="#555555", linewidth=0.8, linestyle=":")
        ax.annotate(
            text,
            (0.99, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, -2 if value == metric.marks[0][0] else 2),
            textcoords="offset points",
            ha="right",
            va="top" if value == metric.marks[0][0] else "bottom",
            fontsize=8.5,
            color="#555555",
        )


def _name_lines(ax: "Axes", ends: Mapping[str, float]) -> None:
    """Writes the name of each line beside its end, moved no further than legibility needs."""
    from scipy.optimize import isotonic_regression

    if not ends:
        return
    names = sorted(ends, key=lambda name: ends[name])
    to_fraction = ax.transData + ax.transAxes.inverted()
    right = ax.get_xlim()[1]
    heights = np.array([to_fraction.transform((right, ends[name]))[1] for name in names])
    # The least movement that leaves `gap` between neighbours: isotonic regression of what is left
    # when the gaps are taken out, kept within the panel.
    gap = min(0.052, 1 / len(names))
    gaps = gap * np.arange(len(names))
    places = isotonic_regression(np.clip(heights, 0, 1) - gaps).x.clip(0, 1 - gaps[-1]) + gaps
    for name, height, place in zip(names, heights.clip(0, 1), places, strict=True):
        style = OPTIMIZERS[name]
        ax.annotate(
            name,
            (1, height),
            xycoords="axes fraction",
            xytext=(1.06, place),
            textcoords="axes fraction",
            va="center",
            fontsize=9.5,
            color=style.colour,
            arrowprops={
                "arrowstyle": "-",
                "color": style.colour,
                "linewidth": 0.8,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def render(figure: "Figure") -> bytes:
    """The bytes of a PNG file that shows `figure`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


# ------------------------------------------------------------------------ the command line

_PROGRAM = "python -m msvag_optax.compare"
_INTERRUPTED = 130  # The exit status that shells know for it.
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
        with _temporary(path) as temporary:
            temporary.touch(exist_ok=False)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}.") from None
    return path


@contextlib.contextmanager
def _temporary(path: Path) -> Generator[Path]:
    """A name beside `path` that nothing else uses, and that is gone in the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, entirely or not at all.

    The bytes go to a temporary file in the same folder, which then takes the place of `path` in one
    step. Whatever goes wrong, the temporary file is removed and an earlier `path` stays as it was.

    Args:
      path: the file.
      content: all of it.

    Raises:
      OSError: if the folder or the disk refuses.
    """
    with _temporary(path) as temporary:
        with temporary.open("xb") as file:
            file.write(content)
        temporary.replace(path)


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
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read the table has left (`| head`), and Python must not flush to nobody at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


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


if __name__ == "__main__":
    # Ended from outside, it cleans up as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A terminal that cannot show "±" shows "?", and not a traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    status = main()
    if status == _INTERRUPTED:
        # All is cleaned up, and nothing waits to be printed. An exception out of the middle of a
        # compilation may leave JAX in a state in which the interpreter's teardown crashes.
        os._exit(status)
    sys.exit(status)
