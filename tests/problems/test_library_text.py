"""The text of the standard library, and the two problems that are made of it."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from msvag_optax import compare
from msvag_optax.problems import char_lm, library_text, rare_words


@pytest.fixture(scope="module")
def text() -> library_text.LibraryText:
    return library_text.load_text()


@pytest.fixture
def folder(tmp_path):
    """A library in which each file is its own name, ten times, and `é`."""
    for name in library_text.FILES:
        (tmp_path / name).write_text(10 * name + "é", encoding="utf-8")
    return tmp_path


def test_every_file_is_cut_once(folder):
    text = library_text.load_text(folder)
    for name in library_text.FILES:
        assert text.train.count(name) == 9
        assert text.held_out.count("é") == len(library_text.FILES)
    size = sum(10 * len(name) + 1 for name in library_text.FILES)
    assert len(text.train + text.held_out) == size
    assert f"{size:,} characters" in text.source


def test_the_source_changes_with_the_text(folder):
    before = library_text.load_text(folder).source
    assert before == library_text.load_text(folder).source
    (folder / "enum.py").write_text(10 * "enim.py" + "é", encoding="utf-8")
    after = library_text.load_text(folder).source
    assert re.sub("[0-9a-f]{16}$", "", before) == re.sub("[0-9a-f]{16}$", "", after)
    assert before != after


def test_a_missing_file_is_named(folder):
    (folder / "enum.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"Python's own sources, and .* has no enum\.py\.$"):
        library_text.load_text(folder)


def test_characters_are_numbered_from_1_and_the_unknown_are_0():
    np.testing.assert_array_equal(char_lm.encode("\n ~é"), [1, 2, char_lm.VOCABULARY - 1, 0])


def test_places_are_evenly_spaced():
    np.testing.assert_array_equal(library_text.evenly(9, 3), [0, 4, 8])
    np.testing.assert_array_equal(library_text.evenly(2, 3), [0, 1])


class Bigrams(nn.Module):
    """The logits of the next character, for each character: its gradient is known."""

    @nn.compact
    def __call__(self, characters):
        return nn.Embed(char_lm.VOCABULARY, char_lm.VOCABULARY)(characters)


def test_a_character_is_asked_for_what_follows_it(text):
    """The best logits are those of the frequencies, and the loss there is their entropy."""
    characters = np.asarray(char_lm.encode(text.train))
    counts = np.zeros((char_lm.VOCABULARY, char_lm.VOCABULARY))
    np.add.at(counts, (characters[:-1], characters[1:]), 1)
    share = counts / counts.sum(axis=1, keepdims=True).clip(1)
    params = {"Embed_0": {"embedding": jnp.log(jnp.asarray(share, jnp.float32) + 1e-9)}}
    entropy = -(counts * np.log(share.clip(1e-9))).sum() / counts.sum()
    problem = char_lm.char_lm(Bigrams(), batch_size=4_000)
    loss = problem.loss(params, 0, jax.random.key(0))
    np.testing.assert_allclose(loss, entropy, rtol=0.02)
    np.testing.assert_allclose(problem.metrics(params)["train loss"], entropy, rtol=0.1)


def test_a_rows_gradient_is_zero_where_its_word_is_in_no_pair():
    problem = rare_words.rare_words(batch_size=8)
    params = jax.jit(problem.init)(jax.random.key(0))
    _, gradient = jax.jit(problem.value_and_grad)(params, 0, jax.random.key(1))
    used = np.any(np.asarray(gradient["Embed_0"]["embedding"]) != 0, axis=1)
    assert 1 <= used.sum() <= 16


def test_most_words_are_rare(text):
    words = rare_words.WORD.findall(text.train)
    names, counts = np.unique(words, return_counts=True)
    params = jax.eval_shape(rare_words.rare_words().init, jax.random.key(0))
    assert len(params["Embed_0"]["embedding"]) == 1 + (counts > 1).sum()
    assert (counts[counts > 1] <= rare_words.RARE).mean() > 0.5
    assert "self" in names[counts > rare_words.RARE]


@pytest.mark.parametrize(
    ("build", "names", "answers"),
    [
        (char_lm.char_lm, {"train loss", "held-out loss"}, char_lm.VOCABULARY),
        (rare_words.rare_words, {"held-out loss", "after rare words"}, 64),
    ],
)
def test_it_starts_by_guessing_and_can_be_learned(build, names, answers):
    problem = build()
    assert "standard library of Python 3." in problem.source
    ran = compare.train(problem, optax.adam, [0.01], steps=50, seeds=1, measurements=1)
    assert names == ran.history.keys() - {"average loss"}
    for name in names:
        first, last = ran.history[name][:, 0, 0]
        np.testing.assert_allclose(first, np.log(answers), rtol=0.1)
        assert last < first - 0.5
