"""The processor time of compiling: what is compared, and the table. No test looks at a time."""

import gc
import math
import re

import jax
import numpy as np
import optax
import pytest

from benchmarks import compilation
from benchmarks.step import Spread
from benchmarks.trees import abstract, many_leaves

SMALL = {"layers": 1, "width": 16, "words": 32, "places": 8}


@pytest.fixture
def tiny(monkeypatch):
    """Small trees, and one pair in a process that goes on remembering what it has compiled."""
    shapes = compilation.decoder(**SMALL | {"layers": 0})
    monkeypatch.setattr(compilation, "WARM_UP", 0)
    monkeypatch.setattr(compilation, "dense_layers", lambda: {"kernel": (4, 2)})
    monkeypatch.setattr(compilation, "decoder", lambda: shapes)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    monkeypatch.setattr(gc, "collect", lambda: None)
    cached = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", cached)


def rows_of(table):
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_trees_are_as_large_as_they_are_said_to_be():
    assert len(compilation.dense_layers()) == 100
    assert len(set(compilation.dense_layers().values())) == 10
    assert len(compilation.decoder()) == 198
    assert compilation.layers_of(compilation.decoder()) == 12


def test_the_decoder_trains_every_parameter():
    random, shapes = np.random.default_rng(0), compilation.decoder(**SMALL)
    params = {name: 0.1 * random.normal(size=shape) for name, shape in shapes.items()}
    tokens = random.integers(0, 32, (2, 9))
    loss, gradients = jax.jit(jax.value_and_grad(compilation.loss_of))(params, tokens)
    # Before it has learnt anything, one word is about as likely as another.
    assert loss == pytest.approx(math.log(32), rel=0.25)
    # A bias of all keys moves no word nearer than another.
    unmoved = [name for name, x in gradients.items() if not np.any(np.abs(x) > 1e-6)]
    assert unmoved == ["block_0/attention/key/bias"]


@pytest.mark.parametrize(
    ("name", "build_peer"),
    [
        *((name, optax.adam) for name in ("msvag", "svag", "expectigrad", "expectigrad-dense")),
        ("adamw", optax.adam),
        ("amsgrad", optax.amsgrad),
        ("novograd", optax.novograd),
    ],
)
def test_each_optimizer_has_a_counterpart(name, build_peer):
    _, peer, build = compilation.CASES[name]
    assert peer == build_peer.__name__
    params = abstract(many_leaves(2))
    found, expected = (jax.eval_shape(tx.init, params) for tx in (build(), build_peer(0.1)))
    assert jax.tree.structure(found) == jax.tree.structure(expected)


def test_the_ratio_is_the_median_over_pairs_of_which_the_first_warms_up(monkeypatch):
    build, _, build_peer = compilation.CASES["msvag"]
    seconds = {build: [100.0, 2.0, 9.0, 8.0], build_peer: [1.0, 1.0, 3.0, 2.0]}
    turns = []

    def seconds_to_compile(lower, contender):
        assert lower is compilation.lower_update
        turns.append(contender)
        return seconds[contender].pop(0)

    monkeypatch.setattr(compilation, "seconds_to_compile", seconds_to_compile)
    found = compilation.measure("msvag", compilation.lower_update, pairs=3)
    # Of 2, 3 and 4. The ratio of the medians would be as much as 4.
    assert found == Spread(3.0, 2.0, 4.0)
    swapped, straight = [build, build_peer], [build_peer, build]
    assert turns == [*swapped, *straight, *swapped, *straight]


def test_the_table_has_a_column_for_each_part(tiny, tmp_path, capsys):
    compilation.main(
        ["--optimizers", "novograd", "--pairs", "1", "--output", str(tmp_path / "found.md")]
    )
    table = capsys.readouterr().out
    assert (tmp_path / "found.md").read_text() == table
    assert f"jax {jax.__version__}, optax {optax.__version__}" in table.partition("\n")[0]
    head, separator, row = rows_of(table)
    assert head == ["optimizer", "optax's", "update alone", "whole training step"]
    assert separator == ["---"] * 4
    assert row[:2] == ["novograd", "novograd"]
    assert all(re.fullmatch(r"\d+\.\d\d", ratio) for ratio in row[2:])


def test_the_table_has_a_row_for_each_optimizer(tiny, capsys):
    compilation.main(["--optimizers", "svag", "msvag", "--pairs", "2", "--part", "update"])
    head, separator, *rows = rows_of(capsys.readouterr().out)
    assert head == ["optimizer", "optax's", "update alone"]
    assert separator == ["---"] * 3
    assert [row[:2] for row in rows] == [["svag", "adam"], ["msvag", "adam"]]
    # Two ratios may be the same.
    number = r"\d+\.\d\d"
    assert all(re.fullmatch(rf"{number}( \({number} to {number}\))?", row[2]) for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "0"], "argument --pairs: must be at least 1, got 0"),
        (["--part", "half"], "invalid choice: 'half'"),
        (["--optimizers", "sgd"], "invalid choice: 'sgd'"),
        (["--output", "no/such/place.md"], "argument --output: no folder"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_measured(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        compilation.main(arguments)
    assert message in capsys.readouterr().err
