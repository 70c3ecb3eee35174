"""Each coupling of weight decay against its formula, in float64, for every named optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from msvag_optax._trees import paths
from tests.support import float64

RATE, DECAY, STEPS = 0.03, 0.2, 12

# Without decay of its own; called with a learning rate.
OPTIMIZERS = {
    "msvag": mo.msvag,
    "svag": mo.svag,
    "expectigrad": mo.expectigrad,
    "amsgrad": mo.amsgrad,
    "adamw": lambda learning_rate, weight_decay=0.0, **kw: mo.adamw(
        learning_rate, weight_decay=weight_decay, **kw
    ),
}


def train(tx, gradients):
    """The parameters after each step from one, under gradients that do not depend on them."""
    params = {"w": jnp.ones(gradients.shape[1]), "bias": jnp.ones(gradients.shape[1])}
    state, path = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update({"w": gradient, "bias": gradient}, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


def directions(build, gradients):
    """The steps that the optimizer takes at rate 1 and without decay: minus its directions."""
    tx = build(1.0)
    state, steps = tx.init(gradients[0]), []
    for gradient in gradients:
        update, state = tx.update(gradient, state, jnp.zeros_like(gradient))
        steps.append(-update)
    return steps


def check(path, steps, recursion):
    params = np.ones_like(steps[0])
    for index, (reached, step) in enumerate(zip(path, steps, strict=True)):
        params = recursion(params, np.asarray(step), index)
        np.testing.assert_allclose(reached["w"], params, rtol=1e-12)


@pytest.fixture
def gradients():
    with float64():
        yield jnp.asarray(np.random.default_rng(0).standard_normal((STEPS, 4)))


def schedule(count):
    return 1 / (1 + jnp.asarray(count, float))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_coupled_to_the_learning_rate(name, gradients):
    build = OPTIMIZERS[name]
    path = train(build(RATE, weight_decay=DECAY), gradients)
    check(path, directions(build, gradients), lambda p, u, _: p - RATE * (u + DECAY * p))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_coupled_to_a_scheduled_rate_with_scheduled_decay(name, gradients):
    build = OPTIMIZERS[name]
    tx = build(lambda count: RATE * schedule(count), weight_decay=lambda count: DECAY * count)
    check(
        train(tx, gradients),
        directions(build, gradients),
        lambda p, u, t: p - RATE * schedule(t) * (u + DECAY * t * p),
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_coupled_to_the_schedule_alone(name, gradients):
    build = OPTIMIZERS[name]
    tx = optax.chain(
        build(RATE), mo.subtract_decayed_weights(DECAY), optax.scale_by_schedule(schedule)
    )
    check(
        train(tx, gradients),
        directions(build, gradients),
        lambda p, u, t: p - schedule(t) * (RATE * u + DECAY * p),
    )


@pytest.mark.parametrize(
    "decay", [DECAY, lambda count: DECAY * schedule(count)], ids=["number", "schedule"]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_coupled_to_nothing(name, decay, gradients):
    build = OPTIMIZERS[name]
    tx = optax.chain(build(RATE), mo.subtract_decayed_weights(decay))
    at = decay if callable(decay) else lambda _: decay
    check(
        train(tx, gradients),
        directions(build, gradients),
        lambda p, u, t: p - RATE * u - at(t) * p,
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_coupled_to_the_gradient(name, gradients):
    """L2 regularization: the optimizer sees a gradient with the decay in it."""
    build = OPTIMIZERS[name]
    path = train(optax.chain(mo.add_decayed_weights(DECAY), build(RATE)), gradients)
    plain, params = build(RATE), jnp.ones(4)
    state = plain.init(params)
    for reached, gradient in zip(path, gradients, strict=True):
        update, state = plain.update(gradient + DECAY * params, state, params)
        params = params + update
        np.testing.assert_allclose(reached["w"], params, rtol=1e-12)


def test_novograd_decay_joins_the_momentum(gradients):
    tx = mo.novograd(RATE, 0.8, 0.9, weight_decay=DECAY)
    path = train(tx, gradients)
    params, momentum, norm = np.ones(4), 0.0, None
    for reached, gradient in zip(path, np.asarray(gradients), strict=True):
        square = np.sum(gradient**2)
        norm = square if norm is None else 0.9 * norm + 0.1 * square
        momentum = 0.8 * momentum + gradient / (np.sqrt(norm) + 1e-7) + DECAY * params
        params = params - RATE * momentum
        np.testing.assert_allclose(reached["w"], params, rtol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_excluded_parameters_do_not_decay(name, gradients):
    build = OPTIMIZERS[name]
    path = train(build(RATE, weight_decay=DECAY, exclude_from_weight_decay=["^bias$"]), gradients)
    plain = train(build(RATE), gradients)
    decayed = train(build(RATE, weight_decay=DECAY), gradients)
    for reached, without, everywhere in zip(path, plain, decayed, strict=True):
        np.testing.assert_allclose(reached["bias"], without["bias"], rtol=1e-14)
        np.testing.assert_allclose(reached["w"], everywhere["w"], rtol=1e-14)


def test_excluded_under_a_schedule(gradients):
    tx = mo.msvag(RATE, weight_decay=schedule, exclude_from_weight_decay=["bias"])
    plain = train(mo.msvag(RATE), gradients)
    for reached, without in zip(train(tx, gradients), plain, strict=True):
        np.testing.assert_allclose(reached["bias"], without["bias"], rtol=1e-14)
        assert (np.abs(reached["w"]) < np.abs(reached["bias"])).any()


def test_pattern_that_matches_nothing_lists_what_could_match():
    params = {"dense": {"kernel": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    tx = mo.adamw(0.1, exclude_from_weight_decay=["bais"])
    message = "`exclude_from_weight_decay` has the pattern 'bais'.*'dense/kernel', 'norm/scale'"
    with pytest.raises(ValueError, match=message):
        tx.init(params)


def test_pattern_is_checked_where_nothing_decays():
    with pytest.raises(ValueError, match="'bais'"):
        mo.msvag(0.1, exclude_from_weight_decay=["bais"]).init({"bias": jnp.ones(2)})


def test_patterns_meet_masked_and_partitioned_trees():
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    tx = mo.adamw(0.1, exclude_from_weight_decay=["bias"])
    masked = optax.masked(tx, {"kernel": True, "bias": False})
    parts = optax.partition({"a": tx, "b": optax.sgd(0.1)}, {"kernel": "a", "bias": "b"})
    for wrapped in (masked, parts):
        wrapped.update(params, wrapped.init(params), params)


def test_berts_own_patterns_may_miss_and_a_callers_may_not():
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    mo.bert_adamw(0.1, 10, 1).init(params)
    with pytest.raises(ValueError, match="'LayerNorm'"):
        mo.bert_adamw(0.1, 10, 1, exclude_from_weight_decay=["LayerNorm"]).init(params)


@pytest.mark.parametrize(
    ("exclude", "error", "message"),
    [
        ("bias", TypeError, "must be a list of regular expressions.*got 'bias'"),
        ([3], TypeError, "must be a list of regular expressions.*got 3 in it"),
        (["("], ValueError, r"must hold regular expressions, got '\('"),
    ],
)
def test_wrong_patterns(exclude, error, message):
    with pytest.raises(error, match="`exclude_from_weight_decay` " + message):
        mo.msvag(0.1, exclude_from_weight_decay=exclude)
    with pytest.raises(error, match="`exclude_from_weight_decay` " + message):
        mo.add_decayed_weights(0.1, exclude)


@pytest.mark.parametrize("build", [mo.add_decayed_weights, mo.subtract_decayed_weights])
def test_decay_needs_parameters(build):
    tx = build(0.1)
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    with pytest.raises(ValueError, match=r"`weight_decay` must be a number in \[0, inf\)"):
        build(-0.1)


def test_exclusions_may_be_a_function():
    params = {"kernel": jnp.ones((2, 2)), "norm": {"scale": jnp.ones(2)}, "bias": jnp.ones(2)}

    def has_less_than_two_axes(name, shape):
        return len(shape.shape) < 2 and name != "bias"

    tx = mo.adamw(1.0, weight_decay=0.5, exclude_from_weight_decay=has_less_than_two_axes)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], -0.5)
    np.testing.assert_array_equal(updates["bias"], -0.5)
    np.testing.assert_array_equal(updates["norm"]["scale"], 0)


def test_report(capsys, tmp_path):
    params = {
        "encoder": {"kernel": jnp.ones((300, 40)), "bias": jnp.ones(40)},
        "scale": jax.ShapeDtypeStruct((), jnp.float32),
        "steps": jnp.arange(3),
    }
    mo.weight_decay_report(params, exclude_from_weight_decay=["bias", "scale"])
    assert capsys.readouterr().out.splitlines() == [
        "parameter       elements  weight decay",
        "encoder/bias          40  no",
        "encoder/kernel     12000  yes",
        "scale                  1  no",
        "steps                  3  no (not trained)",
        "12000 of 12044 elements decay, in 1 of 4 parameters.",
    ]
    with (tmp_path / "report").open("w") as file:
        mo.weight_decay_report(params, file=file)
    assert "12041 of 12044" in (tmp_path / "report").read_text()
    with pytest.raises(ValueError, match="`exclude_from_weight_decay` has the pattern 'x'"):
        mo.weight_decay_report(params, exclude_from_weight_decay=["x"])
    mo.weight_decay_report({})
    assert "0 of 0 elements" in capsys.readouterr().out


@pytest.mark.parametrize("weight_decay", [0.1, lambda count: 0.1 / (1 + count)])
def test_names_are_found_once_for_all_steps(weight_decay, monkeypatch):
    asked, path_names = [], paths.path_names

    def count(tree):
        asked.append(tree)
        return path_names(tree)

    params = {"w": jnp.ones(2), "bias": jnp.ones(1)}
    tx = mo.msvag(0.1, weight_decay=weight_decay, exclude_from_weight_decay=["bias"])
    state = tx.init(params)
    monkeypatch.setattr(paths, "path_names", count)
    for _ in range(3):
        _, state = tx.update(params, state, params)
    assert len(asked) == 1
