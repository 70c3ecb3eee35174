"""The task and the figures of *Is weight decay the same as L2 regularization?*."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from msvag_optax.compare import train
from msvag_optax.problems import Problem
from msvag_optax.problems.digits import load_split
from notebooks.helpers import GREY, Styles, line

LOOKS: Styles = {
    "L2, SGD": {"color": "#000000", "marker": "s", "linestyle": "--", "markersize": 9},
    "L2, M-SVAG": {"color": "#0072b2", "marker": "^", "markersize": 5},
    "L2, Adam": {"color": "#d55e00", "marker": "v", "markersize": 5},
    "decoupled, AdamW": {"color": "#009e73", "marker": "o", "markersize": 5},
}
EXCLUSION_LOOKS: Styles = {
    "nothing excluded": {"color": "#000000", "linestyle": "-", "marker": "o"},
    "biases excluded": {"color": "#0072b2", "linestyle": "--", "marker": "s"},
    "LayerNorm excluded": {"color": "#009e73", "linestyle": ":", "marker": "^"},
    "both excluded": {"color": "#d55e00", "linestyle": "-.", "marker": "v"},
}


class Normalized(nn.Module):
    """A perceptron with layer normalization."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """The logits."""
        features = images
        for _ in range(2):
            features = nn.relu(nn.LayerNorm()(nn.Dense(64)(features)))
        return nn.Dense(10)(features)


class FewDigits(NamedTuple):
    """Training images, labels of which some are wrong, and test images with right ones."""

    images: jax.Array
    labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array

    @classmethod
    def draw(cls, training: int, test: int, wrong: float) -> "FewDigits":
        """Gives a share of the training images a random label."""
        train_set, test_set = load_split(test_size=1 - training / 1797)
        generator = np.random.default_rng(0)
        random_label = generator.random(training) < wrong
        labels = jnp.where(random_label, generator.integers(0, 10, training), train_set.labels)
        return cls(train_set.images, labels, test_set.images[:test], test_set.labels[:test])

    @property
    def dark(self) -> np.ndarray:
        """The pixels that no training image lights up."""
        return np.asarray(self.images).max(axis=0) == 0

    def problem(self, network: nn.Module, batch_size: int) -> Problem:
        """To read them, from mini-batches."""

        def logits(params: Any, images: jax.Array) -> Any:
            return network.apply({"params": params}, images)

        def init(key: jax.Array) -> Any:
            return network.init(key, self.images[:1])["params"]

        def loss(params: Any, step: Any, key: jax.Array) -> jax.Array:
            chosen = jax.random.randint(key, (batch_size,), 0, len(self.labels))
            return optax.softmax_cross_entropy_with_integer_labels(
                logits(params, self.images[chosen]), self.labels[chosen]
            ).mean()

        def metrics(params: Any) -> dict[str, jax.Array]:
            read = jnp.argmax(logits(params, self.test_images), axis=-1)
            first = params["Dense_0"]["kernel"]
            return {
                "test error": jnp.mean(read != self.test_labels),
                "dark weights": jnp.sqrt(jnp.mean(first[self.dark] ** 2)),
            }

        return Problem(init, loss, metrics)


def parameters_after(problem: Problem, optimizer: Any, steps: int, key: jax.Array) -> jax.Array:
    """All parameters in one vector, after training."""

    def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
        params, state = carry
        _, gradient = problem.value_and_grad(params, t, jax.random.fold_in(key, t))
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = problem.init(key)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
    return ravel_pytree(params)[0]


def remaining(optimizer: Any, scales: np.ndarray, steps: int) -> np.ndarray:
    """What is left of parameters that start at 1, under gradients that are noise of each scale."""

    @jax.jit
    def run(key: jax.Array) -> jax.Array:
        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            gradient = jnp.asarray(scales)[:, None] * jax.random.normal(key, params.shape)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = jnp.ones((len(scales), 4_000))  # of each scale, to average the noise out
        start = params, optimizer.init(params)
        (params, _), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
        return params.mean(axis=1)

    return np.asarray(run(jax.random.key(0)))


def predicted(scale: float, rate: float, decay: float, steps: int) -> float:
    """What Adam's pull leaves, step by step, with its weights for the mean of squares."""
    p, second_moment = 1.0, 0.0
    for t in range(1, steps + 1):
        weight = (1 - 0.999) / (1 - 0.999**t)
        second_moment += weight * (scale**2 + (decay * p) ** 2 - second_moment)
        p -= rate * decay * p / np.sqrt(second_moment)
    return p


def shrinkage(tx: Any, at: int) -> float:
    """The share by which a parameter at 100 without gradient shrinks in step `at`."""

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        p, state = carry
        update, state = tx.update(jnp.zeros_like(p), state, p)
        return (p + update, state), -update / p

    p = jnp.asarray(100.0)
    return float(jax.lax.scan(step, (p, tx.init(p)), length=at)[1][-1])


def step_lengths(optimizer: Any, steps: int) -> np.ndarray:
    """The lengths of the steps that a constant gradient of 1 makes."""

    def step(state: Any, _: None) -> tuple[Any, jax.Array]:
        update, state = optimizer.update(jnp.asarray(1.0), state, jnp.asarray(0.0))
        return state, -update

    return np.asarray(jax.lax.scan(step, optimizer.init(jnp.asarray(0.0)), length=steps)[1])


class Map:
    """The outcome of a grid of rates and decays; all cells and seeds are one compiled loop.

    `train` runs over a list of rates. Here the list holds numbers of cells, and `build` gets what
    they stand for.
    """

    def __init__(
        self,
        problem: Problem,
        build: Callable,
        rates: list[float],
        decays: list[float],
        steps: int,
        seeds: int,
    ) -> None:
        """Trains all cells."""
        cells = jnp.asarray([(rate, decay) for decay in decays for rate in rates])
        outcome = train(
            problem,
            lambda cell: build(*cells[jnp.asarray(cell, int)]),
            range(len(cells)),
            steps=steps,
            seeds=seeds,
        )
        shape = (seeds, len(decays), len(rates))
        self.rates, self.decays = np.array(rates), np.array(decays)
        self.final = {key: values[-1].reshape(shape) for key, values in outcome.history.items()}
        self.error = self.final["test error"].mean(axis=0)  # the mean over the seeds
        self.best = np.unravel_index(self.error.argmin(), self.error.shape)
        start = outcome.history["dark weights"][0].mean()
        self.dark = self.final["dark weights"].mean(axis=0) / start

    @property
    def at_best(self) -> np.ndarray:
        """The test errors of all seeds in the best cell."""
        return self.final["test error"][:, *self.best]

    @property
    def listed(self) -> str:
        """The best decays, in words."""
        return ", ".join(f"{decay:.2g}" for decay in self.best_decays()).replace("nan", "none")

    def without_decay(self) -> float:
        """The least error in the row without decay."""
        return self.error[0].min()

    def best_decays(self) -> np.ndarray:
        """At each rate; none where nothing is learned."""
        return np.where(
            self.error.min(axis=0) < 0.5, self.decays[self.error.argmin(axis=0)], np.nan
        )


def pulls(scales: np.ndarray, left: Mapping, prediction: np.ndarray, title: str) -> Figure:
    """What decay leaves of a parameter, against the size of its gradient's noise."""
    figure, ax = plt.subplots(figsize=(8.5, 4))
    for name, values in left.items():
        ax.plot(scales, values, label=name, **LOOKS[name])
    ax.plot(scales, prediction, ":", color="black", linewidth=2.5, label="L2, Adam: predicted")
    ax.set(xscale="log", ylim=(-0.05, 1.05), title=title)
    ax.set(xlabel="size $s$ of the gradient's noise", ylabel="share left of the parameter")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def maps(results: Mapping[str, Map]) -> Figure:
    """Test errors for rates and decays."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 7.5))
    for ax, (name, result) in zip(axes.flat, results.items(), strict=True):
        percent = 100 * result.error
        image = ax.imshow(percent, cmap="viridis", vmin=11, vmax=22, origin="lower", aspect="auto")
        for (row, column), value in np.ndenumerate(percent):
            colour = "black" if value > 16 else "white"
            ax.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=9)
            if result.decays[row] == result.best_decays()[column]:
                ax.plot(column - 0.38, row + 0.3, "o", color=colour, markersize=4)
        row, column = result.best
        ax.add_patch(
            plt.Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, fill=False, ec="white", lw=3)
        )
        ax.set_xticks(range(len(result.rates)), [f"{rate:.2g}" for rate in result.rates])
        ax.set_yticks(range(len(result.decays)), [f"{decay:.2g}" for decay in result.decays])
        ax.set(title=name, xlabel="learning rate", ylabel="decay")
        ax.grid(visible=False)
    figure.colorbar(image, ax=axes, label="test error in percent", extend="max", shrink=0.6)
    return figure


def exclusions(decays: Sequence[float], errors: Mapping[str, np.ndarray], title: str) -> Figure:
    """Test errors against the decay, for each list of exclusions."""
    figure, ax = plt.subplots(figsize=(8, 4.2))
    for name, look in EXCLUSION_LOOKS.items():
        line(ax, decays, 100 * errors[name].T, name, **look)
    ax.set(xscale="log", yscale="log", xlabel="weight decay (coupled to the rate)", title=title)
    ax.set(yticks=[20, 40, 80], ylabel="test error in percent")
    ax.yaxis.set_major_formatter("{x:.0f}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend()
    return figure


def bert(lengths: Mapping[str, np.ndarray], factor: np.ndarray, runs: Mapping) -> Figure:
    """The length of the steps without correction, and the accuracy with and without."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    t = np.arange(1, len(factor) + 1)
    (bare, of_bare), (warmed, of_warmed) = lengths.items()
    left.plot(t, of_bare, color="#d55e00", label=bare)
    left.plot(t, factor, ":", color="black", linewidth=2.5, label="the formula")
    left.plot(t[1:], of_warmed[1:], "--", color="#0072b2", label=warmed)
    left.axhline(1, color=GREY, linewidth=0.8)
    left.set(xscale="log", xlabel="step", ylabel="length of the step, over the rate")
    left.set_title("Adam's first steps without correction")
    left.legend()
    looks = [("#d55e00", "-", "x"), ("#0072b2", "--", "o"), ("#009e73", "-", "s")]
    for ((name, warm_up), run), look in zip(
        runs.items(), [*looks, ("#000000", ":", "^")], strict=True
    ):
        colour, dashes, marker = look
        accuracy = 100 * run.history["test accuracy"][-1].T
        label = f"{name}, {f'warm-up {warm_up}' if warm_up else 'no warm-up'}"
        line(right, run.rates, accuracy, label, color=colour, linestyle=dashes, marker=marker)
    right.set(xscale="log", xlabel="learning rate", ylabel="test accuracy in percent")
    right.set_title(f"{run.steps[-1]:,} steps: median and range of {accuracy.shape[1]} seeds")
    right.legend(loc="lower left")
    return figure
