"""A memory with an update rule of your own."""

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
      memory: a tree like the parameters, or several in the structure of `start`.
    """

    memory: Any


def recurrence(
    step: Callable[[Any, jax.Array], Any], start: Any | Callable[[jax.Array], Any] = 0.0
) -> Piece:
    r"""Remembers what an update rule of your own computes, where that is no weighted average.

    .. math::
        a_t = f(a_{t-1}, g_t)

    where :math:`f` is `step`, :math:`g_t` the gradient of one leaf and :math:`a_0` is `start`. The
    memory of a leaf is one array, such as AdaMax's fading maximum, or several, such as a mean and
    what depends on it (AdaBelief): a tuple, a NamedTuple or a dict.

    Args:
      step: a pure function of the arrays of one leaf, `(memory, gradient) -> memory`, in float32 or
        wider. It keeps the structure and the shapes of the memory.
      start: the memory before the first gradient: a number, with which an array of the parameter's
        shape is filled, or a function of one parameter (zeros, where `init` is given its shape)
        that returns an array; or, for several arrays, a tuple, NamedTuple or dict of these.

    Returns:
      An estimator whose estimate is the memory.

    Raises:
      TypeError: if `step` is no function of a memory and a gradient, or `start` is empty or
        has anything but real numbers and functions; in `update`, if `step` returns another
        structure.
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
    starts, structure = jax.tree.flatten(start)
    if not starts:
        raise TypeError(
            f"`start` must be a number, a function, or a tuple or dict of these, got {start!r}."
        )
    begins = [_begin(one) for one in starts]

    def init(params: optax.Params) -> RecurrenceState:
        # Trees in a structure, and not structures in a tree: so each array has its own parameter.
        return RecurrenceState(structure.unflatten([jax.tree.map(b, params) for b in begins]))

    leaf = partials.bind(_move, step)
    return piece(init, leaf, read=_read, estimates=True)


def _begin(start: Any) -> Callable[[jax.Array], jax.Array]:
    if callable(start):
        _checks.check_function("start", start, "of one parameter, or numbers", "param")
        return start
    number = _checks.number("start", start, "(-inf, inf)")
    return lambda param: jnp.full_like(param, number)


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
