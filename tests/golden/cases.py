"""Reads the golden trajectories and builds, for each case, the optimizer that must reproduce it."""

import contextlib
import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import msvag_optax as mo
from tests.support import float64

FOLDER = pathlib.Path(__file__).parent
MANIFEST: list[dict[str, Any]] = json.loads((FOLDER / "manifest.json").read_text())["cases"]


class Trajectory(NamedTuple):
    """Arrays of a case by leaf, as float64; parameters and gradients in the case's dtype."""

    params: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]
    path: dict[str, np.ndarray]
    learning_rate: np.ndarray | None


def load(case: dict[str, Any]) -> Trajectory:
    """The arrays of a case of the manifest."""
    with np.load(FOLDER / case["file"]) as arrays:
        groups: dict[str, dict[str, np.ndarray]] = {"param": {}, "grad": {}, "traj": {}}
        for name in arrays.files:
            group, _, leaf = name.partition("/")
            if leaf:
                groups[group][leaf] = arrays[name]
        rate = arrays["lr"] if "lr" in arrays.files else None
    return Trajectory(groups["param"], groups["grad"], groups["traj"], rate)


def held(case: dict[str, Any]) -> dict[str, Any]:
    """The hyperparameters as the reference held them."""
    return case["hyperparameters"] | case.get("hyperparameters_as_held", {})


def build(case: dict[str, Any]) -> optax.GradientTransformation:
    """The optimizer that must reproduce the case: named, or composed where the dialect is not."""
    return _BUILDERS[case["optimizer"]](held(case))


def _expectigrad(h: dict[str, Any]) -> optax.GradientTransformation:
    return mo.expectigrad(
        h.get("lr", h.get("learning_rate")),
        h["beta"],
        h.get("eps", h.get("epsilon")),
        h["sparse_counter"],
    )


def _novograd_tfa(h: dict[str, Any]) -> optax.GradientTransformation:
    return mo.novograd(
        h["learning_rate"],
        h["beta_1"],
        h["beta_2"],
        h["epsilon"],
        h["weight_decay"],
        grad_averaging=h["grad_averaging"],
        amsgrad=h["amsgrad"],
    )


def novograd_openseq2seq(h: dict[str, Any]) -> optax.GradientTransformation:
    """OpenSeq2Seq's dialect: epsilon under the root, averaging from step 1, a restart at v = 0.

    Its second moment takes the first *nonzero* squared norm whole, at step k, and averages from
    there on. Of the average from zero, `v`, that is `v + beta_2^(t - k + 1) n_k`, and the power
    is one minus the average from zero of whether any norm was nonzero so far.
    """
    norm = mo.layer_square_norm()
    from_zero = mo.exponential_from_zero(h["beta2"])
    only_first = mo.Weighting(lambda count: jnp.where(count == 1, 1.0, 0.0))
    newest = mo.Weighting(lambda count: jnp.ones_like(count, float))

    def reading(
        gradient: jax.Array, recent: jax.Array, first: jax.Array, begun: jax.Array
    ) -> jax.Array:
        second_moment = recent + (1 - begun) * first
        return mo.over_rms(0.0, h["epsilon"])(gradient, second_moment=second_moment)

    normalized = mo.from_estimates(
        reading,
        recent=mo.running_average(from_zero, of=norm),
        first=mo.running_average(only_first, of=norm, count_nonzero=True),
        begun=mo.chain_estimators(
            mo.running_max(mo.running_average(newest, of=norm)),
            mo.running_average(from_zero, of=_is_positive),
        ),
    )
    return mo.dependable(
        optax.chain(
            normalized,
            mo.add_decayed_weights(h["weight_decay"]),
            optax.scale(1 - h["beta1"]) if h["grad_averaging"] else optax.identity(),
            optax.trace(h["beta1"]),
            optax.scale_by_learning_rate(h["learning_rate"]),
        )
    )


def _is_positive(x: jax.Array) -> jax.Array:
    return (x > 0).astype(x.dtype)


def amsgrad_keras(h: dict[str, Any]) -> optax.GradientTransformation:
    """Keras's dialect: the corrections multiply the rate, and so epsilon is not corrected."""

    def correction(count: Any) -> jax.Array:
        step = count + 1
        first = mo.bias_correction(h["beta_1"], step)
        return jnp.sqrt(mo.bias_correction(h["beta_2"], step)) / first

    second_moment = mo.running_average(mo.exponential_from_zero(h["beta_2"]), of=mo.square)
    return mo.dependable(
        optax.chain(
            mo.from_estimates(
                mo.over_rms(h["epsilon"]),
                mean=mo.running_average(mo.exponential_from_zero(h["beta_1"])),
                second_moment=mo.running_max(second_moment),
            ),
            optax.scale_by_schedule(correction),
            optax.scale_by_learning_rate(h["learning_rate"]),
        )
    )


def _amsgrad_torch(h: dict[str, Any]) -> optax.GradientTransformation:
    # torch's `weight_decay` is L2 regularization: the decay joins the gradient.
    optimizer = mo.amsgrad(h["lr"], h["betas"][0], h["betas"][1], h["eps"])
    return optax.chain(mo.add_decayed_weights(h["weight_decay"]), optimizer)


def _adam_l2_torch(h: dict[str, Any]) -> optax.GradientTransformation:
    optimizer = mo.adamw(h["lr"], h["betas"][0], h["betas"][1], h["eps"], weight_decay=0.0)
    return optax.chain(mo.add_decayed_weights(h["weight_decay"]), optimizer)


def _adamw_torch(h: dict[str, Any]) -> optax.GradientTransformation:
    return mo.adamw(h["lr"], h["betas"][0], h["betas"][1], h["eps"], h["weight_decay"])


def _bert_adamw(h: dict[str, Any]) -> optax.GradientTransformation:
    return mo.adamw(
        h["learning_rate"],
        h["beta_1"],
        h["beta_2"],
        h["epsilon"],
        h["weight_decay_rate"],
        bias_correction=False,
        exclude_from_weight_decay=h["exclude_from_weight_decay"],
    )


def _bert_create_optimizer(h: dict[str, Any]) -> optax.GradientTransformation:
    return mo.bert_adamw(h["init_lr"], h["num_train_steps"], h["num_warmup_steps"])


_BUILDERS = {
    "msvag": lambda h: mo.msvag(h["learning_rate"], h["beta"]),
    "svag": lambda h: mo.svag(h["learning_rate"], h["beta"]),
    "expectigrad_torch": _expectigrad,
    "expectigrad_tf2": _expectigrad,
    "novograd_tfa": _novograd_tfa,
    "novograd_openseq2seq": novograd_openseq2seq,
    "amsgrad_torch": _amsgrad_torch,
    "amsgrad_keras": amsgrad_keras,
    "adam_l2_torch": _adam_l2_torch,
    "adamw_torch": _adamw_torch,
    "bert_adamw": _bert_adamw,
    "bert_create_optimizer": _bert_create_optimizer,
}


@functools.partial(jax.jit, static_argnums=0)
def _run(tx: optax.GradientTransformation, params: Any, grads: Any) -> Any:
    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]


def replay(tx: optax.GradientTransformation, trajectory: Trajectory) -> dict[str, np.ndarray]:
    """The parameters after each step, under the gradients of the trajectory."""
    path = _run(tx, jax.tree.map(jnp.asarray, trajectory.params), trajectory.grads)
    return {leaf: np.asarray(values) for leaf, values in path.items()}


def bounds(case: dict[str, Any], trajectory: Trajectory) -> dict[str, np.ndarray]:
    """How far exact arithmetic may be from the reference, by leaf, from README.md's "Rounding".

    Both the reference and this library round; each is within one such bound of exact arithmetic.
    """
    unit, relative = (2.0**-24, 1e-6) if case["dtype"] == "float32" else (2.0**-53, 1e-13)
    result = {}
    for leaf, start in trajectory.params.items():
        path = np.concatenate([start[None], trajectory.path[leaf]]).astype(np.float64)
        rounding = 2 * unit * np.cumsum(np.abs(path[1:]), axis=0)
        if case["optimizer"] in ("msvag", "svag"):
            slack = _variance_slack(held(case), trajectory.grads[leaf].astype(np.float64))
        else:
            slack = relative * np.cumsum(np.abs(np.diff(path, axis=0)), axis=0)
        result[leaf] = rounding + slack
    return result


def _variance_slack(h: dict[str, Any], grads: np.ndarray) -> np.ndarray:
    """What the references' `v - m**2` loses, above all by the noise of their first factor."""
    beta, second_moment, total, slack = h["beta"], 0.0, 0.0, []
    for index, gradient in enumerate(grads):
        second_moment = beta * second_moment + (1 - beta) * gradient**2
        corrected = second_moment / (1 - beta ** (index + 1))
        error = 3.5e-3 if index == 0 else 2e-6 + 6e-8 / (1 - beta)
        total = total + h["learning_rate"] * error * np.sqrt(corrected)
        slack.append(total)
    return np.asarray(slack)


def worst_fraction(case: dict[str, Any], tx: optax.GradientTransformation) -> float:
    """The largest distance of `tx` from the reference, as a fraction of what is allowed there."""
    trajectory = load(case)
    with float64() if case["dtype"] == "float64" else contextlib.nullcontext():
        path = replay(tx, trajectory)
    allowed = bounds(case, trajectory)
    fractions = []
    for leaf, values in path.items():
        assert values.dtype == case["dtype"]
        distance = np.abs(values.astype(np.float64) - trajectory.path[leaf])
        assert np.isfinite(distance).all()
        assert (distance[allowed[leaf] == 0] == 0).all()
        fractions.append(np.max(distance / np.where(allowed[leaf] == 0, 1, allowed[leaf])))
    return float(max(fractions))


def schedule_fraction(case: dict[str, Any]) -> float:
    """The largest distance of the schedule from the reference's, likewise.

    Both round a handful of float32 operations: 2e-6 of the rate, and 1e-7 of the largest.
    """
    reference = load(case).learning_rate
    assert reference is not None
    schedule = mo.warmup_linear_decay_schedule(**case["hyperparameters"])
    rates = np.asarray([schedule(step) for step in range(case["T"])], np.float64)
    allowed = 2e-6 * np.abs(reference) + 1e-7 * reference.max()
    return float(np.max(np.abs(rates - reference) / allowed))
