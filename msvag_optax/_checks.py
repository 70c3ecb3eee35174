"""Hyperparameters are checked once, when an optimizer is built, in one wording."""

import inspect
import math
import numbers
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def is_concrete(value: object) -> bool:
    """Whether `value` is a plain number, which Python may branch on.

    JAX arrays do not count, traced or not: under `optax.inject_hyperparams` the same argument is
    a concrete array in one call and a tracer in the next, and both must build the same optimizer.
    """
    return isinstance(value, numbers.Real | np.ndarray) and not isinstance(value, jax.Array)


def _is_real(value: Any) -> bool:
    """Whether `value` is a real number, or an array of them."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.floating)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_number(
    name: str,
    value: Any,
    allowed: str = "[0, inf)",
    *,
    schedule: bool = False,
) -> None:
    """Raises unless `value` is a real number in the interval `allowed`, or an array scalar of JAX.

    Args:
      name: the argument, as the caller spells it.
      value: what the caller gave.
      allowed: an interval such as `"[0, 1)"`; a round bracket leaves its end out.
      schedule: whether a callable is allowed too.

    Raises:
      TypeError: if `value` is no real scalar (nor a schedule where one is allowed).
      ValueError: if `value` is outside of the interval; not-a-number is outside of every one.
    """
    if schedule and callable(value):
        return
    wanted = f"`{name}` must be a number in {allowed}" + (" or a schedule" if schedule else "")
    if not _is_real(value):
        raise TypeError(f"{wanted}, got {value!r}.")
    if np.shape(value) != ():
        raise TypeError(f"{wanted}, got an array of shape {np.shape(value)}.")
    if not is_concrete(value):
        return
    low, high = (float(end) for end in allowed[1:-1].split(","))
    number = float(value)
    above = number > low or (allowed[0] == "[" and number == low)
    below = number < high or (allowed[-1] == "]" and number == high)
    if math.isnan(number) or not (above and below):
        raise ValueError(f"{wanted}, got {value!r}.")


def check_scheduled(name: str, value: Any) -> None:
    """Raises unless `value`, which the schedule given as `name` has returned, is a real scalar."""
    wanted = f"`{name}` must be a schedule that returns a number"
    if not _is_real(value):
        raise TypeError(f"{wanted}, got {value!r} of it.")
    if np.shape(value) != ():
        raise TypeError(f"{wanted}, got an array of shape {np.shape(value)} of it.")


def check_decays(**decays: Any) -> None:
    """Raises, naming the argument, unless all values are decays: numbers in [0, 1)."""
    for name, decay in decays.items():
        check_number(name, decay, "[0, 1)")


def check_count(name: str, value: Any, least: int) -> None:
    """Raises unless `value` is an integer of at least `least`, or an array scalar of JAX."""
    wanted = f"`{name}` must be an integer >= {least}"
    if isinstance(value, jax.Array) and value.shape == () and _is_real(value):
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{wanted}, got {value!r}.")
    if value < least:
        raise ValueError(f"{wanted}, got {value!r}.")


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


def check_function(name: str, value: Any, wanted: str, *arguments: str) -> None:
    """Raises unless `value` can be called with these arguments and nothing else."""
    wanted = f"`{name}` must be a function {wanted}"
    if not callable(value):
        raise TypeError(f"{wanted}, got {value!r}.")
    try:
        signature = inspect.signature(value)
    except ValueError:  # some functions written in C do not tell
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{wanted}, got {value!r}: {error}. Is it yet to be called?") from None


def check_patterns(name: str, value: Any) -> None:
    """Raises unless `value` is a sequence of regular expressions (a string is usually a typo)."""
    wanted = f"`{name}` must be a sequence of regular expressions such as ('bias', 'norm')"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{wanted}, got {value!r}.")
    for pattern in value:
        if not isinstance(pattern, str):
            raise TypeError(f"{wanted}, got {pattern!r} in it.")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"`{name}` must hold regular expressions, got {pattern!r}: {error}."
            ) from None
