"""Functions with numbers bound to them, as trees of these numbers."""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.tree_util import Partial

from msvag_optax._trees import paths


def bind(function: Callable[..., Any], *arguments: Any) -> Any:
    """`Partial(function, *arguments)`, where `PerLeaf`s are replaced by what a parameter gets.

    Each argument is a function, a tuple or dict of functions, or a static node.
    """
    if not any(isinstance(one, paths.PerLeaf) for one in _each(arguments)):
        return Partial(function, *_map_each(as_partial, arguments))

    def at(name: str, shape: jax.ShapeDtypeStruct) -> Partial:
        def choose(one: Any) -> Any:
            return as_partial(paths.function_at(one, name, shape))

        return Partial(function, *_map_each(choose, arguments))

    return paths.PerLeaf(at)


def _each(argument: Any) -> list[Any]:
    collected: list[Any] = []
    _map_each(collected.append, argument)
    return collected


def _map_each(change: Callable[[Any], Any], argument: Any) -> Any:
    if isinstance(argument, dict):
        return {key: _map_each(change, one) for key, one in argument.items()}
    if type(argument) is tuple:
        return tuple(_map_each(change, one) for one in argument)
    return change(argument)


def as_partial(function: Any) -> Any:
    """`function` as a `Partial`, a tree whose leaves are the numbers that are bound."""
    if isinstance(function, Partial) or not callable(function):  # a static node, that is
        return function
    return Partial(function)


def compiled(function: Partial) -> Callable[..., Any]:
    """`function`, of what leaves share, as one kernel if it stands in its module."""
    if stand_in_their_modules(jax.tree.structure(function)):
        return functools.partial(_shared_call, function)
    return function


@jax.jit
def _shared_call(function: Partial, *arguments: Any) -> Any:
    return function(*arguments)


def stand_in_their_modules(treedef: Any) -> bool:
    """Whether the functions of all `Partial`s of a tree live as long as the process."""
    return all(map(_stands_in_its_module, _functions(treedef)))


def _functions(treedef: Any) -> Iterator[Callable[..., Any]]:
    """The functions of all `Partial`s of a tree."""
    data = treedef.node_data()
    if data and isinstance(data[0], type) and issubclass(data[0], Partial):
        yield data[1]
    for child in treedef.children():
        yield from _functions(child)


def _stands_in_its_module(function: Callable[..., Any]) -> bool:
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return getattr(module, getattr(function, "__qualname__", ""), None) is function
