"""What a piece is: two small functions, which never see a tree."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial

from msvag_optax import _checks
from msvag_optax._trees import partials, paths
from msvag_optax._trees.driver import Rule
from msvag_optax._trees.layout import is_place
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
    r"""Makes a piece of two functions: of what all leaves share, and of one leaf.

    .. math::
        (h_t, A_t) = \mathrm{advance}(A_{t-1}), \qquad
        (u_t, a_t) = \mathrm{leaf}(h_t, g_t, a_{t-1}, p_{t-1})

    where :math:`h` is what all leaves share in a step, :math:`A` the part of the state that they
    share, :math:`a` the part of one leaf, :math:`g` its gradient, :math:`p` its parameter and
    :math:`u` its update. Trees are taken apart and put together elsewhere. A piece alone, or a
    `chain`, `from_estimates` or `optimizer` of pieces, is one kernel a leaf; its state is sharded
    like the parameters and is float32 or wider, whatever dtype parameters have. So are its updates;
    a `chain` and an `optimizer` give them the dtypes of the gradients.

    Args:
      init: makes the state from parameters, which are float32 or wider. It may map over their tree,
        by `jax.tree.map`, and must not look at the tree otherwise. What is mapped belongs to
        leaves; all else is shared. Each array of a leaf keeps the dtype that it has here. No array
        may be in the state twice: a donated state is updated in place.
      leaf: what happens to one leaf, `(shared, gradient, state, param) -> (update, state)`, in
        arrays of float32 or wider. The state has the part of this leaf in place of each tree, and
        None in place of what is shared; `param` is None where `update` was given no parameters. A
        `PerLeaf` chooses it by the name and shape of a parameter. A function at the top
        level of a module, with numbers bound by `jax.tree_util.Partial`, is compiled once for all
        numbers.
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
      TypeError: if `init`, `leaf`, `advance` or `read` is no function of such arguments, or a flag
        no bool; in `update`, if an extra argument is missing, or `leaf` returns another structure.

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
    _checks.check_function("init", init, "of parameters", "params")
    if not isinstance(leaf, paths.PerLeaf):
        arguments = "shared", "gradient", "state", "param"
        _checks.check_function("leaf", leaf, f"of {', '.join(arguments)}, or a PerLeaf", *arguments)
    if advance is not None:
        _checks.check_function("advance", advance, "of state and extra", "state", "extra")
    if read is not None:
        _checks.check_function("read", read, "of a state", "state")
    _checks.check_flags(estimates=estimates, needs_count=needs_count)
    if needs_count and advance is None:
        raise TypeError("`needs_count` must be False where there is no `advance`, which reads it.")
    rule = Rule(
        init if not isinstance(leaf, paths.PerLeaf) else functools.partial(_init, init, leaf),
        _still if advance is None else functools.partial(_advance, advance),
        partials.bind(_leaf, leaf),
        read,
        needs_count,
    )
    return from_rule(rule, estimates=estimates)


def _init(init: Callable[[Any], Any], leaf: paths.PerLeaf, params: Any) -> Any:
    if not is_place(params):
        leaf.check(params)
    return init(params)


def _advance(
    advance: Callable[..., tuple[Any, Any]], state: Any, extra: dict[str, Any]
) -> tuple[Any, Any]:
    return _pair(advance(state, extra), "advance", "what is shared and a state")


def _leaf(
    leaf: Partial, shared: Any, gradient: jax.Array, state: Any, param: Any
) -> tuple[Any, Any]:
    return _pair(leaf(shared, gradient, state, param), "leaf", "an update and a state")


def _pair(returned: Any, function: str, wanted: str) -> tuple[Any, Any]:
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(f"The `{function}` of a piece must return {wanted}, got {returned!r}.")
    return returned


def _still(state: Any, extra: dict[str, Any]) -> tuple[None, Any]:
    del extra
    return None, state
