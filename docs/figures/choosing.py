"""Questions about the gradients, and the optimizer that each leads to."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import msvag_optax as mo
from docs.figures.drawing import COLOURS, GREY, panels


class Answer(NamedTuple):
    """A question, what to try if the answer is yes, and the optimizers whose state is counted.

    The last asks nothing: it is what is left.
    """

    question: str
    advice: str
    built: tuple[optax.GradientTransformation, ...]
    colour: str


ANSWERS = (
    Answer(
        "Do you fine-tune with BERT's recipe?",
        "bert_adamw",
        (mo.bert_adamw(1e-4, 1_000, 100),),
        COLOURS["bert_adamw"],
    ),
    Answer(
        "Is memory short, or do layers\ndiffer in scale?",
        "novograd",
        (mo.novograd(1e-2),),
        COLOURS["novograd"],
    ),
    Answer(
        "Is the signal in rare,\nlarge gradients?",
        "amsgrad or expectigrad",
        (mo.amsgrad(1e-3), mo.expectigrad(1e-3)),
        COLOURS["amsgrad"],
    ),
    Answer(
        "Are some parameters, such as\nrows of an embedding, seldom used?",
        "optax.adagrad, or expectigrad\nwith sparse_counter=False",
        (optax.adagrad(1e-2), mo.expectigrad(1e-3, sparse_counter=False)),
        COLOURS["expectigrad"],
    ),
    Answer(
        "Does SGD with momentum work,\nand are small batches noisy?",
        "msvag",
        (mo.msvag(0.1),),
        COLOURS["msvag"],
    ),
    Answer("", "adamw", (mo.adamw(1e-3),), COLOURS["adamw"]),
)


def compute(width: int = 1_000) -> list[tuple[Answer, tuple[float, ...]]]:
    """Each answer with the bytes of state for each float32 parameter of a square layer."""
    layer = {"kernel": jax.ShapeDtypeStruct((width, width), jnp.float32)}

    def state_bytes(tx: optax.GradientTransformation) -> float:
        leaves = jax.tree.leaves(jax.eval_shape(tx.init, layer))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / width**2

    return [(answer, tuple(map(state_bytes, answer.built))) for answer in ANSWERS]


def draw(answers: list[tuple[Answer, tuple[float, ...]]]) -> Figure:
    """Questions one below the other on the left; what a yes leads to on the right."""
    figure, (ax,) = panels(1, 1, 5)
    ax.set(xlim=(0, 10), ylim=(-len(answers) + 0.55, 0.45))
    ax.set_axis_off()
    arrow = {"arrowstyle": "->", "color": GREY, "shrinkA": 0, "shrinkB": 0}
    for row, (answer, sizes) in enumerate(answers):
        x = 6.0 if answer.question else 1.65
        if answer.question:
            box = Rectangle((0.3, -row - 0.3), 4.4, 0.6, facecolor="white", edgecolor=GREY)
            ax.add_patch(box)
            ax.text(2.5, -row, answer.question, ha="center", va="center", fontsize=10)
            ax.annotate("", (5.8, -row), (4.7, -row), arrowprops=arrow)
            ax.text(5.2, -row + 0.08, "yes", color=GREY, ha="center", fontsize=9)
            ax.annotate("", (2.5, -row - 0.7), (2.5, -row - 0.3), arrowprops=arrow)
            ax.text(2.6, -row - 0.5, "no", color=GREY, va="center", fontsize=9)
        memory = " or ".join(dict.fromkeys(f"{size:.0f}" for size in sizes))
        bytes_kept = f"{memory} bytes of state a parameter"
        bold = {"fontweight": "bold", "color": answer.colour, "linespacing": 1.1}
        ax.text(x, -row - 0.05, answer.advice, va="bottom", fontsize=10.5, **bold)
        ax.text(x, -row - 0.1, bytes_kept, va="top", fontsize=9, color=GREY)
    return figure
