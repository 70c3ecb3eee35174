"""Four readings of the same moments: magnitude or sign, adapted to the variance or not."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import msvag_optax as mo
from docs.figures.drawing import COLOURS, panels, write

FORMULAS = {
    "momentum_sgd": mo.mean_of,
    "msvag": mo.adapted_mean,
    "m_ssd": mo.sign_of_mean,
    "adam": mo.mean_over_rms,
}
TITLES = (
    "momentum_sgd: the mean",
    "msvag: the mean, adapted",
    "m_ssd: its sign",
    "adam: its sign, adapted",
)
NOISES = {0.0: "#000000", 2.0: COLOURS["svag"], 6.0: COLOURS["amsgrad"]}
RHO = (1 - 0.9) / (1 + 0.9)  # the sum of squared weights after many steps, at the default decay

Steps = dict[str, dict[float, np.ndarray]]


def compute(points: int = 401) -> Steps:
    """The step of each formula at means from -2 to 2, under gradients of three noises."""
    mean = jnp.linspace(-2, 2, points)

    def step(formula: Callable[..., jax.Array], noise: float) -> np.ndarray:
        variance = jnp.full(points, noise**2)
        # The mean of squares that are remembered holds their biased variance.
        second_moment = mean**2 + (1 - RHO) * variance
        return np.asarray(formula(mean, mo.Moments(mean, second_moment, variance, RHO * variance)))

    return {
        name: {noise: step(formula, noise) for noise in NOISES}
        for name, formula in FORMULAS.items()
    }


def draw(steps: Steps) -> Figure:
    """Above the magnitude, below the sign; on the left without adaptation, on the right with it."""
    figure, axes = panels(2, 2, 5.2, sharex=True, sharey=True)
    names = {0.0: "no noise", 2.0: "noise 2", 6.0: "noise 6"}
    for ax, (name, curves), title in zip(axes, steps.items(), TITLES, strict=True):
        mean = np.linspace(-2, 2, len(curves[0.0]))
        alike = np.array_equal(curves[0.0], curves[6.0])
        widths = (7, 4, 1.5) if alike else (2, 2, 2)  # so that all three are seen
        for (noise, step), width in zip(curves.items(), widths, strict=True):
            ax.plot(mean, step, color=NOISES[noise], linewidth=width, solid_capstyle="butt")
            if not alike:
                up = 0.12 if name == "msvag" and noise == 0 else 0
                down = 0.12 if name == "msvag" and noise == 2 else 0
                write(ax, 2.06, step[-1] + up - down, names[noise], NOISES[noise])
        if alike:
            write(ax, 0.3, -0.7, "all three noises,\none over the other", "black")
        ax.set(title=title, xlim=(-2, 2), ylim=(-2.2, 2.2))
    for ax in axes[2:]:
        ax.set_xlabel("mean of the gradients")
    for ax in axes[::2]:
        ax.set_ylabel("step, in rates")
    return figure
