"""Which parameters an argument selects: by patterns of their paths, or by name and shape."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from msvag_optax import _checks
from msvag_optax._trees import paths
from msvag_optax._trees.paths import PerLeaf

Selector = str | Callable[[str, jax.ShapeDtypeStruct], bool] | PerLeaf
Selection = Sequence[Selector] | Callable[[str, jax.ShapeDtypeStruct], bool] | PerLeaf


def fewer_than_two_axes(*, stacked: Selection = ()) -> PerLeaf:
    """What usually does not decay: biases, scales of norms, and all else that is not a matrix.

    Args:
      stacked: which parameters hold a layer in each row of their leading axis (as in models that
        scan over layers), so that the axes of one layer count: regular expressions, searched in
        their paths, or a function `(name, shape) -> bool`.

    Returns:
      What `exclude_from_weight_decay` takes: a record and not a function, so that
      `optax.inject_hyperparams` cannot take it for a schedule.

    Raises:
      TypeError: if `stacked` is no sequence of strings and no such function.
      ValueError: if a pattern is no regular expression; in `init`, if a pattern is found in no
        parameter's path, or that parameter is a scalar.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> tx = mo.adamw(0.1, weight_decay=0.5, exclude_from_weight_decay=mo.fewer_than_two_axes())
    >>> params = {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}
    >>> gradients = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
    >>> updates, _ = tx.update(gradients, tx.init(params), params)
    >>> print(updates["kernel"].ravel(), updates["bias"])
    [-0.05] [0.]
    """
    rows = layers(stacked)

    def at(name: str, shape: jax.ShapeDtypeStruct) -> bool:
        return len(shape.shape) - rows.at(name, shape) < 2

    return PerLeaf(at, rows.check)


def selected(argument: str, selection: Any) -> PerLeaf:
    """Whether a parameter is selected, `(name, shape) -> bool`.

    Raises:
      TypeError: if the selection is none; where it is asked, if a function gives no bool.
      ValueError: if a pattern is no regular expression; in `check`, if it is found in no path.
    """
    is_rule = _is_rule(selection)
    if not is_rule and (isinstance(selection, str | bytes) or not isinstance(selection, Sequence)):
        hint = f" For one pattern, write [{selection!r}]." if isinstance(selection, str) else ""
        raise TypeError(f"{_wanted(argument)}, got {selection!r}.{hint}")
    each = [_selector(argument, one) for one in ([selection] if is_rule else selection)]

    def at(name: str, shape: jax.ShapeDtypeStruct) -> bool:
        return any(one.at(name, shape) for one in each)

    def check(params: Any) -> None:
        for one in each:
            one.check(params)

    return PerLeaf(at, check)


def _is_rule(selection: Any) -> bool:
    return isinstance(selection, PerLeaf) or callable(selection)


def _wanted(argument: str) -> str:
    return (
        f"`{argument}` must be a list of regular expressions such as 'bias', a function of a "
        "parameter's name and shape, `fewer_than_two_axes()`, or a list of such"
    )


def _selector(argument: str, one: Any) -> PerLeaf:
    if isinstance(one, str):
        _checks.check_pattern(argument, one)
        return PerLeaf(
            lambda name, shape: matches([one], name),
            lambda params: check_patterns_match(argument, [one], params),
        )
    if not _is_rule(one):
        raise TypeError(f"{_wanted(argument)}, got {one!r} in it.")
    if not isinstance(one, PerLeaf):
        wanted = "(name, shape) -> bool, of one parameter and not of a tree as optax's masks are"
        _checks.check_function(argument, one, wanted, "name", "shape")
        one = PerLeaf(one)

    def at(name: str, shape: jax.ShapeDtypeStruct) -> bool:
        answer = one.at(name, shape)
        if not isinstance(answer, bool | np.bool_):
            raise TypeError(
                f"`{argument}` must be a function that returns True or False, got {answer!r} from "
                f"it for {name!r}."
            )
        return bool(answer)

    return one._replace(at=at)


def layers(stacked: Any) -> PerLeaf:
    """Whether the leading axis of a parameter counts layers, as the argument `stacked` says.

    Raises:
      ValueError: where it is asked, if that is said of a scalar, which has no axis.
    """
    counts_layers = selected("stacked", stacked)

    def at(name: str, shape: jax.ShapeDtypeStruct) -> bool:
        answer = counts_layers.at(name, shape)
        if answer and not shape.shape:
            raise ValueError(f"`stacked` matches {name!r}, a scalar without an axis of layers.")
        return answer

    return PerLeaf(at, counts_layers.check)


def matches(patterns: Sequence[str], name: str) -> bool:
    """Whether any of the regular expressions is found in `name` (`re.search`)."""
    return any(re.search(pattern, name) for pattern in patterns)


def check_patterns_match(argument: str, patterns: Sequence[str], tree: Any) -> None:
    """Raises ValueError if a pattern is found in no name of `tree`, and lists the names.

    An empty tree is no mistake of a pattern's: there is nothing that it could have matched.
    """
    known = paths.names(tree)
    if not known:
        return
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in known):
            listed = ", ".join(repr(name) for name in known)
            raise ValueError(
                f"`{argument}` has the pattern {pattern!r}, which is found in no parameter's path. "
                f"The paths are: {listed}."
            )
