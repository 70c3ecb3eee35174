"""The outcomes as a picture: histories at the best rate, and the sensitivity to the rate."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from msvag_optax.compare.experiments import Experiment, Panel
from msvag_optax.compare.optimizers import optimizer_of
from msvag_optax.compare.training import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

STYLE = "msvag_optax.compare.figures"  # the sheet beside this module
_GREY = "#555555"

FORMATS = (".png", ".pdf", ".svg")
_LEGEND = (
    "Lines: mean over the seeds, by which the best rate (beside the name, and a dot) is chosen; "
    "bands: least to greatest; dashed: optax's own.\n"
    "Lines that end in the same place are drawn side by side. Diverged runs are left out."
)
_SAME = 1e-3  # Lines that end no further apart, as a share of the panel, end in the same place.
_SIDE_BY_SIDE = 2.0  # Points between such lines.


def draw(
    outcomes: Sequence[Outcome], experiment: Experiment, title: str, source: str = ""
) -> "Figure":
    """The picture: each optimizer's history at its best rate, and its sensitivity to the rate.

    Lines are means over the seeds, by which the best rate, which a dot marks, is chosen. Bands
    reach from the least to the greatest. What has diverged is missing.

    Args:
      outcomes: what `train` returned, on the same problem.
      experiment: says what is drawn.
      title: of the picture.
      source: where the data come from, for a line at the bottom.

    Returns:
      A matplotlib figure, which belongs to no window and no `pyplot`.
    """
    from matplotlib import style

    with style.context(STYLE):
        return _draw(outcomes, experiment, title, source)


def _draw(outcomes: Sequence[Outcome], experiment: Experiment, title: str, source: str) -> "Figure":
    from matplotlib.figure import Figure

    panels, objective = experiment.panels, experiment.columns[0].key
    figure = Figure(figsize=(6 * len(panels), 5.2))
    figure.suptitle(title)
    legend = f"{_LEGEND}\nData: {source}." if source else _LEGEND
    figure.supxlabel(legend, fontsize=8.5, color=_GREY)
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        drawn = {}
        for outcome in outcomes:
            best = outcome.best(objective)
            values = outcome.history[panel.metric.key]
            if panel.against == "rates":
                lines = _draw_line(ax, outcome, outcome.rates, values[-1].T)
                if best is not None:
                    x, y = outcome.rates[best], np.mean(values[-1, :, best])
                    colour = optimizer_of(outcome.name).colour
                    lines += ax.plot(x, y, "o", color=colour, markersize=5)
            else:
                # A line that is nowhere finite would be too much for a logarithmic axis.
                lines = (
                    []
                    if best is None
                    else _draw_line(ax, outcome, outcome.steps, values[:, :, best])
                )
            if lines:
                has_rate = best is not None and panel.against == "steps"
                rate = f"  {outcome.rates[best]:.3g}" if has_rate else ""
                drawn[outcome.name + rate] = lines
        _finish_panel(ax, panel, outcomes)
        ends = _ends(ax, drawn)
        _part(ax, drawn, ends)
        _name_lines(ax, drawn, ends)
    return figure


def _draw_line(ax: "Axes", outcome: Outcome, x: np.ndarray, values: np.ndarray) -> "list[Line2D]":
    """Draws the mean of `values`, of shape `(len(x), seeds)`, and the band around it."""
    # Where one seed diverged there is nothing to see, not the better half of the seeds.
    values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, np.nan)
    if np.isnan(values).all():
        return []  # Not even an empty line: a logarithmic axis cannot show it.
    style = optimizer_of(outcome.name)
    dashes = (0, (4, 2)) if style.baseline else "-"
    # Baselines come last: where they agree with ours, both are seen through the gaps.
    order = 3 if style.baseline else 2
    low, high = values.min(axis=1), values.max(axis=1)
    ax.fill_between(x, low, high, color=style.colour, alpha=0.12, linewidth=0)
    return ax.plot(x, values.mean(axis=1), color=style.colour, linestyle=dashes, zorder=order)


def _finish_panel(ax: "Axes", panel: Panel, outcomes: Sequence[Outcome]) -> None:
    from matplotlib.ticker import EngFormatter

    metric = panel.metric
    if not ax.has_data():
        ax.text(0.5, 0.5, "every run diverged", transform=ax.transAxes, ha="center")
    ax.set_title(panel.title)
    ax.set_ylabel(metric.label if panel.against == "steps" else f"final {metric.label}")
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
    if metric.limits and metric.limits[0] < ax.dataLim.y1:
        ax.set_ylim(*metric.limits)
    for value, text in metric.marks:
        ax.axhline(value, color=_GREY, linewidth=0.8, linestyle=":")
        ax.annotate(
            text,
            (0.99, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, -9 if value == metric.marks[0][0] else 9),  # clear of lines side by side
            textcoords="offset points",
            ha="right",
            va="top" if value == metric.marks[0][0] else "bottom",
            fontsize=8.5,
            color=_GREY,
        )
    if metric.marks:
        ax.margins(y=0.1)  # room for what is written there


def _ends(ax: "Axes", drawn: Mapping[str, "list[Line2D]"]) -> dict[str, np.ndarray]:
    """Where in the panel each line ends, both coordinates from 0 to 1; the lowest first."""
    ax.get_ylim()  # computes the limits, which a transform would not
    to_fraction = ax.transData + ax.transAxes.inverted()
    found = {}
    for label, (line, *_) in drawn.items():
        points = np.asarray(line.get_xydata())
        end = points[np.isfinite(points[:, 1])][-1]
        found[label] = to_fraction.transform(end).clip(0, 1)
    return dict(sorted(found.items(), key=lambda item: item[1][1]))


def _part(ax: "Axes", drawn: Mapping[str, "list[Line2D]"], ends: Mapping[str, np.ndarray]) -> None:
    """Moves lines that end in the same place aside, so that all of them can be seen."""
    from matplotlib.transforms import ScaledTranslation

    groups: list[list[str]] = []
    before = -1.0
    for label, (_, height) in ends.items():
        # What leaves through an edge has not ended there, and stays where its dot is.
        if height - before > _SAME or not 0 < height < 1:
            groups.append([])
        groups[-1].append(label)
        before = height
    for labels in groups:
        for index, label in enumerate(labels):
            points = _SIDE_BY_SIDE * (index - (len(labels) - 1) / 2)
            aside = ScaledTranslation(0, points / 72, ax.figure.dpi_scale_trans)
            for line in drawn[label]:
                line.set_transform(ax.transData + aside)


def _name_lines(
    ax: "Axes", drawn: Mapping[str, "list[Line2D]"], ends: Mapping[str, np.ndarray]
) -> None:
    """Writes the label of each line beside its end, moved no further than legibility needs."""
    from scipy.optimize import isotonic_regression

    if not ends:
        return
    # The least movement that leaves `gap` between neighbours: isotonic regression of what is left
    # when the gaps are taken out, kept within the panel.
    gap = min(0.052, 1 / len(ends))
    gaps = gap * np.arange(len(ends))
    wanted = np.array([height for _, height in ends.values()])
    places = isotonic_regression(wanted - gaps).x.clip(0, 1 - gaps[-1]) + gaps
    for (label, end), place in zip(ends.items(), places, strict=True):
        colour = drawn[label][0].get_color()
        ax.annotate(
            label,
            tuple(end),
            xycoords="axes fraction",
            xytext=(1.06, place),
            textcoords="axes fraction",
            va="center",
            fontsize=9.5,
            color=colour,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def render(figure: "Figure", ending: str = ".png") -> bytes:
    """The bytes of a file that shows `figure`, in the format of one of the endings `FORMATS`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=ending.lower().removeprefix("."))
    return buffer.getvalue()
