"""Hyperparameters are checked once, when an optimizer is built, in one wording.

What is a number is also made one kind of number: a float, or a real scalar of JAX.
"""

import functools
import inspect
import math
import numbers
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msvag_optax import _compat


def _is_real(value: Any) -> bool:
    """Whether `value` is a real number, or an array of them."""
    if isinstance(value, jax.Array) and jnp.iscomplexobj(value):
        # `optax.inject_hyperparams` makes every number complex where one parameter is.
        return _compat.is_tracer(value) or not jnp.any(value.imag)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.floating)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _scalar(wanted: str, value: Any, origin: str = "") -> Any:
    """A number of any kind as a float, and a scalar of JAX as a real one.

    JAX's are not looked into, traced or not: under `optax.inject_hyperparams` the same argument is
    a concrete array in one call and a tracer in the next, and both must build the same optimizer.
    """
    if not _is_real(value):
        raise TypeError(f"{wanted}, got {value!r}{origin}.")
    if np.shape(value) != ():
        raise TypeError(f"{wanted}, got an array of shape {np.shape(value)}{origin}.")
    if isinstance(value, jax.Array):
        return value.real if jnp.iscomplexobj(value) else value
    try:
        real = float(value)
    except OverflowError:  # a large integer
        return math.inf
    largest = float(jnp.finfo(jax.dtypes.canonicalize_dtype(jnp.float64)).max)
    return real if abs(real) <= largest else math.inf


def number(name: str, value: Any, allowed: str = "[0, inf)", *, schedule: bool = False) -> Any:
    """`value` as a float, if it is a number of any kind in an interval.

    Args:
      name: the argument, as the caller spells it.
      value: what the caller gave. A scalar of JAX stays one, and a schedule what it is.
      allowed: an interval such as `"[0, 1)"`; a round bracket leaves its end out.
      schedule: whether a callable is allowed too.

    Raises:
      TypeError: if `value` is no real scalar (nor a function of a count where that is allowed).
      ValueError: if `value` is outside of the interval; not-a-number is outside of every one.
    """
    if schedule and callable(value):
        check_function(name, value, f"of the count, or a number in {allowed}", "count")
        return value
    wanted = f"`{name}` must be a number in {allowed}" + (" or a schedule" if schedule else "")
    if callable(value):
        raise TypeError(f"{wanted}, got {value!r} (`optax.inject_hyperparams` takes schedules).")
    scalar = _scalar(wanted, value)
    if isinstance(scalar, jax.Array):
        return scalar
    low, high = (float(end) for end in allowed[1:-1].split(","))
    above = scalar > low or (allowed[0] == "[" and scalar == low)
    below = scalar < high or (allowed[-1] == "]" and scalar == high)
    if math.isnan(scalar) or not (above and below):
        raise ValueError(f"{wanted}, got {value!r}.")
    return scalar


def scheduled(name: str, value: Any) -> Any:
    """The same of what the schedule given as `name` has returned, which may be any number."""
    return _scalar(f"`{name}` must be a schedule that returns a number", value, " from it")


def weight(value: Any, shape: tuple[int, ...]) -> Any:
    """The same of what a `Weighting` has returned for counts of this shape; or an array of it."""
    is_array = isinstance(value, jax.Array | np.ndarray) and value.shape == shape != ()
    if is_array and _is_real(value):
        return value
    return _scalar("`weighting` must hold a function that returns a number", value, " from it")


def decay(**named: Any) -> Any:
    """The value of the one argument that is given, a decay: a number in [0, 1)."""
    ((name, value),) = named.items()
    return number(name, value, "[0, 1)")


def check_decays(**decays: Any) -> None:
    """Raises, naming the argument, unless all values are decays."""
    for name, value in decays.items():
        number(name, value, "[0, 1)")


def count(name: str, value: Any, least: int) -> Any:
    """`value` as an integer of at least `least`, or as a real scalar of JAX.

    Raises:
      TypeError: if it is neither.
      ValueError: if it is less.
    """
    wanted = f"`{name}` must be an integer >= {least}"
    if isinstance(value, jax.Array) and value.shape == () and _is_real(value):
        return _scalar(wanted, value)
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{wanted}, got {value!r}.")
    if value < least:
        raise ValueError(f"{wanted}, got {value!r}.")
    return int(value)


def check_flags(**flags: Any) -> None:
    """Raises, naming the argument, unless all values are True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"`{name}` must be True or False, got {value!r}.")


def check_dtypes(**dtypes: Any) -> None:
    """Raises, naming the argument, unless all values are None or real floating-point dtypes."""
    for name, value in dtypes.items():
        if value is None:
            continue
        wanted = (
            f"`{name}` must be None or a real floating-point dtype of 16 bits or more, such as "
            "jnp.bfloat16"
        )
        try:
            dtype = jnp.dtype(value)
        except TypeError:
            raise TypeError(f"{wanted}, got {value!r}.") from None
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 16:
            raise ValueError(f"{wanted}, got {value!r}.")


def check_transformation(name: str, value: Any) -> None:
    """Raises unless `value` is a gradient transformation (and not the factory of one)."""
    if not isinstance(value, optax.GradientTransformation):
        raise TypeError(
            f"`{name}` must be a GradientTransformation such as optax.trace(0.9), got {value!r}."
        )


_MASKS = ("mask", "weight_decay_mask")
Built = TypeVar("Built")
Arguments = ParamSpec("Arguments")


def without_mask(build: Callable[Arguments, Built]) -> Callable[Arguments, Built]:
    """A decorator: an argument `mask`, as optax's optimizers take it, is an error with the remedy.

    Raises:
      TypeError: then.
    """

    @functools.wraps(build)
    def checked(*args: Arguments.args, **named: Arguments.kwargs) -> Built:
        for mask in _MASKS:
            if mask in named:
                raise TypeError(
                    f"`{build.__name__}` has no argument `{mask}`. Say what does not decay: "
                    "`exclude_from_weight_decay=fewer_than_two_axes()`, or patterns of names, or "
                    "a function of a parameter's name and shape."
                )
        return build(*args, **named)

    return checked


def check_function(name: str, value: Any, wanted: str, *arguments: str) -> None:
    """Raises unless `value` can be called with these arguments and nothing else."""
    wanted = f"`{name}` must be a function {wanted}"
    if not callable(value):
        raise TypeError(f"{wanted}, got {value!r}.")
    try:
        # A wrapper may say that it has the signature of another function, and have its own.
        signatures = [inspect.signature(value, follow_wrapped=f) for f in (False, True)]
    except ValueError:  # some functions written in C do not tell
        return
    mismatch = TypeError()
    for signature in signatures:
        try:
            signature.bind(*arguments)
            return
        except TypeError as error:
            mismatch = error
    takes_some = any(p.kind < p.VAR_POSITIONAL for p in signatures[-1].parameters.values())
    is_other = takes_some and "too many" in str(mismatch)  # such as a function of a tree
    hint = "" if is_other else " Did you forget to call it?"
    raise TypeError(f"{wanted}, got {value!r}: {mismatch}.{hint}")


def check_pattern(name: str, pattern: str) -> None:
    """Raises unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"`{name}` must hold regular expressions, got {pattern!r}: {error}."
        ) from None
