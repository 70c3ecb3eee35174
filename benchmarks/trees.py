"""Parameter trees to measure on, as shapes."""

from collections.abc import Callable
from typing import Any

import jax

Shapes = dict[str, tuple[int, ...]]


def abstract(shapes: Shapes, dtype: Any = "float32") -> dict[str, jax.ShapeDtypeStruct]:
    """Parameters without values."""
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}


def transformer(
    width: int = 512, layers: int = 6, words: int = 50_257, places: int = 1_024
) -> Shapes:
    """A GPT-2-like decoder with its embeddings."""
    shapes: Shapes = {
        "embedding/words": (words, width),
        "embedding/places": (places, width),
        "norm/scale": (width,),
        "norm/bias": (width,),
    }
    for layer in range(layers):
        block = f"block_{layer}"
        for norm in ("norm_1", "norm_2"):
            shapes |= {f"{block}/{norm}/{leaf}": (width,) for leaf in ("scale", "bias")}
        for name in ("query", "key", "value", "out"):
            shapes[f"{block}/attention/{name}"] = (width, width)
        shapes[f"{block}/attention/bias"] = (width,)
        shapes[f"{block}/up/kernel"], shapes[f"{block}/up/bias"] = (width, 4 * width), (4 * width,)
        shapes[f"{block}/down/kernel"] = (4 * width, width)
    return shapes


def resnet_50() -> Shapes:
    """ResNet-50, for a thousand classes."""
    shapes: Shapes = {"stem/conv": (7, 7, 3, 64), "stem/norm/scale": (64,), "stem/norm/bias": (64,)}
    wide = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            kernels = {"1": (1, 1, wide, width), "2": (3, 3, width, width)}
            kernels |= {"3": (1, 1, width, 4 * width)}
            if block == 0:
                kernels |= {"shortcut": (1, 1, wide, 4 * width)}
            for name, kernel in kernels.items():
                layer = f"stage_{stage}/block_{block}/{name}"
                shapes[f"{layer}/conv"] = kernel
                shapes |= {f"{layer}/norm/{leaf}": kernel[-1:] for leaf in ("scale", "bias")}
            wide = 4 * width
    return shapes | {"head/kernel": (wide, 1_000), "head/bias": (1_000,)}


def many_leaves(leaves: int = 1_000, matrix: tuple[int, int] = (32, 16)) -> Shapes:
    """A thousand small leaves."""
    return {f"leaf_{index}": matrix if index % 2 else (16,) for index in range(leaves)}


def embedding() -> Shapes:
    """An embedding of 50,000 rows, and a small network on top of it."""
    return {
        "embedding": (50_000, 256),
        "hidden/kernel": (256, 512),
        "hidden/bias": (512,),
        "head/kernel": (512, 2),
        "head/bias": (2,),
    }


TREES: dict[str, Callable[[], Shapes]] = {
    "transformer": transformer,
    "resnet-50": resnet_50,
    "many-leaves": many_leaves,
    "embedding": embedding,
}
