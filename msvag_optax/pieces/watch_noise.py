"""A link that watches the noise within each step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax._trees import arrays, mesh_axes, paths, selection
from msvag_optax._trees.exportable import exportable
from msvag_optax._trees.layout import Parts
from msvag_optax._trees.rules import Piece
from msvag_optax._trees.selection import Selection
from msvag_optax.pieces.batch_variance import sample_in, variance_of
from msvag_optax.pieces.piece import piece
from msvag_optax.pieces.quantities import absolute_square
from msvag_optax.pieces.weightings import Weighting, check_weighting, weigh
from msvag_optax.wrappers.dependable import dependable


@exportable
class WatchNoiseState(NamedTuple):
    """What `watch_noise` remembers: two numbers a layer, and three for all.

    Attributes:
      observations: how many batches it has seen, int32.
      sum_of_squared_weights: of all of them; 1 over it is how many equally weighted batches would
        tell as much.
      examples: the weighted mean of the number of examples in a batch.
      variance: of each layer, the weighted mean of the variance of one example's gradient, summed
        over the elements.
      square_length: the weighted mean of the squared length of the batch's gradient less what noise
        adds to it; negative where noise, by chance, has added less.
    """

    observations: jax.Array
    sum_of_squared_weights: jax.Array
    examples: jax.Array
    variance: optax.Updates
    square_length: optax.Updates


def watch_noise(weighting: Weighting, *, stacked: Selection = ()) -> Piece:
    r"""Watches signal and noise within each batch, and passes the gradients on.

    .. math::
        V_t &= \sum_i \sigma^2_{t,i} \\
        L_t &= \sum_i |g_{t,i}|^2 - V_t / n

    over the elements :math:`i` of a layer, where :math:`g_t` is the gradient of a batch of
    :math:`n` examples and :math:`\sigma_t^2` the variance of one example's gradient, as
    `batch_variance` estimates it from the extra arguments `sum_sq_diff_grads` and `sample_size`.
    :math:`V_t` is an unbiased estimate of the variance of one example's gradient, and :math:`L_t`
    of the squared length of the true gradient. The state has the averages of both under
    `weighting`; `noise_scale` and `signal_to_noise` read them.

    It belongs at the head of a chain, where updates are still gradients. A batch of a traced size
    below 2 has no variance and is not counted.

    Args:
      weighting: what the newest batch counts, such as `exponential(0.99)`.
      stacked: which parameters hold a layer in each row of their leading axis, as for
        `layer_square_norm`; every other leaf is one layer.

    Returns:
      A link that changes no update.

    Raises:
      TypeError: if `weighting` is no `Weighting`, or `stacked` no sequence of strings and no such
        function; in `update`, if an extra argument is missing.
      ValueError: in `init`, if a pattern is found in no parameter's path, or that parameter is a
        scalar; in `update`, if the extra arguments do not fit the gradients, `sample_size` is known
        to be below 2, or a gradient inside of `shard_map` is not the whole batch's.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = mo.chain(mo.watch_noise(mo.exponential(0.9)), mo.momentum(0.9), optax.scale(-0.1))
    >>> state = tx.init(jnp.zeros(()))
    >>> for of_examples in ([1.0, 3.0, 5.0], [3.0, 5.0, 7.0]):  # variance 4
    ...     of_examples = jnp.asarray(of_examples)
    ...     gradient = of_examples.mean()
    ...     squares = jnp.sum((of_examples - gradient) ** 2)
    ...     updates, state = tx.update(gradient, state, sum_sq_diff_grads=squares, sample_size=3)
    >>> print(f"{mo.noise_scale(state):.3f}")  # in batches: 4 / 3 over about 4**2
    0.083

    Source: McCandlish et al., *An Empirical Model of Large-Batch Training* (2018), appendix A.
    """
    check_weighting(weighting)
    layers = selection.layers(stacked)
    newest = weigh(weighting)

    def init(params: optax.Params) -> WatchNoiseState:
        if jax.tree.leaves(params):
            layers.check(params)
        number = arrays.scalar_dtype()
        return WatchNoiseState(
            observations=jnp.zeros([], jnp.int32),
            sum_of_squared_weights=jnp.ones([], number),
            examples=jnp.zeros([], number),
            variance=paths.map_with_name(lambda name, p: _zeros(layers, name, p), params),
            square_length=paths.map_with_name(lambda name, p: _zeros(layers, name, p), params),
        )

    def advance(state: WatchNoiseState, extra: dict[str, Any]) -> Any:
        squares, size = sample_in(extra)
        is_sample = size >= 2
        observations = arrays.increment(state.observations)
        weight = newest(observations)
        rho = state.sum_of_squared_weights
        rho = rho + weight * (weight - (2 - weight) * rho)  # (1 - w)² rho + w²
        examples = arrays.lerp(state.examples, size, weight)
        moved = state._replace(
            observations=observations, sum_of_squared_weights=rho, examples=examples
        )
        over_size, over_others = (1 / jnp.maximum(n, 1) for n in (size, size - 1))
        shared = _Shared(squares, is_sample, weight, over_size, over_others)
        return shared, _if_counted(is_sample, moved, state)

    def at(name: str, shape: jax.ShapeDtypeStruct) -> Partial:
        return Partial(_observe_rows if layers.at(name, shape) else _observe)

    return dependable(piece(init, paths.PerLeaf(at, layers.check), advance=advance))


class _Shared(NamedTuple):
    """What the leaves share of a batch."""

    squares: Parts
    is_sample: jax.Array  # whether the batch is counted
    weight: jax.Array
    over_size: jax.Array
    over_others: jax.Array  # 1 / (n - 1)


def _if_counted(is_sample: jax.Array, moved: Any, state: Any) -> Any:
    """What has moved, or the state as it was; chosen, since a weight of 0 lets NaN through."""
    return jax.tree.map(lambda new, old: jnp.where(is_sample, new, old), moved, state)


def _zeros(layers: paths.PerLeaf, name: str, param: jax.Array) -> jax.Array:
    rows = layers.at(name, jax.ShapeDtypeStruct(param.shape, param.dtype))
    # A sum, and not a constant, so that rows lie as the parameter's do on a mesh.
    return jnp.zeros_like(_total(jnp.zeros_like(param.real), rows))


def _total(values: jax.Array, rows: bool) -> jax.Array:
    """The sum over a layer. Half of the largest float is its bound: no difference overflows."""
    axes = tuple(range(1, values.ndim)) if rows else None
    return jnp.minimum(jnp.sum(values, axis=axes, keepdims=rows), jnp.finfo(values.dtype).max / 2)


def _observe(
    shared: _Shared, gradient: jax.Array, state: Any, param: Any, rows: bool = False
) -> tuple[jax.Array, WatchNoiseState]:
    del param
    mesh_axes.check_whole(gradient, "Average gradients over the whole batch before you watch them.")
    variances = variance_of(gradient, shared.squares, shared.over_others)
    variance = _total(variances, rows)
    noise = variance * shared.over_size.astype(variance.dtype)
    square_length = _total(absolute_square(gradient), rows) - noise
    moved = state._replace(
        variance=arrays.lerp(state.variance, variance, shared.weight),
        square_length=arrays.lerp(state.square_length, square_length, shared.weight),
    )
    return gradient, _if_counted(shared.is_sample, moved, state)


def _observe_rows(
    shared: _Shared, gradient: jax.Array, state: Any, param: Any
) -> tuple[jax.Array, WatchNoiseState]:
    return _observe(shared, gradient, state, param, rows=True)
