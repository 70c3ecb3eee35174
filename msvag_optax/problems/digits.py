"""Real images in a second: handwritten digits, and a small Flax network that reads them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from sklearn import datasets, model_selection

from msvag_optax.problems.problem import Params, Problem


class Split(NamedTuple):
    """The images of one part of the data, as rows of pixels in [0, 1], and the digits they show."""

    images: jax.Array
    labels: jax.Array


def load_split(test_size: float = 0.25, seed: int = 0) -> tuple[Split, Split]:
    """The digits that come with scikit-learn, divided into training and test images.

    The same arguments give the same division on every machine, and each digit has the same share
    of both parts.

    Args:
      test_size: the share of the 1,797 images that is kept for testing.
      seed: draws the division.

    Returns:
      The training and the test images (1,347 and 450 of them, 8 x 8 pixels each).
    """
    data: Any = datasets.load_digits()
    train, test = model_selection.train_test_split(
        np.arange(len(data.target)), test_size=test_size, random_state=seed, stratify=data.target
    )
    images = jnp.asarray(data.data / 16, jnp.float32)
    labels = jnp.asarray(data.target, jnp.int32)
    return Split(images[train], labels[train]), Split(images[test], labels[test])


class Perceptron(nn.Module):
    """Dense layers with rectified linear units between them, and one logit for each digit."""

    hidden: Sequence[int] = (64, 64)

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """The logits of each image."""
        features = images
        for width in self.hidden:
            features = nn.relu(nn.Dense(width)(features))
        return nn.Dense(10)(features)


def digits(model: nn.Module | None = None, batch_size: int = 64) -> Problem:
    """Reading handwritten digits, by the cross-entropy of small batches.

    Every step draws `batch_size` training images with replacement, on the device, so that a step
    needs no data from outside.

    Args:
      model: any Flax Linen network from rows of 64 pixels to 10 logits; `Perceptron()` unless
        another is given.
      batch_size: the number of images that a gradient is averaged over.

    Returns:
      A `Problem` with the metrics `train loss`, the mean cross-entropy over *all* training images
      in nats, and `test accuracy`, the share of test images that are read correctly.
    """
    network = Perceptron() if model is None else model
    train, test = load_split()

    def logits(params: Params, images: jax.Array) -> jax.Array:
        return jnp.asarray(network.apply({"params": params}, images))

    def cross_entropy(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, images), labels
        ).mean()

    def init(key: jax.Array) -> Params:
        return network.init(key, train.images[:1])["params"]

    def loss(params: Params, step: ArrayLike, key: jax.Array) -> jax.Array:
        del step
        chosen = jax.random.randint(key, (batch_size,), 0, len(train.labels))
        return cross_entropy(params, train.images[chosen], train.labels[chosen])

    def metrics(params: Params) -> dict[str, jax.Array]:
        read = jnp.argmax(logits(params, test.images), axis=-1)
        return {
            "train loss": cross_entropy(params, train.images, train.labels),
            "test accuracy": jnp.mean(read == test.labels),
        }

    return Problem(init, loss, metrics)
