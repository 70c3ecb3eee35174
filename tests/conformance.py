"""The table of this library's optimizers, and which of the checks each of them is held to.

The checks are `msvag_optax.testing`, where anyone's optimizer can be held to them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import msvag_optax as mo
from msvag_optax import testing
from msvag_optax.testing.house import check_convergence as check_convergence
from msvag_optax.testing.runs import Row as Row
from msvag_optax.testing.runs import Trajectory as Trajectory
from msvag_optax.testing.runs import compiled_step as compiled_step
from msvag_optax.testing.runs import run_compiled as run_compiled
from msvag_optax.testing.runs import run_eagerly as run_eagerly
from msvag_optax.testing.runs import trajectory as trajectory
from msvag_optax.testing.trees import GRADIENTS as GRADIENTS
from msvag_optax.testing.trees import PARAMS as PARAMS
from msvag_optax.testing.trees import RATE as RATE
from msvag_optax.testing.trees import SHAPES as SHAPES
from msvag_optax.testing.trees import STEPS as STEPS
from msvag_optax.testing.trees import STREAM as STREAM
from msvag_optax.testing.trees import assert_close as assert_close
from msvag_optax.testing.trees import assert_same as assert_same
from msvag_optax.testing.trees import assert_same_types as assert_same_types
from msvag_optax.testing.trees import cast as cast
from msvag_optax.testing.trees import copied as copied
from msvag_optax.testing.trees import decreasing as decreasing
from msvag_optax.testing.trees import leaves_by_name as leaves_by_name
from msvag_optax.testing.trees import raised as raised
from msvag_optax.testing.trees import stacked as stacked
from tests import definitions

CHECKS = {
    check.__name__.removeprefix("check_"): check for check in (*testing.CONTRACT, *testing.HOUSE)
}
# What could hold for one optimizer and fail for another. The other checks are of what all share:
# how trees are walked, and what optax's wrappers hand on.
CORE = (
    "donation",
    "dtypes",
    "eager_and_jit_agree",
    "empty_trees",
    "extra_arguments_are_accepted",
    "init_from_shapes",
    "init_under_jit",
    "integer_parameters",
    "low_precision_is_rounded_once",
    "map_params",
    "missing_gradient_keeps_state",
    "params_are_asked_for",
    "pickled_run_continues",
    "reference",
    "restored_by_flax",
    "scheduled_learning_rate",
    "state_can_be_read",
)


def _bert_adamw(
    learning_rate: Any, weight_decay: Any = 0.01, max_grad_norm: Any = 1.0
) -> optax.GradientTransformationExtraArgs:
    return mo.bert_adamw(
        learning_rate, 100_000, 2, weight_decay=weight_decay, max_grad_norm=max_grad_norm
    )


def _dissected(name: str) -> Callable[..., optax.GradientTransformationExtraArgs]:
    def build(learning_rate: Any, beta: Any = 0.9) -> optax.GradientTransformationExtraArgs:
        return getattr(mo.dissection(learning_rate, beta), name)

    return build


def _adapted(
    direction: optax.GradientTransformation, of_mean: bool = False
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    def build(learning_rate: Any, beta: Any = 0.9) -> optax.GradientTransformationExtraArgs:
        return mo.dependable(
            optax.chain(
                mo.variance_adapted(direction, beta, of_mean=of_mean),
                optax.scale_by_learning_rate(learning_rate),
            )
        )

    return build


def _lazy_adamw(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, weight_decay: Any = 0.01
) -> optax.GradientTransformationExtraArgs:
    return mo.lazy_rows(mo.adamw(learning_rate, b1, b2, weight_decay=weight_decay))


def _adapted_over_largest_norm(
    gradient: jax.Array, moments: mo.Moments, second_moment: jax.Array
) -> jax.Array:
    return mo.adapted_mean(gradient, moments) / jnp.maximum(jnp.sqrt(second_moment), 1e-30)


def adapted_novograd(learning_rate: Any, beta: Any = 0.9) -> optax.GradientTransformationExtraArgs:
    """A mixture that no paper proposed: M-SVAG's mean over the layer's largest norm so far.

    The norms are averaged like Expectigrad's squares and kept like AMSGrad's, and a layer's first
    zeros are no observations.
    """
    norms = mo.running_average(mo.arithmetic(), of=mo.layer_square_norm(), count_nonzero=True)
    return mo.dependable(
        optax.chain(
            mo.from_estimates(
                _adapted_over_largest_norm,
                moments=mo.running_moments(mo.exponential(beta)),
                second_moment=mo.running_max(norms),
            ),
            optax.scale_by_learning_rate(learning_rate),
        )
    )


_MOMENTS = ("observations", "sum_of_squared_weights", "mean", "biased_variance")
_partial = functools.partial

ROWS = (
    Row("msvag", mo.msvag, "equivariant", state=_MOMENTS, reference=definitions.msvag),
    Row(
        "msvag-decay",
        _partial(mo.msvag, weight_decay=1e-3, exclude_from_weight_decay=("bias",)),
        needs_params=True,
        state=_MOMENTS,
    ),
    Row("svag", mo.svag, "equivariant", state=_MOMENTS, reference=definitions.svag),
    Row(
        "expectigrad",
        _partial(mo.expectigrad, eps=1e-30),
        "invariant",
        state=("momentum",),
        reference=definitions.expectigrad,
    ),
    Row(
        "expectigrad-dense",
        _partial(mo.expectigrad, eps=1e-30, sparse_counter=False),
        "invariant",
        state=("momentum",),
    ),
    Row(
        "novograd",
        _partial(mo.novograd, eps=0.0),
        "invariant",
        reach="leaf",
        state=("trace", "observations"),
        reference=_partial(optax.novograd, b2=0.999, eps=0.0),
    ),
    Row(
        "novograd-averaging",
        _partial(mo.novograd, weight_decay=1e-3, grad_averaging=True),
        reach="leaf",
        needs_params=True,
        state=("momentum",),
    ),
    Row(
        "novograd-amsgrad",
        _partial(mo.novograd, eps=0.0, amsgrad=True),
        "invariant",
        reach="leaf",
        state=("trace", "maximum"),
    ),
    Row(
        "novograd-stacked",
        _partial(mo.novograd, eps=0.0, stacked=("kernel",)),
        "invariant",
        reach="row",
        state=("trace", "observations"),
    ),
    Row("amsgrad", _partial(mo.amsgrad, eps=0.0), "invariant", state=("maximum",)),
    Row(
        "amsgrad-uncorrected",
        _partial(mo.amsgrad, eps=0.0, bias_correction=False),
        "invariant",
        state=("maximum",),
    ),
    Row(
        "amsgrad-correct-before-max",
        _partial(mo.amsgrad, eps=0.0, correct_before_max=True),
        "invariant",
        state=("maximum",),
        reference=_partial(optax.amsgrad, eps=1e-30),
    ),
    Row(
        "adamw",
        mo.adamw,
        needs_params=True,
        reference=_partial(optax.adamw, weight_decay=0.01),
    ),
    Row(
        "adamw-uncorrected",
        _partial(mo.adamw, weight_decay=0.0, eps=0.0, bias_correction=False),
        "invariant",
    ),
    Row("bert_adamw", _bert_adamw, reach="tree", needs_params=True, schedules=False),
    Row("dissection-momentum_sgd", _dissected("momentum_sgd"), "equivariant", state=_MOMENTS),
    Row("dissection-m_ssd", _dissected("m_ssd"), "invariant", state=_MOMENTS),
    Row("dissection-adam", _dissected("adam"), "invariant", state=_MOMENTS),
    Row("dissection-msvag", _dissected("msvag"), "equivariant", state=_MOMENTS),
    Row(
        "adapted-trace",
        _adapted(optax.trace(0.9)),
        "equivariant",
        clock=False,
        state=("trace", *_MOMENTS),
    ),
    Row(
        "adapted-nesterov",
        _adapted(optax.trace(0.9, nesterov=True), of_mean=True),
        "equivariant",
        clock=False,
        state=("trace", *_MOMENTS),
        rate=0.01,
    ),
    Row(
        "adapted-sign",
        _adapted(optax.scale_by_sign()),
        "invariant",
        clock=False,
        state=_MOMENTS,
    ),
    Row(
        "adapted-lion",
        _adapted(optax.scale_by_lion(), of_mean=True),
        "invariant",
        clock=False,
        state=("mu", *_MOMENTS),
    ),
    Row("lazy_rows", _lazy_adamw, reach="row", needs_params=True),
    Row(
        "adapted_novograd",
        adapted_novograd,
        "invariant",
        reach="leaf",
        clock=False,
        state=("sum_of_squared_weights", "maximum"),
    ),
)

# One row for each way in which code is shared: moments, counts for each element, norms of layers,
# maxima, decay, a link that looks at the whole tree, optax's transformations inside, and rows that
# are skipped. What holds for these holds for the others, which are made of the same pieces.
TYPICAL = (
    "msvag",
    "expectigrad",
    "novograd-stacked",
    "amsgrad",
    "adamw",
    "bert_adamw",
    "adapted-lion",
    "lazy_rows",
)
