"""Small problems where theory, or the eye, can tell who is right.

Each is a `Problem`: four pure functions and nothing about optimizers. The core of the library never
imports them; they need the `demo` extra.

* `digits`: real images and a small Flax network (in `msvag_optax.problems.digits`).
* `reddi_online`, `reddi_stochastic`: the counterexample on which Adam goes the wrong way.
* `noisy_quadratic`: known curvature, known noise, and the expected loss in closed form.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from msvag_optax.problems.noisy_quadratic import noisy_quadratic as noisy_quadratic
from msvag_optax.problems.problem import Problem as Problem
from msvag_optax.problems.reddi import reddi_online as reddi_online
from msvag_optax.problems.reddi import reddi_stochastic as reddi_stochastic


def _digits() -> Problem:
    # Only this problem needs scikit-learn and Flax: who wants another does not wait for them.
    from msvag_optax.problems.digits import digits

    return digits()


PROBLEMS: Mapping[str, Callable[[], Problem]] = MappingProxyType(
    {
        "digits": _digits,
        "reddi-online": reddi_online,
        "reddi-stochastic": reddi_stochastic,
        "noisy-quadratic": noisy_quadratic,
    }
)
"""Every problem that `python -m msvag_optax.compare` offers, by name, with its default settings."""
