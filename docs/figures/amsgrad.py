"""On Reddi's problem Adam walks to the worst point, and AMSGrad to the optimum."""

import jax
import numpy as np
import optax
from matplotlib.figure import Figure

import msvag_optax as mo
from docs.figures.drawing import COLOURS, GREY, panels, write
from msvag_optax.problems import reddi_online
from msvag_optax.problems.reddi import PERIOD

RATE, B2 = 0.003, 0.99
OPTIMIZERS = {
    "adam": optax.adam(RATE, b2=B2),
    "amsgrad": mo.amsgrad(RATE, b2=B2),
    "uncorrected": mo.amsgrad(RATE, b2=B2, bias_correction=False),
    "optax": mo.amsgrad(RATE, b2=B2, correct_before_max=True),
}


def compute(periods: int = 5_000) -> dict[str, np.ndarray]:
    """Where each is after every period of the problem, in which nothing is random."""
    return {name: walk(tx, periods) for name, tx in OPTIMIZERS.items()}


def walk(tx: optax.GradientTransformation, periods: int) -> np.ndarray:
    """The iterate at the start and after each period."""
    problem, key = reddi_online(), jax.random.key(0)  # a key that the problem does not use

    def step(t: jax.Array, run: tuple) -> tuple:
        x, state = run
        update, state = tx.update(problem.value_and_grad(x, t, key)[1], state, x)
        return problem.project(x + update), state

    def period(run: tuple, _: None) -> tuple[tuple, jax.Array]:
        run = jax.lax.fori_loop(0, PERIOD, step, run)
        return run, run[0]

    start = problem.init(key)
    run = (start, tx.init(start))
    walked = jax.jit(lambda run: jax.lax.scan(period, run, length=periods)[1])(run)
    return np.append(start, walked)


def draw(walks: dict[str, np.ndarray]) -> Figure:
    """One panel: x over the steps."""
    figure, (ax,) = panels(1, 1, 3.6)
    looks = {
        "adam": {"color": COLOURS["adam"], "linewidth": 2.5},
        "amsgrad": {"color": COLOURS["amsgrad"], "linewidth": 3.5},
        "uncorrected": {"color": "black", "linestyle": (0, (2, 3)), "linewidth": 1.5},
        "optax": {"color": COLOURS["msvag"], "linewidth": 2},
    }
    thousands = np.arange(len(walks["adam"])) * PERIOD / 1e3
    end = thousands[-1]
    for y, text in ((1, "the worst point"), (-1, "the optimum")):
        ax.axhline(y, color=GREY, linewidth=0.8, linestyle=":")
        write(ax, 0.99 * end, 1.13 * y, text, GREY, ha="right")
    for name, walked in walks.items():
        ax.plot(thousands, walked, **looks[name])
    write(ax, 0.06 * end, 0.84, "Adam", COLOURS["adam"])
    write(ax, 0.5 * end, -0.42, "AMSGrad", COLOURS["amsgrad"])
    write(ax, 0.59 * end, -0.42, "and with bias_correction=False (dashed)", "black")
    optax_order = "AMSGrad with correct_before_max=True, optax's order"
    write(ax, 0.99 * end, 0.13, optax_order, COLOURS["msvag"], ha="right")
    ax.set(xlabel="thousands of steps", ylabel="x", xlim=(0, end), ylim=(-1.25, 1.25))
    ax.set_title("Reddi's problem: every 101st gradient is 1010, all others are -10")
    return figure
