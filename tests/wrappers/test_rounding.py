"""Stochastic rounding has the right mean, and its random bits are independent."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msvag_optax._trees.rounding import Chances, draw, random_bits, round_stochastically
from msvag_optax._trees.slices import Slices

DTYPES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
DRAWS = 1_000_000
KEY = Chances(0, None).key_of_step(jnp.asarray(3))
# Normal and below normal size in either dtype, at the ends of their ranges, near neighbours.
SIZES = (1.0, 1.7e-3, 3.3e4, 6.2e-5, 2.3e-6, 4e-8, 7e-10, 1.1e-38, 3.3e38)
FRACTIONS = (1e-5, 0.25, 0.5, 0.999)


def float32_of(patterns):
    return jax.lax.bitcast_convert_type(jnp.asarray(patterns, jnp.uint32), jnp.float32)


def pattern_of(x):
    return np.asarray(x).view(np.uint16).astype(np.int64)


def between(dtype, size, fraction):
    """A float32 that is this fraction of the way from a number of `dtype` to the next."""
    low = np.abs(np.asarray(size, np.float32)).astype(dtype)
    high = (low.view(np.uint16) + np.uint16(1)).view(dtype)
    return np.float32(float(low) + fraction * (float(high) - float(low)))


@DTYPES
def test_the_mean_is_the_number(dtype):
    """Below four standard errors of a million draws, whatever the size, sign and fraction."""
    drawn = jax.jit(lambda x: draw(jnp.full(DRAWS, x), dtype, KEY, np.uint32(1), Slices()))
    limit = float(jnp.finfo(dtype).max)
    for size, fraction, sign in itertools.product(SIZES, FRACTIONS, (1, -1)):
        if size > limit / 1.01:
            continue
        x = sign * between(dtype, size, fraction)
        # Of two values, whose share is counted: no sum of a million floats is exact.
        values, counts = np.unique(np.asarray(drawn(x)).astype(np.float64), return_counts=True)
        assert len(values) <= 2
        mean = np.sum(values * counts) / DRAWS
        step = float(np.ptp(values)) or float(jnp.finfo(dtype).smallest_subnormal)
        chance = (abs(float(x)) - min(abs(values))) / step
        error = step * np.sqrt(max(chance * (1 - chance), 1 / DRAWS) / DRAWS)
        assert abs(mean - float(x)) < 4 * error, (x, values, counts)


@DTYPES
def test_the_mean_over_steps_is_the_number(dtype):
    x = between(dtype, 0.37, 0.3)
    keys = Chances(0, None).key_of_step(jnp.arange(DRAWS))
    drawn = jax.vmap(lambda key: draw(jnp.full(1, x), dtype, key, np.uint32(1), Slices()))(keys)
    low, high = np.unique(np.asarray(drawn).astype(np.float64))
    chance = (float(x) - low) / (high - low)
    share = np.mean(np.asarray(drawn).astype(np.float64) == high)
    assert abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / DRAWS)


@DTYPES
def test_each_chance_is_exact(dtype):
    """Of all chances that there are, the share that goes up is the fraction."""
    dropped = 16 if dtype == jnp.bfloat16 else 13
    bits = jnp.arange(1 << dropped, dtype=jnp.uint32) << (32 - dropped)
    for fraction in (1, 77, (1 << dropped) - 1):
        x = float32_of((0x3F8 << 20) + fraction)
        rounded = round_stochastically(jnp.full(bits.shape, x), dtype, bits)
        assert int(jnp.sum(rounded > 1)) == fraction


@DTYPES
def test_what_the_dtype_holds_stays(dtype):
    """All of its numbers, infinities too, and of NaN that it is one."""
    numbers = jax.lax.bitcast_convert_type(jnp.arange(1 << 16, dtype=jnp.uint16), dtype)
    # NumPy's, since XLA may flush what is below normal size.
    wide = jnp.asarray(np.asarray(numbers).astype(np.float32))
    for bits in (0, 0xFFFFFFFF):
        rounded = round_stochastically(wide, dtype, jnp.full(wide.shape, bits, jnp.uint32))
        is_nan = np.isnan(np.asarray(numbers).astype(np.float32))
        np.testing.assert_array_equal(np.isnan(np.asarray(rounded).astype(np.float32)), is_nan)
        np.testing.assert_array_equal(
            pattern_of(rounded)[~is_nan], pattern_of(numbers)[~is_nan], strict=True
        )


@DTYPES
def test_only_the_neighbours_are_rounded_to_and_finite_stays_finite(dtype):
    patterns = np.random.default_rng(0).integers(0, 1 << 32, 300_000, np.uint32)
    edges = [0x7F7FFFFF, 0xFF7FFFFF, 0x7F7F0001, 0x477FE001, 0x7F800001, 0x00000001, 0x33800000]
    x = float32_of(np.concatenate([patterns, np.asarray(edges, np.uint32)]))
    low, high = (
        np.asarray(round_stochastically(x, dtype, jnp.full(x.shape, bits, jnp.uint32)))
        for bits in (0, 0xFFFFFFFF)
    )
    exact = np.asarray(x)
    with np.errstate(invalid="ignore"):
        size = np.abs(exact.astype(np.float64))
    finite = np.isfinite(exact)
    assert np.all(np.isfinite(low.astype(np.float32)) == finite)
    assert np.all(np.isnan(high.astype(np.float32)) == np.isnan(exact))
    low_size, high_size = (np.abs(v.astype(np.float64)) for v in (low, high))
    largest = float(jnp.finfo(dtype).max)
    held = finite & (size <= largest)
    assert np.all(low_size[held] <= size[held])
    # What is further below a number than the smallest chance is never rounded up.
    reached = held & (size > float(jnp.finfo(dtype).smallest_subnormal) * 2.0**-30)
    assert np.all(high_size[reached] >= size[reached])
    assert np.all(pattern_of(high)[held] - pattern_of(low)[held] <= 1)
    assert np.all(low_size[finite & ~held] == largest)
    assert np.all(high_size[finite & ~held] == largest)
    signs = np.signbit(exact[finite])
    assert np.all(np.signbit(low.astype(np.float32))[finite] == signs)


def correlations(bits):
    """Between neighbours, along two axes, and between steps, seeds, arrays; of upper and lower."""
    index = jnp.arange(1 << 21, dtype=jnp.uint32)
    first = bits(index, 0, 0, 1)
    others = {
        "neighbours": bits(index + 1, 0, 0, 1),
        "rows": bits(index + 1024, 0, 0, 1),
        "steps": bits(index, 0, 1, 1),
        "later steps": bits(index, 0, 1000, 1),
        "seeds": bits(index, 1, 0, 1),
        "arrays": bits(index, 0, 0, 2),
    }
    parts = {"upper": lambda b: b >> 16, "lower": lambda b: b & 0xFFFF, "first": lambda b: b >> 31}
    return {
        f"{name}, {part} bits": float(
            np.corrcoef(np.asarray(take(first), float), np.asarray(take(other), float))[0, 1]
        )
        for name, other in others.items()
        for part, take in parts.items()
    }


def drawn_bits(index, seed, count, array):
    key = Chances(seed, None).key_of_step(jnp.asarray(count))
    return random_bits(index, key, np.uint32(array))


def test_chances_are_not_correlated():
    assert max(map(abs, correlations(drawn_bits).values())) < 3e-3


def test_chances_are_spread_evenly():
    bits = np.asarray(drawn_bits(jnp.arange(1 << 20, dtype=jnp.uint32), 0, 0, 1))
    for part in (bits >> 24, bits & 0xFF):
        counts = np.bincount(part, minlength=256)
        # The sum of 256 squares is 255 +- 23 where chances are even.
        assert abs(np.sum((counts - 4096.0) ** 2) / 4096 - 255) < 5 * 23


def test_a_bad_hash_is_seen():
    def simple(index, seed, count, array):
        return index * np.uint32(2654435769) + np.uint32(count + seed + array)

    assert max(map(abs, correlations(simple).values())) > 0.1


def test_an_index_has_the_place_of_each_axis():
    """Elements of a row and of a column have chances of their own."""
    rounded = draw(jnp.full((300, 400), 1.003), jnp.bfloat16, KEY, np.uint32(1), Slices())
    up = np.asarray(rounded > 1).astype(float)
    assert 0.35 < up.mean() < 0.42
    for axis in (0, 1):
        share = up.mean(axis=axis)
        assert 0.8 < share.std() / np.sqrt(up.mean() * (1 - up.mean()) / up.shape[axis]) < 1.2
