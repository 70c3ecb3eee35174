"""Outcomes made up for tests of what reads them."""

import numpy as np

from msvag_optax import compare

COLUMNS = compare.EXPERIMENTS["noisy-quadratic"].columns


def outcome(name="sgd", losses=((0.2, 0.4), (0.1, 0.3)), rates=(0.1, 1.0)) -> compare.Outcome:
    """An outcome that measured 1.0 at the start and `losses[seed][rate]` at the end."""
    final = np.asarray(losses, np.float32)
    return compare.Outcome(
        name,
        np.asarray(rates),
        steps=np.array([0, 10]),
        history={"expected loss": np.stack([np.ones_like(final), final])},
        seconds=1.234e-6,
        state_bytes=4.0,
        parameters=100,
    )
