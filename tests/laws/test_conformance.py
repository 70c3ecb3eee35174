"""Every optimizer of the table passes every check."""

import contextlib
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import msvag_optax as mo
from msvag_optax import testing
from msvag_optax.testing.trees import assert_close, assert_same
from tests.conformance import CHECKS, CORE, ROWS, TYPICAL, Row


def cases() -> list[Any]:
    """Every row with the core checks, and the typical rows with all.

    That it gets to three minima is a matter of each formula, and slow.
    """
    return [
        pytest.param(
            row,
            name,
            id=f"{row.name}-{name}",
            marks=[] if name in CORE or row.name in TYPICAL else [pytest.mark.slow],
        )
        for row, name in itertools.product(ROWS, CHECKS)
        if name in CORE or row.name in TYPICAL or name == "convergence"
    ]


@pytest.mark.parametrize(("row", "name"), cases())
def test_optimizer(row, name):
    with contextlib.suppress(testing.NotRunError):  # what the row promises nothing of
        CHECKS[name](row)


def test_every_named_optimizer_has_a_row():
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
    assert set(TYPICAL) <= set(names)
    for optimizer in ("adamw", "amsgrad", "bert_adamw", "expectigrad", "msvag", "novograd", "svag"):
        assert optimizer in names
    for field in mo.Dissection._fields:
        assert f"dissection-{field}" in names


# The checks themselves: each fails for an optimizer that breaks the promise it is about.


def altered(alter: Any) -> Any:
    """M-SVAG, but that `alter` may change what `update` returns."""

    def build(learning_rate: Any) -> Any:
        tx: Any = mo.msvag(learning_rate)

        def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
            return alter(*tx.update(updates, state, params, **extra_args), params)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return build


def counting_in_python(learning_rate: Any) -> Any:
    calls = itertools.count(1)
    return altered(lambda u, s, _: (optax.tree.scale(next(calls), u), s))(learning_rate)


def slower_under_tracing(learning_rate: Any) -> Any:
    return mo.msvag(learning_rate if isinstance(learning_rate, float) else 0.5 * learning_rate)


def with_a_float_count(updates: Any, state: Any, _: Any) -> Any:
    return updates, state._replace(count=state.count + 1.0)


def sgd(learning_rate: Any) -> Any:
    return optax.sgd(learning_rate, momentum=0.9)


BROKEN = {
    "apply_if_finite": altered(with_a_float_count),
    "chain_with_clipping": counting_in_python,
    "convergence": altered(lambda u, s, _: (optax.tree.scale(-0.01, u), s)),
    "dtypes": altered(with_a_float_count),
    "eager_and_jit_agree": counting_in_python,
    "eager_and_scan_agree": counting_in_python,
    "takes_extra_arguments_itself": lambda rate: optax.GradientTransformation(*mo.msvag(rate)),
    "init_under_jit": altered(with_a_float_count),
    "injected_hyperparameters": slower_under_tracing,
    "injected_schedule": slower_under_tracing,
    "leaves_without_gradient": sgd,
    "low_precision_is_rounded_once": sgd,
    "map_params": lambda rate: sgd(rate)._replace(init=lambda params: {"bias": jnp.zeros(())}),
    "masked": counting_in_python,
    "mismatched_trees_are_refused": sgd,
    "missing_gradient_keeps_state": sgd,
    "multi_steps": counting_in_python,
    "params_are_asked_for": altered(lambda u, s, p: (p, s)),
    "partition": counting_in_python,
    "pickled_run_continues": altered(
        lambda u, s, _: (u, s._replace(count=jnp.asarray(1)))  # weakly typed
    ),
    "scheduled_learning_rate": lambda rate: mo.msvag(rate(0) if callable(rate) else rate),
    "reach": lambda rate: mo.novograd(rate),
    "scaled_gradients": mo.msvag,
    "sharded_by_the_compiler": sgd,
    "state_can_be_read": altered(lambda u, s, _: (u, s._replace(count=0))),
    "vmap": lambda rate: mo.msvag(float(rate)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_check_notices(name):
    row = Row(f"breaks {name}", BROKEN[name], "invariant")
    with pytest.raises((AssertionError, TypeError)):
        CHECKS[name](row)


def test_random_keys_in_a_state_are_compared_by_their_data():
    one, other = ({"key": jax.random.key(seed)} for seed in range(2))
    for compare in (assert_same, assert_close):
        compare(one, one)
        with pytest.raises(AssertionError):
            compare(one, other)


# The report.


def test_a_report_says_what_failed_and_what_was_not_run():
    def drifting(learning_rate):
        return altered(lambda u, s, _: (optax.tree.cast(u, jnp.float16), s))(learning_rate)

    report = testing.check(drifting)
    assert report.name == "drifting"
    assert "types_in_low_precision" in str(report.failed)
    assert report.not_run["check_scaled_gradients"] == "it promises nothing of scaled gradients"
    every = {*report.passed, *report.failed, *report.not_run}
    assert every == {check.__name__ for check in testing.CONTRACT}
    total = len(report.passed) + len(report.failed)
    assert str(report).startswith(f"drifting: {len(report.passed)} of {total} checks passed.")
    table = report.markdown().splitlines()
    assert len(table) == 2 + len(every)
    assert all(line.count("|") - line.count(r"\|") == 4 for line in table)
    with pytest.raises(AssertionError, match="failed   check_types_in_low_precision: "):
        report.require()


def test_a_bar_in_what_failed_is_no_column():
    report = testing.Report("adam", (), {"check_vmap": "a | b"}, {})
    assert report.markdown().splitlines()[-1] == r"| check_vmap | **failed** | a \| b |"


def test_an_optimizer_of_this_library_keeps_contract_and_house():
    testing.check(mo.msvag, house=True, scale="equivariant", reach="element").require()


def test_what_cannot_be_checked_is_refused():
    made: Any = optax.adam(0.1)
    with pytest.raises(TypeError, match="There is no promise `speed`; there are scale, reach, "):
        testing.check(mo.msvag, speed="high")
    with pytest.raises(ValueError, match=r"`scale` must be one of .*, got 'linear'"):
        testing.check(mo.msvag, scale="linear")
    with pytest.raises(TypeError, match=r"`optax\.adam` and not `optax\.adam\(0\.1\)`, got "):
        testing.check(made)
