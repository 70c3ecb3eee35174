"""Counts what one step does on a device that is not here: passes over memory, kernels, copies.

    python -m benchmarks.passes --device h200

XLA compiles the donated step for the device, and the text of what it made is read; nothing is run.
`h200.txtpb` is what it must know of the GPU, and the compiler comes with the plugin of JAX: for
the H200 `jax-cuda13-plugin` and `jax-cuda13-pjrt`, of the version of jaxlib, for the TPU `libtpu`.
They may be installed without what they depend on (`pip install --no-deps`), and out of the way
(`--target=plugins`, found through `PYTHONPATH=plugins`).
"""

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from benchmarks import hlo, trees
from benchmarks.sharding import fully_sharded
from benchmarks.step import PAIRS, bytes_in, donated_step
from benchmarks.trees import TREES
from msvag_optax import _compat

TOPOLOGIES = {
    "h200": {"platform": "cuda", "topology_name": "", "topology": "1x1x8"},
    "tpu-v5e": {"platform": "tpu", "topology_name": "v5e:2x4"},
}
PACKAGES = {
    "h200": f"jax-cuda13-plugin=={jax.lib.__version__} jax-cuda13-pjrt=={jax.lib.__version__}",
    "tpu-v5e": "libtpu",
}
DEVICES = (*TOPOLOGIES, "cpu")


class Cost(NamedTuple):
    """What one step of an optimizer costs.

    Attributes:
      passes: bytes moved, over the bytes of the parameters.
      least: the passes of a step that reads and writes each array once.
      kernels: as in `hlo.Count`.
      copies: likewise.
      temporary_bytes: what the program needs beside its arguments and results.
      aliased_bytes: of the arguments, what the results overwrite.
      donated_bytes: of the arguments, what they may overwrite: parameters and state.
      collectives: of the step on eight devices that share every parameter, how many of each kind.
    """

    passes: float
    least: float
    kernels: int
    copies: int
    temporary_bytes: int
    aliased_bytes: int
    donated_bytes: int
    collectives: dict[str, int]


def devices_of(name: str) -> Any:
    """Eight devices to compile for, here or not.

    Raises:
      SystemExit: if JAX lacks the compiler.
    """
    if name == "cpu":
        return jax.devices("cpu")
    options = dict(TOPOLOGIES[name])
    if name == "h200":
        options["target_config"] = Path(__file__).with_name("h200.txtpb").read_text()
        # The plugin would look for a driver.
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    else:
        # libtpu would ask the machine what it is.
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return _compat.topology(**options).devices
    except RuntimeError as error:  # JAX's, where it has no plugin for the platform
        raise SystemExit(
            f"No compiler for {name} here ({error}): pip install --no-deps {PACKAGES[name]}"
        ) from None


def abstract(tree: Any, mesh: Mesh) -> Any:
    """The arrays of a tree without values, each cut over all devices if they can share it."""

    def cut(x: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, fully_sharded(x.shape, mesh))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(cut, tree)


def compile_for(devices: Any, tx: optax.GradientTransformation, params: Any) -> Any:
    """The donated step for parameters that these devices share."""
    mesh = Mesh(np.asarray(devices), ("devices",))
    params, state = (abstract(tree, mesh) for tree in (params, jax.eval_shape(tx.init, params)))
    return donated_step(tx).lower(params, state, params).compile()


def cost(devices: Any, tx: optax.GradientTransformation, params: Any) -> Cost:
    """Compiles the step for one device, and for all, and reads what it does."""
    alone = compile_for(devices[:1], tx, params)
    found, memory = hlo.count(alone.as_text()), alone.memory_analysis()
    size, state_size = bytes_in(params), bytes_in(jax.eval_shape(tx.init, params))
    return Cost(
        passes=found.bytes_moved / size,
        least=(3 * size + 2 * state_size) / size,
        kernels=found.kernels,
        copies=found.copies,
        temporary_bytes=memory.temp_size_in_bytes,
        aliased_bytes=memory.alias_size_in_bytes,
        donated_bytes=size + state_size,
        collectives=hlo.count(compile_for(devices, tx, params).as_text()).collectives,
    )


def cells(cost: Cost) -> list[str]:
    """What a row of the table says of one optimizer."""
    return [
        f"{cost.passes:.2f}",
        f"{cost.least:.2f}",
        str(cost.kernels),
        str(cost.copies),
        f"{cost.temporary_bytes:,} B",
        hlo.in_words(cost.collectives),
    ]


def main() -> None:
    """Counts what the command line asks for, and prints it in Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.passes",
        description="What XLA makes of one step, for a device that need not be here.",
    )
    parser.add_argument("--device", choices=DEVICES, default="h200")
    parser.add_argument("--tree", choices=TREES, default="transformer")
    parser.add_argument("--optimizers", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    devices = devices_of(arguments.device)
    params = trees.abstract(TREES[arguments.tree](), arguments.dtype)
    rows = []
    for name in tqdm(arguments.optimizers, disable=None):
        ours, peer, theirs = PAIRS[name]
        costs = [cells(cost(devices, build(), params)) for build in (ours, theirs)]
        pairs = [f"{mine} ({other})" for mine, other in zip(*costs, strict=True)]
        rows.append(f"| {name} | {peer} | " + " | ".join(pairs) + " |")
    print(
        f"{TREES[arguments.tree].__doc__} {len(params)} leaves, {arguments.dtype}. "
        f"{devices[0].device_kind}, jax {jax.__version__}, optax {optax.__version__}.\n"
    )
    print("| optimizer | optax's | passes | least | kernels | copies | temporaries | collectives |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print(*rows, sep="\n")
    print(
        "\nIn brackets: optax's. A pass is one reading or writing of an array as large as the "
        "parameters;\nthe least counts each argument and result once. Kernels are those that are "
        "started in a step, copies\nthose of them that only copy; temporaries are bytes beside "
        "arguments and results. Collectives are\nthose of 8 devices that share every parameter; "
        "all else is of one device."
    )


if __name__ == "__main__":
    main()
