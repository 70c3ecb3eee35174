"""What no package computes in double precision, written out in NumPy from the papers.

Each function takes the gradients of one leaf, one a step, and gives the updates.
"""

from collections.abc import Iterator

import numpy as np

B1, B2, EPS = 0.9, 0.999, 1e-8
Stream = Iterator[np.ndarray]


def mvn_grad(gradients: np.ndarray, name: str) -> Stream:
    """Patitucci and Mokhtari (2026), without a floor of the variance."""
    m = v = u = np.zeros_like(gradients[0])
    for t, g in enumerate(gradients, 1):
        m = B1 * m + (1 - B1) * g
        v = B2 * v + (1 - B2) * (g - m) ** 2
        z = g / (np.sqrt(v / (1 - B2**t)) + EPS)
        u = B1 * u + (1 - B1) * z
        yield u / (1 - B1**t)


def adam_mini(gradients: np.ndarray, name: str) -> Stream:
    """Zhang et al. (2024): embeddings by element, a query by head, else one part."""
    heads = gradients.shape[2] if name.startswith("query") else 1
    m, v = np.zeros_like(gradients[0]), [0.0] * heads
    if name.startswith("embed"):
        v = [np.zeros_like(m)]
    for t, g in enumerate(gradients, 1):
        m = B1 * m + (1 - B1) * g
        update = np.empty_like(g)
        for head in range(heads):
            part = (slice(None), head) if heads > 1 else ...
            mean = g**2 if name.startswith("embed") else np.mean(g[part] ** 2)
            v[head] = B2 * v[head] + (1 - B2) * mean
            root = np.sqrt(v[head] / (1 - B2**t)) + EPS
            update[part] = m[part] / (1 - B1**t) / root
        yield update


def orthogonal(x: np.ndarray) -> np.ndarray:
    """Five steps of Newton and Schulz's iteration with the coefficients of Jordan's Muon."""
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T).T
    x = x / (np.sqrt(np.sum(x**2)) + 1e-8)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def normuon(gradients: np.ndarray, name: str) -> Stream:
    """Li et al. (2025), with an output unit in each column."""
    m, v = np.zeros_like(gradients[0]), np.zeros(gradients.shape[2])
    for t, g in enumerate(gradients, 1):
        m = 0.95 * m + 0.05 * g
        o = orthogonal(m / (1 - 0.95**t))
        v = 0.95 * v + 0.05 * np.mean(o**2, axis=0)
        o = o / (np.sqrt(v) + EPS)
        yield 0.2 * np.sqrt(o.size) * o / np.sqrt(np.sum(o**2))


def muon_nsr(gradients: np.ndarray, name: str) -> Stream:
    """Li et al. (2026), Muon-NSR, with their gamma at 1."""
    m = noise = np.zeros_like(gradients[0])
    for t, g in enumerate(gradients, 1):
        noise = 0.95 * noise + 0.95 * 0.05 * (m - g) ** 2
        m = 0.95 * m + 0.05 * g
        ahead = g + 0.95 / 0.05 * m / (1 - 0.95**t)
        yield orthogonal(ahead / np.sqrt(ahead**2 + noise / (1 - 0.95**t) + EPS))
