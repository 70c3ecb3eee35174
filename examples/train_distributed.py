"""Learns to read handwritten digits in several processes, each with devices of its own.

Start it once for each process, with the same arguments. These are two, on one machine:

    python train_distributed.py --processes 2 --process 1 &
    python train_distributed.py --processes 2 --process 0

With --checkpoints FOLDER, on a disk that all of them share, a run that was stopped goes on, bit
for bit, in as many processes. It needs msvag_optax, orbax-checkpoint and scikit-learn.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn import datasets

import msvag_optax as mo

SEED = 0  # draws the first parameters and every mini-batch
BATCH_SIZE = 128  # images in a mini-batch, of all processes together
WIDTH = 64  # of the hidden layers
STEPS = 200
EVERY = 50  # steps until a line of the log and a checkpoint
NO_DECAY = ["bias$"]
OPTIMIZERS = {
    "msvag": mo.msvag(0.5, weight_decay=1e-4, exclude_from_weight_decay=NO_DECAY),
    "novograd": mo.novograd(0.02, weight_decay=1e-3, exclude_from_weight_decay=NO_DECAY),
}

digits: Any = datasets.load_digits()
IMAGES = (digits.data / 16).astype(np.float32)  # rows of 64 pixels, from 0 to 1
LABELS = digits.target.astype(np.int32)


def place(shape: tuple[int, ...], layout: str, mesh: Mesh) -> NamedSharding:
    """The sharding of a parameter: whole on every device, or cut over all if they divide it."""
    cut = layout == "fsdp" and shape[0] % mesh.size == 0
    return NamedSharding(mesh, P("devices") if cut else P())


def mini_batch(step: int, mesh: Mesh) -> list[jax.Array]:
    """Images and labels: all processes draw the same rows, and each keeps those of its devices."""
    rows = np.random.default_rng((SEED, step)).choice(len(LABELS), BATCH_SIZE, replace=False)
    cut = NamedSharding(mesh, P("devices"))
    return [
        jax.make_array_from_callback(array.shape, cut, array.__getitem__)
        for array in (IMAGES[rows], LABELS[rows])
    ]


def init(key: jax.Array) -> Any:
    """The first parameters."""
    keys, sizes = jax.random.split(key, 3), (64, WIDTH, WIDTH, 10)
    kernel = jax.nn.initializers.lecun_normal()
    return {
        f"layer_{i}": {"kernel": kernel(keys[i], sizes[i : i + 2]), "bias": jnp.zeros(sizes[i + 1])}
        for i in range(3)
    }


def loss_of(params, images, labels) -> jax.Array:
    """The mean cross-entropy of a mini-batch."""
    features = images @ params["layer_0"]["kernel"] + params["layer_0"]["bias"]
    for layer in (params["layer_1"], params["layer_2"]):
        features = jax.nn.relu(features) @ layer["kernel"] + layer["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(features, labels).mean()


def restore(manager: ocp.CheckpointManager, state):
    """The newest checkpoint and its step; or `state`, which is fresh, and 0.

    Each process reads the parts of its own devices, where `state` has them.
    """
    step = manager.latest_step()
    if step is None:
        return state, 0
    abstract = jax.tree.map(ocp.tree.to_shape_dtype_struct, state)
    return manager.restore(step, args=ocp.args.StandardRestore(abstract)), step


def train(optimizer: str, layout: str, steps: int, every: int, checkpoints: str | None = None):
    """Trains until step `steps`; returns parameters and optimizer state."""
    tx = OPTIMIZERS[optimizer]
    mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))
    key = jax.random.key(SEED)
    shardings = jax.tree.map(lambda p: place(p.shape, layout, mesh), jax.eval_shape(init, key))
    params = jax.jit(init, out_shardings=shardings)(key)
    opt_state = jax.jit(tx.init)(params)  # cut like the parameters, without another word

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, images, labels):
        loss, gradients = jax.value_and_grad(loss_of)(params, images, labels)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    done, manager = 0, None
    if checkpoints is not None:
        # In the foreground, so that no other thread talks to the processes while a step does.
        options = ocp.CheckpointManagerOptions(max_to_keep=3, enable_async_checkpointing=False)
        manager = ocp.CheckpointManager(Path(checkpoints).absolute(), options=options)
        (params, opt_state), done = restore(manager, (params, opt_state))

    main_process = jax.process_index() == 0
    if main_process:
        print(f"Starts after step {done}.", flush=True)
    for step in range(done + 1, steps + 1):
        params, opt_state, loss = train_step(params, opt_state, *mini_batch(step, mesh))
        # On CPUs, one step at a time. All devices of a process share a few threads, in which XLA
        # both launches programs and runs them. Once a device is 32 launches behind, the next one
        # blocks its thread, perhaps the last that the device could run in: gloo waits for ever.
        jax.block_until_ready(loss)
        if step % every == 0 or step == steps:
            if main_process:
                print(f"step {step:4}  loss {float(loss):.4f}", flush=True)
            if manager is not None:
                manager.save(step, args=ocp.args.StandardSave((params, opt_state)))
    if manager is not None:
        manager.close()

    leaves = jax.tree.leaves((params, opt_state))
    held = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    size = sum(leaf.nbytes for leaf in leaves)
    print(
        f"Process {jax.process_index()} holds {held} bytes; one copy of all has {size}.", flush=True
    )
    return params, opt_state


def gather(params):
    """The whole parameters; all processes must ask for them, or those that do wait for ever."""
    whole = jax.tree.map(lambda p: NamedSharding(p.sharding.mesh, P()), params)
    return jax.device_get(jax.jit(lambda params: params, out_shardings=whole)(params))


def main() -> None:
    """Takes part, as one of several processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=1, help="how many there are")
    parser.add_argument("--process", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument("--coordinator", default="127.0.0.1:12321", help="address of process 0")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of this process")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="novograd")
    parser.add_argument("--layout", choices=["data-parallel", "fsdp"], default="fsdp")
    parser.add_argument("--steps", type=int, default=STEPS, help="the last mini-batch")
    parser.add_argument(
        "--every", type=int, default=EVERY, help="steps until a line and a checkpoint"
    )
    parser.add_argument("--checkpoints", help="where to save, and to go on from what is there")
    parser.add_argument("--output", help="an .npz file for the parameters")
    args = parser.parse_args()
    if min(args.processes, args.devices, args.steps, args.every) < 1:
        parser.error("there must be at least one process, device and step")
    if not 0 <= args.process < args.processes:
        parser.error(f"--process must be from 0 to {args.processes - 1}, got {args.process}")

    # On GPUs and TPUs these three lines go. On many clusters `initialize` needs no argument.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if args.processes > 1:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    if BATCH_SIZE % jax.device_count() != 0:
        parser.error(f"{jax.device_count()} devices cannot share {BATCH_SIZE} images evenly")
    params, _ = train(args.optimizer, args.layout, args.steps, args.every, args.checkpoints)
    params = gather(params)
    if args.output and jax.process_index() == 0:
        names, leaves = jax.tree.leaves(mo.path_names(params)), jax.tree.leaves(params)
        arrays: Any = dict(zip(names, leaves, strict=True))
        np.savez(args.output, **arrays)
    if args.processes > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
