"""The outcomes as a table of text."""

import math
from collections.abc import Sequence

import numpy as np

from msvag_optax.compare.experiments import Metric
from msvag_optax.compare.training import Outcome

_NOTES = {
    "*": "* the best rate is at an edge of the grid: a better one may lie beyond.",
    "†": "† no rate is good: each ended worse than it started. The one shown did the least harm.",
    "diverged": "diverged: not finite with some seed at every rate.",
}


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

    # Of one parameter nobody wants to know it: the optimizer's counters would be most of it.
    with_memory = outcomes[0].parameters > 1
    header = ["optimizer", "best rate", *(metric.label for metric in columns)]
    header += ["time/step/run"] + ["state bytes/param"] * with_memory
    rows, marks = [header], set()
    for outcome in sorted(outcomes, key=score):
        best = outcome.best(objective.key)
        row = [outcome.name]
        if best is None:
            row += ["diverged", *("-" for _ in columns)]
            marks.add("diverged")
        else:
            mark = _mark(outcome, best, columns)
            row.append(f"{outcome.rates[best]:.3g}{mark}")
            row += [_mean_and_std(outcome.history[m.key][-1, :, best], m.spec) for m in columns]
            marks.add(mark)
        row += [_duration(outcome.seconds)] + [f"{outcome.state_bytes:.1f}"] * with_memory
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
    notes += [note for mark, note in _NOTES.items() if mark in marks]
    notes.append(
        f"time/step/run: one step of all {seeds * count} runs of an optimizer together, divided by "
        f"{seeds * count}; compilation not included."
    )
    return "\n".join([*lines, "", *notes])


def _mark(outcome: Outcome, best: int, columns: Sequence[Metric]) -> str:
    """What to write beside the best rate: why it may be none."""
    if any(metric.falls and outcome.went_wrong(metric.key) for metric in columns):
        return "†"
    at_an_edge = best in (0, len(outcome.rates) - 1) and len(outcome.rates) > 2
    return "*" if at_an_edge else " "


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
