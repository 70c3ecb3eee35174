"""A whole training step, exported by `jax.export` and run from its bytes."""

import re
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import export

import msvag_optax as mo
from tests import conformance
from tests.clients import programs

# The library registers its own states; those of optax inside of them are left to the caller.
for state in (optax.EmptyState, optax.TraceState):
    export.register_namedtuple_serialization(state, serialized_name=f"optax.{state.__name__}")

PARAMS = {"kernel": jnp.full((8, 8), 0.1), "bias": jnp.zeros(8)}


def run_from_bytes(tx):
    @jax.jit
    def step(params, state, x, y):
        def loss_of(params):
            return programs.mean_square(x @ params["kernel"] + params["bias"], y)

        updates, state = tx.update(jax.grad(loss_of)(params), state, params)
        return optax.apply_updates(params, updates), state

    batch = programs.X, programs.Y
    here = there = PARAMS, tx.init(PARAMS)
    restored = export.deserialize(export.export(step)(*here, *batch).serialize())
    for _ in range(programs.STEPS):
        here, there = step(*here, *batch), restored.call(*there, *batch)
        conformance.assert_close(there, here)


@pytest.mark.parametrize("build", programs.EVERY)
def test_a_step_runs_from_its_bytes(build):
    """The state goes in and comes out as it is, NamedTuples and all."""
    run_from_bytes(build(programs.RATE, **programs.DECAY))


def test_every_state_of_the_library_is_registered():
    """JAX registers a class once."""
    modules = [m for name, m in sys.modules.items() if name.startswith("msvag_optax.")]
    named = {name: kind for module in modules for name, kind in vars(module).items()}
    states = [kind for name, kind in named.items() if re.fullmatch("[A-Z].*State", name)]
    assert len(states) > 9
    for kind in (*states, mo.Moments, mo.Microbatches):
        with pytest.raises(ValueError, match=r"[Dd]uplicate"):
            export.register_namedtuple_serialization(kind, serialized_name=f"{kind.__name__}2")


def test_pieces_and_wrappers_run_from_their_bytes():
    tx = optax.chain(
        mo.watch_moments(mo.exponential(0.9)),
        mo.add_decayed_weights(optax.linear_schedule(0.1, 0.0, 10)),
        mo.variance_adapted(mo.momentum(0.9)),
        mo.lazy_rows(mo.novograd(0.1, grad_averaging=True, amsgrad=True)),
    )
    run_from_bytes(tx)
