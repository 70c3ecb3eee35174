"""What a sharded step costs, as compiled: collectives, and bytes on a device."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import sharding

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text()

SHAPES = {"embedding": (64, 16), "up/kernel": (16, 32), "down/kernel": (32, 16), "scale": (16,)}
# The norms of layers are summed over the devices; so is BERT's global norm, after the largest
# element that keeps its square from overflowing.
REDUCTIONS = {
    "novograd": 1,
    "novograd, amsgrad and decay": 1,
    "bert_adamw": 2,
    "shard_like_params(optax.novograd)": 1,  # in either branch of its condition
}


def cases():
    for name in sharding.OPTIMIZERS:
        for layout in sharding.LAYOUTS:
            fast = layout == "FSDP" and name in ("msvag", "expectigrad", "novograd", "bert_adamw")
            yield pytest.param(name, layout, marks=[] if fast else [pytest.mark.slow])


@pytest.mark.parametrize(("name", "layout"), [*cases()])
def test_collectives_and_bytes(name, layout):
    params = sharding.abstract_params(SHAPES, layout, sharding.make_mesh())
    cost = sharding.cost(sharding.OPTIMIZERS[name](), params)
    reductions = REDUCTIONS.get(name, 0) if layout != "data-parallel" else 0
    assert cost.collectives == ({"all-reduce": reductions} if reductions else {})
    # All but counters, norms and what the layout leaves whole is divided.
    share = {"data-parallel": 1, "FSDP": 1 / 8, "tensor-parallel": 1 / 4}[layout]
    assert cost.bytes_a_device / cost.bytes_in_all == pytest.approx(share, rel=0.04)


# Each stands for those that the tests above find to cost as much.
COMPILED = {"bert_adamw": "bert_adamw", "novograd": ".*novograd.*", "msvag": ".*"}


@pytest.mark.slow
def test_the_page_shows_what_is_counted(monkeypatch):
    """Of one optimizer of each cost: to compile all for a whole transformer would take minutes."""
    names = [*sharding.OPTIMIZERS]
    monkeypatch.setattr(sharding, "OPTIMIZERS", {n: sharding.OPTIMIZERS[n] for n in COMPILED})
    *header, bert, novograd, msvag = sharding.table()
    rows = dict(zip(COMPILED, (bert, novograd, msvag), strict=True))
    for name in names:
        kind = next(kind for kind, pattern in COMPILED.items() if re.fullmatch(pattern, name))
        header.append(rows[kind].replace(f"`{kind}`", f"`{name}`"))
    assert "\n".join(header) in PAGE


@pytest.mark.slow
def test_the_page_shows_the_budget():
    """In a process of its own, which has more devices than this one."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    command = [sys.executable, "-m", "benchmarks.budget"]
    printed = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=300
    ).stdout
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert [row for row in rows if row not in PAGE] == []
