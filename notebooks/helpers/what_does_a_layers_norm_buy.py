"""Trees of parameters, measurements and the figures of *What does a layer's norm buy?*."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure

import msvag_optax as mo
from msvag_optax.compare import Outcome
from msvag_optax.problems import Problem
from notebooks.helpers import Styles, line, name_lines

B2_STYLES: Styles = {  # one green, from dark to light
    0.25: {"color": "#00402e", "linestyle": "-", "marker": "o"},
    0.98: {"color": "#008a63", "linestyle": "--", "marker": "s"},
    0.999: {"color": "#4fb893", "linestyle": "-.", "marker": "^"},
}
STYLES: Styles = {
    **{f"NovoGrad, b2 = {b2}": style for b2, style in B2_STYLES.items()},
    "AdamW": {"color": "#d55e00", "linestyle": "-", "marker": "D"},
    "SGD": {"color": "#000000", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
}
MODE_STYLES: Styles = {
    "NovoGrad": B2_STYLES[0.25],
    "grad_averaging": {"color": "#0072b2", "linestyle": "-", "marker": "P"},
    "grad_averaging, warm-up": {"color": "#0072b2", "linestyle": ":", "marker": "X"},
    "amsgrad": {"color": "#d55e00", "linestyle": "--", "marker": "d"},
    "NovoGrad, b2 = 0.999": B2_STYLES[0.999],
}


def size_in_bytes(tree: Any) -> int:
    """Of all arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def state_bytes(tx: optax.GradientTransformation, params: Any) -> int:
    """What `tx.init` would allocate."""
    return size_in_bytes(jax.eval_shape(tx.init, params))


def kernel_lengths(tree: Any) -> dict[str, jax.Array]:
    """The norm of each kernel."""
    return {name: jnp.linalg.norm(layer["kernel"]) for name, layer in tree.items()}


def end_points(
    problem: Problem, tx: optax.GradientTransformation, scales: Sequence[float], steps: int = 30
) -> list[Any]:
    """The parameters after some steps, one run for each factor of the gradient."""
    key = jax.random.key(0)

    def run(scale: jax.Array) -> Any:
        def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
            params, state = carry
            gradient = problem.value_and_grad(params, t, jax.random.fold_in(key, t + 1))[1]
            scaled = jax.tree.map(lambda g: scale * g, gradient)
            updates, state = tx.update(scaled, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = problem.init(jax.random.fold_in(key, 0))
        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[0][0]

    ends = jax.jit(jax.vmap(run))(jnp.asarray(scales))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], ends) for i in range(len(scales))]


def lengths_along_a_run(
    problem: Problem, tx: optax.GradientTransformation, normalizations: Mapping, steps: int
) -> tuple[Any, Any]:
    """The lengths of every kernel's gradient, raw and normalized in several ways, at each step."""
    key = jax.random.key(0)

    def step(carry: Any, t: jax.Array) -> tuple[Any, Any]:
        params, state, states = carry
        gradient = problem.value_and_grad(params, t, jax.random.fold_in(key, t + 1))[1]
        normalized = {}
        for b2, normalize in normalizations.items():
            normalized[b2], states[b2] = normalize.update(gradient, states[b2])
        seen = (
            kernel_lengths(gradient),
            jax.tree.map(kernel_lengths, normalized, is_leaf=lambda node: "Dense_0" in node),
        )
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state, states), seen

    def run(key: jax.Array) -> Any:
        params = problem.init(jax.random.fold_in(key, 0))
        states = {b2: normalize.init(params) for b2, normalize in normalizations.items()}
        return jax.lax.scan(step, (params, tx.init(params), states), jnp.arange(steps))[1]

    return jax.jit(run)(key)


def normalization(b2: float, **options: Any) -> Any:
    """NovoGrad without its momentum."""
    weights = mo.exponential_from_first(b2)
    norms = mo.running_average(weights, of=mo.layer_square_norm(), **options)
    return mo.from_estimates(mo.over_rms(1e-7), second_moment=norms)


def second_length(first: float, b2: float, **options: Any) -> float:
    """How long the second normalized gradient is if the gradients' lengths are `first` and 1."""
    normalize = normalization(b2, **options)
    _, state = normalize.update(jnp.asarray([first]), normalize.init(jnp.zeros(1)))
    return float(normalize.update(jnp.ones(1), state)[0][0])


def valley(rates: np.ndarray, values: np.ndarray, limit: float) -> tuple[float, float]:
    """The lowest and the highest rate around the best whose value, interpolated, is in the limit.

    On logarithmic axes, between the rates of the grid.
    """
    x, excess = np.log(rates), np.log(np.clip(values, 1e-9, 1e9)) - np.log(limit)
    best = int(np.argmin(excess))
    if excess[best] > 0:
        return rates[best], rates[best]
    low = high = best
    while low > 0 and excess[low - 1] <= 0:
        low -= 1
    while high < len(x) - 1 and excess[high + 1] <= 0:
        high += 1

    def crossing(inside: int, outside: int) -> float:
        if not 0 <= outside < len(x):
            return float(rates[inside])
        share = excess[inside] / (excess[inside] - excess[outside])
        return float(np.exp(x[inside] + share * (x[outside] - x[inside])))

    return crossing(low, low - 1), crossing(high, high + 1)


def valleys_of(rates: np.ndarray, values: np.ndarray, limit: float) -> list[tuple[float, float]]:
    """The ends of the valley of each seed."""
    return [valley(rates, of_seed, limit) for of_seed in values]


def decades(ends: list[tuple[float, float]]) -> np.ndarray:
    """The widths of valleys."""
    low, high = np.transpose(ends)
    return np.log10(high / low)


def distance(a: Any, b: Any) -> float:
    """Between two trees of parameters."""
    return float(optax.tree.norm(optax.tree.sub(a, b)))


def row_lengths(tx: Any, gradients: Any) -> jax.Array:
    """How long the first step is for each row of the array `blocks`."""
    updates, _ = tx.update(gradients, tx.init(gradients), gradients)
    return jnp.linalg.norm(updates["blocks"], axis=1)


def overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the ranges over the seeds have a point in common."""
    return bool(np.min(a) <= np.max(b) and np.min(b) <= np.max(a))


def least_losses(outcome: Outcome) -> np.ndarray:
    """The train loss of each seed at the best rate."""
    return final_loss(outcome)[:, outcome.best("train loss")]


def final_loss(outcome: Outcome) -> np.ndarray:
    """Of shape (seeds, rates); a run that has diverged has lost everything."""
    return np.nan_to_num(outcome.history["train loss"][-1], nan=np.inf)


def final_error(outcome: Outcome) -> np.ndarray:
    """The share of test images misread, of shape (seeds, rates)."""
    return 1 - outcome.history["test accuracy"][-1]


def lengths(raw: Mapping, longest: Mapping[float, np.ndarray]) -> Figure:
    """The gradients' norms along a run, and the longest normalized gradient."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2))
    for i, (name, values) in enumerate(raw.items()):
        steps = np.arange(1, len(values) + 1)
        dashes = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))[i]
        colour = plt.colormaps["viridis"](i / 5.5)
        left.plot(steps, values, color=colour, linestyle=dashes, label=name)
    left.set(title="The gradient of each kernel", ylabel=r"length of $g_t$")
    left.legend(loc="lower right", ncols=2)
    for b2, style in B2_STYLES.items():
        right.plot(steps, longest[b2], **(style | {"marker": ""}), label=f"$\\beta_2$ = {b2}")
        bound = (1 - b2) ** -0.5
        right.axhline(bound, color=style["color"], linestyle=style["linestyle"], linewidth=0.8)
        right.annotate(
            f"at most {bound:.3g}",
            (1.01, bound),
            xycoords=("axes fraction", "data"),
            verticalalignment="center",
        )
    right.legend(loc="upper right", bbox_to_anchor=(1, 0.92))
    right.set(title="The longest normalized gradient", ylabel=r"length of $x_t$", ylim=(0.3, 60))
    for axes in (left, right):
        axes.set(yscale="log", xlabel="step")
    return figure


def valleys(cold: Mapping[str, Outcome]) -> Figure:
    """What remains at the end, at every rate."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.8))
    for name, result in cold.items():
        style = {"markersize": 4} | STYLES[name]
        line(left, result.rates, final_loss(result).T, name, **style)
        line(right, result.rates, final_error(result).T, name, **style)
    left.set(title="Train loss at the end", ylabel="nats", ylim=(3e-4, 5))
    right.set(title="Test images misread at the end", ylabel="share")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="learning rate")
    name_lines((left, right), 2)
    figure.suptitle("Without warm-up (median and range of the seeds)")
    return figure


def usable_rates(cold: Mapping, warm: Mapping, usable: Callable, limits: Sequence) -> Figure:
    """The valleys as bars, without warm-up and with."""
    figure, axes = plt.subplots(figsize=(10, 3.8))
    for row, name in enumerate(cold):
        for results, height, alpha, hatch in ((cold, -0.19, 1.0, ""), (warm, 0.19, 0.45, "////")):
            low, high = np.median(usable(results[name]), axis=0)
            best = results[name].rates[results[name].best("train loss")]
            y, colour = row + height, STYLES[name]["color"]
            axes.barh(
                y, high - low, 0.34, low, color=colour, alpha=alpha, hatch=hatch, edgecolor="white"
            )
            axes.plot(best, y, "o", color="white", markeredgecolor="black", markersize=6)
            tips = [high for _, high in usable(results[name])]
            axes.plot([min(tips), max(tips)], [y, y], color="black", linewidth=1.2)
    axes.set(title="Usable rates: without warm-up (plain) and with (hatched); dots: least loss")
    axes.set(xscale="log", xlabel="learning rate", xlim=limits, yticks=range(len(cold)))
    axes.set_yticklabels(cold)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return figure


def batches(
    sizes: Sequence[int], best_rates: Mapping, at_best: Mapping, at_fixed: Mapping
) -> Figure:
    """The best rate, the loss there, and the loss at the rate that was best for the least batch."""
    figure, panels = plt.subplots(1, 3, figsize=(10.5, 4.2))
    for name in best_rates:
        style = STYLES[name] | {"markersize": 5}
        panels[0].plot(sizes, best_rates[name], label=name, **style)
        line(panels[1], sizes, at_best[name], name, **style)
        line(panels[2], sizes, at_fixed[name], name, **style)
    panels[0].set(title="The best rate", ylabel="learning rate")
    panels[1].set(title="Train loss at the best rate", ylabel="nats", ylim=(5e-4, 4))
    panels[2].set(title=f"... at the best rate for {sizes[0]}", ylabel="nats", ylim=(5e-4, 4))
    for axes in panels:
        axes.set(xscale="log", yscale="log", xlabel="batch size", xticks=sizes)
        axes.set_xticklabels(sizes)
        axes.minorticks_off()
        axes.legend(fontsize=9)
    return figure


def modes(falling: Mapping[str, Outcome], constant: Mapping[str, Outcome]) -> Figure:
    """The final losses of the modes, at a falling and at a constant rate."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.4), sharey=True)
    for axes, results in ((left, falling), (right, constant)):
        for name, result in results.items():
            style = {"markersize": 4} | MODE_STYLES[name]
            line(axes, result.rates, final_loss(result).T, name, **style)
        axes.set(xscale="log", yscale="log", xlabel="learning rate")
        axes.legend(loc="lower left", fontsize=9)
    left.set(title="The rate falls to zero", ylabel="train loss at the end, nats", ylim=(1e-4, 5))
    right.set(title="The rate is constant")
    return figure
