"""A language model of characters: which one comes next in Python's own sources?"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from msvag_optax.problems.library_text import evenly, load_text
from msvag_optax.problems.problem import Params, Problem

CHARACTERS = "\n" + "".join(map(chr, range(ord(" "), ord("~") + 1)))
VOCABULARY = 1 + len(CHARACTERS)  # Any other character is 0.
EXAMPLES = 128  # texts on which a point is judged


class CharacterModel(nn.Module):
    """An embedding, an LSTM, and one logit for each character that may come next."""

    width: int = 48

    @nn.compact
    def __call__(self, characters: jax.Array) -> jax.Array:
        """The logits after each of the characters, of shape `(..., length, VOCABULARY)`."""
        features = nn.Embed(VOCABULARY, 32)(characters)
        features = nn.RNN(nn.OptimizedLSTMCell(self.width))(features)
        return nn.Dense(VOCABULARY)(features)


def encode(text: str) -> jax.Array:
    """The numbers of the characters of `text`, as uint8."""
    numbers = {character: number for number, character in enumerate(CHARACTERS, 1)}
    return jnp.asarray(np.fromiter((numbers.get(c, 0) for c in text), np.uint8, len(text)))


def char_lm(model: nn.Module | None = None, batch_size: int = 16, length: int = 24) -> Problem:
    """Predicting the next character of Python's own sources, by the cross-entropy of small batches.

    Every step draws `batch_size` pieces of the text with replacement, on the device.

    Args:
      model: any Flax Linen network from rows of characters, as integers below `VOCABULARY`, to
        logits after each of them; `CharacterModel()` unless another is given.
      batch_size: the number of pieces that a gradient is averaged over.
      length: the number of characters of a piece.

    Returns:
      A `Problem` with the metrics `train loss` and `held-out loss`, the mean cross-entropy in nats
      over `EXAMPLES` pieces of the text that is trained on, and of the ends of its files, which are
      not (some of these, such as boilerplate, stand in the rest as well). The text differs by
      Python's version, and the losses with it: `source` says which it is.

    Raises:
      FileNotFoundError: if Python's sources are not there.

    References:
      Balles and Hennig, `Dissecting Adam: The Sign, Magnitude and Variance of Stochastic Gradients
      <https://arxiv.org/abs/1705.07774>`_, 2018, train an LSTM on the characters of a novel.
    """
    network = CharacterModel() if model is None else model
    text = load_text()
    train, held_out = encode(text.train), encode(text.held_out)

    def cross_entropy(params: Params, source: jax.Array, starts: jax.Array) -> jax.Array:
        pieces = source[starts[:, None] + jnp.arange(length + 1)].astype(jnp.int32)
        logits = jnp.asarray(network.apply({"params": params}, pieces[:, :-1]))
        return optax.softmax_cross_entropy_with_integer_labels(logits, pieces[:, 1:]).mean()

    def init(key: jax.Array) -> Params:
        return network.init(key, jnp.zeros((1, length), jnp.int32))["params"]

    def loss(params: Params, step: ArrayLike, key: jax.Array) -> jax.Array:
        del step
        starts = jax.random.randint(key, (batch_size,), 0, len(train) - length)
        return cross_entropy(params, train, starts)

    def metrics(params: Params) -> dict[str, jax.Array]:
        return {
            name: cross_entropy(params, source, jnp.asarray(evenly(len(source) - length, EXAMPLES)))
            for name, source in {"train loss": train, "held-out loss": held_out}.items()
        }

    return Problem(init, loss, metrics, source=text.source)
