"""What the figures and tables of all notebooks share; the modules here are of one notebook each."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image as Picture

Styles = dict[Any, dict[str, Any]]  # the looks of lines, by what they show

GREY = "#555555"  # of what explains a figure

plt.style.use("msvag_optax.compare.figures")


def show(figure: Figure, alt: str) -> None:
    """Displays a figure, with words for those who do not see it, as a PNG of few colours."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    plt.close(figure)
    picture = Picture.open(drawn).convert("RGB")
    # No more colours than the eye can tell apart here: a third of the bytes.
    picture.quantize(96, dither=Picture.Dither.NONE).save(small, "PNG", optimize=True)
    display(Image(small.getvalue(), alt=alt))


def say(text: str) -> None:
    """Displays Markdown, such as a conclusion with numbers in it."""
    display(Markdown(text))


def table(header: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Displays a table; what is not in the first column is aligned on the right."""
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    body = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    say(f"{title}\n\n{body}" if title else body)


def half_decades(low: float, high: float) -> list[float]:
    """From 10**low to 10**high."""
    return [float(10**exponent) for exponent in np.arange(low, high + 0.01, 0.5)]


def median_and_range(values: Any, spec: str) -> str:
    """The median over the seeds and, in brackets, the least and the greatest."""
    return f"{np.median(values):{spec}} ({np.min(values):{spec}} to {np.max(values):{spec}})"


def line(ax: Axes, x: Any, values: Any, label: str = "", **style: Any) -> None:
    """A line for the median over the seeds, the last axis, and a band from least to greatest."""
    low, high = np.min(values, axis=-1), np.max(values, axis=-1)
    ax.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)
    ax.plot(x, np.median(values, axis=-1), label=label or None, **style)


def name_lines(axes: Iterable[Axes], columns: int, **options: Any) -> None:
    """A legend below each panel, where it covers no line."""
    for ax in axes:
        ax.legend(
            loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=5, ncols=columns, **options
        )
