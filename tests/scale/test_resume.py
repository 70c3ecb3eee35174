"""A run that is killed at any moment goes on where it was, and ends where it would have ended.

That the programs of `examples/` go on beside half a checkpoint is in `test_examples.py`.
"""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

STEPS = 100

# Eight devices share parameters and state. A checkpoint is written while the donated steps go on,
# at every fifth step, so that each kill but the first meets one that is being written.
SHARDED = f"""
import functools, sys
import jax, jax.numpy as jnp, numpy as np, optax
import orbax.checkpoint as ocp
import msvag_optax as mo

output, checkpoints = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.NamedSharding(mesh, jax.P("data"))
shapes = {{"kernel": (1024, 256), "bias": (1024,)}}
tx = mo.msvag(0.1, weight_decay=1e-3)

def fresh():
    params = {{name: jnp.ones(shape) for name, shape in shapes.items()}}
    params = jax.lax.with_sharding_constraint(params, sharding)
    return params, tx.init(params)

@functools.partial(jax.jit, donate_argnums=0)
def train_step(carry, step):
    params, state = carry
    key = jax.random.fold_in(jax.random.key(0), step)
    gradients = jax.tree.map(lambda p: p - jax.random.normal(key, p.shape), params)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

done, compiled = 0, jax.jit(fresh).lower().compile()
options = ocp.CheckpointManagerOptions(max_to_keep=3, enable_async_checkpointing=True)
with ocp.CheckpointManager(checkpoints, options=options) as manager:
    if manager.latest_step() is None:
        carry = compiled()
    else:
        done = manager.latest_step()
        carry = manager.restore(done, args=ocp.args.StandardRestore(compiled.out_info))
    for step in range(done + 1, {STEPS} + 1):
        carry = train_step(carry, step)
        if step % 5 == 0:
            print("step", step)
            manager.save(step, args=ocp.args.StandardSave(carry))
for leaf in jax.tree.leaves(carry):
    assert leaf.ndim == 0 or leaf.sharding.is_equivalent_to(sharding, leaf.ndim), leaf.sharding
np.savez(output, *map(np.asarray, jax.tree.leaves(carry)))
"""


def command(folder: Path) -> list[str]:
    output, checkpoints = str(folder / "end.npz"), str(folder / "checkpoints")
    return [sys.executable, "-u", "-c", SHARDED, output, checkpoints]


def being_written(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def kill(lines: int, seconds: float, folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Kills a run so many seconds after so many lines of its log and, then, half a checkpoint."""
    try:
        assert process.stdout is not None
        log = (line for line in process.stdout if line.startswith(b"step"))
        read = sum(1 for _ in itertools.islice(log, lines))
        while lines and not being_written(folder) and process.poll() is None:
            pass
        time.sleep(seconds)
    finally:
        process.kill()
    process.wait()
    assert read == lines, "the run ended before it could be killed"
    assert process.returncode == -signal.SIGKILL


# When to kill: while the run starts, then at its first checkpoints. How long a save takes is not
# known; so the delays are of several orders of magnitude.
MOMENTS = [(0, 1.5), (2, 0.0), (1, 1e-3), (1, 1e-2)]


@pytest.mark.slow
def test_a_killed_run_ends_where_it_would_have_ended(tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    # The first run compiles for all, into a folder that no run is killed in while it writes there.
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "timeout": 300, "env": environment}
    subprocess.run(command(undisturbed), **quiet)

    half_written = 0
    for lines, seconds in MOMENTS:
        with subprocess.Popen(
            command(disturbed),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        ) as process:
            kill(lines, seconds, disturbed, process)
        half_written += being_written(disturbed)
    assert half_written > 0, "no kill met a checkpoint that was being written"
    subprocess.run(command(disturbed), **quiet)

    with np.load(undisturbed / "end.npz") as expected, np.load(disturbed / "end.npz") as got:
        assert expected.files == got.files
        for name in expected.files:
            np.testing.assert_array_equal(got[name], expected[name])
