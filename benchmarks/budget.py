"""Says what a model of 1e11 parameters costs on 1,024 devices: bytes on each, collectives.

    python -m benchmarks.budget

The optimizer's step is compiled for so many host devices, and not run.
"""

import argparse
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType

import msvag_optax as mo
from benchmarks.sharding import abstract_params, cost, in_words
from benchmarks.trees import Shapes

DEVICES = 1024
RATE = 1e-3
STACKED = ("^blocks/",)
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "`msvag`, `svag`": lambda: mo.msvag(RATE),
    "`expectigrad`": lambda: mo.expectigrad(RATE),
    "`expectigrad`, `sparse_counter=False`": lambda: mo.expectigrad(RATE, sparse_counter=False),
    "`novograd`": lambda: mo.novograd(RATE, stacked=STACKED),
    "`novograd`, `mu_dtype=bfloat16`": lambda: mo.novograd(
        RATE, stacked=STACKED, mu_dtype=jnp.bfloat16
    ),
    "`amsgrad`": lambda: mo.amsgrad(RATE),
    "`adamw`": lambda: mo.adamw(RATE),
    "`adamw`, `mu_dtype=bfloat16`": lambda: mo.adamw(RATE, mu_dtype=jnp.bfloat16),
    "`bert_adamw`": lambda: mo.bert_adamw(RATE, 1_000_000, 10_000),
}


def decoder() -> Shapes:
    """A GPT-3-like decoder of 55 layers, each parameter of which is stacked in one array."""
    width, layers, words = 12_288, 55, 50_257
    attention = [f"attention/{name}" for name in ("query", "key", "value", "out")]
    blocks: Shapes = dict.fromkeys(attention, (layers, width, width))
    blocks |= {"up/kernel": (layers, width, 4 * width), "down/kernel": (layers, 4 * width, width)}
    blocks |= {"up/bias": (layers, 4 * width), "down/bias": (layers, width)}
    blocks |= {f"norm_{i}/{leaf}": (layers, width) for i in (1, 2) for leaf in ("scale", "bias")}
    return {"embedding/words": (words, width)} | {f"blocks/{k}": v for k, v in blocks.items()}


SIZE = sum(math.prod(shape) for shape in decoder().values())


def table() -> Iterator[str]:
    """The lines of a table in Markdown: bfloat16 parameters, cut over all devices."""
    mesh = jax.make_mesh((DEVICES,), ("devices",), axis_types=(AxisType.Auto,))
    params = abstract_params(decoder(), "FSDP", mesh, jnp.bfloat16)
    yield "| optimizer | state, bytes a parameter | state, GB | traffic, GB | collectives |"
    yield "| --- | --- | --- | --- | --- |"
    for name, build in OPTIMIZERS.items():
        found = cost(build(), params)
        yield (
            f"| {name} | {found.bytes_in_all / SIZE:.2f} | {found.bytes_a_device / 1e9:.2f} "
            f"| {found.bytes_touched / 1e9:.2f} | {in_words(found)} |"
        )


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print(
        f"{SIZE:.4g} parameters in bfloat16, FSDP over {DEVICES:,} devices: parameters and "
        f"gradients take {4e-9 * SIZE / DEVICES:.2f} GB of each.\n"
    )
    for line in table():
        print(line, flush=True)
    print(
        "\nState: on one device, in GB of 1e9 bytes. Traffic: what a step reads and writes there,\n"
        "at least. NovoGrad has a norm for each layer of a stack, BERT's clipping one a leaf."
    )


if __name__ == "__main__":
    main()
