"""An optimizer with its promises, and the ways in which it is run."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import optax

from msvag_optax.testing.trees import PARAMS, RATE, STREAM, copied


class NotRunError(Exception):
    """A check does not apply, or lacks what it needs; it says why."""


Scale = Literal["equivariant", "invariant", None]
Reach = Literal["element", "row", "leaf", "tree"]
CHOICES = {"scale": get_args(Scale), "reach": get_args(Reach)}


class Row(NamedTuple):
    """An optimizer and what it promises.

    Attributes:
      name: what reports call it.
      build: makes the optimizer. It takes a learning rate first, under the name `learning_rate`,
        and has defaults for whatever else it takes.
      scale: what happens to the update if all gradients are scaled by one positive number: it is
        scaled too ("equivariant"), it stays ("invariant"), or neither (None).
      reach: how far the gradient of one element is felt: by itself alone ("element"), by its index
        of the leaf's leading axis ("row"), by its leaf, or by the whole tree.
      needs_params: whether `update` needs `params`.
      schedules: whether `learning_rate` may be a schedule.
      clock: whether `optax.tree.get(state, "count")` finds one count of the updates made.
      state: what else `optax.tree.get` finds in the state.
      rate: the learning rate at which the optimizer reaches the targets of `check_convergence`.
      reference: makes an optimizer whose steps it takes, from the same learning rate.
    """

    name: str
    build: Callable[..., Any]
    scale: Scale = None
    reach: Reach = "element"
    needs_params: bool = False
    schedules: bool = True
    clock: bool = True
    state: tuple[str, ...] = ()
    rate: float = 0.1
    reference: Callable[..., Any] | None = None


class Trajectory(NamedTuple):
    """All updates, stacked or in a list, and where they led."""

    updates: Any
    params: Any
    state: Any


@functools.cache
def trajectory(row: Row) -> Callable[[Any, Any, Any], Trajectory]:
    """A compiled scan from learning rate, parameters and stacked gradients to a trajectory.

    It is compiled once for all who run it on the same shapes.
    """

    @jax.jit
    def run(rate: Any, params: Any, gradients: Any) -> Trajectory:
        tx = row.build(rate)

        def step(carry: Any, gradient: Any) -> Any:
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), updates

        (params, state), updates = jax.lax.scan(step, (params, tx.init(params)), gradients)
        return Trajectory(updates, params, state)

    return run


@functools.cache
def compiled_step(row: Row) -> Callable[[Any, Any, Any], tuple[Any, Any, Any]]:
    """From gradient, parameters and state, both donated, to updates and the new two.

    It refuses to be traced twice.
    """
    tx = row.build(RATE)
    traces = []

    def step(gradient: Any, params: Any, state: Any) -> tuple[Any, Any, Any]:
        traces.append(jax.tree.map(jax.typeof, state))
        assert len(traces) == 1, f"compiled anew; the types of the state were {traces}"
        updates, state = tx.update(gradient, state, params)
        return updates, optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(1, 2))


def run_eagerly(tx: Any, stream: Any = STREAM, params: Any = PARAMS) -> Trajectory:
    """The trajectory of one `update` after the other, outside of `jit`."""
    state = tx.init(params)
    collected = []
    for gradient in stream:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        collected.append(updates)
    return Trajectory(collected, params, state)


def run_compiled(row: Row, stream: Any, params: Any, state: Any) -> Trajectory:
    """The trajectory of `compiled_step`; what it is given survives."""
    params, state = copied(params), copied(state)
    collected = []
    for gradient in stream:
        updates, params, state = compiled_step(row)(gradient, params, state)
        collected.append(updates)
    return Trajectory(collected, params, state)
