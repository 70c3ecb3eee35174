"""What a piece is: two small functions, which never see a tree."""

from collections.abc import Callable
from typing import Any

from msvag_optax import _checks
from msvag_optax._trees import paths
from msvag_optax._trees.driver import Rule
from msvag_optax._trees.rules import Piece, from_rule


def piece(
    init: Callable[[Any], Any],
    leaf: Callable[..., Any] | paths.PerLeaf,
    *,
    advance: Callable[[Any, dict[str, Any]], tuple[Any, Any]] | None = None,
    read: Callable[[Any], Any] | None = None,
    estimates: bool = False,
    needs_count: bool = False,
) -> Piece:
    r"""Makes a piece of what all leaves share, and of what becomes of one leaf.

    .. math::
        (c_t, S_t) = \mathrm{advance}(S_{t-1}), \qquad
        (u_t, s_t) = \mathrm{leaf}(c_t, g_t, s_{t-1}, p_{t-1})

    where :math:`S` is the part of the state that all leaves share, :math:`s` that of one leaf,
    :math:`g` its gradient, :math:`p` its parameter and :math:`u` its update. Trees are taken apart
    and put together elsewhere. A piece alone, or a `chain`, `from_estimates` or `optimizer` of
    pieces, is one kernel a leaf; its state lies like the parameters on a mesh and is float32 or
    wider, whatever dtype parameters have.

    Args:
      init: makes the state from parameters, which are float32 or wider. It may map over their tree,
        by `jax.tree.map`, and look at nothing else of it. What is mapped belongs to leaves; all
        else is shared. Each array keeps the dtype that it has here.
      leaf: what becomes of one leaf, `(shared, gradient, state, param) -> (update, state)`, in
        arrays of float32 or wider. The state has the part of this leaf in place of each tree, and
        None in place of what is shared; `param` is None where `update` was given no parameters. A
        `PerLeaf` chooses it by the name and shape of a parameter. A function that stands in its
        module, with numbers bound by `jax.tree_util.Partial`, is compiled once for all numbers.
      advance: moves what is shared, once a step, `(state, extra) -> (shared, state)`. The state has
        None in place of each tree; `extra` has the extra arguments of `update`. What it wraps in
        `Parts`, a tree like the updates, is taken apart: each leaf gets its part. None shares
        nothing.
      read: the estimate that the state of a leaf holds, `state -> estimate`, for `before`.
      estimates: whether the output is an estimate and not an update.
      needs_count: whether `advance` reads `extra["count"]`, the number of updates made so far. An
        `optimizer` has one count for all; a piece that is given none counts for itself.

    Returns:
      The piece, an `Estimator` if `estimates`.

    Raises:
      TypeError: if `init`, `leaf`, `advance` or `read` is no function, or a flag no bool.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> def largest(decay):  # AdaMax's second moment: the largest gradient, which fades
    ...     def leaf(shared, gradient, norm, param):
    ...         norm = jnp.maximum(decay * norm, jnp.abs(gradient))
    ...         return norm, norm
    ...     def init(params):
    ...         return jax.tree.map(jnp.zeros_like, params)
    ...     return mo.piece(init, leaf, estimates=True)
    >>> estimator = largest(0.5)
    >>> state = estimator.init({"w": jnp.zeros(2)})
    >>> for gradient in ([4.0, -1.0], [1.0, 3.0]):
    ...     estimate, state = estimator.update({"w": jnp.asarray(gradient)}, state)
    >>> print(estimate["w"])
    [2. 3.]
    """
    for name, function in (("init", init), ("advance", advance), ("read", read)):
        if not callable(function) and (name == "init" or function is not None):
            raise TypeError(f"`{name}` must be a function, got {function!r}.")
    if not callable(leaf) and not isinstance(leaf, paths.PerLeaf):
        raise TypeError(f"`leaf` must be a function or a PerLeaf, got {leaf!r}.")
    _checks.check_flags(estimates=estimates, needs_count=needs_count)
    rule = Rule(init, advance or _still, leaf, read, needs_count)
    return from_rule(rule, estimates=estimates)


def _still(state: Any, extra: dict[str, Any]) -> tuple[None, Any]:
    del extra
    return None, state
