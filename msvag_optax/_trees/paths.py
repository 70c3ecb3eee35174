"""One spelling of a parameter's path for every framework, and what is chosen by it.

`encoder/layer_0/LayerNorm/scale` names a parameter in plain dicts, Flax Linen, Flax NNX, Haiku and
Equinox alike: the boxes that NNX and Linen put around an array, and the `~` with which Haiku marks
modules made in a constructor, are left out.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey


class PerLeaf(NamedTuple):
    """A function that is chosen for each parameter by its name and shape.

    Attributes:
      at: chooses it, `(name, shape) -> function`, where `shape` is a `jax.ShapeDtypeStruct` of
        float32 or wider. It is asked in `init`, and once for a tree in `update`.
      check: raises in `init` if the choice does not fit a tree of parameters.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> def square_or_norm(name, shape):  # squares of biases, norms of all else
    ...     return mo.square if name.endswith("bias") else mo.layer_square_norm()
    >>> estimator = mo.running_average(mo.arithmetic(), of=mo.PerLeaf(square_or_norm))
    >>> gradient = {"bias": jnp.asarray([3.0, 4.0]), "kernel": jnp.asarray([3.0, 4.0])}
    >>> estimate, _ = estimator.update(gradient, estimator.init(gradient))
    >>> print(estimate["bias"], estimate["kernel"])
    [ 9. 16.] 25.0
    """

    at: Callable[[str, jax.ShapeDtypeStruct], Any]
    check: Callable[[Any], None] = lambda params: None


def function_at(function: Any, name: str, shape: jax.ShapeDtypeStruct) -> Callable[..., Any]:
    """The function of a parameter, whether or not it is chosen by its place."""
    if not isinstance(function, PerLeaf):
        return function
    chosen = function.at(name, shape)
    if not callable(chosen):
        raise TypeError(f"A `PerLeaf` must choose a function, got {chosen!r} for {name!r}.")
    return chosen


def path_names(tree: Any) -> Any:
    """The name of each parameter, in its place in the tree.

    Args:
      tree: parameters, gradients, or anything shaped like them.

    Returns:
      A tree of the same structure with a string at each leaf: its keys, joined by `/`. A bare
      array has the empty name. Use it to make labels for `optax.partition`, and masks.

    >>> import jax
    >>> import msvag_optax as mo
    >>> params = {"encoder/~/linear": {"w": 1.0}, "heads": [2.0, 3.0]}
    >>> names = mo.path_names(params)
    >>> names
    {'encoder/~/linear': {'w': 'encoder/linear/w'}, 'heads': ['heads/0', 'heads/1']}
    >>> jax.tree.map(lambda name: "novograd" if name.startswith("encoder") else "adamw", names)
    {'encoder/~/linear': {'w': 'novograd'}, 'heads': ['adamw', 'adamw']}
    """
    return jax.tree.structure(tree).unflatten(_leaf_names(tree, lambda _: False))


def names(tree: Any) -> list[str]:
    """All names of a tree; `None` and `MaskedNode` stand for a parameter and have one too."""
    return _leaf_names(tree, is_hole)


def _leaf_names(tree: Any, is_leaf: Callable[[Any], bool]) -> list[str]:
    nodes, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: is_box(node) or is_leaf(node)
    )
    # A box holds one array or several, or a hole, where `optax.masked` has made one.
    return [path_name(path) for path, node in nodes for _ in jax.tree.leaves(node, is_leaf=is_leaf)]


def is_hole(node: Any) -> bool:
    """Whether a node stands in the place of a parameter that is left out."""
    return node is None or isinstance(node, optax.MaskedNode)


def is_box(node: Any) -> bool:
    """Whether a node is flax.nnx.Param, flax.linen.Partitioned, or of their kind."""
    return _makes_boxes(type(node))


@functools.lru_cache
def _makes_boxes(kind: type) -> bool:
    return any(
        base.__name__ in ("Variable", "AxisMetadata") and base.__module__.startswith("flax.")
        for base in kind.__mro__
    )


def path_name(path: Sequence[Any]) -> str:
    """The name of what stands at a path of JAX's."""
    parts = "/".join(_key_name(key) for key in path).split("/")
    return "/".join(part for part in parts if part != "~")


def _key_name(key: Any) -> str:
    match key:
        case DictKey() | FlattenedIndexKey():
            return str(key.key)
        case SequenceKey():
            return str(key.idx)
        case GetAttrKey():
            return key.name
        case _:
            return str(key)


def map_with_name(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """`jax.tree.map` whose `function` is given each leaf's name, then the leaf."""
    return jax.tree.map(function, path_names(tree), tree)
