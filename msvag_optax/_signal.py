"""Signal and noise of each layer, as far as the state of an optimizer tells."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from msvag_optax import _compat
from msvag_optax._trees import arrays, mesh_axes, paths, selection
from msvag_optax._trees.selection import Selection
from msvag_optax.pieces.quantities import square
from msvag_optax.pieces.running_moments import Moments, RunningMomentsState, moments_in
from msvag_optax.pieces.watch_noise import WatchNoiseState


class Found(NamedTuple):
    """Signal and noise of each layer, and where they come from.

    Attributes:
      signal: the squared length of the gradient without noise; it may be negative, by chance.
      noise: the variance of one batch's gradient.
      source: "within steps" or "over steps".
      steps: over how many steps they are averaged.
      examples: the mean number of examples in a batch, where it is known.
      is_enough: whether there are enough steps to say anything.
      remedy: what to do where that is not so, or no signal is found.
    """

    signal: Any
    noise: Any
    source: str
    steps: jax.Array
    examples: jax.Array | None
    is_enough: jax.Array
    remedy: str

    def check_steps(self) -> None:
        if not _compat.is_tracer(self.is_enough) and not self.is_enough:
            raise ValueError(f"There are not enough steps to read the noise from. {self.remedy}")


_WATCH = (
    "Moments over steps lose the signal where steps are large, since each gradient then undoes the "
    "noise of the one before: compare gradients within each step, by `watch_noise`."
)
_WAIT = "Average over more steps, or take larger batches. (A batch of one example tells nothing.)"


def find(state: optax.OptState, stacked: Selection = ()) -> Found:
    layers = selection.layers(stacked)
    watched = _nodes_of(state, WatchNoiseState)
    if not watched:
        moments = _nodes_of(state, RunningMomentsState)
        return _over_steps(_one_of(moments, "the moments of the gradients", "watch_noise"), layers)
    if stacked != ():
        raise ValueError(
            "`stacked` must be given to `watch_noise` itself, where that is in the chain: its "
            "state has one pair of numbers for each layer."
        )
    return _within_steps(_one_of(watched, "the noise of the batches", "watch_noise"))


def _within_steps(state: WatchNoiseState) -> Found:
    _check_whole(state.square_length)
    observations, rho, examples = map(_number, state[:3])
    is_enough = observations > 0
    return Found(
        signal=jax.tree.map(_layers, state.square_length),
        noise=jax.tree.map(lambda v: _layers(v) / jnp.maximum(examples, 1), state.variance),
        source="within steps",
        steps=jnp.where(is_enough, 1 / rho, 0),
        examples=examples,
        is_enough=is_enough,
        remedy=_WAIT,
    )


def _over_steps(state: RunningMomentsState, layers: paths.PerLeaf) -> Found:
    _check_whole(state.mean)
    layers.check(state.mean)
    rho = _number(state.sum_of_squared_weights)

    def signal_and_noise(name: str, moments: Moments) -> tuple[jax.Array, jax.Array]:
        shape = jax.ShapeDtypeStruct(moments.mean.shape, moments.mean.dtype)
        return _signal_and_noise(moments, layers.at(name, shape))

    pairs = jax.tree.map(signal_and_noise, paths.path_names(state.mean), moments_in(state))
    signal, noise = (
        jax.tree.map(lambda _, pair, i=i: pair[i], state.mean, pairs) for i in range(2)
    )
    return Found(
        signal=signal,
        noise=noise,
        source="over steps",
        steps=jnp.where(rho < 1, 1 / rho, _number(state.observations)),
        examples=None,
        is_enough=rho < 1,
        remedy=_WATCH,
    )


def _signal_and_noise(moments: Moments, rows: bool = False) -> tuple[jax.Array, jax.Array]:
    axes = tuple(range(1, moments.mean.ndim)) if rows else None

    def total(x: jax.Array) -> jax.Array:
        return arrays.saturate(jnp.sum(x, axis=axes))

    signal = total(square(moments.mean)) - total(moments.variance_of_mean)
    return signal, total(moments.variance)


def _layers(kept: jax.Array) -> jax.Array:
    """What is kept of a leaf: a number, or one for each of the layers in it."""
    return kept.ravel() if kept.ndim else kept


def _number(kept: Any) -> jax.Array:
    """A number that all leaves share; Flax NNX boxes what it holds."""
    (number,) = jax.tree.leaves(kept)
    return jnp.asarray(number)


def _nodes_of(state: optax.OptState, kind: type) -> list[Any]:
    def is_found(node: Any) -> bool:
        return isinstance(node, kind)

    return [node for node in jax.tree.leaves(state, is_leaf=is_found) if is_found(node)]


def _one_of(nodes: list[Any], what: str, link: str) -> Any:
    if len(nodes) != 1:
        raise ValueError(
            f"`state` must keep {what} in one place (see `{link}`), "
            f"got a state that keeps {f'them in {len(nodes)}' if nodes else 'none'}."
        )
    return nodes[0]


def _check_whole(tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        mesh_axes.check_whole(leaf, "Read the state outside of `shard_map`.")
