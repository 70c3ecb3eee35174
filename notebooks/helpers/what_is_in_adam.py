"""The bowls of *What is in Adam?*, what theory expects on them, and the figures."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy.special import erf

import msvag_optax as mo
from msvag_optax.compare import Outcome
from msvag_optax.problems import Problem, noisy_quadratic
from notebooks.helpers import GREY, Styles, line, name_lines

DIMENSION = 100
LABELS = {"momentum_sgd": "momentum SGD", "msvag": "M-SVAG", "m_ssd": "M-SSD", "adam": "Adam"}
STYLES: Styles = {
    "momentum_sgd": {"color": "#000000", "linestyle": (0, (4, 2))},
    "msvag": {"color": "#0072b2", "linestyle": "-"},
    "m_ssd": {"color": "#d55e00", "linestyle": (0, (4, 1.5, 1, 1.5))},
    "adam": {"color": "#6f6f6f", "linestyle": "-", "linewidth": 2.2},
}
LOOKS = {  # of bowls with (curved, rotated); at condition 1 these make no difference
    None: ("condition 1", "#000000", "X"),
    (False, False): ("even noise, along the axes", "#56b4e9", "o"),
    (False, True): ("even noise, rotated", "#0072b2", "s"),
    (True, False): ("curved noise, along the axes", "#d55e00", "^"),
    (True, True): ("curved noise, rotated", "#cc79a7", "D"),
}


class Bowl(NamedTuple):
    """A quadratic and its noise."""

    condition: int
    noise: float
    curved: bool
    rotated: bool

    @property
    def kind(self) -> tuple[bool, bool] | None:
        """What it is drawn as."""
        return (self.curved, self.rotated) if self.condition > 1 else None


def calm(bowl: Bowl) -> Problem:
    """The bowl without its noise."""
    return noisy_quadratic(DIMENSION, bowl.condition, 0.0, rotated=bowl.rotated)


def side_by_side(bowls: Sequence[Bowl]) -> Problem:
    """All bowls as rows of one array of parameters.

    Neighbours of one shape are computed together: one by one, they take longer to compile than to
    run.
    """
    groups = [[*group] for _, group in groupby(bowls, lambda bowl: (bowl.condition, bowl.rotated))]
    ends = np.cumsum([len(group) for group in groups])[:-1]
    shapes = [calm(group[0]) for group in groups]
    sigma = jnp.asarray([[bowl.noise] for bowl in bowls])
    curved = jnp.asarray([[bowl.curved] for bowl in bowls])

    def init(key: jax.Array) -> jax.Array:
        return jnp.stack([calm(bowl).init(key) for bowl in bowls])

    def expected(rows: jax.Array) -> jax.Array:
        parts = zip(shapes, jnp.split(rows, ends), strict=True)
        return jnp.concatenate([jax.vmap(shape.metrics)(x)["expected loss"] for shape, x in parts])

    def loss(rows: jax.Array, step: Any, key: jax.Array) -> jax.Array:
        del step
        noise = sigma * jax.random.normal(key, (DIMENSION,))
        displaced, tilted = jnp.where(curved, noise, 0.0), jnp.where(curved, 0.0, noise)
        return jnp.sum(expected(rows - displaced)) + jnp.sum(tilted * rows)

    def metrics(rows: jax.Array) -> dict[str, jax.Array]:
        return dict(zip(map(str, bowls), expected(rows), strict=True))

    return Problem(init, loss, metrics)


@cache
def curvature(bowl: Bowl) -> np.ndarray:
    """The matrix Q."""
    hessian = jax.hessian(lambda x: calm(bowl).metrics(x)["expected loss"])
    return np.asarray(hessian(jnp.zeros(DIMENSION)), np.float64)


def covariance(bowl: Bowl, q: np.ndarray) -> np.ndarray:
    """The matrix C of the gradient's noise."""
    return bowl.noise**2 * (q @ q if bowl.curved else np.eye(DIMENSION))


def products_of_signs(
    gradient: np.ndarray, noise: np.ndarray, generator: np.random.Generator | None
) -> np.ndarray:
    """E[z_i z_j] for z = sign(gradient + noise): by the formula, or from draws of a generator."""
    if generator is not None:
        root = np.linalg.cholesky(noise)
        signs = np.sign(gradient + generator.standard_normal((4_000, DIMENSION)) @ root.T)
        return signs.T @ signs / len(signs)
    expected = erf(gradient / np.sqrt(2 * np.diag(noise)))
    return np.where(np.eye(DIMENSION) == 1, 1, np.outer(expected, expected))


def improvements(
    bowl: Bowl, x: np.ndarray, noise_share: float, generator: np.random.Generator
) -> dict[str, float]:
    """What one step from x is worth to each optimizer, at the best rate."""
    q = curvature(bowl)
    noise = noise_share * covariance(bowl, q)
    gradient = q @ x
    sign = erf(gradient / np.sqrt(2 * np.diag(noise)))
    products = products_of_signs(
        gradient, noise, generator if bowl.curved and bowl.rotated else None
    )
    factors = {
        "momentum_sgd": 1.0,
        "msvag": gradient**2 / (gradient**2 + np.diag(noise)),
        "m_ssd": 1.0,
        "adam": np.abs(sign),
    }
    worth = {}
    for name, factor in factors.items():
        by_sign = name in ("m_ssd", "adam")
        z = factor * (sign if by_sign else gradient)
        zz = products if by_sign else np.outer(gradient, gradient) + noise
        zz = np.outer(factor, factor) * zz
        worth[name] = float((gradient @ z) ** 2 / (2 * np.sum(q * zz)))
    return worth


def loss_in_the_end(bowl: Bowl, rates: np.ndarray, beta: float, steps: int, *, sign: bool) -> float:
    """The expected loss after all steps at the best of the rates."""
    eigenvalues = np.linalg.eigvalsh(curvature(bowl))
    variance = bowl.noise**2 * (eigenvalues**2 if bowl.curved else np.ones(DIMENSION))
    xx = np.ones((len(rates), DIMENSION))  # E[x x], E[x m] and E[m m] in each eigendirection
    xm, mm = np.zeros_like(xx), np.zeros_like(xx)
    for t in range(steps):
        rate, w = (rates * (1 - t / steps))[:, None], (1 - beta) / (1 - beta ** (t + 1))
        mm = (1 - w) ** 2 * mm + 2 * w * (1 - w) * eigenvalues * xm
        mm += w**2 * (eigenvalues**2 * xx + variance)
        xm = (1 - w) * xm + w * eigenvalues * xx
        if sign:
            s = np.sqrt(mm.mean(axis=1, keepdims=True) if bowl.rotated else mm)
            slope = np.sqrt(2 / np.pi) / s  # of the sign in m; the rest of it is noise
            zx, zm, zz = slope * xm, slope * mm, 1 - 2 / np.pi + slope**2 * mm
        else:
            zx, zm, zz = xm, mm, mm
        xx, xm = xx - 2 * rate * zx + rate**2 * zz, xm - rate * zm
    losses = 0.5 * xx @ eigenvalues
    return float(losses[losses < DIMENSION].min())  # without those whose rate is too large


@partial(jax.jit, static_argnums=2)
def factors_as_read(
    key: jax.Array, relative_noises: jax.Array, beta: float
) -> dict[str, jax.Array]:
    """The mean factors of Adam and M-SVAG, over many elements whose gradient is 1."""
    estimator = mo.running_moments(mo.exponential(beta))
    shape = (len(relative_noises), 8_000)

    def observe(state: Any, key: jax.Array) -> tuple[Any, Any]:
        noise = jax.random.normal(key, shape)
        moments, state = estimator.update(1 + relative_noises[:, None] * noise, state)
        return state, moments

    keys = jax.random.split(key, 100)
    start = estimator.init(jnp.zeros(shape))
    state, _ = jax.lax.scan(lambda state, key: (observe(state, key)[0], None), start, keys[1:])
    _, moments = observe(state, keys[0])
    of_msvag = mo.variance_adaptation_factor(moments.mean, moments.variance_of_mean)
    of_adam = jnp.abs(mo.mean_over_rms(moments.mean, moments))
    return {"adam": of_adam.mean(axis=-1), "msvag": of_msvag.mean(axis=-1)}


def histories(runs: Mapping[str, Outcome], tuned: Any, noise: float, conditions: Any) -> Figure:
    """The loss of the four along the run, in eight bowls."""
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.6), sharex=True, sharey="row")
    for row, curved in zip(axes, (False, True), strict=True):
        for ax, (condition, rotated) in zip(
            row, [(c, r) for c in conditions for r in (False, True)], strict=True
        ):
            bowl = Bowl(condition, noise, curved, rotated)
            for name, outcome in runs.items():
                line(ax, outcome.steps, tuned(outcome, bowl), LABELS[name], **STYLES[name])
            where = "rotated" if rotated else "along the axes"
            ax.set_title(
                f"{'Curved' if curved else 'Even'} noise, {where},\ncondition {condition:,}"
            )
            ax.set(yscale="log", xlim=(0, outcome.steps[-1]))
            ax.legend(fontsize=7.5, loc="upper right" if curved else "best", handlelength=2.6)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    for ax in axes[:, 0]:
        ax.set_ylabel("expected loss")
    figure.suptitle(f"Each at its tuned rate, noise {noise:g} (median and range of 5 seeds)")
    return figure


def _tick_gains(axis: Axis, ticks: Sequence[float]) -> None:
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_formatter(NullFormatter())


def _points(ax: Axes, theory: Mapping, measured: Mapping, *, filled: bool) -> None:
    for kind, (label, colour, marker) in LOOKS.items():
        bowls = [bowl for bowl in measured if bowl.kind == kind]
        values = np.array([measured[bowl] for bowl in bowls])
        middle = np.median(values, axis=1)
        ax.errorbar(
            [theory[bowl] for bowl in bowls],
            middle,
            [middle - values.min(axis=1), values.max(axis=1) - middle],
            fmt=marker,
            color=colour,
            markerfacecolor=colour if filled else "white",
            elinewidth=0.7,
            label=None if filled else label,  # The hollow ones name both.
        )


def theory_and_measurement(
    one_step: Mapping, in_the_end: Mapping[float, Mapping], measured: Mapping[float, Mapping]
) -> Figure:
    """What the sign gains, expected and measured; the keys are the decays of the momentum."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 6), sharey=True)
    _points(axes[0], one_step, measured[0.0], filled=False)
    for decay in measured:
        _points(axes[1], in_the_end[decay], measured[decay], filled=decay > 0)
    titles = ("Theory: one step from the start", "Theory: the end of the run")
    for ax, title in zip(axes, titles, strict=True):
        ax.axhline(1, color=GREY, linewidth=0.8)
        ax.axvline(1, color=GREY, linewidth=0.8)
        ax.axline((1, 1), (2, 2), color=GREY, linewidth=0.8, linestyle=":")
        ax.set(title=title, xscale="log", yscale="log", xlim=(0.12, 9), ylim=(0.12, 9))
        _tick_gains(ax.xaxis, (0.2, 0.5, 1, 2, 5))
        _tick_gains(ax.yaxis, (0.2, 0.5, 1, 2, 5))
        ax.text(0.02, 0.97, "the sign wins", transform=ax.transAxes, va="top")
        ax.text(0.98, 0.03, "the sign loses", transform=ax.transAxes, ha="right")
        ax.set_ylabel("measured: final loss by the gradient / by the sign")
    axes[0].set_xlabel("expected: improvement by the sign / by the gradient")
    axes[1].set_xlabel("expected: final loss by the gradient / by the sign")
    what = "hollow: no momentum; filled: momentum 0.9; bars: least to greatest of the seeds"
    name_lines(axes, 2, fontsize=8)
    figure.supxlabel(what, fontsize=9)
    figure.suptitle("What the sign gains over the gradient")
    return figure


def adaptation(
    relative_noises: np.ndarray,
    best: Mapping[str, np.ndarray],
    read: Mapping[str, np.ndarray],
    gains: Mapping[tuple[str, str], Mapping],
    typical_gain: Any,
    noises: Sequence[float],
    pairs: Mapping[str, str],
) -> Figure:
    """The factors that shorten noisy directions, and what they are worth."""
    figure, (left, *others) = plt.subplots(1, 3, figsize=(12, 5), width_ratios=(1.25, 1, 1))
    dashed = (0, (4, 2))
    for name in pairs:
        colour = STYLES[name]["color"]
        to = "sign" if name == "adam" else "mean"
        left.plot(relative_noises, read[name], color=colour, linewidth=2, label=LABELS[name])
        left.plot(
            relative_noises, best[name], color=colour, linestyle=dashed, label=f"best for the {to}"
        )
    left.set(title="The factor", xscale="log", xlabel="noise of one gradient / the gradient")
    left.set(ylabel="mean factor", ylim=(0, 1.02))
    left.legend(fontsize=9, loc="lower left")
    for ax, kind in zip(others, ("constant", "falling"), strict=True):
        for shift, (name, plain) in zip((0.94, 1.06), pairs.items(), strict=True):
            colour, marker = STYLES[name]["color"], {"adam": "o", "msvag": "s"}[name]
            for bowl, values in gains[kind, name].items():
                ax.plot(bowl.noise * shift, np.median(values), ".", color=colour, alpha=0.5)
            for source, dashes, fill in ((kind, "-", colour), ("expected", dashed, "white")):
                ax.plot(
                    np.array(noises) * shift,
                    [typical_gain(source, name, noise) for noise in noises],
                    color=colour,
                    marker=marker,
                    linestyle=dashes,
                    markerfacecolor=fill,
                    label=f"{LABELS[name]} over {LABELS[plain]}, "
                    f"{'measured' if source == kind else 'expected'}",
                )
        ax.axhline(1, color=GREY, linewidth=0.8)
        ax.set(title=f"The gain at a {kind} rate", xscale="log", yscale="log")
        ax.set(xlabel=r"noise $\sigma$ of the bowl", ylabel="final loss: plain / adapted")
        ax.xaxis.set_ticks(noises, [f"{noise:g}" for noise in noises])
        ax.xaxis.set_minor_formatter(NullFormatter())
        _tick_gains(ax.yaxis, (0.8, 1, 1.5, 2, 3, 4))
        ax.set_ylim(0.75, 4.6)
    name_lines(others, 1, fontsize=8)
    return figure
