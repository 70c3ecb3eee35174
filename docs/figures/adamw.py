"""Under Adam, L2 regularization hardly decays what has large gradients; decoupled decay does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import msvag_optax as mo
from docs.figures.drawing import COLOURS, panels, write

RATE, DECAY = 1e-3, 1.0
SIZES = {0.1: COLOURS["svag"], 1.0: COLOURS["expectigrad"], 10.0: COLOURS["adamw"]}
"""The standard deviations of gradients that are noise alone, and a colour for each."""


def compute(steps: int = 2_000, copies: int = 400, seed: int = 0) -> dict[str, np.ndarray]:
    """The mean of `copies` parameters that start at 1, by step and by the size of gradients."""
    l2 = optax.chain(optax.add_decayed_weights(DECAY), optax.adam(RATE))
    decoupled = mo.adamw(RATE, weight_decay=DECAY)
    return {
        name: walk(tx, steps, copies, seed)
        for name, tx in {"l2": l2, "decoupled": decoupled}.items()
    }


def walk(tx: optax.GradientTransformation, steps: int, copies: int, seed: int) -> np.ndarray:
    """The means over the copies, from the start on."""
    sizes = jnp.asarray(list(SIZES))[:, None]
    start = jnp.ones((len(SIZES), copies))

    def step(run: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        params, state = run
        gradients = sizes * jax.random.normal(key, params.shape)
        change, state = tx.update(gradients, state, params)
        moved: Any = optax.apply_updates(params, change)
        return (moved, state), jnp.mean(moved, axis=1)

    keys = jax.random.split(jax.random.key(seed), steps)
    run = (start, tx.init(start))
    means = jax.jit(lambda run: jax.lax.scan(step, run, keys)[1])(run)
    return np.concatenate([np.ones((1, len(SIZES))), means])


def draw(means: dict[str, np.ndarray]) -> Figure:
    """On the left L2, on the right decoupled decay; the same axes."""
    figure, axes = panels(1, 2, 3.6, sharey=True)
    steps = np.arange(len(means["l2"]))
    titles = "optax.adam with L2 regularization", "mo.adamw: decoupled decay"
    widths = (2, 2, 2), (7, 4, 1.5)  # so that all three are seen where they coincide
    for ax, values, title, width in zip(axes, means.values(), titles, widths, strict=True):
        for value, colour, w in zip(values.T, SIZES.values(), width, strict=True):
            ax.plot(steps, value, color=colour, linewidth=w, solid_capstyle="butt")
        ax.set(title=title, xlabel="step", xlim=(0, steps[-1]), ylim=(0, 1.04))
    places = ((0.02, 0.06), (0.47, 0.54), (0.4, 0.99))
    for (x, y), (size, colour) in zip(places, SIZES.items(), strict=True):
        write(axes[0], x * steps[-1], y, f"gradients of size {size:g}", colour)
    write(axes[1], 0.4 * steps[-1], 0.56, "all three sizes,\none over the other", "black")
    axes[0].set_ylabel("what is left of the parameters")
    return figure
