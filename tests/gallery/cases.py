"""The optimizers of `examples/gallery.py`, and what each is compared with."""

import functools
import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import msvag_optax as mo
from examples import gallery
from tests.gallery import references
from tests.gallery.gradients import KEPT, MATRICES, RATE, SHAPES, gradients, parameters
from tests.support import float64

FOLDER = Path(__file__).parent
FROZEN = json.loads((FOLDER / "pytorch_optimizer.json").read_text())
BOUND = 1e-14
SLACK = 16  # bytes a leaf, which a state may have more than the reference's


class Case(NamedTuple):
    """An optimizer of the gallery, and another implementation.

    Attributes:
      reference: an optimizer of optax; a function of `references`; or None, for a frozen one.
      called: the name of the reference.
      leaves: the names of the parameters.
      bound: the largest difference, relative to the largest update of the leaf.
      why: what keeps them apart, if the bound is wider than `BOUND`.
      floats: how many floats the paper's algorithm keeps, for a function.
    """

    reference: Any
    called: str = ""
    leaves: tuple[str, ...] = tuple(SHAPES)
    bound: float = BOUND
    why: str = ""
    floats: int = 0


def finished(direction: Any) -> optax.GradientTransformation:
    """A direction of optax's with the rate."""
    return optax.chain(direction, optax.scale_by_learning_rate(RATE))


def exact_decay(step: Any, exponent: Any) -> Any:
    """Adafactor's decay, which optax's own function computes in float32."""
    return 1 - (step + 1.0) ** -exponent


def cases() -> dict[str, Case]:
    """All, under the names of their functions."""
    contrib, factored = optax.contrib, optax.scale_by_factored_rms
    return {
        "adam": Case(optax.adam(RATE), "optax.adam"),
        "adamw": Case(optax.adamw(RATE, weight_decay=1e-2), "optax.adamw"),
        "lamb": Case(optax.lamb(RATE, weight_decay=1e-2), "optax.lamb"),
        "nadam": Case(optax.nadam(RATE), "optax.nadam"),
        "radam": Case(
            optax.radam(RATE),
            "optax.radam",
            bound=5e-14,
            why="it subtracts numbers near 2,000, where optax's version loses digits",
        ),
        "ademamix": Case(contrib.ademamix(RATE, alpha=6.0), "optax.contrib.ademamix"),
        "grams": Case(None),
        "cautious_adam": Case(None),
        "laprop": Case(None),
        "signum": Case(optax.signum(RATE), "optax.signum"),
        "tiger": Case(None),
        "lion": Case(optax.lion(RATE, weight_decay=0.0), "optax.lion"),
        "rmsprop": Case(optax.rmsprop(RATE), "optax.rmsprop"),
        "centred_rmsprop": Case(optax.rmsprop(RATE, centered=True), "optax.rmsprop(centered=True)"),
        "adagrad": Case(optax.adagrad(RATE), "optax.adagrad"),
        "adamax": Case(optax.adamax(RATE), "optax.adamax"),
        "amsgrad": Case(optax.amsgrad(RATE), "optax.amsgrad"),
        "yogi": Case(optax.yogi(RATE), "optax.yogi"),
        "adafactor": Case(
            finished(factored(min_dim_size_to_factor=2, decay_rate_fn=exact_decay)),
            "optax.scale_by_factored_rms",
            leaves=MATRICES,
        ),
        "adam_mini": Case(
            references.adam_mini,
            "NumPy, from the paper",
            leaves=("embed", "query/kernel", "kernel", "bias"),
            floats=69 + (15 + 2 + 1 + 1),  # the mean, and a number for each part
        ),
        "adabelief": Case(
            finished(optax.scale_by_belief(eps=1e-16, eps_root=1e-16)), "optax.adabelief"
        ),
        "acprop": Case(
            contrib.acprop(RATE, eps=1e-16, eps_root=0.0), "optax.contrib.acprop(eps_root=0)"
        ),
        "mvn_grad": Case(references.mvn_grad, "NumPy, from the paper", floats=3 * 90),
        "adopt": Case(contrib.adopt(RATE), "optax.contrib.adopt"),
        "adan": Case(finished(optax.scale_by_adan()), "optax.scale_by_adan"),
        "normuon": Case(
            references.normuon,
            "NumPy, from the paper",
            leaves=MATRICES,
            floats=45 + (6 + 3),  # the mean, and a number for each column
        ),
        "muon_nsr": Case(
            references.muon_nsr,
            "NumPy, from the paper",
            leaves=MATRICES,
            bound=5e-14,
            why="Muon's iteration enlarges small singular values and their rounding errors",
            floats=2 * 45,
        ),
    }


CASES = cases()


class Row(NamedTuple):
    """What came of a case."""

    lines: int
    reference: str
    difference: float
    ours: int
    theirs: int
    allowed: int


def build(name: str) -> optax.GradientTransformation:
    """Our optimizer."""
    function = getattr(gallery, name)
    takes_rate = "learning_rate" in inspect.signature(function).parameters
    return function(RATE) if takes_rate else mo.optimizer(function(), RATE)


def lines_of(name: str) -> int:
    """How many lines the body of a function has, without what it says of itself."""
    source = inspect.getsource(getattr(gallery, name))
    body = source.partition('"""')[2].partition('"""')[2]
    return sum(bool(line.strip()) for line in body.splitlines())


@functools.partial(jax.jit, static_argnums=0)
def replay(tx: Any, params: Any, stream: Any) -> Any:
    """The update of each step; the parameters stay, so that no sum hides it."""

    def step(state: Any, gradient: Any) -> Any:
        updates, state = tx.update(gradient, state, params)
        return state, updates

    return jax.lax.scan(step, tx.init(params), stream)[1]


def compare(name: str) -> Row:
    """Runs both, in double precision."""
    case = CASES[name]
    frozen = FROZEN["cases"].get(name, {"scale": 1.0})
    start = {leaf: parameters()[leaf] for leaf in case.leaves}
    stream = {leaf: gradients(frozen["scale"])[leaf] for leaf in case.leaves}
    with float64():
        tx, params = build(name), jax.tree.map(jnp.asarray, start)
        updates = jax.tree.map(np.asarray, replay(tx, params, stream))
        ours = mo.state_bytes(tx, params).total
        if case.reference is None:
            with np.load(FOLDER / "pytorch_optimizer.npz") as arrays:
                expected = {leaf: arrays[f"{name}/{leaf}"] for leaf in case.leaves}
            updates = {leaf: x[KEPT] for leaf, x in updates.items()}
            theirs = frozen["bytes"]
            called = f"{frozen['reference']} {FROZEN['versions']['pytorch_optimizer']}"
        elif isinstance(case.reference, optax.GradientTransformation):
            expected = jax.tree.map(np.asarray, replay(case.reference, params, stream))
            theirs = mo.state_bytes(case.reference, params).total
            called = f"{case.called} {optax.__version__}"
        else:
            expected = {
                leaf: -RATE * np.asarray([*case.reference(stream[leaf], leaf)])
                for leaf in case.leaves
            }
            theirs, called = 8 * case.floats, case.called
    differences = [
        np.max(np.abs(updates[leaf] - expected[leaf])) / np.max(np.abs(expected[leaf]))
        for leaf in case.leaves
    ]
    allowed = theirs + SLACK * len(case.leaves)
    return Row(lines_of(name), called, float(max(differences)), ours, theirs, allowed)
