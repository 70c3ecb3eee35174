"""Says how far readings of the noise can be trusted, at a learning rate that is used in practice.

    python -m benchmarks.noise
    python -m benchmarks.noise --output benchmarks/results/noise.md

M-SVAG trains a network on the digits of scikit-learn at its best constant rate. The noise scale,
in batches, is read from its own moments over steps, and by `watch_noise` within steps, from single
examples and from 4 microbatches, and is computed exactly, from the gradients of all images. The
table shows one training; the last two columns are of all seeds: how many readings found a noise
scale, and the factor by which the median one of these is off.
"""

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import msvag_optax as mo
from msvag_optax.problems.digits import Perceptron, load_split

RATE, MEMORY = 2.0, 0.95
BATCHES, SEEDS = (32, 128), 3
SPANS, SPAN = 8, 50  # readings, and the steps between them
SOURCES = ("over steps", "examples", "4 microbatches")
NETWORK = Perceptron()

Sample = tuple[Any, dict[str, Any]]


def of_examples(gradients: Any) -> Sample:
    """The gradient of a batch and its noise, from those of its examples, as optax gives them."""
    mean = jax.tree.map(lambda g: g.mean(0), gradients)
    squares = jax.tree.map(lambda g, m: jnp.sum((g - m) ** 2, axis=0), gradients, mean)
    size = len(jax.tree.leaves(gradients)[0])
    return mean, {"sum_sq_diff_grads": squares, "sample_size": size}


def of_microbatches(gradients: Any, count: int = 4) -> Sample:
    """The same from the means of `count` equal parts of the batch."""
    size = len(jax.tree.leaves(gradients)[0]) // count

    def add(batch: mo.Microbatches, part: Any) -> tuple[mo.Microbatches, None]:
        return batch.add(part, size), None

    parts = jax.tree.map(lambda g: g.reshape(count, size, *g.shape[1:]).mean(1), gradients)
    start = mo.Microbatches.init(jax.tree.map(lambda g: g[0], gradients))
    return jax.lax.scan(add, start, parts)[0].result()


def loss(params: Any, image: jax.Array, label: jax.Array) -> jax.Array:
    """The cross-entropy of one image."""
    logits = jnp.asarray(NETWORK.apply({"params": params}, image))
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def digits(batch: int, seed: int = 0) -> dict[str, jax.Array]:
    """The noise scale, in batches, at some moments of a training: exact, and as it is read."""
    return _digits(batch, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def _digits(batch: int, key: jax.Array) -> dict[str, jax.Array]:
    images, labels = load_split()[0]
    gradients = jax.vmap(jax.grad(loss), (None, 0, 0))
    tx, watch = mo.msvag(RATE), mo.watch_noise(mo.exponential(MEMORY))

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state, *watched = carry
        chosen = jax.random.randint(key, (batch,), 0, len(images))
        of_batch = gradients(params, images[chosen], labels[chosen])
        samples = of_examples(of_batch), of_microbatches(of_batch)
        watched = [
            watch.update(gradient, before, **extra)[1]
            for (gradient, extra), before in zip(samples, watched, strict=True)
        ]
        updates, state = tx.update(samples[0][0], state, params)
        return (optax.apply_updates(params, updates), state, *watched), None

    def span(carry: Any, keys: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        carry, _ = jax.lax.scan(step, carry, keys)
        of_all = jax.tree.leaves(gradients(carry[0], images, labels))
        noise = sum(jnp.sum(g.var(0)) for g in of_all) / batch
        signal = jnp.asarray(sum(jnp.sum(g.mean(0) ** 2) for g in of_all))
        read = dict(zip(SOURCES, map(mo.noise_scale, carry[1:]), strict=True))
        return carry, {"exact": noise / signal, **read}

    params = NETWORK.init(key, images[:1])["params"]
    start = params, tx.init(params), watch.init(params), watch.init(params)
    return jax.lax.scan(span, start, jax.random.split(key, (SPANS, SPAN)))[1]


def readings_table() -> Iterator[str]:
    """The lines of the table of readings: one training, and what all have in common."""
    head = ["batch", "source", *(f"step {SPAN * i}" for i in range(1, SPANS + 1))]
    yield f"| {' | '.join(head)} | readings | median error |"
    yield f"| --: | --- |{' --: |' * (SPANS + 2)}"
    for batch in BATCHES:
        runs = [digits(batch, seed) for seed in range(SEEDS)]
        exact = np.stack([run["exact"] for run in runs])
        for name in ("exact", *SOURCES):
            scales = np.stack([run[name] for run in runs])
            cells = ["none" if np.isnan(scale) else f"{scale:.1f}" for scale in scales[0]]
            found = np.isfinite(scales)
            error = np.median(np.abs(np.log2(scales / exact))[found])
            cells += [f"{found.sum()} of {found.size}", f"{2**error:.1f}"]
            yield f"| {batch} | {name} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables, and keeps them where `--output` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, help="the file to keep the tables in")
    options = parser.parse_args(arguments)
    text = "\n".join(readings_table())
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
