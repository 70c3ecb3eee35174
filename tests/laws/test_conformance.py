"""Every optimizer of the table passes every check."""

import itertools
from typing import Any

import jax.numpy as jnp
import optax
import pytest

import msvag_optax as mo
from tests import conformance
from tests.conformance import ROWS, TYPICAL


def cases() -> list[Any]:
    """Every row with the core checks, and the typical rows with all.

    That it gets to three minima is a matter of each formula, and slow.
    """
    return [
        pytest.param(
            row,
            check,
            id=f"{row.name}-{check.__name__.removeprefix('check_')}",
            marks=[] if core or row.name in TYPICAL else [pytest.mark.slow],
        )
        for row, check in itertools.product(ROWS, conformance.CHECKS)
        for core in [check in conformance.CORE_CHECKS]
        if core or row.name in TYPICAL or check is conformance.check_convergence
    ]


@pytest.mark.parametrize(("row", "check"), cases())
def test_optimizer(row, check):
    check(row)


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
    conformance.check_apply_if_finite: altered(with_a_float_count),
    conformance.check_chain_with_clipping: counting_in_python,
    conformance.check_convergence: altered(lambda u, s, _: (optax.tree.scale(-0.01, u), s)),
    conformance.check_dtypes: altered(with_a_float_count),
    conformance.check_eager_and_jit_agree: counting_in_python,
    conformance.check_eager_and_scan_agree: counting_in_python,
    conformance.check_extra_arguments_are_accepted: lambda rate: optax.GradientTransformation(
        *mo.msvag(rate)
    ),
    conformance.check_init_under_jit: altered(with_a_float_count),
    conformance.check_injected_hyperparameters: slower_under_tracing,
    conformance.check_injected_schedule: slower_under_tracing,
    conformance.check_leaves_without_gradient: sgd,
    conformance.check_low_precision_is_rounded_once: sgd,
    conformance.check_map_params: lambda rate: sgd(rate)._replace(
        init=lambda params: {"bias": jnp.zeros(())}
    ),
    conformance.check_masked: counting_in_python,
    conformance.check_mismatched_trees_are_refused: sgd,
    conformance.check_missing_gradient_keeps_state: sgd,
    conformance.check_multi_steps: counting_in_python,
    conformance.check_params_are_asked_for: altered(lambda u, s, p: (p, s)),
    conformance.check_partition: counting_in_python,
    conformance.check_restored_run_continues: altered(
        lambda u, s, _: (u, s._replace(count=jnp.asarray(1)))  # weakly typed
    ),
    conformance.check_scheduled_learning_rate: lambda rate: mo.msvag(
        rate(0) if callable(rate) else rate
    ),
    conformance.check_sharded_by_the_compiler: sgd,
    conformance.check_state_can_be_read: altered(lambda u, s, _: (u, s._replace(count=0))),
    conformance.check_vmap: lambda rate: mo.msvag(float(rate)),
}


@pytest.mark.parametrize("check", BROKEN, ids=lambda check: check.__name__.removeprefix("check_"))
def test_check_notices(check):
    row = conformance.Row(f"breaks {check.__name__}", BROKEN[check])
    with pytest.raises((AssertionError, TypeError)):
        check(row)
