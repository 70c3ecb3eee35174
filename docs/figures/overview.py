"""Two reasons for more than one optimizer: rare gradients that count, and rates to be found."""

from typing import Any, NamedTuple

import numpy as np
import optax
from matplotlib.figure import Figure

import msvag_optax as mo
from docs.figures.drawing import COLOURS, GREY, panels, write
from msvag_optax import compare, problems
from msvag_optax.problems.reddi import PERIOD

WALKERS = {
    "adam": lambda rate: optax.adam(rate, b2=0.99),
    "amsgrad": lambda rate: mo.amsgrad(rate, b2=0.99),
    "expectigrad": mo.expectigrad,
}
READERS = {
    "sgd": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "msvag": mo.msvag,
    "novograd": lambda rate: mo.novograd(rate, b2=0.98),
}
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)


class Data(NamedTuple):
    """Iterates by step, and final losses by seed and rate, of each optimizer."""

    steps: np.ndarray
    walks: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]


def compute(periods: int = 5_000, steps: int = 300, seeds: int = 3) -> Data:
    """Reddi's problem at one rate, in which nothing is random, and digits at several rates."""
    reddi, digits = problems.reddi_online(), problems.PROBLEMS["digits"]()
    times, walks, losses = np.array([]), {}, {}
    for name, build in WALKERS.items():
        walk = compare.train(reddi, build, [0.003], steps=periods * PERIOD, seeds=1)
        times, walks[name] = walk.steps, walk.history["x"][:, 0, 0]
    for name, build in READERS.items():
        read = compare.train(digits, build, RATES, steps=steps, seeds=seeds, measurements=1)
        losses[name] = read.history["train loss"][-1]
    return Data(times, walks, losses)


def draw(data: Data) -> Figure:
    """On the left where each walks, on the right the loss over the rates."""
    figure, (left, right) = panels(1, 2, 3.8)
    thousands = data.steps / 1e3
    for y, text in ((1, "the worst point"), (-1, "the optimum")):
        left.axhline(y, color=GREY, linewidth=0.8, linestyle=":")
        write(left, 0.98 * thousands[-1], 1.12 * y, text, GREY, ha="right")
    for name, walk in data.walks.items():
        left.plot(thousands, walk, color=COLOURS[name], linewidth=2.5)
    write(left, 0.08 * thousands[-1], 0.84, "Adam", COLOURS["adam"])
    write(left, 0.62 * thousands[-1], -0.5, "AMSGrad", COLOURS["amsgrad"])
    write(left, 0.46 * thousands[-1], -0.8, "Expectigrad", COLOURS["expectigrad"], ha="right")
    left.set(xlabel="thousands of steps", ylabel="x", ylim=(-1.25, 1.25), xlim=(0, thousands[-1]))
    left.set_title("Rare, large gradients: Reddi's problem")

    names = {
        "sgd": ("SGD with momentum", (-8, -14), "left"),
        "adam": ("Adam", (0, -14), "center"),
        "msvag": ("M-SVAG", (5, 40), "center"),
        "novograd": ("NovoGrad", (0, -60), "center"),
    }
    for name, loss in data.losses.items():
        means, colour = loss.mean(axis=0), COLOURS[name]
        best = int(np.argmin(means))
        right.loglog(RATES, means, color=colour, linewidth=2)
        right.plot(RATES[best], means[best], "o", color=colour)
        text, offset, side = names[name]
        place: dict[str, Any] = {"xytext": offset, "textcoords": "offset points", "ha": side}
        if name == "novograd":  # Its lowest point is between the lines of others.
            place["arrowprops"] = {"arrowstyle": "-", "color": colour}
        write(right, RATES[best], means[best], text, colour, **place)
    right.set(xlabel="learning rate", ylabel="loss after 300 steps", ylim=(0.004, 4))
    right.set_title("A network reads digits")
    return figure
