"""The factor of M-SVAG and SVAG, and what it does on a noisy quadratic."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import msvag_optax as mo
from docs.figures.drawing import COLOURS, panels, write
from msvag_optax import compare, problems

BETA = 0.9
RHO = (1 - BETA) / (1 + BETA)  # the sum of squared weights, after many steps
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Data(NamedTuple):
    """The factors over ratios of mean and deviation, and final losses over rates (of all seeds)."""

    ratios: np.ndarray
    factors: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]


def compute(steps: int = 2_000, seeds: int = 5) -> Data:
    """The formula at exact moments, and three optimizers on the demonstration's quadratic."""
    ratios = jnp.geomspace(0.01, 10, 200)
    variances = {"svag": jnp.ones(200), "msvag": jnp.full(200, RHO)}
    factors = {
        name: np.asarray(mo.variance_adaptation_factor(ratios, variance))
        for name, variance in variances.items()
    }
    losses = {}
    for name in ("momentum_sgd", "adam", "msvag"):
        outcome = compare.train(
            problems.noisy_quadratic(),
            lambda rate, name=name: getattr(mo.dissection(rate, BETA), name),
            RATES,
            steps=steps,
            seeds=seeds,
            measurements=1,
        )
        losses[name] = outcome.history["expected loss"][-1]
    return Data(np.asarray(ratios), factors, losses)


def draw(data: Data) -> Figure:
    """On the left the factors, on the right the losses."""
    figure, (left, right) = panels(1, 2, 3.6)
    for name, factor in data.factors.items():
        left.semilogx(data.ratios, factor, color=COLOURS[name], linewidth=2.5)
    write(left, 0.16, 0.75, "M-SVAG: noise\nof the mean", COLOURS["msvag"], ha="right")
    write(left, 1.25, 0.4, "SVAG: noise of\none gradient", COLOURS["svag"])
    left.set(xlabel="|mean| / standard deviation of a gradient", ylabel="factor of the step")
    left.set_title("The noisier, the shorter the step")

    colours = {"momentum_sgd": COLOURS["sgd"], "adam": COLOURS["adam"], "msvag": COLOURS["msvag"]}
    for name, loss in data.losses.items():
        colour, dashes = colours[name], (0, (4, 2)) if name == "adam" else "-"
        right.loglog(RATES, loss.mean(axis=0), color=colour, linestyle=dashes, linewidth=2)
        right.fill_between(
            RATES, loss.min(axis=0), loss.max(axis=0), color=colour, alpha=0.15, linewidth=0
        )
    write(right, 0.13, 0.75, "Adam", COLOURS["adam"], ha="right")
    write(right, 1.0, 0.66, "momentum\nSGD", COLOURS["sgd"], ha="center")
    write(right, 1.15, 0.11, "M-SVAG", COLOURS["msvag"])
    right.set(xlabel="learning rate", ylabel="expected loss at the end")
    right.set_title("A noisy quadratic of 100 dimensions")
    return figure
