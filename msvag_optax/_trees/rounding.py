"""Stochastic rounding: to one of the two neighbours, with odds that make the mean right.

The random bits come from a hash of a seed, the step, the array and the place of an element in the
whole array, so that there are no keys to keep, and any number of devices rounds alike.
"""

import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from msvag_optax import _checks
from msvag_optax._trees import slices
from msvag_optax._trees.exportable import exportable

GOLDEN = np.uint32(0x9E3779B9)  # 2**32 over the golden ratio: its multiples are spread evenly
# Of float32: the bits of the fraction, what is not the sign, and infinity.
FRACTION, MAGNITUDE, INFINITY = 23, 0x7FFFFFFF, 0x7F800000


@exportable
class RoundedState(NamedTuple):
    """What stochastic rounding remembers.

    Attributes:
      draws: how many steps it has drawn for, int32; `count` is the name of an optimizer's.
      inner_state: the state of what is inside.
    """

    draws: jax.Array
    inner_state: Any


def mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit integers, each bit of whose result depends on all that it is given.

    Source: Wellons, *Hash Function Prospector* (2018), `lowbias32`.
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


@jax.jit
def _key_of_step(seed: jax.typing.ArrayLike, count: jax.Array) -> jax.Array:
    """The number from which a step draws; another for each count."""
    return mix(count.astype(jnp.uint32) ^ mix(jnp.asarray(seed).astype(jnp.uint32) + GOLDEN))


def random_bits(index: jax.Array, key: jax.Array, array: jax.typing.ArrayLike) -> jax.Array:
    """32 random bits for each index.

    Args:
      index: what is hashed, uint32.
      key: of the step.
      array: a number that tells the arrays apart that are rounded in a step.

    Returns:
      An array like `index`.
    """
    start = mix(key ^ mix(jnp.asarray(array, jnp.uint32)))
    # Indices are taken in strides that differ from step to step: the hash of the index and a key
    # alone would give the same numbers in each step, in another order.
    stride = mix(start + GOLDEN) | 1
    return mix(index * stride + start)


def round_stochastically(x: jax.Array, dtype: Any, bits: jax.Array) -> jax.Array:
    r"""Rounds each number up or down in size, so that the mean over all bits is the number.

    .. math::
        P(\text{up}) = \frac{|x| - \lfloor |x| \rfloor}{\lceil |x| \rceil - \lfloor |x| \rfloor}

    where the brackets are the neighbours of :math:`|x|` that `dtype` holds. What `dtype` holds
    stays, and so do infinities and NaN. What is finite stays finite, at the largest number.

    Args:
      x: float32, or wider, which is rounded to float32 first: that is off by no more than 2**-17
        of a step of bfloat16, and 2**-14 of one of float16.
      dtype: bfloat16 or float16.
      bits: 32 random bits for each number, uint32.

    Returns:
      An array of `dtype`.
    """
    if x.dtype != jnp.float32:
        largest = jnp.finfo(jnp.float32).max.astype(x.dtype)
        x = jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x).astype(jnp.float32)
    # On the bits alone, since compilers flush what is smaller than the smallest normal float32.
    pattern = jax.lax.bitcast_convert_type(x, jnp.uint32)
    upper = (_bfloat16 if jnp.dtype(dtype) == jnp.bfloat16 else _float16)(pattern, bits)
    return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), dtype)


def _bfloat16(pattern: jax.Array, bits: jax.Array) -> jax.Array:
    """The bits of a bfloat16 are the upper half of those of a float32, also below normal size."""
    magnitude = pattern & MAGNITUDE
    # From the largest number on nothing is carried; and NaN stays NaN, wherever its digits are.
    carry = jnp.where(magnitude < (0x7F7F << 16), bits >> 16, 0)
    return (pattern + carry) >> 16 | jnp.where(magnitude > INFINITY, 0x40, 0)


def _float16(pattern: jax.Array, bits: jax.Array) -> jax.Array:
    """Likewise, but a float16 has a smallest exponent, below which it keeps fewer digits."""
    magnitude = pattern & MAGNITUDE
    smallest = 127 - 14  # the exponent of the smallest normal float16, as float32 writes it
    exponent = magnitude >> FRACTION
    normal = jnp.maximum(exponent, smallest)
    digits = (magnitude & ((1 << FRACTION) - 1)) | (jnp.minimum(exponent, 1) << FRACTION)
    dropped = (FRACTION - 10) + (normal - jnp.maximum(exponent, 1))
    # A shift is by less than 32 bits: of what is smaller, digits are cut off, below 2**-31 steps.
    shift = jnp.minimum(dropped, 31)
    digits = digits >> jnp.minimum(dropped - shift, 31)
    digits = (digits + (bits >> (32 - shift))) >> shift
    # With its first digit, which float16 leaves out, a normal number carries into the exponent.
    finite = jnp.minimum(((normal - smallest) << 10) + digits, 0x7BFF)
    infinite = 0x7C00 | jnp.where(magnitude > INFINITY, np.uint32(0x200), 0)
    return jnp.where(magnitude < INFINITY, finite, infinite) | ((pattern >> 16) & 0x8000)


def round_to_nearest(x: jax.Array, dtype: Any) -> jax.Array:
    """Likewise without randomness: to the nearer neighbour, and from the middle to the even one.

    Unlike casts there and back, which XLA may leave out.
    """
    lower = round_stochastically(x, dtype, jnp.zeros(x.shape, jnp.uint32))
    is_odd = jax.lax.bitcast_convert_type(lower, jnp.uint16).astype(jnp.uint32) & 1
    return round_stochastically(x, dtype, np.uint32(0x7FFFFFFF) + is_odd)


@functools.partial(jax.jit, static_argnums=(1, 4))
def draw(
    x: jax.Array, dtype: Any, key: jax.Array, array: jax.typing.ArrayLike, cut: slices.Slices
) -> jax.Array:
    """`x` in `dtype`, by the random bits of a step, an array, and each element's place in it."""
    return round_stochastically(x, dtype, random_bits(slices.index_of(x, cut), key, array))


def array_number(name: str) -> np.uint32:
    """A number for a name, the same in every process."""
    return np.uint32(zlib.crc32(name.encode()))


def check_drawable(what: str, dtype: Any) -> None:
    """Raises unless there is a stochastic rounding to `dtype`."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"{what} must be bfloat16 or float16 for stochastic rounding, got {dtype!r}."
        )


class Chances:
    """Where random bits come from: a seed, and how parameters are cut over a mesh."""

    def __init__(self, seed: Any, specs: Any) -> None:
        """Checks what a caller has given under these names."""
        number = _checks.count("seed", seed, 0)
        self._seed = np.uint32(number % 2**32) if isinstance(number, int) else number
        self._specs = slices.by_name(specs)

    def key_of_step(self, count: jax.Array) -> jax.Array:
        """The key of the step that is made at this count."""
        return _key_of_step(self._seed, count)

    def slices_of(self, name: str, shape: tuple[int, ...]) -> slices.Slices:
        """How the parameter of this name is cut."""
        return slices.slices_of(self._specs, name, shape)
