"""A table of words, most of which are seldom used: what happens to their rows?"""

import re
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from msvag_optax.problems.library_text import evenly, load_text
from msvag_optax.problems.problem import Params, Problem

WORD = re.compile(r"\w+|[^\w\s]")
RARE = 20  # times in the text that is trained on, at most
EXAMPLES = 2_048  # on which a point is judged


class NextWord(nn.Module):
    """Two words of a large table, a hidden layer, and one logit for each word that may follow."""

    words: int
    answers: int
    width: int = 16

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        """The logits after pairs of words, of shape `(..., answers)`."""
        features = nn.Embed(self.words, self.width)(words)
        features = features.reshape(*features.shape[:-2], -1)
        return nn.Dense(self.answers)(nn.relu(nn.Dense(64)(features)))


def rare_words(batch_size: int = 64, answers: int = 64) -> Problem:
    """Predicting what follows two words of Python's own sources, where most words are rare.

    Words are what `WORD` finds: names, numbers, and single signs. Each that occurs at least twice
    in the text that is trained on has a row in the embedding, and most of these occur a few times.
    Of what follows, the most frequent words are told apart, and all others are one: a name's row
    says whether a bracket, a dot or a comma is to be expected. So in most steps most rows have no
    gradient.

    Args:
      batch_size: the number of pairs that a gradient is averaged over.
      answers: the number of answers: one for each of the most frequent words, and one for all
        others.

    Returns:
      A `Problem` with the metrics `held-out loss`, the mean cross-entropy in nats on the ends of
      the files, which are not trained on, and `after rare words`, the same where the newest word
      occurs two to `RARE` times in the text that is trained on. The text differs by Python's
      version: `source` says which it is.

    Raises:
      FileNotFoundError: if Python's sources are not there.
    """
    text = load_text()
    train, held_out = WORD.findall(text.train), WORD.findall(text.held_out)
    counts = Counter(train)
    # The most frequent first; a word that is found once is known as 0, with all that are not found.
    known = [word for word, count in counts.most_common() if count > 1]
    numbers = {word: number for number, word in enumerate(known, 1)}
    network = NextWord(1 + len(known), answers)

    def encode(words: list[str]) -> jax.Array:
        return jnp.asarray([numbers.get(word, 0) for word in words], jnp.int32)

    source, judged = encode(train), encode(held_out)
    frequent = sum(counts[word] > RARE for word in known)
    anywhere = np.arange(1, len(judged) - 1)
    rare = anywhere[np.asarray(judged)[anywhere] > frequent]

    def cross_entropy(params: Params, words: jax.Array, last: jax.Array) -> jax.Array:
        logits = network.apply({"params": params}, words[last[:, None] + jnp.asarray([-1, 0])])
        following = words[last + 1]
        labels = jnp.where(following < answers, following, 0)
        return optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels).mean()

    def init(key: jax.Array) -> Params:
        return network.init(key, jnp.zeros((1, 2), jnp.int32))["params"]

    def loss(params: Params, step: ArrayLike, key: jax.Array) -> jax.Array:
        del step
        last = jax.random.randint(key, (batch_size,), 1, len(source) - 1)
        return cross_entropy(params, source, last)

    def metrics(params: Params) -> dict[str, jax.Array]:
        return {
            name: cross_entropy(params, judged, jnp.asarray(places[evenly(len(places), EXAMPLES)]))
            for name, places in {"held-out loss": anywhere, "after rare words": rare}.items()
        }

    return Problem(init, loss, metrics, source=text.source)
