"""The layers of a network: how long their gradients are, and the steps that come of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import msvag_optax as mo
from docs.figures.drawing import COLOURS, panels, updates, write
from msvag_optax.problems.digits import digits

RATE, B2 = 0.01, 0.98

Lengths = dict[str, dict[str, np.ndarray]]


def compute(steps: int = 300, seed: int = 0) -> Lengths:
    """The length of each leaf's gradient by step, and of NovoGrad's and Adam's step, in rates.

    NovoGrad trains the network; Adam is shown the gradients that NovoGrad sees.
    """
    problem, key = digits(), jax.random.key(seed)
    tx = mo.novograd(RATE, b2=B2)

    def step(run: tuple, t: jax.Array) -> tuple[tuple, tuple]:
        params, state = run
        gradient = problem.value_and_grad(params, t, jax.random.fold_in(key, t + 1))[1]
        update, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, update), state), (gradient, update)

    params = problem.init(key)
    run = (params, tx.init(params))
    gradients, steps_of = jax.jit(lambda run: jax.lax.scan(step, run, jnp.arange(steps))[1])(run)
    adams = updates(optax.adam(1.0, b2=B2), gradients, params)
    return {
        "gradient": lengths(gradients, 1.0),
        "novograd": lengths(steps_of, RATE),
        "adam": lengths(adams, 1.0),
    }


def lengths(trees: optax.Updates, unit: float) -> dict[str, np.ndarray]:
    """The length of each leaf, step by step; the root of the mean square over five steps."""
    found = {}
    for name, leaf in zip(
        jax.tree.leaves(mo.path_names(trees)), jax.tree.leaves(trees), strict=True
    ):
        squares = np.square(np.asarray(leaf)).reshape(len(leaf), -1).sum(axis=1)
        found[name] = np.sqrt(squares[: len(leaf) // 5 * 5].reshape(-1, 5).mean(axis=1)) / unit
    return found


def draw(found: Lengths) -> Figure:
    """Three panels: gradients, NovoGrad's steps, Adam's steps; each spans as many decades."""
    figure, axes = panels(1, 3, 3.6)
    titles = ("Length of the gradient", "NovoGrad's step, in rates", "Adam's step, in rates")
    bottoms = (0.01, 0.15, 0.2)
    names = {"kernel": COLOURS["msvag"], "bias": COLOURS["amsgrad"]}
    for ax, leaves, title, bottom in zip(axes, found.values(), titles, bottoms, strict=True):
        for leaf, length in leaves.items():
            colour = names[leaf.rpartition("/")[2]]
            ax.semilogy(5 * np.arange(len(length)), length, color=colour, linewidth=1.3)
        ax.set(title=title, xlabel="step", ylim=(bottom, 300 * bottom))
    places = ((1.7, 0.016), (13, 0.3), (47, 0.24))
    for ax, heights in zip(axes, places, strict=True):
        for height, (name, colour) in zip(heights, names.items(), strict=True):
            plural = {"kernel": "three kernels", "bias": "three biases"}[name]
            write(ax, 60, height, plural, colour)
    return figure
