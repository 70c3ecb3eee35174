"""What optimizers remember and what training with them takes: the tables, and the kept ones."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import msvag_optax as mo
from benchmarks import memory
from benchmarks.trees import TREES

KEPT = (Path(__file__).parents[2] / "benchmarks" / "results" / "memory.md").read_text()
SHAPES = TREES["transformer"]()
# The same model, small: one layer, of one head.
SIZES = {50_257: 96, 1_024: 16, 512: 64, 2_048: 128}
SMALL = {
    name: tuple(SIZES[size] for size in shape)
    for name, shape in SHAPES.items()
    if not re.match("block_[1-9]", name)
}
BATCH = (2, 16)
# XLA:CPU puts each temporary at a multiple of 64 bytes, and a step has a few scalars of its own; a
# table of the results takes 8 bytes for each. Sixteen times 64 are less than any kernel.
SCALARS = 16 * 64


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture(scope="module")
def state_lines():
    """Of the first block: with five more like it, no number is another in two decimals."""
    first = {name: shape for name, shape in SHAPES.items() if not re.match("block_[1-9]", name)}
    return [*memory.state_table(first)]


def test_the_page_shows_what_is_remembered(state_lines):
    assert "\n".join(state_lines) in KEPT


def test_every_optimizer_has_a_row(state_lines):
    rows = [cells(line)[0] for line in state_lines]
    here = "msvag_optax.optimizers."
    functions = {n: f for n, f in vars(mo).items() if getattr(f, "__module__", "").startswith(here)}
    named = functions.keys() - {"Dissection", "OptimizerState", "optimizer"}
    named -= {"warmup_linear_decay_schedule"}
    assert "msvag" in named
    assert [name for name in [*named, "variance_adapted"] if not _row_of(name, rows)] == []


def _row_of(name, rows):
    return [row for row in rows if re.match(rf"{name}\b", row)]


# What each array of a parameter takes: 4 bytes in float32 or as a counter, 2 in bfloat16.
@pytest.mark.parametrize(
    ("name", "state", "mu", "nu", "both"),
    [
        ("msvag", 8, 6, 6, 4),
        ("svag", 8, 6, 6, 4),
        ("variance_adapted(identity)", 8, 6, 6, 4),
        ("expectigrad", 12, 10, 10, 8),
        ("expectigrad, sparse_counter=False", 8, 6, 6, 4),
        ("novograd", 4, 2, 4, 2),
        ("novograd, amsgrad", 4, 2, 4, 2),
        ("novograd, grad_averaging", 4, 2, 4, 2),
        ("novograd, stacked", 4, 2, 4, 2),
        ("amsgrad", 12, 10, 8, 6),
        ("adamw", 8, 6, 6, 4),
        ("bert_adamw", 8, None, None, None),
    ],
)
def test_what_is_remembered_of_a_parameter(state_lines, name, state, mu, nu, both):
    """One number in each cell: the same of parameters in float32 and in bfloat16."""
    row = next(row for row in map(cells, state_lines) if row[0] == name)
    expected = [state, mu, nu, both]
    assert row[1:5] == ["-" if number is None else f"{number:.2f}" for number in expected]


def test_optax_remembers_in_the_dtype_of_the_parameters(state_lines):
    row = next(row for row in map(cells, state_lines) if row[0] == "adamw")
    assert row[5:] == ["adamw", "8.00 / 4.00", "6.00 / 4.00"]


@pytest.mark.parametrize(
    ("options", "floats_a_layer"), [({}, 1), ({"amsgrad": True}, 2)], ids=["plain", "amsgrad"]
)
@pytest.mark.parametrize("stacked", [False, True], ids=["layer by layer", "stacked"])
def test_novograd_remembers_a_float_a_parameter_and_one_a_layer(options, floats_a_layer, stacked):
    shapes = memory.stacked(SHAPES) if stacked else SHAPES
    patterns = ["^blocks/"] if stacked else []
    tx = mo.novograd(0.1, stacked=patterns, **options)
    state = jax.eval_shape(tx.init, memory.abstract(shapes, jnp.float32))
    counters = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.integer)]
    floats = memory.bytes_in(state) - memory.bytes_in(counters)
    size = sum(math.prod(shape) for shape in shapes.values())
    # Stacked or not, there are as many layers: each leaf of the tree with a leaf for each.
    assert floats == 4 * (size + floats_a_layer * len(SHAPES))
    assert all(counter.shape == () for counter in counters)


def test_stacking_changes_no_size():
    sizes = [
        sum(math.prod(shape) for shape in tree.values())
        for tree in (SHAPES, memory.stacked(SHAPES))
    ]
    assert sizes[0] == sizes[1]
    assert memory.stacked(SHAPES)["blocks/up/kernel"] == (6, 512, 2_048)


def test_the_model_trains_every_parameter():
    random = np.random.default_rng(0)
    params = {
        name: 0.1 * random.normal(size=shape).astype(np.float32) for name, shape in SMALL.items()
    }
    tokens = random.integers(0, 96, (1, 17))
    loss, gradients = jax.jit(jax.value_and_grad(memory.loss_of))(params, tokens)
    # Before it has learnt anything, one word is about as likely as another.
    assert loss == pytest.approx(math.log(96), rel=0.25)
    assert [name for name, gradient in gradients.items() if not np.any(gradient)] == []


def test_a_training_step_keeps_one_copy_of_what_it_is_given():
    """And M-SVAG needs as much for a while as optax's Adam."""
    params, device = memory.abstract(SMALL, jnp.float32), jax.devices()[0]
    ours, adam = (
        memory.memory(device, build, params, BATCH)
        for build in (memory.ROWS[0].build, memory.PEERS["adam"])
    )
    sequences, length = BATCH
    for found in (ours, adam):
        once = memory.bytes_in(params) + found.state + 4 * sequences * (length + 1)
        assert 0 <= found.peak - found.temporaries - once <= SCALARS
    assert abs(ours.temporaries - adam.temporaries) <= SCALARS
    # Of gradients and activations, most are needed at once.
    assert ours.temporaries > memory.bytes_in(params)


@pytest.mark.slow
def test_the_page_shows_what_training_takes(monkeypatch):
    """Of some optimizers, each in a step of its own: all would take minutes."""
    monkeypatch.setattr(memory, "WHOLE", ("novograd", "bert_adamw"))
    monkeypatch.setattr(memory, "HALVED", ())
    lines = [*memory.peak_table(jax.devices("cpu")[0], memory.abstract(SHAPES, jnp.float32))]
    measured = re.search(r"jax ([\d.]+),", KEPT)
    assert measured is not None
    same = measured[1] == jax.__version__  # Another compiler takes another memory.
    head = lines[0] if same else lines[0].partition(":")[0]
    assert head in KEPT
    kept = KEPT.partition(head)[2].partition("\n| none")[0].splitlines()
    assert lines[1:3] == [line for line in kept if line.startswith("|")][:2]
    kept = KEPT.partition(head)[2].partition("\n\n")[2].splitlines()
    for line in lines[3:]:
        kept_line = next(row for row in kept if row and cells(row)[:2] == cells(line)[:2])
        # XLA may cut the work, and with it the temporaries, otherwise on another CPU.
        bound = {"rel": 0.03 if same else 0.1, "abs": 0.011}
        assert _numbers(line) == pytest.approx(_numbers(kept_line), **bound)


def _numbers(line):
    """Those of the cells after the names."""
    found = re.findall(r"\d[\d,.]*", " ".join(cells(line)[2:]))
    return [float(number.replace(",", "")) for number in found]
