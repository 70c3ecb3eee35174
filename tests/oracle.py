"""SVAG's and M-SVAG's moments from their definition, in float64, without any recurrence of ours."""

from typing import NamedTuple

import numpy as np


class OracleStep(NamedTuple):
    """The moments after a step, as arrays of the gradient's shape."""

    mean: np.ndarray
    second_moment: np.ndarray
    variance: np.ndarray
    variance_of_mean: np.ndarray


def moments(gradients: np.ndarray, weights: np.ndarray) -> OracleStep:
    """The moments of `gradients` (steps first), whose weights sum to one, in two passes."""
    gradients = gradients.astype(np.float64)
    mean = np.tensordot(weights, gradients, 1)
    biased = np.tensordot(weights, (gradients - mean) ** 2, 1)
    rho = np.sum(weights**2)
    variance = biased / (1 - rho) if len(weights) > 1 and rho < 1 else np.zeros_like(biased)
    return OracleStep(mean, np.tensordot(weights, gradients**2, 1), variance, rho * variance)


def exponential_weights(beta: float, count: int) -> np.ndarray:
    """The weights of `count` observations in the bias-corrected exponential mean, oldest first."""
    powers = np.float64(beta) ** np.arange(count - 1, -1, -1)
    return powers / powers.sum()


def weights_of(newest: np.ndarray) -> np.ndarray:
    """The weights of all observations where each new one counted `newest[t]` on its arrival."""
    weights = np.asarray(newest, np.float64)
    older = np.append(np.cumprod((1 - weights)[::-1])[::-1][1:], 1.0)
    return weights * older


def adapted_mean(step: OracleStep) -> np.ndarray:
    """M-SVAG's direction."""
    square = step.mean**2
    total = square + step.variance_of_mean
    return np.where(total > 0, square / np.where(total > 0, total, 1), 0) * step.mean


def adapted_gradient(step: OracleStep, gradient: np.ndarray) -> np.ndarray:
    """SVAG's direction."""
    square = step.mean**2
    total = square + step.variance
    return np.where(total > 0, square / np.where(total > 0, total, 1), 0) * gradient
