"""Counts what sharding costs each optimizer: collectives in the compiled step, bytes on a device.

    python -m benchmarks.sharding

Eight host devices stand for the machines; nothing is timed, nothing is even run.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import msvag_optax as mo
from benchmarks import hlo
from benchmarks.step import bytes_in, donated_step
from benchmarks.trees import TREES, Shapes

RATE = 1e-3
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "msvag": lambda: mo.msvag(RATE),
    "svag": lambda: mo.svag(RATE),
    "expectigrad": lambda: mo.expectigrad(RATE),
    "expectigrad, dense counter": lambda: mo.expectigrad(RATE, sparse_counter=False),
    "novograd": lambda: mo.novograd(RATE),
    "novograd, amsgrad and decay": lambda: mo.novograd(RATE, amsgrad=True, weight_decay=1e-2),
    "amsgrad": lambda: mo.amsgrad(RATE),
    "adamw": lambda: mo.adamw(RATE),
    "bert_adamw": lambda: mo.bert_adamw(RATE, 1_000, 100),
    # Without the wrapper, the state that `jit(init)` makes lies on one device.
    "shard_like_params(optax.adamw)": lambda: mo.shard_like_params(optax.adamw(RATE)),
    "shard_like_params(optax.novograd)": lambda: mo.shard_like_params(optax.novograd(RATE)),
}


def replicated(shape: tuple[int, ...], mesh: Mesh) -> P:
    """Data-parallel: every device holds everything."""
    del shape, mesh
    return P()


def fully_sharded(shape: tuple[int, ...], mesh: Mesh) -> P:
    """FSDP: each parameter is cut over all devices, along the first axis that they divide."""
    axis = next((i for i, size in enumerate(shape) if size % mesh.size == 0), None)
    return P() if axis is None else P(*[None] * axis, mesh.axis_names)


def tensor_parallel(shape: tuple[int, ...], mesh: Mesh) -> P:
    """Matrices are cut along their last axis, over the devices of one axis of the mesh."""
    del mesh
    return P(*[None] * (len(shape) - 1), "model") if len(shape) > 1 else P()


Layout = Callable[[tuple[int, ...], Mesh], P]
LAYOUTS: dict[str, Layout] = {
    "data-parallel": replicated,
    "FSDP": fully_sharded,
    "tensor-parallel": tensor_parallel,
}


class Cost(NamedTuple):
    """What one optimizer costs under one layout.

    Attributes:
      collectives: how many of each kind one step runs.
      bytes_sent: what one device hands to them.
      bytes_a_device: of state, on one device.
      bytes_in_all: of state, if one device held it all.
      bytes_touched: what one device reads or writes at least: all that goes into the step, and all
        that comes out of it.
    """

    collectives: dict[str, int]
    bytes_sent: int
    bytes_a_device: int
    bytes_in_all: int
    bytes_touched: int


def make_mesh() -> Mesh:
    """Eight devices, in two rows of four."""
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def cost(tx: optax.GradientTransformation, params: Any) -> Cost:
    """Compiles `jit(init)` and a donated step for abstract sharded parameters."""
    state = jax.jit(tx.init).lower(params).compile().out_info
    compiled = donated_step(tx).lower(params, state, params).compile()
    found, memory = hlo.count(compiled.as_text() or ""), compiled.memory_analysis()
    return Cost(
        found.collectives,
        found.bytes_sent,
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(state)
        ),
        bytes_in(state),
        memory.argument_size_in_bytes + memory.output_size_in_bytes,
    )


def abstract_params(
    shapes: Shapes, layout: str, mesh: Mesh, dtype: jax.typing.DTypeLike = jnp.float32
) -> Any:
    """Parameters of these shapes without values, sharded by the layout."""
    return {
        name: jax.ShapeDtypeStruct(
            shape, dtype, sharding=NamedSharding(mesh, LAYOUTS[layout](shape, mesh))
        )
        for name, shape in shapes.items()
    }


def in_words(found: Cost) -> str:
    """Such as `2 all-reduce (104 B)`."""
    sent = f" ({found.bytes_sent:,} B)" if found.collectives else ""
    return hlo.in_words(found.collectives) + sent


def table() -> Iterator[str]:
    """The lines of a table in Markdown, of every optimizer under every layout."""
    mesh, shapes = make_mesh(), TREES["transformer"]()
    yield "| optimizer |" + "".join(
        f" {layout}: collectives | {layout}: state |" for layout in LAYOUTS
    )
    yield "| --- |" + " --- | --- |" * len(LAYOUTS)
    for name, build in OPTIMIZERS.items():
        cells = []
        for layout in LAYOUTS:
            found = cost(build(), abstract_params(shapes, layout, mesh))
            cells += [in_words(found), f"{found.bytes_a_device / found.bytes_in_all:.3f}"]
        yield f"| `{name}` | " + " | ".join(cells) + " |"


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    print(f"{TREES['transformer'].__doc__} jax {jax.__version__}, optax {optax.__version__}.\n")
    for line in table():
        print(line, flush=True)
    print(
        "\nCollectives: of the optimizer's step, and the bytes that a device gives them. State:\n"
        "the share of its bytes that a device holds. FSDP cuts parameters over all 8 devices,\n"
        "tensor-parallel matrices over 4 of them."
    )


if __name__ == "__main__":
    main()
