"""Noise, problems and the figures of *Sum or average?*."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from msvag_optax.compare import Outcome
from msvag_optax.problems import Problem, noisy_quadratic
from notebooks.helpers import GREY, Styles, line, name_lines

RARE = 0.02  # how often the skewed noise is large
MOMENTUM_LOOKS: Styles = {
    "inner": {"color": "#0072b2", "linestyle": "-", "marker": "o"},
    "outer": {"color": "#d55e00", "linestyle": "--", "marker": "s"},
}
CHANGE_LOOKS: Styles = {
    "arithmetic mean": {"color": "#cc79a7", "linestyle": "-", "linewidth": 2.2},
    "exponential mean": {"color": "#000000", "linestyle": (0, (5, 1.5))},
    "sum": {"color": "#009e73", "linestyle": ":", "linewidth": 2},
}
EMBEDDING_LOOKS = {
    "Expectigrad, counts visits": ("#cc79a7", "o"),
    "Expectigrad, counts steps": ("#0072b2", "s"),
    "Adam": ("#000000", "^"),
    "Expectigrad, lazy rows": ("#8c510a", "v"),
    "own clocks, lazy rows": ("#d55e00", "D"),
    "AdaGrad": ("#009e73", "x"),
}


def greatest_difference(one: Any, other: Any) -> float:
    """Between the iterates of two optimizers under the same noisy gradients, in 500 steps."""
    problem = noisy_quadratic()

    def iterates(optimizer: Any, key: jax.Array) -> jax.Array:
        def step(carry: Any, t: jax.Array) -> tuple[Any, Any]:
            params, state = carry
            _, gradient = problem.value_and_grad(params, t, jax.random.fold_in(key, t))
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        params = problem.init(key)
        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(500))[1]

    return float(
        jax.jit(lambda key: jnp.abs(iterates(one, key) - iterates(other, key)).max())(
            jax.random.key(0)
        )
    )


def _gaussian(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    return jax.random.normal(key, shape)


def _heavy_tailed(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Student's t with 2 degrees of freedom."""
    first, second = jax.random.split(key)
    return jax.random.normal(first, shape) / jnp.sqrt(jax.random.exponential(second, shape))


def _skewed(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Of mean 0 and variance 1, as the Gaussian."""
    return (jax.random.bernoulli(key, RARE, shape) - RARE) / np.sqrt(RARE * (1 - RARE))


NOISES = {"Gaussian noise": _gaussian, "heavy tails": _heavy_tailed, "skewed noise": _skewed}


def with_noise(draw: Callable, size: float) -> Problem:
    """A quadratic whose gradients have this noise."""
    quadratic = noisy_quadratic(noise=0.0)

    def loss(x: jax.Array, step: Any, key: jax.Array) -> jax.Array:
        return quadratic.loss(x, step, key) + size * draw(key, x.shape) @ x

    return quadratic._replace(loss=loss)


def shrinking_loss(before: int, drop: float) -> Problem:
    """A noisy quadratic, then one elsewhere whose gradients are `drop` times smaller."""
    shift = np.random.default_rng(0).standard_normal(100).astype(np.float32)  # of the minimum
    noisy = noisy_quadratic()

    def loss(x: jax.Array, step: Any, key: jax.Array) -> jax.Array:
        first = jnp.asarray(step) < before
        return jnp.where(first, drop, 1) * noisy.loss(x - jnp.where(first, 0, shift), step, key)

    def metrics(x: jax.Array) -> dict[str, jax.Array]:
        first, second = noisy.metrics(x), noisy.metrics(x - shift)
        return {"first task": first["expected loss"], "second task": second["expected loss"]}

    return Problem(noisy.init, loss, metrics)


def steps_for(optimizer: Any, gradients: jax.Array) -> np.ndarray:
    """The updates for given gradients."""

    def step(state: Any, gradient: jax.Array) -> tuple[Any, jax.Array]:
        update, state = optimizer.update(gradient, state)
        return state, update

    return np.asarray(jax.lax.scan(step, optimizer.init(gradients[0]), gradients)[1])


def at_best_rates(outcomes: Sequence[Outcome], rates: int) -> np.ndarray:
    """Final losses, (settings, seeds), each setting at its best rate; rates are the last axis."""
    chosen = []
    for outcome in outcomes:
        final = outcome.history["expected loss"][-1]
        final = final.reshape(len(final), -1, rates)
        best = final.mean(axis=0).argmin(axis=-1)
        chosen += [final[:, i, rate] for i, rate in enumerate(best)]
    return np.stack(chosen)


def divisor(estimator: Any, sizes: Sequence[float]) -> np.ndarray:
    """The root of an estimate of squares, under gradients of these sizes."""

    def step(state: Any, gradient: jax.Array) -> tuple[Any, jax.Array]:
        estimate, state = estimator.update(gradient, state)
        return state, jnp.sqrt(estimate)

    return np.asarray(jax.lax.scan(step, estimator.init(jnp.asarray(0.0)), jnp.asarray(sizes))[1])


def mean_lengths(optimizer: Any, spacings: np.ndarray) -> np.ndarray:
    """Of the steps of elements that have a gradient of 1 or -1 at every k-th step."""
    visited = np.arange(1, 30_001)[:, None] % spacings == 0
    signs = np.where(np.random.default_rng(1).random(visited.shape) < 0.5, -1.0, 1.0)
    values = np.abs(steps_for(optimizer, jnp.asarray(visited * signs, jnp.float32)))
    return np.array([values[visited[:, i], i][-20:].mean() for i in range(len(spacings))])


class Tokens(NamedTuple):
    """Rows of an embedding, drawn by Zipf's law, and what each is to become."""

    text: np.ndarray
    targets: jax.Array
    shares: np.ndarray

    @classmethod
    def draw(cls, count: int, generator: np.random.Generator) -> "Tokens":
        """Of a thousand rows of width 4, with standard normal targets."""
        shares = 1 / np.arange(1, 1_001)
        shares /= shares.sum()
        text = generator.choice(len(shares), p=shares, size=count)
        targets = generator.standard_normal((len(shares), 4))
        return cls(text, jnp.asarray(targets, jnp.float32), shares)

    def problem(self, batch_size: int) -> Problem:
        """A table whose rows are regressed on noisy targets, one token an example."""
        batched, targets = jnp.asarray(self.text.reshape(-1, batch_size)), self.targets
        width = targets.shape[1]

        def loss(table: jax.Array, step: Any, key: jax.Array) -> jax.Array:
            seen = batched[step]
            wanted = targets[seen] + 0.5 * jax.random.normal(key, (batch_size, width))
            return 0.5 * jnp.mean(jnp.sum((table[seen] - wanted) ** 2, axis=-1))

        def metrics(table: jax.Array) -> dict[str, jax.Array]:
            errors = jnp.sqrt(jnp.mean((table - targets) ** 2, axis=-1))
            loss = 0.5 * width * jnp.asarray(self.shares, errors.dtype) @ errors**2
            return {"expected loss": loss, "error of each row": errors}

        return Problem(lambda key: jnp.zeros(targets.shape), loss, metrics)

    def visits(self, batch_size: int) -> np.ndarray:
        """In how many batches each row is seen."""
        batches = self.text.reshape(-1, batch_size)
        return np.array([(batches == row).any(axis=1).sum() for row in range(len(self.shares))])


def place_of_momentum(losses: Mapping, memories: Sequence[str]) -> Figure:
    """The final loss against the memory of the mean of squares, for both places."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4), sharey=True)
    for ax, noise in zip(axes, NOISES, strict=True):
        for momentum, look in MOMENTUM_LOOKS.items():
            places = np.arange(len(memories))
            line(ax, places, losses[noise, momentum], f"{momentum} momentum", **look)
        ax.set_xticks(range(len(memories)), memories)
        ax.set(title=noise.capitalize(), yscale="log")
        ax.set_xlabel("gradients remembered in the mean of squares")
        ax.legend()
    axes[0].set_ylabel("final expected loss, best rate")
    axes[0].set_yticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"])
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    figure.suptitle(f"Median and range of {losses[noise, momentum].shape[1]} seeds")
    return figure


def change(
    runs: Mapping[str, Outcome], tuned: Callable, divisors: Mapping[str, np.ndarray], before: int
) -> Figure:
    """The loss before and after gradients shrink, and what they are divided by."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for name, outcome in runs.items():
        rate = tuned(outcome)
        now = np.where(
            (outcome.steps <= before)[:, None],
            outcome.history["first task"][:, :, rate],
            outcome.history["second task"][:, :, rate],
        )
        label = f"{name}, rate {outcome.rates[rate]:.2g}"
        line(left, outcome.steps, now, label, **CHANGE_LOOKS[name])
    left.set(yscale="log", xlabel="step", ylabel="expected loss of the task at hand")
    left.set_title(f"Gradients drop a hundredfold after {before:,} steps")
    left.legend()
    for name, values in divisors.items():
        right.plot(values, label=name, **CHANGE_LOOKS[name])
    right.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    right.set(yscale="log", xlabel="step", ylabel="divisor under gradients of size 100, then 1")
    right.set_title("What gradients are divided by")
    right.legend()
    return figure


def groups_of(visits: np.ndarray) -> list[np.ndarray]:
    """The rows by how often they are seen, the rarest first."""
    edges = (1, 5, 10, 20, 40, 100, 300, 1_000, 10_000)
    return [(visits >= low) & (visits < high) for low, high in itertools.pairwise(edges)]


def rare_rows(
    spacings: np.ndarray,
    lengths: Mapping[str, np.ndarray],
    visits: np.ndarray,
    row_errors: Callable[[str], np.ndarray],
    learned: Mapping[tuple[str, str], Outcome],
) -> Figure:
    """The length of steps, the error of rows, and the final loss against the rate."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 5))
    for name, values in lengths.items():
        colour, marker = EMBEDDING_LOOKS[name]
        left.plot(spacings, values, color=colour, marker=marker, label=name)
    left.plot(spacings, np.sqrt(spacings), ":", color=GREY, linewidth=2.5, zorder=3)
    left.annotate(r"$\sqrt{t/n}$", (200, np.sqrt(200)), (-34, 10), textcoords="offset points")
    left.set(xscale="log", yscale="log", xlabel="steps per visit, $t/n$", title="Length of a step")
    left.set_ylabel("length over the rate")

    centres = [np.median(visits[group]) for group in groups_of(visits)]
    for name, (colour, marker) in EMBEDDING_LOOKS.items():
        line(middle, centres, row_errors(name), name, color=colour, marker=marker)
    middle.set(xscale="log", yscale="log", xlabel="visits of a row", title="Error of rows")
    middle.set_ylabel("root mean square error of a row")

    for (name, size), outcome in learned.items():
        if (name, "large batches") not in learned:
            continue
        colour, marker = EMBEDDING_LOOKS[name]
        small = size == "small batches"
        final = np.median(outcome.history["expected loss"][-1], axis=0)
        right.plot(
            outcome.rates,
            final,
            label=name if small else None,
            color=colour,
            linestyle="-" if small else "--",
            marker=marker,
            markerfacecolor=colour if small else "white",
        )
    right.set(xscale="log", yscale="log", xlabel="learning rate", title="Does the best rate move?")
    right.set(ylabel="final expected loss", ylim=(0.02, 3))
    right.text(0.02, 0.02, "full: small batches\ndashed: large", transform=right.transAxes)
    name_lines((left, middle, right), 1, fontsize=9)
    return figure
