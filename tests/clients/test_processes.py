"""Programs that live long: two trainings in two threads, and models that are built anew."""

import gc
import itertools
import threading
import weakref
from concurrent import futures

import jax
import jax.numpy as jnp
import optax
import pytest

from tests import conformance
from tests.clients import programs

PAIRS = [("msvag", "novograd"), ("novograd", "novograd")]
# The next one has been the width of no layer, so that nothing is compiled for it yet.
WIDTHS = itertools.count(20)


def train(build, rate, compiled, width=8):
    """A short training, with an optimizer and a program of its own."""
    tx = build(rate, **programs.DECAY)
    params = {"kernel": jnp.full((8, width), 0.1), "bias": jnp.zeros(width)}

    def loss_of(params):
        outputs = programs.X @ params["kernel"] + params["bias"]
        return programs.mean_square(outputs, jnp.ones(width))

    def step(params, state):
        updates, state = tx.update(jax.grad(loss_of)(params), state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(step) if compiled else step
    state = tx.init(params)
    for _ in range(programs.STEPS):
        params, state = run(params, state)
    return (params, state), [weakref.ref(x) for x in (tx.init, tx.update, loss_of, step, run)]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_two_threads_do_not_disturb_each_other(names, compiled):
    """Both start from nothing at one moment, several times over."""
    builds = [programs.OPTIMIZERS[name] for name in names]
    rates = (0.01, 0.02)
    together = threading.Barrier(2)

    width = next(WIDTHS)

    def in_a_thread(build, rate):
        together.wait()
        return train(build, rate, compiled, width)[0]

    with futures.ThreadPoolExecutor(2) as pool:
        runs = [list(pool.map(in_a_thread, builds, rates)) for _ in range(5)]
    alone = [train(*each, compiled, width)[0] for each in zip(builds, rates, strict=True)]
    for both in runs:
        for actual, desired in zip(both, alone, strict=True):
            conformance.assert_same(actual, desired)


@pytest.mark.parametrize("build", programs.EVERY)
def test_what_is_built_anew_outside_of_jit_is_not_compiled_anew(build, caplog):
    """As where rates are tried in a notebook."""
    width = next(WIDTHS)

    def compilations(rate):
        caplog.clear()
        with jax.log_compiles():
            train(build, rate, compiled=False, width=width)
        messages = [record.getMessage() for record in caplog.records]
        return [line for line in messages if line.startswith("Compiling")]

    first, second = compilations(0.01), compilations(0.02)
    assert first
    assert second == []


@pytest.mark.parametrize("build", programs.EVERY)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_what_is_built_in_a_loop_is_forgotten(build, compiled):
    train(build, 0.01, compiled)
    gc.collect()
    arrays = len(jax.live_arrays())
    alive = [ref for i in range(3) for ref in train(build, 0.01 * (i + 1), compiled)[1]]
    gc.collect()
    assert [ref() for ref in alive if ref() is not None] == []
    assert len(jax.live_arrays()) == arrays
