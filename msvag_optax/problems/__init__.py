"""Small problems where theory, or the eye, can tell who is right.

Each is a `Problem`: four pure functions and nothing about optimizers. The core of the library never
imports them; they need the `demo` extra.

* `digits`: real images and a small Flax network (in `msvag_optax.problems.digits`).
* `reddi_online`, `reddi_stochastic`: the counterexample on which Adam goes the wrong way.
* `noisy_quadratic`: known curvature, known noise, and the expected loss in closed form.
* `char_lm`: an LSTM on the characters of Python's own sources (in `msvag_optax.problems.char_lm`).
* `rare_words`: a table of words, most of which are seldom used (in
  `msvag_optax.problems.rare_words`).
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from msvag_optax.problems.noisy_quadratic import noisy_quadratic as noisy_quadratic
from msvag_optax.problems.problem import Problem as Problem
from msvag_optax.problems.reddi import reddi_online as reddi_online
from msvag_optax.problems.reddi import reddi_stochastic as reddi_stochastic


def _from_module(name: str) -> Problem:
    # Only these need Flax, and `digits` scikit-learn: who wants another does not wait for them.
    return getattr(importlib.import_module(f"msvag_optax.problems.{name}"), name)()


PROBLEMS: Mapping[str, Callable[[], Problem]] = MappingProxyType(
    {
        "digits": functools.partial(_from_module, "digits"),
        "reddi-online": reddi_online,
        "reddi-stochastic": reddi_stochastic,
        "noisy-quadratic": noisy_quadratic,
        "char-lm": functools.partial(_from_module, "char_lm"),
        "rare-words": functools.partial(_from_module, "rare_words"),
    }
)
"""Every problem that `python -m msvag_optax.compare` offers, by name, with its default settings."""
