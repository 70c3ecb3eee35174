"""The signal-to-noise ratio of each layer during a training, as a heat map."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from msvag_optax._trees import paths
from msvag_optax.compare.picture import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure


def noise_map(ratios: Any, steps: Any, *, title: str = "") -> "Figure":
    """Draws the layers of a network by the steps of its training, coloured by signal to noise.

    Args:
      ratios: a tree like the parameters', with what `signal_to_noise` has read at each moment: an
        array of shape (moments,), or (moments, layers) where layers are stacked. That is what
        `lax.scan` returns of it; of a list of trees, `jax.tree.map(lambda *r: jnp.stack(r), *list)`
        makes it.
      steps: the number of the step at each moment, increasing.
      title: of the figure.

    Returns:
      A matplotlib figure, which belongs to no window. Colours are logarithmic; where no signal
      could be told from noise there is grey.

    Raises:
      ValueError: if there is no layer, or one has not as many moments as there are steps.

    >>> import jax.numpy as jnp
    >>> from msvag_optax.compare import noise_map
    >>> ratios = {"kernel": jnp.asarray([1.0, 0.5]), "bias": jnp.asarray([0.3, 0.0])}
    >>> figure = noise_map(ratios, [50, 100])
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['bias', 'kernel']
    """
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = _rows(ratios, len(steps))
    with style.context(STYLE):
        figure = Figure(figsize=(8, 1.6 + 0.28 * len(rows)))
        axes = figure.subplots()
        bar = figure.colorbar(_draw(axes, rows, np.asarray(steps)), ax=axes)
        bar.set_label("signal-to-noise ratio")
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(title)
    return figure


def _rows(ratios: Any, moments: int) -> dict[str, np.ndarray]:
    """The readings of each layer, under its name."""
    rows = {}
    names = jax.tree.leaves(paths.path_names(ratios))
    for name, leaf in zip(names, map(np.asarray, jax.tree.leaves(ratios)), strict=True):
        if leaf.ndim not in (1, 2) or len(leaf) != moments:
            raise ValueError(
                f"The ratios of {name!r} must have shape ({moments},) or ({moments}, layers), one "
                f"for each of the steps, got {leaf.shape}."
            )
        if leaf.ndim == 1:
            rows[name] = leaf
        else:
            rows |= {f"{name}/{layer}": leaf[:, layer] for layer in range(leaf.shape[1])}
    if not rows:
        raise ValueError(f"`ratios` must have a layer or more, got {ratios!r}.")
    return rows


def _draw(axes: "Axes", rows: dict[str, np.ndarray], steps: np.ndarray) -> "QuadMesh":
    import matplotlib as mpl
    from matplotlib.colors import LogNorm

    values = np.stack([*rows.values()])
    values = np.ma.masked_where(~(np.isfinite(values) & (values > 0)), values)
    colours = mpl.colormaps["viridis"].with_extremes(bad="#cccccc")
    middles = (steps[1:] + steps[:-1]) / 2
    ends = np.array([steps[0], *middles, steps[-1]]) if len(steps) > 1 else steps[0] + [-0.5, 0.5]
    # It finds no limits of its own where all is grey.
    scale = LogNorm() if values.count() else LogNorm(0.1, 1.0)
    image = axes.pcolormesh(ends, np.arange(len(rows) + 1), values, cmap=colours, norm=scale)
    axes.set_yticks(np.arange(len(rows)) + 0.5, [*rows])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlabel("step")
    return image
