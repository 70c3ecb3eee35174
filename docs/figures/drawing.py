"""What the figures have in common: their size, their look, and names beside lines."""

import io
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from PIL import Image

from msvag_optax.compare import OPTIMIZERS
from msvag_optax.compare.picture import STYLE

COLOURS = {name: optimizer.colour for name, optimizer in OPTIMIZERS.items()}
GREY = "#555555"  # of what is no optimizer


def panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure as wide as a page, and its axes, row after row."""
    figure = Figure(figsize=(8, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **options).ravel()


def write(ax: Axes, x: float, y: float, text: str, colour: str, **options: Any) -> None:
    """Writes at a point of the data, to its right unless the options say otherwise."""
    where: dict[str, Any] = {"va": "center", "ha": "left", "fontsize": 9}
    ax.annotate(text, (x, y), color=colour, annotation_clip=False, **where | options)


def png(draw: Callable[[Any], Figure], data: Any) -> bytes:
    """The bytes of a picture on white, sharp on a screen of twice the usual resolution."""
    buffer, small = io.BytesIO(), io.BytesIO()
    with context(STYLE):
        draw(data).savefig(buffer, format="png", dpi=200, facecolor="white")
    # A palette is a third of the size. The version of matplotlib, by which equal pictures would
    # differ, is left out.
    image = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def updates(tx: optax.GradientTransformation, gradients: Any, params: Any) -> Any:
    """The update of each of many steps, at parameters that stay where they are."""

    @jax.jit
    def all_steps(gradients: Any) -> Any:
        def step(state: Any, gradient: Any) -> tuple[Any, Any]:
            update, state = tx.update(gradient, state, params)
            return state, update

        return jax.lax.scan(step, tx.init(params), gradients)[1]

    return jax.device_get(all_steps(gradients))
