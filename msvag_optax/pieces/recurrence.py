"""A memory that moves by a recurrence of one's own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax import _checks
from msvag_optax._trees import partials
from msvag_optax._trees.exportable import exportable
from msvag_optax._trees.rules import Piece
from msvag_optax.pieces.piece import piece


@exportable
class RecurrenceState(NamedTuple):
    """What `recurrence` remembers.

    Attributes:
      memory: a tree like the parameters, with the memory of each in its place.
    """

    memory: Any


def recurrence(
    step: Callable[[Any, jax.Array], Any], start: Any | Callable[[jax.Array], Any] = 0.0
) -> Piece:
    r"""Remembers whatever a recurrence makes of each gradient: what is no weighted average.

    .. math::
        s_t = f(s_{t-1}, g_t)

    where :math:`f` is `step`, :math:`g_t` the gradient of one leaf and :math:`s_0` is `start`. The
    memory of a leaf is one array, such as AdaMax's fading maximum, or several, such as a mean and
    what depends on it (AdaBelief): a tuple, a NamedTuple or a dict.

    Args:
      step: a pure function of the arrays of one leaf, `(memory, gradient) -> memory`, in float32 or
        wider. It keeps the structure and the shapes of the memory.
      start: the memory before the first gradient: a number, with which an array of the parameter's
        shape is filled; a tuple, NamedTuple or dict of numbers, for several arrays; or a function
        of one parameter that returns the memory, where its shape is another.

    Returns:
      An estimator whose estimate is the memory.

    Raises:
      TypeError: if `step` is no function of a memory and a gradient, or `start` has anything but
        real numbers; in `update`, if `step` returns another structure.
      ValueError: if `start` has a number that is not finite.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> largest = mo.recurrence(lambda norm, gradient: jnp.maximum(0.5 * norm, jnp.abs(gradient)))
    >>> state = largest.init(jnp.zeros(2))
    >>> for gradient in ([4.0, -1.0], [1.0, 3.0]):
    ...     estimate, state = largest.update(jnp.asarray(gradient), state)
    >>> print(estimate)
    [2. 3.]
    """
    _checks.check_function("step", step, "of memory and gradient", "memory", "gradient")
    if callable(start):
        _checks.check_function("start", start, "of one parameter, or numbers", "param")
        begin = start
    else:
        begin = Partial(_filled, jax.tree.map(_check_start, start))

    def init(params: optax.Params) -> RecurrenceState:
        return RecurrenceState(jax.tree.map(begin, params))

    leaf = partials.bind(_move, step)
    return piece(init, leaf, read=_read, estimates=True)


def _check_start(value: Any) -> Any:
    return _checks.number("start", value, "(-inf, inf)")


def _filled(numbers: Any, param: jax.Array) -> Any:
    return jax.tree.map(lambda number: jnp.full_like(param, number), numbers)


def _move(
    step: Partial, shared: None, gradient: jax.Array, state: Any, param: Any
) -> tuple[Any, RecurrenceState]:
    del shared, param
    memory = step(state.memory, gradient)
    given, returned = jax.tree.structure(state.memory), jax.tree.structure(memory)
    if given != returned:
        raise TypeError(f"`step` must return a memory like the one given, {given}, got {returned}.")
    return memory, RecurrenceState(memory)


def _read(state: Any) -> Any:
    return state.memory
