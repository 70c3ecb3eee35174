"""The references' own iterates, within the tolerance that golden/README.md derives."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from tests.golden import cases

SCHEDULES = [c for c in cases.MANIFEST if c["optimizer"] == "bert_lr_schedule"]
TRAJECTORIES = [c for c in cases.MANIFEST if c["optimizer"] != "bert_lr_schedule"]


def name_of(case):
    return case["file"].removesuffix(".npz")


def test_the_manifest_is_whole():
    assert len(cases.MANIFEST) == 38
    assert {c["file"] for c in cases.MANIFEST} == {p.name for p in cases.FOLDER.glob("*.npz")}


@pytest.mark.parametrize("case", TRAJECTORIES, ids=name_of)
def test_trajectory_is_the_references(case):
    assert cases.worst_fraction(case, cases.build(case)) <= 1


@pytest.mark.parametrize("case", SCHEDULES, ids=name_of)
def test_schedule_is_the_references(case):
    assert cases.schedule_fraction(case) <= 1


def test_scheduled_rate_is_the_references():
    """The rate that the optimizer applies at each step, and not only the schedule by itself."""
    case = next(c for c in cases.MANIFEST if c["file"] == "bert_create_optimizer_30_10.npz")
    trajectory = cases.load(case)
    assert trajectory.learning_rate is not None
    tx = mo.bert_adamw(**case["hyperparameters"], weight_decay=0.0, max_grad_norm=None)
    state = tx.init(jnp.zeros(()))
    for rate in trajectory.learning_rate:
        # A fresh Adam's first direction is (1 - b1) / sqrt(1 - b2), less what epsilon takes.
        fresh = optax.tree.set(tx.init(jnp.zeros(())), count=optax.tree.get(state, "count"))
        update, _ = tx.update(jnp.asarray(1e6), fresh, jnp.zeros(()))
        np.testing.assert_allclose(-update, rate * 0.1 / np.sqrt(0.001), rtol=1e-5)
        _, state = tx.update(jnp.asarray(1e6), state, jnp.zeros(()))


WRONG_DIALECTS = {
    "keras, by torch's AMSGrad": (
        "amsgrad_keras_f64.npz",
        lambda h: mo.amsgrad(h["learning_rate"], h["beta_1"], h["beta_2"], h["epsilon"]),
    ),
    "OpenSeq2Seq, by TFA's NovoGrad": (
        "novograd_openseq2seq_carried.npz",
        lambda h: mo.novograd(
            h["learning_rate"], h["beta1"], h["beta2"], h["epsilon"], h["weight_decay"]
        ),
    ),
    "torch, by optax's AMSGrad": (
        "amsgrad_torch_f64.npz",
        lambda h: mo.amsgrad(
            h["lr"], h["betas"][0], h["betas"][1], h["eps"], correct_before_max=True
        ),
    ),
    "torch, by the paper's AMSGrad": (
        "amsgrad_torch_f64.npz",
        lambda h: mo.amsgrad(
            h["lr"], h["betas"][0], h["betas"][1], h["eps"], bias_correction=False
        ),
    ),
    "L2, by AdamW": (
        "adam_l2_torch_f64.npz",
        lambda h: mo.adamw(h["lr"], h["betas"][0], h["betas"][1], h["eps"], h["weight_decay"]),
    ),
    "BERT, without exclusions": (
        "bert_adamw_default.npz",
        lambda h: mo.adamw(
            h["learning_rate"], h["beta_1"], h["beta_2"], h["epsilon"], bias_correction=False
        ),
    ),
    "sparse counter, by the dense": (
        "expectigrad_torch_f64_default.npz",
        lambda h: mo.expectigrad(h["lr"], h["beta"], h["eps"], False),
    ),
    "M-SVAG, by SVAG": (
        "msvag_beta0.9.npz",
        lambda h: mo.svag(h["learning_rate"], h["beta"]),
    ),
}


@pytest.mark.parametrize("dialect", WRONG_DIALECTS)
def test_another_dialect_is_told_apart(dialect):
    """The tolerance is tight enough to tell each reference's dialect from its neighbours'."""
    file, wrong = WRONG_DIALECTS[dialect]
    case = next(c for c in cases.MANIFEST if c["file"] == file)
    assert cases.worst_fraction(case, wrong(cases.held(case))) > 20
