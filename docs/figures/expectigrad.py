"""What Expectigrad divides by, and how far it goes for an element that is seldom used."""

import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import msvag_optax as mo
from docs.figures.drawing import COLOURS, panels, updates, write
from msvag_optax.problems.reddi import LARGE, PERIOD, SMALL

B2 = 0.99
AVERAGES = {
    "adam": mo.running_average(mo.exponential(B2), of=mo.square),
    "expectigrad": mo.running_average(mo.arithmetic(), of=mo.square),
}
SPARSE = {
    "adam": optax.adam(1.0),
    "uncounted": mo.expectigrad(1.0, sparse_counter=False),
    "counted": mo.expectigrad(1.0),
}

Curves = dict[str, np.ndarray]


def compute(
    periods: int = 6, intervals: tuple[int, ...] = (1, 3, 10, 30, 100, 300, 1_000), visits: int = 20
) -> tuple[Curves, tuple[int, ...], Curves]:
    """The divisors of Reddi's problem by step, the intervals, and how far a gradient leads."""
    steps = jnp.arange(periods * PERIOD)
    gradients = jnp.where(steps % PERIOD == 0, LARGE, SMALL)
    divisors = {
        name: np.sqrt(updates(average, gradients, jnp.zeros(())))
        for name, average in AVERAGES.items()
    }
    ways = {
        name: np.array([way(tx, interval, visits) for interval in intervals])
        for name, tx in SPARSE.items()
    }
    return divisors, intervals, ways


def way(tx: optax.GradientTransformation, interval: int, visits: int) -> float:
    """How far a gradient of 1 moves an element that has one every so many steps, in rates.

    All that momentum does until the next one counts. The first half of the visits is left out, in
    which averages settle.
    """
    gradients = jnp.where(jnp.arange(visits * interval) % interval == 0, 1.0, 0.0)
    walked = -updates(tx, gradients, jnp.zeros(()))
    settled = visits // 2
    return float(walked[settled * interval :].sum() / (visits - settled))


def draw(data: tuple[Curves, tuple[int, ...], Curves]) -> Figure:
    """On the left the divisors, on the right the sparse element."""
    divisors, intervals, ways = data
    figure, (left, right) = panels(1, 2, 3.6)
    for name, divisor in divisors.items():
        left.plot(divisor, color=COLOURS[name], linewidth=2)
    left.set(xlabel="step", ylabel="divisor", xlim=(0, len(divisors["adam"])), ylim=(60, 180))
    left.set_title("Divisor of Reddi's gradients")
    write(left, 1.5 * PERIOD, 161, "Expectigrad forgets nothing", COLOURS["expectigrad"])
    write(left, 1.5 * PERIOD, 69, "Adam forgets the 1010", COLOURS["adam"])

    looks = {
        "adam": {"color": COLOURS["adam"], "linewidth": 3.5},
        "uncounted": {"color": COLOURS["msvag"], "linewidth": 1.5, "linestyle": (0, (3, 3))},
        "counted": {"color": COLOURS["expectigrad"], "linewidth": 2},
    }
    for name, look in looks.items():
        right.loglog(intervals, ways[name], **look)
    write(right, 45, 4.6, "Adam", COLOURS["adam"])
    without = "Expectigrad with\nsparse_counter=False\n(dashed)"
    write(right, 45, 2.9, without, COLOURS["msvag"])
    write(right, 30, 1.2, "Expectigrad", COLOURS["expectigrad"], ha="center")
    right.set(
        xlabel="steps from one gradient to the next", ylabel="distance per gradient, in rates"
    )
    right.set_title("An element that is seldom used")
    return figure
