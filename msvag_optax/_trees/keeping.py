"""What of a state is kept in low precision."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from msvag_optax._trees import arrays, layout, paths
from msvag_optax._trees.rounding import Chances, check_drawable, draw

NOT_APART = "must keep trees like the parameters', as `optax.tree.map_params` finds them in a state"


class Located:
    """An array of the state, and where it is: a leaf of trees."""

    def __init__(self, path: str, x: jax.Array, is_maximum: bool) -> None:
        """Takes the array, its path, and whether it is what `running_max` keeps."""
        self.path, self.x, self.is_maximum = path, x, is_maximum


def located(state: Any) -> Any:
    """The state, with what is known of it at each array."""
    return jax.tree.map(Located, paths.path_names(state), state, _maxima(state))


def _maxima(state: Any) -> Any:
    """Which arrays are maxima: the type tells, since a name may be a parameter's too."""

    def mark(node: Any) -> Any:
        if not _keeps_maximum(node):
            return False
        maximum = jax.tree.map(lambda _: True, node.maximum)
        return node._replace(maximum=maximum, inner_state=_maxima(node.inner_state))

    return jax.tree.map(mark, state, is_leaf=_keeps_maximum)


def _keeps_maximum(node: Any) -> bool:
    return getattr(type(node), "keeps_maximum", False)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Keeping:
    """What is kept in which dtype.

    Attributes:
      dtype: the dtype.
      stochastic: whether it is rounded to at random.
      exclude: names in the paths of arrays that keep their own.
    """

    dtype: Any
    stochastic: bool
    exclude: frozenset[str]

    def keeps(self, place: Located, param: Any = None) -> bool:
        """Whether an array of the state, for this parameter, is kept in the dtype."""
        return (
            jnp.issubdtype(arrays.dtype_of(place.x), jnp.floating)
            and (not self.stochastic or arrays.shape_of(place.x) == arrays.shape_of(param))
            and self.exclude.isdisjoint(place.path.split("/"))
        )

    def draw(self, place: Located, *chance: Any) -> jax.Array:
        """An array of the state in the dtype, rounded at random unless it is a maximum."""
        if place.is_maximum:
            return arrays.narrow(place.x, self.dtype)
        return draw(place.x, self.dtype, *chance)


def keeping_of(dtype: Any, rounding: Any, exclude: Any) -> Keeping:
    """Checks what a caller has given under these names."""
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"`rounding` must be 'nearest' or 'stochastic', got {rounding!r}.")
    if rounding == "stochastic" and dtype is not None:
        check_drawable("`dtype`", dtype)
    is_sequence = isinstance(exclude, Collection) and not isinstance(exclude, str)
    if not is_sequence or not all(isinstance(name, str) for name in exclude):
        raise TypeError(
            f"`exclude` must be a sequence of names such as ('nu_max',), got {exclude!r}."
        )
    kept = None if dtype is None else jnp.dtype(dtype)
    return Keeping(kept, rounding == "stochastic", frozenset(exclude))


def check_can_be_taken_apart(name: str, inner: optax.GradientTransformation) -> None:
    """Raises, naming the argument, unless what of a state belongs to parameters can be found."""

    def init(place: Any) -> Any:
        inner.init(place)
        return place

    try:
        optax.tree.map_params(init, lambda x: x, ())
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise TypeError(f"`{name}` {NOT_APART}; it fails: {error}") from error


def _check_fits(init: Callable[[Any], Any], state: Any, params: optax.Params) -> None:
    try:
        map_kept(lambda place, param: place.x, init, state, params)
    except ValueError as error:
        raise TypeError(f"`inner` {NOT_APART}; it keeps others.") from error


def narrow_init_of(
    keeping: Keeping, chances: Chances, init: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """An `init` that makes the state in the dtype, and sees whether it can be kept so."""

    def narrow(place: Located, name: str = "", param: Any = None) -> jax.Array:
        if not keeping.keeps(place, param):
            return place.x
        if keeping.stochastic:
            chances.slices_of(name, arrays.shape_of(param))
        return arrays.narrow(place.x, keeping.dtype)

    def narrow_init(params: optax.Params) -> Any:
        state = init(params)
        if layout.is_place(params):
            return state
        _check_exclude(keeping, init, state)
        if not keeping.stochastic:
            return map_kept(narrow, init, state)
        _check_fits(init, state, params)
        return map_kept(narrow, init, state, paths.path_names(params), params)

    return narrow_init


def _check_exclude(keeping: Keeping, init: Callable[[Any], Any], state: Any) -> None:
    seen: set[str] = set()
    map_kept(lambda place: seen.update(place.path.split("/")), init, state)
    if seen and (unknown := sorted(keeping.exclude - seen)):
        raise ValueError(
            f"`exclude` must have names in the paths of the state, got {unknown[0]!r}; there are "
            f"{', '.join(map(repr, sorted(seen)))}."
        )


def map_kept(
    function: Callable[..., Any], init: Callable[[Any], Any], state: Any, *rest: Any
) -> Any:
    """Maps `function` over the arrays of a state that belong to parameters, and where they are.

    What all leaves share, such as a sum of weights, is a number or two: it keeps its digits.
    """

    def change(place: Any, *of_param: Any) -> Any:
        if isinstance(place, optax.MaskedNode):
            return place
        # What is the parameter's may be in a box.
        parts = [part for box in of_param for part in jax.tree.leaves(box)]
        return function(place, *parts)

    return optax.tree.map_params(
        init,
        change,
        located(state),
        *rest,
        transform_non_params=lambda shared: jax.tree.map(lambda place: place.x, shared),
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
