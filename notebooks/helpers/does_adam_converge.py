"""The figures of *Does Adam converge?*."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from msvag_optax.compare import Outcome
from notebooks.helpers import GREY, Styles, line

Outcomes = Mapping[str, Outcome]

# Where lines coincide, those that are drawn later are dashed or thinner.
STYLES: Styles = {
    "Expectigrad": {"color": "#cc79a7", "linestyle": "-", "linewidth": 3},
    "AMSGrad (PyTorch)": {"color": "#d55e00", "linestyle": "-", "linewidth": 2},
    "AMSGrad (optax)": {"color": "#009e73", "linestyle": (0, (6, 1.5, 1, 1.5)), "linewidth": 1.8},
    "AMSGrad (paper)": {"color": "#0072b2", "linestyle": (0, (1, 1.5)), "linewidth": 2},
    "Adam": {"color": "#000000", "linestyle": (0, (5, 1.5)), "linewidth": 1.6},
}


def _mark(ax: Axes, height: float, text: str, *, above: bool = False, at: str = "right") -> None:
    ax.axhline(height, color=GREY, linewidth=0.8, linestyle=":")
    ax.annotate(
        text,
        ({"left": 0.01, "center": 0.5, "right": 0.99}[at], height),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2 if above else -2),
        textcoords="offset points",
        ha=at,
        va="bottom" if above else "top",
        fontsize=8.5,
        color=GREY,
    )


def _mark_ends(ax: Axes, at: str = "right") -> None:
    ax.set_ylim(-1.18, 1.18)
    _mark(ax, -1, "the best point", at=at)
    _mark(ax, 1, "the worst point", above=True, at=at)


def _legend(ax: Axes, loc: Any) -> None:
    ax.legend(loc=loc, fontsize=8, handlelength=3.2, borderaxespad=2.5)


def walks(problems: Mapping[str, tuple[Outcomes, float, float]], rates: tuple) -> Figure:
    """Where each optimizer walks, and what it costs; a column for each problem."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.4), sharex="col")
    for (upper, lower), (kind, (outcomes, rate, worst)) in zip(
        axes.T, problems.items(), strict=True
    ):
        for name, style in STYLES.items():
            outcome, column = outcomes[name], rates.index(rate)
            line(upper, outcome.steps, outcome.history["x"][:, :, column], name, **style)
            regret = outcome.history["average loss"][:, :, column]
            line(lower, outcome.steps, regret, name, **style)
        seeds = outcome.history["x"].shape[1]
        count = f"median of {seeds} seeds" if seeds > 1 else "one run"
        upper.set(title=f"{kind.capitalize()}, learning rate {rate:g}, {count}")
        upper.set_ylabel("parameter x")
        _mark_ends(upper)
        _legend(upper, "center right")
        lower.set(ylabel="average regret", xlabel="step", xlim=(0, None), ylim=(0, 2.1 * worst))
        lower.xaxis.set_major_formatter(EngFormatter(sep=""))
        _mark(lower, worst, "x = +1 throughout", above=kind == "stochastic", at="center")
        _legend(lower, "upper right")
    figure.suptitle("Adam walks to the worst point, the others to the best")
    return figure


def one_period(
    steps: Mapping[str, np.ndarray], memories: np.ndarray, memory_drift: np.ndarray
) -> Figure:
    """The steps of a period, and Adam's sum of them against its memory."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4))
    for name in ("Expectigrad", "AMSGrad (PyTorch)", "Adam"):
        walk = np.concatenate([[0.0], steps[name].cumsum()])
        end = f"{walk[-1]:+.2f}".replace("-", "\N{MINUS SIGN}")
        left.plot(walk, label=f"{name}: {end}", **STYLES[name])
    left.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
    left.set(
        title="One period, from one large gradient to the next",
        xlabel="steps since the large gradient",
        ylabel="how far x has moved, over the learning rate",
    )
    left.legend(title="and in the end", loc="lower right", fontsize=9)

    right.plot(memories, memory_drift, color=STYLES["Adam"]["color"])
    for decay in (0.99, 0.999):
        value = np.interp(np.log(1 - decay), np.log(memories)[::-1], memory_drift[::-1])
        right.plot(1 - decay, value, "o", color=STYLES["Adam"]["color"])
        right.annotate(
            f"$\\beta_2$ = {decay}", (1 - decay, value), (8, 5), textcoords="offset points"
        )
    right.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
    right.set_yscale("symlog", linthresh=0.1)
    right.set_xscale("log")
    right.invert_xaxis()
    right.set(
        title="Adam's walk in a period, against its memory",
        xlabel=r"$1 - \beta_2$ (to the right: a longer memory)",
        ylabel="movement of x, over the learning rate",
    )
    right.text(0.02, 0.05, "towards the best point", transform=right.transAxes)
    right.text(0.98, 0.93, "away from it", transform=right.transAxes, ha="right")
    return figure


def against_rate(problems: Mapping[str, tuple[Outcomes, float, float]], rates: tuple) -> Figure:
    """Where each optimizer ends, at each rate."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True)
    for ax, (kind, (outcomes, _, _)) in zip(axes, problems.items(), strict=True):
        for name, style in STYLES.items():
            final = outcomes[name].history["x"][-1].T
            line(ax, rates, final, name, marker=".", **style)
        million = outcomes["Adam"].steps[-1] / 1e6
        ax.set(title=f"{kind.capitalize()}, {million:.0f} million steps")
        ax.set(xscale="log", xlabel="learning rate")
        _mark_ends(ax, at="left")
        _legend(ax, "center right" if kind == "online" else "upper center")
    axes[0].set_ylabel("x in the end")
    figure.suptitle("Where they end, against the learning rate")
    return figure


def falling_rate(falling: Mapping[str, Outcomes], worst: Mapping[str, float]) -> Figure:
    """The regret at a rate of one over the root of the time."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6))
    for ax, (kind, outcomes) in zip(axes, falling.items(), strict=True):
        for name, style in STYLES.items():
            times = outcomes[name].steps[1:]
            line(ax, times, outcomes[name].history["average loss"][1:, :, 0], name, **style)
        ax.set(title=kind.capitalize(), xscale="log", xlabel="step", ylabel="average regret")
        online = kind == "online"
        at = "right" if online else "left"
        _mark(ax, worst[kind], "x = +1 throughout", above=not online, at=at)
        _legend(ax, "lower left" if online else "upper right")
    axes[0].set(yscale="log")
    axes[1].set(ylim=(0, 2.1 * worst["stochastic"]))
    figure.suptitle(r"With a learning rate of $1 / \sqrt{t}$")
    return figure
