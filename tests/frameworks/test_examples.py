"""The training programs of `examples/`: they learn, and go on, bit for bit, where they stopped."""

import contextlib
import importlib.util
import io
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

import msvag_optax as mo
from tests import conformance

EXAMPLES = Path(__file__).parents[2] / "examples"
STOP = 75  # An odd step: the gradient of one mini-batch waits for another one.
END = 150
EVERY = 25  # steps in one scan; another length is compiled anew

# What each framework calls the parameters of a dense layer and of a normalization.
FLAX = {"kernel": "weight", "scale": "weight", "bias": "bias"}
WORDS = {
    "train_equinox": {"weight": "weight", "bias": "bias"},
    "train_flax_linen": FLAX,
    "train_flax_nnx": FLAX,
    "train_haiku": {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"},
    "train_plain_jax": FLAX,
}
PARAMETERS = {
    "hidden/weight": ("body", "4096", "yes"),
    "hidden/bias": ("body", "64", "no"),
    "norm/weight": ("body", "64", "no"),
    "norm/bias": ("body", "64", "no"),
    "head/weight": ("head", "640", "yes"),
    "head/bias": ("head", "10", "no"),
}


class Run(NamedTuple):
    params: Any
    opt_state: Any
    accuracy: float
    log: list[tuple[int, float, float]]
    printed: str
    batches: list[int]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(program: ModuleType, steps: int, checkpoints: Path | None = None, spoiled: int = 0) -> Run:
    """What `main` returns and prints, and the mini-batches that it asked for.

    If a step is `spoiled`, the pixels of its mini-batch are NaN, and all later mini-batches come a
    step later.
    """
    batches = []

    def mini_batch(step):
        batches.append(step)
        images, labels = original(step - 1 if 0 < spoiled < step else step)
        return (np.full_like(images, np.nan) if step == spoiled else images), labels

    with pytest.MonkeyPatch.context() as patch:
        original = program.mini_batch
        patch.setattr(program, "mini_batch", mini_batch)
        patch.setattr(program, "EVERY", EVERY)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            folder = None if checkpoints is None else str(checkpoints)
            params, opt_state, accuracy, log = program.main(steps, folder)
    return Run(params, opt_state, accuracy, log, printed.getvalue(), batches)


def in_one_spelling(program: ModuleType, name: str) -> str:
    layer, word = name.split("/")
    return f"{layer}/{WORDS[program.__name__][word]}"


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of any framework's tree, in a plain dict."""
    return dict(zip(jax.tree.leaves(mo.path_names(tree)), jax.tree.leaves(tree), strict=True))


def leaf(tree: Any, key: str) -> np.ndarray:
    """The one leaf under a key, out of the box in which NNX keeps it."""
    (found,) = jax.tree.leaves(optax.tree.get(tree, key))
    return np.asarray(found)


# One program stands for all in the fast tests; it is the one that donates its buffers.
FAST = "train_plain_jax"


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name != FAST)) for name in WORDS],
)
def program(request):
    return load(EXAMPLES / f"{request.param}.py")


@pytest.fixture(scope="module")
def complete(program):
    return run(program, program.STEPS)


@pytest.fixture(scope="module")
def uninterrupted(program):
    return run(program, END)


@pytest.fixture(scope="module")
def stopped(program, tmp_path_factory):
    """A run up to STOP, and where its checkpoint is."""
    checkpoints = tmp_path_factory.mktemp("checkpoints") / program.__name__
    return run(program, STOP, checkpoints), checkpoints


def test_it_learns(program, complete):
    assert complete.accuracy > 0.95
    assert complete.batches == list(range(1, program.STEPS + 1))


def test_it_logs_the_loss_and_the_rate_of_the_schedule(program, complete):
    assert [step for step, *_ in complete.log] == [*range(EVERY, program.STEPS + 1, EVERY)]
    after_warm_up = [
        line for line in complete.log if line[0] > program.ACCUMULATE * program.WARM_UP
    ]
    steps, losses, rates = zip(*after_warm_up, strict=True)
    assert losses[-1] < losses[0] / 2
    updates = np.array(steps) // program.ACCUMULATE - 1  # that came before the last one
    done = (updates - program.WARM_UP) / (program.STEPS // program.ACCUMULATE - program.WARM_UP)
    cosine = program.RATE * (1 + np.cos(np.pi * done)) / 2
    np.testing.assert_allclose(rates, cosine, atol=1e-6 * program.RATE)
    assert all(
        f"step {s:4}  loss {x:.4f}  learning rate {r:.2e}\n" in complete.printed
        for s, x, r in complete.log
    )


def test_it_reports_what_decays(program, complete):
    rows = re.findall(r"^(\w+/\w+) +(\d+)  (yes|no)$", complete.printed, re.MULTILINE)
    reported = {in_one_spelling(program, name): answer for name, *answer in rows}
    assert reported == {name: [size, decays] for name, (_, size, decays) in PARAMETERS.items()}
    assert "\n4736 of 4938 elements decay, in 2 of 6 parameters.\n" in complete.printed


def test_a_stopped_run_goes_on_bit_for_bit(stopped, uninterrupted, program, tmp_path):
    half, checkpoints = stopped
    assert leaf(half.opt_state, "mini_step") == 1
    assert all(np.any(x != 0) for x in jax.tree.leaves(optax.tree.get(half.opt_state, "acc_grads")))
    continued = run(program, END, shutil.copytree(checkpoints, tmp_path / "checkpoints"))
    assert continued.batches == list(range(STOP + 1, END + 1))
    conformance.assert_same(continued.params, uninterrupted.params)
    conformance.assert_same(continued.opt_state, uninterrupted.opt_state)
    assert continued.log == [line for line in uninterrupted.log if line[0] > STOP]


def test_half_a_checkpoint_is_none(stopped, program, tmp_path):
    half, checkpoints = stopped
    (tmp_path / "checkpoints").mkdir()
    shutil.copytree(checkpoints / f"{STOP}", tmp_path / f"checkpoints/{STOP}.orbax-checkpoint-tmp")
    again = run(program, STOP, tmp_path / "checkpoints")
    assert again.batches == half.batches == list(range(1, STOP + 1))
    names = [{path.name for path in x.iterdir()} for x in (checkpoints, tmp_path / "checkpoints")]
    assert names[0] == names[1] == {"25", "50", f"{STOP}"}


def test_a_finished_run_is_left_alone(stopped, program, tmp_path):
    half, checkpoints = stopped
    again = run(program, STOP, checkpoints)
    assert again.batches == []
    assert again.accuracy == half.accuracy
    conformance.assert_same(again.opt_state, half.opt_state)


def test_a_mini_batch_of_nan_is_as_if_it_had_never_come(program, stopped):
    expected, _ = stopped
    actual = run(program, STOP + 1, spoiled=40)
    conformance.assert_same(actual.params, expected.params)
    assert leaf(actual.opt_state, "total_notfinite") == 1
    assert leaf(expected.opt_state, "total_notfinite") == 0
    states = [conformance.leaves_by_name(x.opt_state) for x in (actual, expected)]
    different = [name for name in states[1] if np.any(states[0][name] != states[1][name])]
    assert [name for name in different if "total_notfinite" not in name] == []


def test_each_parameter_has_the_optimizer_of_its_group(program, complete):
    labels = by_path(program.groups(complete.params))
    found = {in_one_spelling(program, name): group for name, group in labels.items()}
    assert found == {name: group for name, (group, *_) in PARAMETERS.items()}
    shapes = {
        group: sorted(
            x.shape for name, x in by_path(complete.params).items() if labels[name] == group
        )
        for group in ("body", "head")
    }
    variances = jax.tree.leaves(optax.tree.get(complete.opt_state, "biased_variance"))
    assert sorted(x.shape for x in variances) == shapes["head"]
    momenta = jax.tree.leaves(optax.tree.get(complete.opt_state, "momentum"))
    assert sorted(x.shape for x in momenta) == shapes["body"]


def test_without_gradients_only_what_decays_shrinks(program, complete):
    """On parameters in a plain dict, whose keys are the paths, the optimizer does the same."""
    steps = 6
    params = by_path(complete.params)

    @jax.jit
    def follow(params):
        state = program.tx.init(params)
        zeros = optax.tree.zeros_like(params)
        for _ in range(steps):
            updates, state = program.tx.update(zeros, state, params)
            params = optax.apply_updates(params, updates)
        return params

    rates = np.array([program.SCHEDULE(i) for i in range(steps // program.ACCUMULATE)])
    for name, after in follow(params).items():
        before, (group, _, decays) = params[name], PARAMETERS[in_one_spelling(program, name)]
        if decays == "no":
            np.testing.assert_array_equal(after, before)
        elif group == "head":
            kept = np.prod(1 - program.HEAD_RATE * rates * program.DECAY)
            assert kept < 1 - 1e-5
            np.testing.assert_allclose(after, kept * before, rtol=1e-6)
        else:
            assert np.all(np.abs(after) <= np.abs(before))
            assert np.linalg.norm(after) < np.linalg.norm(before)


def test_it_runs_from_the_command_line(program, tmp_path, monkeypatch, capsys):
    arguments = [program.__file__, "--steps", "1", "--checkpoints", str(tmp_path / "checkpoints")]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(program.__file__, run_name="__main__")
    assert "step    1  loss " in capsys.readouterr().out
    assert (tmp_path / "checkpoints/1").is_dir()
