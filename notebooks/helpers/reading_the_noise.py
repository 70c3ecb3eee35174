"""The runs, the truth about them and the figures of *How noisy is each layer?*."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure

import msvag_optax as mo
from msvag_optax.problems.digits import Perceptron, digits, load_split
from notebooks.helpers import GREY, Styles, line, name_lines

NETWORK = Perceptron()  # 64 -> 64 -> 64 -> 10, three dense layers
IMAGES, LABELS = load_split()[0]
NAMES = jax.tree.leaves(mo.path_names(NETWORK.init(jax.random.key(0), IMAGES[:1])["params"]))

BATCH_STYLES: Styles = {
    16: {"color": "#56b4e9", "linestyle": (0, (1, 1)), "marker": "s"},
    64: {"color": "#0072b2", "linestyle": (0, (5, 1.5)), "marker": "o"},
    256: {"color": "#00243f", "linestyle": "-", "marker": "^"},
}
LINE_ONLY: dict[str, Any] = {"marker": "none"}
MARKS_ONLY: dict[str, Any] = {"linestyle": "none", "markersize": 4.5, "fillstyle": "none"}
READINGS = {"the state of M-SVAG": "state", "another batch": "another"}
READINGS |= {"frozen parameters": "frozen"}
SOURCES = {
    "truth": ("the truth", "o", "white"),
    "frozen": ("frozen parameters", "o", None),
    "another": ("another batch", "D", None),
    "state": ("the state", "X", None),
}
ORANGE = "#c04e00"


class Reading(NamedTuple):
    """What a state tells: the ratio of each leaf, the scale and the variance of all together."""

    ratio: Any
    scale: Any
    noise: Any


class Log(NamedTuple):
    """What a run writes down: at each step, and every so many steps."""

    step_ratio: Any
    state: Reading
    another: Reading
    frozen: Reading
    truth: Reading
    loss: jax.Array


def read(state: Any) -> Reading:
    """A reading of the running moments in a state."""
    moments = mo.moments_in(optax.tree.get(state, "RunningMomentsState"))
    leaves = jax.tree.leaves(moments, is_leaf=lambda node: isinstance(node, mo.Moments))
    noise = sum(jnp.sum(m.variance) for m in leaves)
    return Reading(mo.signal_to_noise(state), mo.noise_scale(state), noise)


def truth(params: Any, batch_size: int) -> Reading:
    """The same three numbers from the gradients of all single images."""

    def loss(params: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        logits: Any = NETWORK.apply({"params": params}, image)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    each = jax.vmap(jax.grad(loss), (None, 0, 0))(params, IMAGES, LABELS)
    signal = jax.tree.map(lambda g: jnp.sum(g.mean(0) ** 2), each)
    noise = jax.tree.map(lambda g: jnp.sum(g.var(0)) / batch_size, each)
    ratio = jax.tree.map(lambda s, n: jnp.sqrt(s / n), signal, noise)
    signal, noise = sum(jax.tree.leaves(signal)), sum(jax.tree.leaves(noise))
    return Reading(ratio, noise / signal, noise)


def _run(key: jax.Array, tx: Any, watch: Any, size: int, steps: int, every: int, fresh: int) -> Log:
    problem, many_batches = digits(NETWORK, size), mo.watch_moments(mo.arithmetic())

    def gradient(params: Any, key: jax.Array) -> Any:
        return problem.value_and_grad(params, 0, key)[1]

    def step(carry: Any, t: jax.Array) -> tuple[Any, Any]:
        params, state, watched = carry
        key_t, other = jax.random.split(jax.random.fold_in(key, t))
        _, watched = watch.update(gradient(params, other), watched)
        updates, state = tx.update(gradient(params, key_t), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state, watched), mo.signal_to_noise(state)

    def span(carry: Any, times: jax.Array) -> tuple[Any, Log]:
        carry, ratio = jax.lax.scan(step, carry, times)
        params, state, watched = carry

        def look(moments: Any, key: jax.Array) -> tuple[Any, None]:
            return many_batches.update(gradient(params, key), moments)[1], None

        keys = jax.random.split(jax.random.fold_in(key, steps + times[0]), fresh)
        frozen, _ = jax.lax.scan(look, many_batches.init(params), keys)
        readings = read(state), read(watched), read(frozen), truth(params, size)
        return carry, Log(ratio, *readings, problem.metrics(params)["train loss"])

    params = problem.init(key)
    start = params, tx.init(params), watch.init(params)
    return jax.lax.scan(span, start, jnp.arange(steps).reshape(-1, every))[1]


def logs_of(tx: Any, seeds: int, *settings: Any) -> Log:
    """The logs of all seeds: arrays of shape (seeds, steps // every, ...)."""
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    return jax.device_get(jax.jit(jax.vmap(lambda key: _run(key, tx, *settings)))(keys))


def by_name(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree of parameters."""
    return dict(zip(NAMES, jax.tree.leaves(tree), strict=True))


def pairs(log: Log, field: str) -> Iterator[np.ndarray]:
    """The truth and a reading of the ratio, of every layer, run and moment."""
    return (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(source.ratio)])
        for source in (log.truth, getattr(log, field))
    )


def quotients(logs: Mapping[int, Log], field: str, low: float, high: float) -> np.ndarray:
    """Reading over truth, where the truth is between `low` and `high`, of all runs."""
    x, y = (
        np.concatenate(each)
        for each in zip(*(pairs(log, field) for log in logs.values()), strict=True)
    )
    within = (low < x) & (x <= high)
    return y[within] / x[within]


def noise_scale(reading: Reading, batch_size: int) -> np.ndarray:
    """In images, of each moment. Noise and signal are averaged over the seeds before they meet."""
    with np.errstate(divide="ignore"):
        signal = (reading.noise / reading.scale).mean(axis=0)  # 0 where the scale is infinite
        return np.asarray(batch_size * reading.noise.mean(axis=0) / signal)


def layers(logs: Mapping[int, Log], steps: int, looked_at: np.ndarray) -> Figure:
    """What the state says of each layer, and the truth."""
    shown = [0, 1, 3, 6, 11, 19, 39]  # of the moments at which the truth is known
    thinned = np.unique(np.geomspace(4, steps, 60).astype(int)) - 1  # of the steps
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6.6), sharex=True, sharey=True)
    kernels_first = sorted(NAMES, key=lambda name: (name.split("/")[0], name.endswith("bias")))
    for ax, name in zip(axes.T.flat, kernels_first, strict=True):
        for batch_size, log in logs.items():
            style = BATCH_STYLES[batch_size]
            readings = by_name(log.step_ratio)[name].reshape(-1, steps)[:, thinned]
            label = f"batch {batch_size}, from the state"
            line(ax, thinned + 1, readings.T, label, **style | LINE_ONLY)
            true = np.median(by_name(log.truth.ratio)[name], axis=0)[shown]
            label = f"batch {batch_size}, the truth"
            ax.plot(looked_at[shown], true, label=label, **style | MARKS_ONLY)
        ax.set(title=name, xscale="log", ylim=(0, 2.3))
    for ax in axes[-1]:
        ax.set_xlabel("step")
    for ax in axes[:, 0]:
        ax.set_ylabel("signal-to-noise ratio")
    name_lines(figure, axes[0, 0], 3)
    figure.suptitle("The signal-to-noise ratio of each layer")
    return figure


def trust(logs: Mapping[int, Log], rho: float, fresh_batches: int) -> Figure:
    """Readings against the truth."""
    floor = 0.02
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 4.5), sharex=True, sharey=True)
    for ax, (title, field) in zip(axes, READINGS.items(), strict=True):
        for batch_size, log in logs.items():
            x, y = pairs(log, field)
            style = {"s": 9, "alpha": 0.35, "linewidth": 0}
            style |= {key: BATCH_STYLES[batch_size][key] for key in ("color", "marker")}
            ax.scatter(x, np.maximum(y, floor), label=f"batch {batch_size}", **style)
        ax.plot([0.06, 3], [0.06, 3], color=GREY, linewidth=0.8)
        sample = rho if field != "frozen" else 1 / fresh_batches
        ax.axvline(np.sqrt(sample), color=ORANGE, linewidth=1, linestyle="--")
        ax.set(title=f"Read from {title}", xscale="log", yscale="log")
        ax.set(xlim=(0.06, 3), ylim=(floor / 1.2, 3), xlabel="true ratio", ylabel="reading")
    handles, labels = axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=3, markerscale=2)
    for handle in filter(None, legend.legend_handles):
        handle.set_alpha(1)
    figure.suptitle("Readings against the truth")
    return figure


def scales(logs: Mapping[int, Log]) -> Figure:
    """The noise scale against the loss."""
    ceiling = 2e4
    figure, ax = plt.subplots(figsize=(8.5, 5.2))
    for batch_size, log in logs.items():
        style, loss = BATCH_STYLES[batch_size], log.loss.mean(axis=0)
        said, true = (noise_scale(reading, batch_size) for reading in (log.state, log.truth))
        label = f"batch {batch_size}, from the state"
        ax.plot(loss, np.minimum(said, ceiling), label=label, **style | LINE_ONLY)
        ax.plot(loss, true, label=f"batch {batch_size}, the truth", **style | MARKS_ONLY)
    ax.set(xscale="log", yscale="log", ylim=(40, ceiling), xlabel="train loss (nats)")
    ax.set(ylabel="noise scale (images)", title="The gradient noise scale, all seeds together")
    ax.invert_xaxis()
    ax.set_xticks([2, 1, 0.5, 0.2, 0.1], ["2", "1", "0.5", "0.2", "0.1"])
    ax.set_xticks([], minor=True)
    name_lines(figure, ax, 3)
    return figure


def critical_batch(
    counts: Mapping[int, np.ndarray],
    s_min: float,
    critical: float,
    on_the_way: Callable,
    target: float,
) -> Figure:
    """The steps to the target, and what was read on the way."""
    sizes, steps = np.array(list(counts)), np.stack(list(counts.values()))
    means = steps.mean(axis=1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.9), width_ratios=(4, 3))
    grid = np.geomspace(3, 700, 50)
    left.plot(grid, s_min * (1 + critical / grid), color="black", label="the law, fitted")
    left.plot(grid, s_min * critical / grid, color=GREY, linewidth=0.8, linestyle=":")
    left.axhline(s_min, color=GREY, linewidth=0.8, linestyle=":")
    left.errorbar(
        sizes,
        means,
        (means - steps.min(axis=1), steps.max(axis=1) - means),
        fmt="o",
        color="#0072b2",
        capsize=3,
        label=f"mean of {steps.shape[1]} seeds; least to greatest",
    )
    left.axvline(critical, color=ORANGE, linestyle=(0, (5, 2)))
    left.annotate(
        "$B_\\mathrm{crit}$", (critical, 27), (5, 0), textcoords="offset points", color=ORANGE
    )
    left.set(xscale="log", yscale="log", xlabel="batch size", ylim=(25, 600))
    left.set(ylabel=f"steps to a train loss of {target}", title="What a larger batch buys")
    left.set_xticks(sizes, [f"{size}" for size in sizes])
    left.set_yticks([50, 100, 200, 400], ["50", "100", "200", "400"])
    for axis in (left.xaxis, left.yaxis):
        axis.set_ticks([], minor=True)
    left.legend(loc="upper right")

    edge, last = 3e3, list(BATCH_STYLES)[-1]
    for row, (batch_size, style) in enumerate(BATCH_STYLES.items()):
        for place, (field, (label, marker, face)) in enumerate(SOURCES.items()):
            height = row + 0.17 * (place - 1.5)
            low, middle, high = np.minimum(on_the_way(batch_size, field), edge)
            colour = style["color"]
            right.plot([low, high], [height, height], color=colour, linewidth=1.5, zorder=2)
            right.plot(
                middle,
                height,
                marker,
                color=colour,
                markerfacecolor=face or colour,
                clip_on=False,
                zorder=3,
                label=label if batch_size == last else None,
            )
    right.axvline(critical, color=ORANGE, linestyle=(0, (5, 2)))
    right.set(xscale="log", xlim=(5, edge), xlabel="noise scale (images)", ylim=(2.5, -0.5))
    right.set_yticks(range(len(BATCH_STYLES)), [f"batch {size}" for size in BATCH_STYLES])
    right.set_title("Read on the way")
    handles = right.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower right", ncols=4, columnspacing=1.2)
    return figure


def steps_needed(outcome: Any, target: float) -> tuple[int, np.ndarray]:
    """The best rate's number, and the steps that each seed needs to the target at it."""
    reached = outcome.history["train loss"] < target
    first = np.where(reached.any(axis=0), outcome.steps[reached.argmax(axis=0)], np.inf)
    best = int(first.mean(axis=0).argmin())
    return best, first[:, best]


def fitted_law(sizes: np.ndarray, means: np.ndarray) -> tuple[float, float]:
    """S_min and B_crit of S = S_min (1 + B_crit / B)."""
    # Linear in S_min and S_min B_crit; relative errors count alike.
    design = np.stack([np.ones(len(sizes)), 1 / sizes], axis=1) / means[:, None]
    s_min, per_image = np.linalg.lstsq(design, np.ones(len(sizes)), rcond=None)[0]
    return s_min, per_image / s_min


def at_loss(logs: Mapping[int, Log], field: str, losses: Sequence[float]) -> np.ndarray:
    """The noise scale where the loss, which falls, passes through `losses`, at each batch size."""
    scales = []
    for batch_size, log in logs.items():
        log_scale = np.log(noise_scale(getattr(log, field), batch_size))
        loss = log.loss.mean(axis=0)
        scales.append(np.exp(np.interp(-np.log(losses), -np.log(loss), log_scale)))
    return np.stack(scales)
