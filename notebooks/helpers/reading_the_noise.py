"""The runs and the figures of *How noisy is each layer?*."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure

import msvag_optax as mo
from msvag_optax.problems.digits import Perceptron, load_split
from notebooks.helpers import GREY, Styles, line, name_lines

NETWORK = Perceptron()  # 64 -> 64 -> 64 -> 10, three dense layers
IMAGES, LABELS = load_split()[0]

STYLES: Styles = {
    "exact": {"color": "black", "linestyle": "-", "marker": "none"},
    "examples": {"color": "#0072b2", "linestyle": "none", "marker": "o"},
    "4 microbatches": {"color": "#e69f00", "linestyle": "none", "marker": "^"},
    "over steps": {"color": "#c04e00", "linestyle": "none", "marker": "X"},
}
SOURCES = tuple(STYLES)[1:]
VARIANCES: Styles = {
    "over steps": {"color": "#c04e00", "linestyle": "-", "marker": "X"},
    "within the batch": {"color": "#0072b2", "linestyle": "-", "marker": "o"},
    "the rest": {"color": "#009e73", "linestyle": (0, (5, 1.5)), "marker": "s"},
    "none": {"color": GREY, "linestyle": (0, (1, 1)), "marker": "."},
}


def loss(params: Any, image: jax.Array, label: jax.Array) -> jax.Array:
    """The cross-entropy of one image."""
    logits: Any = NETWORK.apply({"params": params}, image)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def gradients_of(params: Any, images: jax.Array, labels: jax.Array) -> Any:
    """The gradients of single images."""
    return jax.vmap(jax.grad(loss), (None, 0, 0))(params, images, labels)


def init(key: jax.Array) -> Any:
    """The parameters with which a run begins."""
    return NETWORK.init(key, IMAGES[:1])["params"]


def drawn(params: Any, key: jax.Array, batch: int) -> Any:
    """The gradients of the images of a mini-batch, drawn with replacement."""
    chosen = jax.random.randint(key, (batch,), 0, len(IMAGES))
    return gradients_of(params, IMAGES[chosen], LABELS[chosen])


def total(tree: Any) -> jax.Array:
    """The sum over all elements of all leaves."""
    return jnp.asarray(sum(map(jnp.sum, jax.tree.leaves(tree))))


class Log(NamedTuple):
    """What a run writes down, every so many steps.

    Attributes:
      scale: the noise scale, in images, by source.
      ratio: the signal-to-noise ratio of each layer, read within steps.
      loss: the train loss.
    """

    scale: dict[str, Any]
    ratio: Any
    loss: Any


def exact_scale(params: Any) -> jax.Array:
    """The noise scale, in images, from the gradients of all images."""
    each = gradients_of(params, IMAGES, LABELS)
    noise, signal = (jax.tree.map(f, each) for f in (lambda g: g.var(0), lambda g: g.mean(0) ** 2))
    return total(noise) / total(signal)


def _run(
    key: jax.Array, tx: Any, decay: float, samples: Any, batch: int, steps: int, every: int
) -> Log:
    watch, moments = (f(mo.exponential(decay)) for f in (mo.watch_noise, mo.watch_moments))

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state, watched, kept = carry
        (gradient, of_examples), of_parts = (f(drawn(params, key, batch)) for f in samples)
        extras = {"examples": of_examples, "4 microbatches": of_parts[1]}
        watched = {k: watch.update(gradient, watched[k], **extras[k])[1] for k in extras}
        _, kept = moments.update(gradient, kept)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state, watched, kept), None

    def span(carry: Any, keys: jax.Array) -> tuple[Any, Log]:
        carry, _ = jax.lax.scan(step, carry, keys)
        params, _, watched, kept = carry
        states = {**watched, "over steps": kept}
        scale = {name: batch * mo.noise_scale(state) for name, state in states.items()}
        of_all = jax.vmap(loss, (None, 0, 0))(params, IMAGES, LABELS).mean()
        ratio = mo.signal_to_noise(watched["examples"])
        return carry, Log({"exact": exact_scale(params), **scale}, ratio, of_all)

    params = init(key)
    watched = dict.fromkeys(SOURCES[:2], watch.init(params))
    start = params, tx.init(params), watched, moments.init(params)
    return jax.lax.scan(span, start, jax.random.split(key, (steps // every, every)))[1]


def logs_of(tx: Any, seeds: int, *settings: Any) -> Log:
    """The logs of all seeds: arrays of shape (seeds, steps // every, ...)."""
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    return jax.device_get(jax.jit(jax.vmap(lambda key: _run(key, tx, *settings)))(keys))


def found_and_error(logs: Log, source: str) -> tuple[int, int, float]:
    """How many readings found a noise scale, of how many, and the factor of the median error."""
    read, exact = logs.scale[source], logs.scale["exact"]
    found = np.isfinite(read)
    error = 2 ** np.median(np.abs(np.log2(read / exact))[found]) if found.any() else np.nan
    return int(found.sum()), found.size, float(error)


def readings(logs: Mapping[str, Log], every: Mapping[str, int]) -> Figure:
    """The noise scale during training, exact and as it is read, at several rates."""
    figure, axes = plt.subplots(1, len(logs), figsize=(10.5, 4.6), sharey=True)
    top = 3e4
    for ax, (title, log) in zip(axes, logs.items(), strict=True):
        steps = every[title] * np.arange(1, log.loss.shape[1] + 1)
        line(ax, steps, log.scale["exact"].T, "exact", **STYLES["exact"])
        for place, source in enumerate(SOURCES):
            beside = steps + 0.2 * every[title] * (place - 1)  # marks do not cover one another
            shown = np.minimum(np.nan_to_num(log.scale[source], nan=top), top).T
            marks = STYLES[source] | {"markersize": 4.5, "alpha": 0.8, "markeredgewidth": 0}
            ax.plot(np.repeat(beside, shown.shape[1]), shown.ravel(), label=source, **marks)
        ax.axhline(top, color=GREY, linewidth=0.8, linestyle=":")
        ax.set(title=title, xlabel="step", yscale="log")
    axes[0].set_ylabel("noise scale (images)")
    above = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "color": GREY}
    axes[0].annotate("no signal found", (0.01, top), xytext=(0, -12), **above)
    name_lines(axes, 4, fontsize=9)
    figure.suptitle("The noise scale, exact and as it is read")
    return figure


# Training by one variance or another.


def _train(
    batch: int, beta: float, steps: int, of_mean: Any, variance: Any, rate: Any, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The last train loss, and the share of the variance over steps that is within the batch."""
    within = mo.piece(
        lambda params: jax.tree.map(jnp.zeros_like, params), _average, advance=_newest(beta)
    )
    formula = functools.partial(_adapted, of_mean, variance)
    tx = mo.from_estimates(formula, moments=mo.running_moments(mo.exponential(beta)), within=within)
    share = mo.from_estimates(
        lambda g, moments, within: jnp.stack([within.sum(), moments.variance.sum()]),
        moments=mo.running_moments(mo.exponential(beta)),
        within=within,
    )

    def step(carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        params, state = carry
        count, key = inputs
        each = drawn(params, key, batch)
        mean = jax.tree.map(lambda g: g.mean(0), each)
        extra = {"variances": jax.tree.map(lambda g: g.var(0, ddof=1) / batch, each)}
        sums, _ = share.update(mean, state, params, count=count, **extra)
        direction, state = tx.update(mean, state, params, count=count, **extra)
        within, over = jnp.sum(jnp.stack(jax.tree.leaves(sums)), axis=0)
        return (jax.tree.map(lambda p, d: p - rate * d, params, direction), state), within / over

    params = init(key)
    inputs = jnp.arange(steps), jax.random.split(key, steps)
    (params, _), shares = jax.lax.scan(step, (params, tx.init(params)), inputs)
    last = jax.vmap(loss, (None, 0, 0))(params, IMAGES, LABELS).mean()
    return jnp.where(jnp.isfinite(last), last, jnp.inf), jnp.median(shares[steps // 2 :])


def _newest(beta: float) -> Callable[..., Any]:
    def advance(state: Any, extra: Any) -> Any:
        weight = mo.exponential(beta).weight(extra["count"] + 1)
        return (mo.Parts(extra["variances"], "variances"), weight), state

    return advance


def _average(shared: Any, gradient: Any, state: Any, param: Any) -> Any:
    variance, weight = shared
    average = state + weight * (variance - state)
    return average, average


def _adapted(of_mean: Any, variance: Any, gradient: Any, moments: Any, within: Any) -> Any:
    over = moments.variance
    rho = jnp.where(over > 0, moments.variance_of_mean / jnp.where(over > 0, over, 1), 1)
    of_kinds = {
        "over steps": over,
        "within the batch": within,
        "the rest": jnp.maximum(over - within, 0),
        "none": jnp.zeros_like(over),
    }
    chosen = jnp.select([variance == i for i in range(4)], [of_kinds[kind] for kind in VARIANCES])
    factor = mo.variance_adaptation_factor(moments.mean, jnp.where(of_mean, chosen * rho, chosen))
    return factor * jnp.where(of_mean, moments.mean, gradient)


def trained(
    batch: int, beta: float, steps: int, rates: Any, seeds: int
) -> dict[tuple[str, int, str], tuple[np.ndarray, np.ndarray]]:
    """The last train losses and the shares, of shape (rates, seeds), by optimizer and variance."""
    names = [(name, variance) for name in ("M-SVAG", "SVAG") for variance in VARIANCES]
    kinds = jnp.repeat(jnp.asarray([True, False]), 4), jnp.tile(jnp.arange(4), 2)
    rates = jnp.asarray(rates, jnp.float32)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    run = functools.partial(_train, batch, beta, steps)
    by_rate: Any = jax.vmap(jax.vmap(run, (None, None, None, 0)), (None, None, 0, None))
    # All kinds in one program, since it takes longer to compile than to run.
    of_all = jax.jit(lambda kinds: jax.lax.map(lambda kind: by_rate(*kind, rates, keys), kinds))
    losses, shares = jax.device_get(of_all(kinds))
    return {(name, batch, v): (losses[i], shares[i]) for i, (name, v) in enumerate(names)}


def training(losses: Mapping[tuple[str, int, str], np.ndarray], rates: Sequence[float]) -> Figure:
    """The last train loss against the rate, a panel for each optimizer and batch size."""
    panels = list(dict.fromkeys((name, batch) for name, batch, _ in losses))
    figure, axes = plt.subplots(1, len(panels), figsize=(10.5, 4.4), sharey=True)
    for ax, (name, batch) in zip(axes, panels, strict=True):
        for variance, style in VARIANCES.items():
            values = np.minimum(losses[name, batch, variance], 2.3)
            line(ax, rates, values, variance, **style)
        ax.set(title=f"{name}, batch {batch}", xscale="log", yscale="log", xlabel="rate")
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.set_xticks([], minor=True)
    axes[0].set_ylabel("last train loss (nats)")
    name_lines(axes, 2, fontsize=8)
    figure.suptitle("Steps shortened by one variance or another")
    return figure


# The critical batch size.


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


def critical_batch(
    counts: Mapping[int, np.ndarray], s_min: float, critical: float, target: float
) -> Figure:
    """The steps to the target, at each batch size."""
    sizes, steps = np.array(list(counts)), np.stack(list(counts.values()))
    means = steps.mean(axis=1)
    figure, ax = plt.subplots(figsize=(7.5, 4.6))
    grid = np.geomspace(3, 700, 50)
    ax.plot(grid, s_min * (1 + critical / grid), color="black", label="the law, fitted")
    ax.plot(grid, s_min * critical / grid, color=GREY, linewidth=0.8, linestyle=":")
    ax.axhline(s_min, color=GREY, linewidth=0.8, linestyle=":")
    bars = (means - steps.min(axis=1), steps.max(axis=1) - means)
    label = f"mean of {steps.shape[1]} seeds; least to greatest"
    ax.errorbar(sizes, means, bars, fmt="o", color="#0072b2", capsize=3, label=label)
    ax.axvline(critical, color="#c04e00", linestyle=(0, (5, 2)), label="$B_\\mathrm{crit}$")
    ax.set(xscale="log", yscale="log", xlabel="batch size", ylim=(25, 600))
    ax.set(ylabel=f"steps to a train loss of {target}", title="What a larger batch buys")
    ax.set_xticks(sizes, [f"{size}" for size in sizes])
    ax.set_yticks([50, 100, 200, 400], ["50", "100", "200", "400"])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks([], minor=True)
    ax.legend(loc="upper right")
    return figure
