"""Noisy gradients for every optimizer of the gallery; NumPy alone, so that any package can run."""

import numpy as np

STEPS, RATE = 300, 0.1
KEPT = [*range(10), *range(19, STEPS, 10)]  # Which steps of a frozen trajectory are kept.
SHAPES = {
    "embed": (5, 3),
    "query/kernel": (4, 2, 3),
    "kernel": (4, 6),
    "tall": (7, 3),
    "bias": (6,),
}
MATRICES = ("kernel", "tall")


def parameters() -> dict[str, np.ndarray]:
    """Parameters, which stay: what decays or is measured by them is the same at each step."""
    random = np.random.default_rng(0)
    return {name: random.normal(0, 0.1, shape) for name, shape in SHAPES.items()}


def gradients(scale: float = 1.0) -> dict[str, np.ndarray]:
    """A gradient for each step, a mean under noise whose size changes from element to element."""
    random = np.random.default_rng(1)
    stream = {}
    for name, shape in SHAPES.items():
        mean = random.normal(0, 0.3, shape)
        size = 10 ** random.uniform(-1, 1, shape)
        stream[name] = scale * size * random.normal(mean, 1, (STEPS, *shape))
    return stream
