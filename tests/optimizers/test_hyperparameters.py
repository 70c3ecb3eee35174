"""Numbers of every kind make the optimizer that a float makes, also where optax hands them on."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from tests import conformance
from tests.conformance import PARAMS, STREAM, assert_close, assert_same, assert_same_types

# Each with its numbers that are not the rate, and may be given otherwise.
NUMBERS = {
    mo.msvag: {"beta": 0.5, "weight_decay": 0.25},
    mo.svag: {"beta": 0.5, "weight_decay": 0.25},
    mo.expectigrad: {"beta": 0.5, "eps": 0.125, "weight_decay": 0.25},
    mo.novograd: {"b1": 0.5, "b2": 0.75, "eps": 0.125, "eps_root": 0.5, "weight_decay": 0.25},
    mo.amsgrad: {"b1": 0.5, "b2": 0.75, "eps": 0.125, "weight_decay": 0.25},
    mo.adamw: {"b1": 0.5, "b2": 0.75, "eps": 0.125, "weight_decay": 0.25},
    mo.bert_adamw: {"init_lr": 0.5, "b1": 0.5, "b2": 0.75, "eps": 0.125, "max_grad_norm": 0.5},
}
named = pytest.mark.parametrize("build", NUMBERS, ids=lambda build: build.__name__)


def built(build, numbers, rate=0.5, factory=None):
    """An optimizer with these numbers; BERT's makes its schedule itself."""
    if build is mo.bert_adamw:
        return (factory or build)(num_train_steps=8, num_warmup_steps=2, **numbers)
    return (factory or build)(rate, **numbers)


def complex_tree(tree):
    return tree | {"kernel": tree["kernel"] * jnp.complex64(1 - 2j)}


@named
@pytest.mark.parametrize("kind", [Fraction, np.float32, np.float64, np.longdouble, np.array])
def test_a_number_of_any_kind_is_a_float(build, kind):
    numbers = {name: kind(number) for name, number in NUMBERS[build].items()}
    desired = conformance.run_eagerly(built(build, NUMBERS[build]), STREAM[:2])
    assert_same(conformance.run_eagerly(built(build, numbers, kind(0.5)), STREAM[:2]), desired)


@named
@pytest.mark.parametrize("kind", [Fraction, np.float64, lambda number: np.array(number)])
def test_a_schedule_may_return_a_number_of_any_kind(build, kind):
    def optimizer(schedule):
        numbers = NUMBERS[build] | {"weight_decay": schedule}
        return built(build, numbers, schedule)

    desired = conformance.run_eagerly(optimizer(lambda count: 0.5), STREAM[:2])
    actual = conformance.run_eagerly(optimizer(lambda count: kind(0.5)), STREAM[:2])
    assert_same(actual, desired)


@named
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", [float, np.float64, functools.partial(jnp.asarray, dtype=float)])
def test_a_number_in_double_precision_widens_no_state(build, kind):
    tx = built(build, {name: kind(x) for name, x in NUMBERS[build].items()}, kind(0.5))
    params = {name: np.asarray(x) for name, x in PARAMS.items()}
    state = tx.init(params)
    updates, later = jax.eval_shape(tx.update, params, state, params)
    assert_same_types(state, later)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


def injected(build, numbers, **options):
    """The same under `inject_hyperparams`; numbers of steps are no hyperparameters."""
    static = ("num_train_steps", "num_warmup_steps") if build is mo.bert_adamw else ()
    factory = optax.inject_hyperparams(build, static_args=static, **options)
    return built(build, numbers, factory=factory)


@named
@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_injected_beside_complex_parameters(build, dtype):
    """There, `inject_hyperparams` makes complex numbers of all, without imaginary part."""
    params, stream = complex_tree(PARAMS), [complex_tree(gradient) for gradient in STREAM[:3]]
    tx = injected(build, NUMBERS[build], hyperparam_dtype=dtype)
    actual = conformance.run_eagerly(tx, stream, params)
    desired = conformance.run_eagerly(built(build, NUMBERS[build]), stream, params)
    number = next(iter(actual.state.hyperparams.values()))
    assert number.dtype == (jnp.complex64 if dtype is None else dtype)
    assert_close(actual.updates, desired.updates)
    assert_same_types(tx.init(params), actual.state)


@named
def test_strict_promotion_is_for_the_callers_own_code(build):
    plain, handed_on = built(build, NUMBERS[build]), injected(build, NUMBERS[build])
    kept = mo.kept_in(plain, jnp.bfloat16)
    for dtype in (jnp.float32, jnp.complex64, jnp.bfloat16):
        params = conformance.cast(PARAMS, dtype)
        for tx in (plain, kept, handed_on, mo.kept_in(handed_on, jnp.bfloat16)):
            with jax.numpy_dtype_promotion("strict"):
                state = tx.init(params)
                updates, later = jax.eval_shape(tx.update, params, state, params)
                with pytest.raises((TypeError, ValueError), match="strict"):
                    jnp.ones(1) + jnp.ones(1, jnp.bfloat16)
            assert_same_types(state, later)
            assert_same_types(updates, jax.eval_shape(lambda tree: tree, params))


@pytest.mark.parametrize("mask", ["mask", "weight_decay_mask"])
def test_a_mask_of_optaxs_is_answered_with_what_to_write(mask):
    for build in (*NUMBERS, mo.optimizer, mo.add_decayed_weights, mo.subtract_decayed_weights):
        with pytest.raises(TypeError, match=f"has no argument `{mask}`.*fewer_than_two_axes"):
            build(0.1, **{mask: {"kernel": True}})


def test_a_mask_that_is_a_function_of_trees_is_refused():
    with pytest.raises(
        TypeError, match=r"`exclude_from_weight_decay` must be a function \(name, sh"
    ):
        mo.adamw(0.1, exclude_from_weight_decay=lambda tree: tree)


@pytest.mark.parametrize(
    ("excluded", "message"),
    [
        ("bias", r"or a list of such, got 'bias'\. For one pattern, write \['bias'\]"),
        ({"bias": True}, "or a list of such, got {'bias'"),
        ([("bias",)], r"got \('bias',\) in it"),
        ([lambda tree: tree], r"must be a function \(name, shape\)"),
        (["("], r"regular expressions, got '\('"),
    ],
)
def test_what_selects_nothing_is_refused_when_built(excluded, message):
    with pytest.raises((TypeError, ValueError), match=message):
        mo.adamw(0.1, exclude_from_weight_decay=excluded)


def test_patterns_and_rules_may_be_mixed():
    params = {"embed": jnp.ones((2, 2)), "kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    excluded = [mo.fewer_than_two_axes(), "embed", lambda name, shape: name == "head"]
    tx = mo.adamw(0.1, weight_decay=0.5, exclude_from_weight_decay=excluded)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    moved = {name: bool(update.any()) for name, update in updates.items()}
    assert moved == {"embed": False, "kernel": True, "bias": False}
    with pytest.raises(ValueError, match="pattern 'embed', which is found in no"):
        tx.init({"kernel": jnp.ones((2, 2))})


@pytest.mark.parametrize(
    "schedule", [lambda: 0.1, optax.cosine_decay_schedule], ids=["without_count", "uncalled"]
)
def test_a_schedule_takes_a_count(schedule):
    with pytest.raises(TypeError, match="`learning_rate` must be a function of the count, or a nu"):
        mo.msvag(schedule)
    with pytest.raises(TypeError, match="`weight_decay` must be a function of the count, or a num"):
        mo.bert_adamw(0.1, 10, 1, weight_decay=schedule)


def test_a_schedule_may_wrap_another():
    @functools.wraps(optax.cosine_decay_schedule)
    def schedule(count):
        return 0.1

    mo.msvag(schedule)


def test_where_a_decay_has_a_schedule_is_said():
    with pytest.raises(TypeError, match=r"`beta` must be .* \(`optax.inject_hyperparams` takes"):
        mo.msvag(0.1, beta=optax.constant_schedule(0.9))


def test_a_function_that_says_neither_yes_nor_no_is_refused():
    tx = mo.adamw(0.1, exclude_from_weight_decay=lambda name, shape: None)
    with pytest.raises(TypeError, match=r"True or False, got None from it for 'bias'"):
        tx.update(STREAM[0], tx.init(PARAMS), PARAMS)


@named
def test_what_has_fewer_than_two_axes_need_not_decay(build):
    numbers = NUMBERS[build] | {"weight_decay": 0.25}
    excluded = {"exclude_from_weight_decay": mo.fewer_than_two_axes()}
    spelled = {"exclude_from_weight_decay": ["bias"]}
    paths = [conformance.run_eagerly(built(build, numbers | x)) for x in (excluded, spelled)]
    assert_same(*paths)
    tx = injected(build, numbers | excluded)
    assert_close(conformance.run_eagerly(tx).updates, paths[0].updates)


def test_a_bare_function_is_static_under_inject_hyperparams():
    """Which takes every function for a schedule, unless it is told that one is none."""

    def is_bias(name, shape):
        return name.endswith("bias")

    injected = optax.inject_hyperparams(mo.adamw, static_args="exclude_from_weight_decay")
    tx = injected(0.1, weight_decay=0.5, exclude_from_weight_decay=is_bias)
    desired = mo.adamw(0.1, weight_decay=0.5, exclude_from_weight_decay=["bias"])
    assert_close(conformance.run_eagerly(tx).updates, conformance.run_eagerly(desired).updates)
