"""State that `jax.export` can serialize."""

import contextlib
from typing import TypeVar

from jax import export

State = TypeVar("State", bound=type)


def exportable(kind: State) -> State:
    """Registers a NamedTuple of state, so that a training step that takes it can be serialized.

    A decorator. (The classes of optax that our states hold, `EmptyState` and `TraceState`, are not
    ours to register.)
    """
    with contextlib.suppress(ValueError):  # a module that is loaded again
        export.register_namedtuple_serialization(
            kind, serialized_name=f"msvag_optax.{kind.__name__}"
        )
    return kind
