"""Gradients to test with, a network, and the figure of *Does a mixture beat its parents?*."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure

from msvag_optax.compare import Outcome
from msvag_optax.problems import Problem
from notebooks.helpers import Styles, line

STYLES: Styles = {
    "layerwise M-SVAG": {"color": "#d55e00", "linestyle": "-", "linewidth": 2.4},
    "M-SVAG": {"color": "#0072b2", "linestyle": (0, (4, 1.5, 1, 1.5))},
    "NovoGrad": {"color": "#009e73", "linestyle": (0, (1, 1.2)), "linewidth": 2},
    "Adam": {"color": "#6f6f6f", "linestyle": (0, (4, 2))},
}


_generator = np.random.default_rng(0)
_UNUSED = (0, 1, 5)  # steps without a gradient of the second layer
GRADIENTS = [
    {
        "kernel": _generator.normal(0.3, 1.0, (4, 3)),
        "bias": np.zeros(3) if step in _UNUSED else _generator.normal(0.3, 1.0, 3),
    }
    for step in range(10)
]


def updates_of(tx: optax.GradientTransformation) -> list[dict[str, jax.Array]]:
    """What an optimizer makes of the ten gradients."""
    params = jax.tree.map(jnp.zeros_like, GRADIENTS[0])
    state, made = tx.init(params), []
    for gradient in GRADIENTS:
        updates, state = tx.update(jax.tree.map(jnp.asarray, gradient), state, params)
        made.append(updates)
    return made


def deviation(build: Callable, in_numpy: Callable[[list[np.ndarray]], np.ndarray]) -> float:
    """The largest difference between pieces and NumPy, relative to the largest update."""
    off = largest = 0.0
    for step, updates in enumerate(updates_of(build(1.0))):
        for layer, update in updates.items():
            right = in_numpy([gradient[layer] for gradient in GRADIENTS[: step + 1]])
            off = max(off, np.abs(update - right).max())
            largest = max(largest, np.abs(right).max())
    return off / largest


class Perceptron(nn.Module):
    """Layers whose weights are measured in units of their own; these do not change the start."""

    units: tuple[float, ...]
    widths: tuple[int, ...] = (64, 64, 10)

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """The logits."""
        features = images
        for layer, (unit, width) in enumerate(zip(self.units, self.widths, strict=True)):
            init = nn.initializers.variance_scaling(unit**-2, "fan_in", "truncated_normal")
            kernel = self.param(f"kernel {layer}", init, (features.shape[-1], width))
            bias = self.param(f"bias {layer}", nn.initializers.zeros, (width,))
            features = unit * (features @ kernel + bias)
            if layer < len(self.widths) - 1:
                features = nn.relu(features)
        return features


def on_fresh_seeds(problem: Problem) -> Problem:
    """The same problem, in which each seed stands for other random numbers."""

    def another(key: jax.Array) -> jax.Array:
        return jax.random.fold_in(key, 1)

    def loss(params: Any, step: Any, key: jax.Array) -> jax.Array:
        return problem.loss(params, step, another(key))

    return problem._replace(init=lambda key: problem.init(another(key)), loss=loss)


def beside_parents(
    outcomes: Mapping[tuple[str, str], Outcome], at_best: Callable, tasks: Mapping, seeds: int
) -> Figure:
    """The loss along the runs at the best rates, above, and at the end for every rate, below."""
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 8.4), sharey=True)
    for (upper, lower), task in zip(axes.T, tasks, strict=True):
        for name, style in STYLES.items():
            outcome = outcomes[task, name]
            line(upper, outcome.steps, at_best(task, name, "train loss"), name, **style)
            final = outcome.history["train loss"][-1]
            ends = np.where(np.isfinite(final), final, 1e9).T
            line(lower, outcome.rates, ends, name, **style)
            best = outcome.best("train loss")
            middle = np.median(final[:, best])
            lower.plot(outcome.rates[best], middle, "o", color=style["color"])
        upper.set(title=f"{task.capitalize()}, at the best rate", xlabel="step")
        upper.set(xlim=(0, outcome.steps[-1]), ylabel="train loss (nats)")
        lower.set(title=f"{task.capitalize()}, at every rate", xlabel="learning rate")
        lower.set(xscale="log", ylabel="final train loss (nats)")
        upper.legend(fontsize=9, loc="lower left", handlelength=3)
        lower.legend(fontsize=9, loc="lower left", handlelength=3)
    axes[0, 0].set(yscale="log", ylim=(0.02, 4))  # room for the legends
    figure.suptitle(f"A mixture beside its parents (median and range of {seeds} seeds)")
    return figure
