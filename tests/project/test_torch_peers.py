"""What a peer from PyTorch is held to before it is timed; none of it needs PyTorch."""

import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

import msvag_optax as mo
from benchmarks import torch_peers
from benchmarks.step import donated_step
from benchmarks.torch_peers import PAIRS, RATE, Pair, Peer
from benchmarks.trees import Shapes

SHAPES: Shapes = {"bias": (8,), "kernel": (16, 8)}
PARAMS = torch_peers.random_tree(SHAPES, 0.1, seed=0)
GRADIENTS = torch_peers.random_tree(SHAPES, 1.0, seed=1)
PAIR = Pair("optax adamw", lambda libraries, params: None, "adamw", lambda: mo.adamw(RATE))


def peer_of(tx):
    """An optimizer of optax that works in place, as those of torch do."""
    params, gradients = ({leaf: x.copy() for leaf, x in PARAMS.items()} for _ in range(2))
    carry, update = (params, tx.init(params)), donated_step(tx)

    def step():
        nonlocal carry
        carry = update(*carry, gradients)
        for leaf, x in carry[0].items():
            params[leaf][...] = x

    return Peer(params, gradients, step)


def raced(tx, pair=PAIR):
    return torch_peers.measure(pair, peer_of(tx), PARAMS, GRADIENTS, rounds=2)


def test_a_peer_that_takes_the_same_steps_is_measured():
    row = raced(optax.adamw(RATE, weight_decay=1e-2))
    assert (row.peer, row.ours) == ("optax adamw", "adamw")
    for ratio in (row.step, row.floor, row.peer_floor):
        assert 0 < ratio.least <= ratio.median <= ratio.greatest


@pytest.mark.parametrize(
    ("tx", "step"),
    [
        pytest.param(optax.set_to_zero(), 1, id="nothing"),
        pytest.param(optax.adamw(1.001 * RATE, weight_decay=1e-2), 1, id="another rate"),
        pytest.param(optax.adam(RATE), 1, id="no decay"),
        pytest.param(optax.adamw(RATE, b1=0.89, weight_decay=1e-2), 2, id="another b1"),
        pytest.param(optax.adamw(RATE, b2=0.998, weight_decay=1e-2), 2, id="another b2"),
    ],
)
def test_a_peer_that_takes_other_steps_is_not_measured(tx, step):
    with pytest.raises(RuntimeError, match=f"optax adamw, step {step}: the steps of "):
        raced(tx)


def test_two_that_do_nothing_are_not_measured():
    with pytest.raises(RuntimeError, match="step 1"):
        raced(optax.set_to_zero(), PAIR._replace(build=optax.set_to_zero))


@pytest.mark.slow
def test_the_first_step_alone_may_be_farther_off():
    """As that of a peer whose first factor is rounding noise."""
    late = optax.scale_by_schedule(lambda count: jax.numpy.where(count == 0, 0.998, 1.0))
    tx = optax.chain(optax.sgd(RATE), late)
    pair = PAIR._replace(build=lambda: mo.msvag(RATE, beta=0.0))
    raced(tx, pair._replace(first_step=3.5e-3))
    with pytest.raises(RuntimeError, match="step 1"):
        raced(tx, pair)


def recorded(name, calls):
    """A class of a library that is not there: it notes what it is called with."""

    def build(params, **hyperparameters):
        calls.append((name, params, hyperparameters))

    return build


def test_every_peer_has_an_optimizer_of_ours():
    calls = []
    libraries = torch_peers.Libraries(
        SimpleNamespace(optim=SimpleNamespace(AdamW=recorded("AdamW", calls))),
        SimpleNamespace(MSVAG=recorded("MSVAG", calls), NovoGrad=recorded("NovoGrad", calls)),
        SimpleNamespace(Expectigrad=recorded("Expectigrad", calls)),
    )
    for pair in PAIRS:
        pair.build_peer(libraries, ["parameters"])
        jax.eval_shape(pair.build().init, PARAMS)
        assert callable(getattr(mo, pair.ours))
    adamw = {"lr": RATE, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
    assert calls == [
        ("AdamW", ["parameters"], {**adamw, "fused": True}),
        ("AdamW", ["parameters"], {**adamw, "foreach": True}),
        ("MSVAG", ["parameters"], {"lr": RATE, "beta": 0.9}),
        ("NovoGrad", ["parameters"], {"lr": RATE, "betas": (0.9, 0.999), "eps": 1e-7}),
        ("Expectigrad", ["parameters"], {"lr": RATE}),
    ]
    assert len({pair.peer for pair in PAIRS}) == len(PAIRS)


@pytest.mark.parametrize("missing", ["torch", "pytorch_optimizer", "expectigrad"])
def test_a_missing_library_is_named_before_anything_is_measured(missing, monkeypatch):
    for name in ("torch", "pytorch_optimizer", "expectigrad", "expectigrad.pytorch"):
        # As if they were there, whether they are or not.
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    # What Python takes for a module that cannot be imported.
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, f"{missing}.pytorch", raising=False)
    install = "pip install torch pytorch_optimizer expectigrad$"
    with pytest.raises(SystemExit, match=f"{missing}.*: {install}"):
        torch_peers.main(["--trees", "embedding"])


# The seconds of three rounds: ours, the peer's and the floor's.
ROW = torch_peers.compare(PAIRS[0], [2.0, 4.0, 4.0], [3.0, 5.0, 8.0], [2.0, 2.0, 5.0])
RESULTS = torch_peers.Results(
    "a machine", "torch 2", "4 threads", "2026-01-01", {"embedding": [ROW]}
)


def test_torch_gets_as_many_threads_as_xla(monkeypatch):
    given = []
    torch = SimpleNamespace(set_num_threads=given.append, get_num_threads=lambda: given[-1])
    monkeypatch.setattr(torch_peers, "cores", lambda: 3)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert torch_peers.threads(torch).startswith("3 threads for XLA, 3 for torch")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert torch_peers.threads(torch).endswith("which wait PASSIVE")
    assert given == [3, 3]


def test_results_in_markdown():
    lines = [*torch_peers.in_markdown(RESULTS)]
    assert lines[0] == ("a machine; torch 2; 4 threads; 2026-01-01.")
    assert lines[1].startswith("\n**An embedding of 50,000 rows")
    header, rule, row = lines[2:5]
    assert header.count("|") == rule.count("|") == row.count("|") == 6
    assert row == (
        "| adamw | torch AdamW, fused | 0.67 (0.50 to 0.80) | 1.00 (0.80 to 2.00) "
        "| 1.60 (1.50 to 2.50) |"
    )


def test_results_in_json():
    results = json.loads(json.dumps(torch_peers.in_json(RESULTS)))
    assert results["threads"] == "4 threads"
    assert results["trees"] == [
        {
            "tree": "embedding",
            "peer": "torch AdamW, fused",
            "ours": "adamw",
            "step": {"median": 2 / 3, "least": 0.5, "greatest": 0.8},
            "floor": {"median": 1.0, "least": 0.8, "greatest": 2.0},
            "peer_floor": {"median": 1.6, "least": 1.5, "greatest": 2.5},
        }
    ]


def test_values_are_the_same_in_every_run():
    again = torch_peers.random_tree(SHAPES, 0.1, seed=0)
    for leaf, x in PARAMS.items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, again[leaf])
