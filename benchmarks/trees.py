"""Parameter trees to measure on, as shapes."""

from collections.abc import Callable

Shapes = dict[str, tuple[int, ...]]


def transformer() -> Shapes:
    """A GPT-2-like decoder with its embeddings."""
    width, layers, words, places = 512, 6, 50_257, 1_024
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
        dense = {
            "query": (width, width),
            "key": (width, width),
            "value": (width, width),
            "out": (width, width),
        }
        for name, shape in dense.items():
            shapes[f"{block}/attention/{name}"] = shape
        shapes[f"{block}/attention/bias"] = (width,)
        shapes[f"{block}/up/kernel"], shapes[f"{block}/up/bias"] = (width, 4 * width), (4 * width,)
        shapes[f"{block}/down/kernel"] = (4 * width, width)
    return shapes


def many_leaves() -> Shapes:
    """A thousand small leaves."""
    return {f"leaf_{index}": (32, 16) if index % 2 else (16,) for index in range(1_000)}


TREES: dict[str, Callable[[], Shapes]] = {"transformer": transformer, "many-leaves": many_leaves}
