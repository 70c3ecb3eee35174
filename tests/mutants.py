"""Functions broken on purpose, each of which some test has to notice.

A mutant names a function of the package and its broken twin, which is given the original before the
arguments of it. `python -m tests.mutants` puts the twin in the original's place, wherever the
package has imported it to, and runs the tests that are named. Each mutant is a process of its own,
since a traced kernel no longer asks for a function that is replaced; it is forked from one that has
imported all that takes time. Mutants are named as arguments, or line by line on stdin; the outcome
of each is a line of JSON.
"""

import contextlib
import functools
import gc
import importlib
import inspect
import io
import json
import multiprocessing
import pathlib
import re
import shlex
import sys
import time
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from msvag_optax._trees import arrays, mesh_axes, rounding, rules
from msvag_optax.pieces import formulas, quantities, running_moments, weightings

ROOT = pathlib.Path(__file__).parents[1]


class Mutant(NamedTuple):
    """A function, its broken twin, and the tests that must catch it.

    Attributes:
      module: where the function stands.
      function: its qualified name in the module.
      twin: `(original, *arguments) -> value`.
      tests: arguments of pytest, a file or a test first; the narrowest that catch it.
      is_caught: False of a twin that does as the original, which no test can catch.
    """

    module: str
    function: str
    twin: Callable[..., Any]
    tests: str
    is_caught: bool = True

    def where(self) -> tuple[str, str]:
        """The file of its tests, and the name of the test if it is one."""
        file, _, test = shlex.split(self.tests)[0].partition("::")
        return file, test.partition("[")[0]


class Outcome(NamedTuple):
    """What came of a mutant.

    Attributes:
      exit_code: pytest's.
      passed: how many tests passed.
      noticed: which tests failed, and by which broken promise.
      broke: what failed in another way: an error that no test expects says that the twin is wrong
        rather than noticed.
      calls: how often the twin was called.
      seconds: of the processor.
      output: what pytest said.
    """

    exit_code: int
    passed: int
    noticed: list[str]
    broke: list[str]
    calls: int
    seconds: float
    output: str


MUTANTS: dict[str, Mutant] = {}


def mutant(module: str, function: str, tests: str, *, is_caught: bool = True) -> Any:
    """Makes a mutant of a twin, under the twin's name."""

    def register(twin: Callable[..., Any]) -> Callable[..., Any]:
        assert twin.__name__ not in MUTANTS, twin.__name__
        MUTANTS[twin.__name__] = Mutant("msvag_optax." + module, function, twin, tests, is_caught)
        return twin

    return register


def owner_and_original(mutant: Mutant) -> tuple[Any, Any]:
    """The module or class that holds the function, and the function."""
    owner = importlib.import_module(mutant.module)
    *classes, name = mutant.function.split(".")
    for one in classes:
        owner = getattr(owner, one)
    return owner, vars(owner)[name]


def put_in_place(mutant: Mutant) -> Callable[[], int]:
    """Replaces the original by its twin in all of the package; returns what counts the calls."""
    owner, original = owner_and_original(mutant)
    calls = 0

    # The driver shares kernels of what stands in its module under its name, as the twin then does.
    @functools.wraps(original)
    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return mutant.twin(original, *args, **kwargs)

    modules = [m for name, m in sys.modules.items() if name.split(".")[0] == "msvag_optax"]
    for holder in [owner, *modules]:
        for name, value in list(vars(holder).items()):
            if value is original:
                setattr(holder, name, broken)
    # A default, a table or a `Partial` that was made on import would still have the original.
    own = [vars(broken), *(broken.__closure__ or ()), sys._getframe()]
    held = [
        x
        for x in gc.get_referrers(original)
        if not any(x is one for one in own) and not inspect.isframe(x)
    ]
    assert not held, f"{mutant.function} is also held by {held}"
    return lambda: calls


class _Recorder:
    """Tells a promise that is broken from any other error."""

    def __init__(self) -> None:
        self.passed = 0
        self.noticed: list[str] = []
        self.broke: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed += report.when == "call" and report.passed

    def pytest_exception_interact(self, node: Any, call: Any, report: Any) -> None:
        error = call.excinfo.value
        in_test = getattr(report, "when", None) == "call"
        listed = self.noticed if in_test and _is_promise(error) else self.broke
        message = re.sub(r"\s+", " ", str(error))[:200]
        listed.append(f"{report.nodeid}: {type(error).__name__}: {message}")


def _is_promise(error: BaseException) -> bool:
    if isinstance(error, ExceptionGroup):  # Hypothesis has found several.
        return all(map(_is_promise, error.exceptions))
    # The last is what `jax.debug_nans` raises.
    return isinstance(error, AssertionError | pytest.fail.Exception | FloatingPointError)


def outcome(name: str) -> Outcome:
    """Breaks this process, and runs the tests."""
    started = time.process_time()
    mutant = MUTANTS[name]
    calls = put_in_place(mutant)
    gc.freeze()  # Pytest collects garbage twice, and what was imported is none.
    recorder, output = _Recorder(), io.StringIO()
    # Hypothesis is imported already, and needs no rewritten assertions.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
    arguments = ["-x", "-q", *quiet, *shlex.split(mutant.tests)]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = pytest.main(arguments, plugins=[recorder])
    return Outcome(
        exit_code=int(code),
        passed=recorder.passed,
        noticed=recorder.noticed,
        broke=recorder.broke,
        calls=calls(),
        seconds=round(time.process_time() - started, 1),
        output=output.getvalue()[-4000:],
    )


def main(names: Iterable[str]) -> None:
    """Says what comes of each mutant, each in a process of its own."""
    for module in ("flax.nnx", "hypothesis", "matplotlib.pyplot", "optax.contrib"):
        importlib.import_module(module)  # what many tests want
    gc.collect()  # No garbage is to hold an original.
    fork = multiprocessing.get_context("fork")

    def tell(name: str, connection: Any) -> None:
        connection.send(outcome(name))

    for name in names:
        ours, theirs = fork.Pipe(duplex=False)
        child = fork.Process(target=tell, args=(name, theirs))
        child.start()
        theirs.close()
        try:
            result = ours.recv()._asdict()
        except EOFError:
            result = {"died": name}
        child.join()
        print(json.dumps({"name": name, **result}), flush=True)


# Tests.

CONFORMANCE = "tests/laws/test_conformance.py"
AVERAGES = "tests/pieces/test_averages.py"
BATCH_VARIANCE = "tests/pieces/test_batch_variance.py"
DECAY = "tests/pieces/test_decay.py"
DERIVATIVES = "tests/laws/test_derivatives.py"
DIAGNOSTICS = "tests/pieces/test_diagnostics.py"
DRIVER = "tests/pieces/test_driver.py"
FORMULAS = "tests/pieces/test_formulas.py"
FROM_ESTIMATES = "tests/pieces/test_from_estimates.py"
GOLDEN = "tests/references/test_golden.py"
LAWS = "tests/laws/test_laws.py"
MEMORIES = "tests/pieces/test_memories.py"
NUMERICS = "tests/laws/test_numerics.py"
PATHS = "tests/pieces/test_paths.py"
SCHEDULES = "tests/optimizers/test_schedules.py"
SHARD_MAP = "tests/scale/test_shard_map.py"
WATCH_NOISE = "tests/pieces/test_watch_noise.py"
WEIGHTINGS = "tests/pieces/test_weightings.py"
WRAPPERS = "tests/wrappers/test_wrappers.py"
KEPT_IN = "tests/wrappers/test_kept_in.py"
PARAMETERS = "tests/wrappers/test_parameters.py"
ROUNDING = "tests/wrappers/test_rounding.py"


def reference(case: str) -> str:
    """The test of a golden trajectory."""
    return f"'{GOLDEN}::test_trajectory_is_the_references[{case}]'"


def kit(row: str) -> str:
    """The check of `msvag_optax.testing` that an optimizer takes the steps of its reference."""
    return f"'{CONFORMANCE}::test_optimizer[{row}-reference]'"


def bound(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call, under their names."""
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    return types.SimpleNamespace(**call.arguments)


# No mutant.


@mutant("pieces.formulas", "_over_rms", f"{FORMULAS} -k over_rms", is_caught=False)
def nothing_is_broken(original, *args, **kwargs):
    return original(*args, **kwargs)


# Weights.


@mutant("pieces.weightings", "_one_minus_power", f"{WEIGHTINGS} -k does_not_cancel")
def power_of_one_step_more(original, log_decay, count):
    return original(log_decay, count + 1)


@mutant("pieces.weightings", "bias_correction", reference("amsgrad_torch_f64"))
def correction_of_one_step_less(original, decay, count):
    return original(decay, count - 1)


@mutant("pieces.weightings", "_log_and_complement", f"{WEIGHTINGS} -k complement_of_the_decay")
def complement_in_float32(original, decay):
    return original(decay)[0], 1 - np.float32(decay)


@mutant(
    "pieces.weightings",
    "_log_and_complement",
    f"'{DERIVATIVES}::test_with_respect_to_a_decay[adamw-b1-0.0]'",
)
def logarithm_of_a_traced_zero(original, decay):
    decay = jnp.asarray(decay, arrays.scalar_dtype())
    return jnp.log1p(decay - 1), 1 - decay


@mutant("pieces.weightings", "_arithmetic_weight", f"{WEIGHTINGS} -k arithmetic")
def arithmetic_weight_of_one_step_more(original, count):
    return original(count + 1)


@mutant("pieces.weightings", "_constant_weight_after", kit("novograd"))
def no_whole_weight_for_the_first(original, start, complement, count):
    return original(0, complement, count)


@mutant("pieces.weightings", "_constant_weight_after", reference("bert_adamw_default"))
def whole_weight_for_the_first_of_a_biased_average(original, start, complement, count):
    return original(1, complement, count)


@mutant(
    "pieces.weightings", "_exponential_weight", f"{NUMERICS} -k traced_decay_of_one_is_the_arithm"
)
def traced_decay_of_one_divides_0_by_0(original, log_decay, complement, count):
    return complement / weightings._one_minus_power(log_decay, count)


@mutant("pieces.weightings", "_below_one", f"{NUMERICS} -k amsgrad_at_a_traced_decay_of_one")
def traced_decay_of_one_is_left(original, decay):
    return decay


@mutant("pieces.weightings", "keeps_newest", f"{AVERAGES} -k at_a_decay_of_zero")
def nothing_knows_a_decay_of_zero(original, weighting):
    return False


@mutant("pieces.weightings", "weight_at", f"{WEIGHTINGS} -k ones_own")
def count_is_not_widened(original, weight, count):
    return jnp.asarray(weight(count), arrays.scalar_dtype())


# Quantities.


@mutant("pieces.quantities", "square", reference("adamw_torch_f64"))
def square_dropped_from_the_second_moment(original, gradient):
    return jnp.abs(gradient)


@mutant("pieces.quantities", "square", f"{FORMULAS} -k square_saturates")
def squares_that_overflow(original, gradient):
    return quantities.absolute_square(gradient)


@mutant("pieces.quantities", "absolute_square", f"{FORMULAS} -k square_of_complex")
def square_of_the_real_part(original, x):
    return jnp.square(x.real)


@mutant("pieces.quantities", "_square_norm", kit("novograd"))
def norm_averaged_over_the_elements(original, cut, gradient):
    return original(cut, gradient) / gradient.size


@mutant("pieces.quantities", "_square_norm", f"{AVERAGES} -k sums_that_overflow")
def sum_over_a_layer_that_stays_infinite(original, cut, gradient):
    squares = jnp.sum(quantities.absolute_square(gradient))
    return mesh_axes.sum_over(cut, squares, gradient)


@mutant(
    "pieces.quantities",
    "_square_norm_of_rows",
    "tests/optimizers/test_novograd.py -k stacked_layers_are_layers",
)
def one_norm_for_a_stack(original, cut, gradient):
    rows = original(cut, gradient)
    return jnp.full_like(rows, rows.sum())


# Formulas.


@mutant("pieces.formulas", "_over_rms", f"{FORMULAS} -k places_its_epsilons")
def epsilon_in_the_root(original, divide, eps, eps_root, gradient, second_moment, mean=None):
    return original(divide, 0.0, eps_root + eps, gradient, second_moment, mean)


@mutant("pieces.formulas", "_over_rms", f"{FORMULAS} -k places_its_epsilons")
def epsilon_out_of_the_root(original, divide, eps, eps_root, gradient, second_moment, mean=None):
    return original(divide, eps + eps_root, 0.0, gradient, second_moment, mean)


@mutant("pieces.formulas", "_divide_or_zero", f"{FORMULAS} -k over_rms_of_nothing")
def nothing_over_nothing(original, x, y):
    return x / y


@mutant(
    "pieces.formulas", "_root", f"{DERIVATIVES} -k 'at_gradients_of_zero and adamw and not bert'"
)
def root_without_a_derivative_at_zero(original, x):
    return jnp.sqrt(x)


@mutant("pieces.formulas", "_factor", f"{FORMULAS} -k factor_against")
def square_dropped_from_the_factor(original, mean, variance):
    return jnp.abs(mean) / (jnp.abs(mean) + variance)


@mutant("pieces.formulas", "_factor", f"{FORMULAS} -k factor_does_not_square")
def factor_squares_the_mean(original, mean, variance):
    safe = jnp.where(mean == 0, 1, mean)
    return safe * safe / (safe * safe + variance)


@mutant("pieces.formulas", "_factor", f"{DERIVATIVES} -k first_gradient_of_zero")
def factor_of_zero_in_the_product(original, mean, variance):
    return jnp.where(mean == 0, 0, original(mean, variance))


@mutant("pieces.formulas", "variance_adaptation_factor", f"{FORMULAS} -k zero_without_a_mean")
def factor_of_one_without_a_mean(original, mean, variance):
    return formulas._factor(mean, variance)


@mutant("pieces.formulas", "adapted_mean", kit("msvag"))
def msvag_with_the_variance_of_one_gradient(original, gradient, moments):
    return original(gradient, moments._replace(variance_of_mean=moments.variance))


@mutant("pieces.formulas", "adapted_gradient", kit("svag"))
def svag_with_the_variance_of_the_mean(original, gradient, moments):
    return original(gradient, moments._replace(variance=moments.variance_of_mean))


@mutant("pieces.variance_adapted", "_adapted_as_mean", f"{FROM_ESTIMATES} -k are_adapted")
def mean_with_the_variance_of_one_gradient(original, gradient, direction, moments):
    return original(gradient, direction, moments._replace(variance_of_mean=moments.variance))


@mutant("pieces.formulas", "sign_of_mean", f"{LAWS} -k 'not_finite_are_seen and m_ssd'")
def finite_step_of_an_infinite_mean(original, gradient, moments):
    return jnp.sign(moments.mean)


@mutant("pieces.formulas", "mean_over_rms", "tests/optimizers/test_dissection.py -k adam_is_adam")
def mean_over_the_deviation(original, gradient, moments):
    return original(gradient, moments._replace(second_moment=moments.variance))


# Averages.


@mutant("_trees.arrays", "lerp", f"{AVERAGES} -k moments_against")
def weight_of_the_older(original, average, observation, weight):
    return observation + weight * (average - observation)


@mutant("pieces.running_moments", "_weights", f"{AVERAGES} -k sum_of_squared_weights")
def square_dropped_from_the_sum_of_squared_weights(original, newest, sum_of_squares):
    weights = original(newest, sum_of_squares)
    return weights._replace(sum_of_squares=weights.sum_of_squares + newest * (1 - newest))


@mutant("pieces.running_moments", "_weights", kit("msvag"))
def no_correction_of_the_variances_bias(original, newest, sum_of_squares):
    weights = original(newest, sum_of_squares)
    any_spread = (weights.unbias > 0).astype(weights.unbias.dtype)
    return weights._replace(unbias=any_spread, unbias_of_mean=any_spread * weights.sum_of_squares)


@mutant("pieces.running_moments", "_observe", kit("msvag"))
def distances_from_the_new_mean_taken_for_the_olds(original, weights, gradient, state, param):
    not_the_first = (weights.over_root_of_older > 0).astype(weights.over_root_of_older.dtype)
    return original(weights._replace(over_root_of_older=not_the_first), gradient, state, param)


@mutant("pieces.running_moments", "_observe", f"{NUMERICS} -k variance_in_float32")
def variance_as_a_difference_of_averages(original, weights, gradient, state, param):
    _, state_after = original(weights, gradient, state, param)
    second = state.biased_variance + mo.square(state.mean)
    second = arrays.lerp(second, mo.square(gradient), weights.newest)
    variance = jnp.maximum(0, second - mo.square(state_after.mean))
    numbers = [x.astype(variance.dtype) for x in (weights.unbias, weights.unbias_of_mean)]
    estimate = running_moments._moments(state_after.mean, variance, *numbers)
    return estimate, state_after._replace(biased_variance=variance)


@mutant("pieces.running_moments", "_read", f"{AVERAGES} -k can_be_read")
def moments_read_without_correction(original, state):
    one = jnp.ones_like(state.biased_variance)
    return running_moments._moments(
        state.mean, state.biased_variance, one, one * state.sum_of_squared_weights
    )


@mutant("pieces.running_average", "_observe_nonzero", f"{AVERAGES} -k too_small_to_square")
def squares_decide_what_is_zero(original, quantity, weight, shared, gradient, state, param):
    gradient = jnp.where(quantity(gradient) == 0, 0, gradient)
    return original(quantity, weight, shared, gradient, state, param)


@mutant("pieces.running_average", "_observe_nonzero", kit("expectigrad"))
def zeros_counted(original, quantity, weight, shared, gradient, state, param):
    _, moved = original(quantity, weight, shared, gradient, state, param)
    newest = weightings.weight_at(weight, jnp.maximum(moved.observations, 1))
    average = arrays.lerp(state.average, quantity(gradient), newest)
    return average, moved._replace(average=average)


@mutant("pieces.around", "_keep_larger", reference("amsgrad_torch_f64"))
def no_maximum(original, inner, shared, gradient, state, param):
    estimate, inner_state = inner(shared, gradient, state.inner_state, param)
    return estimate, state._replace(maximum=estimate, inner_state=inner_state)


@mutant("pieces.around", "_read_then_observe", f"{DRIVER} -k before_gives")
def the_estimate_of_this_step(original, inner, read, shared, gradient, state, param):
    return inner(shared[1], gradient, state, param)


@mutant("pieces.around", "_correct", f"{AVERAGES} -k correction_that_overflows")
def correction_that_overflows(original, correction, estimate):
    return jax.tree.map(lambda e: e / correction.astype(arrays.real_dtype(e.dtype)), estimate)


@mutant("_trees.arrays", "increment", f"{NUMERICS} -k counters_saturate")
def counters_that_wrap(original, count):
    return count + 1


# Memories of your own, counts, parts and `cautious`.


@mutant("pieces.recurrence", "_move", f"{MEMORIES} -k recurrence_is_an_average")
def recurrence_of_the_step_before(original, step, shared, gradient, state, param):
    return state.memory, original(step, shared, gradient, state, param)[1]


@mutant("pieces.observations", "_advance", f"{MEMORIES} -k count_from_one")
def observations_from_zero(original, state, extra):
    return extra["count"], state


@mutant("pieces.mean_square", "_mean", f"{MEMORIES} -k mean_of_each_part")
def sum_of_each_part(original, squares, axes, *, keepdims):
    return jnp.sum(squares, axis=axes, keepdims=keepdims)


@mutant("pieces.formulas", "_spread", f"{MEMORIES} -k mean_of_each_part")
def parts_in_turn(original, x, shape):
    return jnp.tile(x, [n // m if m > 1 else 1 for n, m in zip(shape, x.shape, strict=True)])


@mutant("pieces.cautious", "_agreeing", f"{MEMORIES} -k never_goes_uphill")
def caution_that_shortens(original, gradient, direction):
    return jnp.where(direction * gradient > 0, direction, 0)


# Dtypes.


@mutant("_trees.arrays", "widen", f"{AVERAGES} -k low_precision_gradients")
def averages_in_the_gradients_precision(original, x):
    return jnp.asarray(x)


@mutant("_trees.arrays", "narrow", f"{WRAPPERS} -k float16_keeps")
def finite_updates_that_overflow_float16(original, x, dtype):
    return x.astype(dtype)


@mutant("_trees.arrays", "kept_dtype", f"{AVERAGES} -k low_precision_is_asked_for")
def dtype_that_is_asked_for_in_vain(original, dtype, asked):
    return dtype


@mutant("_trees.driver", "_run", f"{DRIVER} -k kept_in_float32")
def updates_that_stay_wide(original, layout, makes_updates, leaf, shared, gradient, kept, param):
    return original(layout, False, leaf, shared, gradient, kept, param)


@mutant("_trees.driver", "_keep", f"{AVERAGES} -k low_precision_is_asked_for")
def state_that_widens(original, gradient, before, after):
    return after


@mutant("wrappers.kept_in", "kept_in", f"{WRAPPERS} -k kept_in")
def kept_in_narrows_the_sum_of_squared_weights(
    original, inner, dtype, rounding="nearest", *, seed=0, exclude=(), specs=None
):
    kept = original(inner, dtype, rounding, seed=seed, exclude=exclude, specs=specs)
    rule = rules.rule_of(inner)
    if dtype is None or rule.needs_tree:
        return kept

    def init(params):
        return jax.tree.map(
            lambda x: arrays.narrow(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            rule.init(params),
        )

    estimates = isinstance(inner, mo.Estimator)
    return rules.from_rule(rule._replace(init=init), estimates=estimates)


@mutant("_trees.rounding", "random_bits", f"{ROUNDING} -k correlated")
def chances_that_one_step_hands_to_the_next(original, index, key, array):
    return original(index, np.uint32(0), array)


@mutant("_trees.rounding", "_bfloat16", f"{ROUNDING} -k finite_stays_finite")
def largest_bfloat16_that_carries_into_infinity(original, pattern, bits):
    return (pattern + (bits >> 16)) >> 16


@mutant("_trees.rounding", "_float16", f"{ROUNDING} -k the_mean_is_the_number")
def float16_below_normal_size_that_is_cut_off(original, pattern, bits):
    is_small = (pattern & 0x7FFFFFFF) < (113 << 23)
    return original(pattern, jnp.where(is_small, 0, bits))


@mutant("_trees.slices", "index_of", f"{KEPT_IN} -k told_its_place")
def slices_that_count_for_themselves(original, x, cut):
    return jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)


@mutant("wrappers.kept_in", "_rounded", f"{KEPT_IN} -k 'second_moment_falls and not too'")
def pieces_that_round_to_nearest(
    original, keeping, cut, leaf, number, shared, gradient, state, param
):
    return leaf(shared[1], gradient, state, param)


@mutant("wrappers.parameters", "_move_to", f"{PARAMETERS} -k rounded_copy")
def updates_that_are_not_rounded(original, param, copy, step):
    return copy - param.astype(jnp.float32)


@mutant("_trees.rounding", "round_to_nearest", f"{PARAMETERS} -k numpy_has")
def ties_that_go_up(original, x, dtype):
    return rounding.round_stochastically(x, dtype, jnp.full(x.shape, 0x80000000, jnp.uint32))


# The driver and chains.


@mutant("_trees.layout", "Leaves.split", reference("msvag_beta0.99_zero_params"))
def state_of_another_leaf(original, self, other):
    values = original(self, other)
    shapes = [jnp.shape(x) for x in self.values]

    def of_the_leaf_before(i):
        alike = [j for j, shape in enumerate(shapes) if shape == shapes[i]]
        return values[alike[alike.index(i) - 1]]

    return [of_the_leaf_before(i) for i in range(len(values))]


@mutant("_trees.layout", "Leaves.distribute", "tests/optimizers/test_adamw.py -k its_parts")
def part_of_the_first_leaf_for_all(original, self, shared):
    part = original(self, shared)
    return lambda leaf: part(0)


@mutant("_trees.partials", "_stands_in_its_module", f"{FROM_ESTIMATES} -k new_hyperparameters")
def kernels_that_are_not_shared(original, function):
    return False


@mutant("_trees.partials", "_stands_in_its_module", f"{DRIVER} -k closures_go")
def closures_that_stay(original, function):
    return True


@mutant("_trees.rules", "rule_of", f"{DRIVER} -k 'one_kernel and novograd'")
def a_kernel_for_each_link(original, transformation):
    return rules._rule_of_another(transformation)


@mutant("_trees.rules", "rule_of", f"{DRIVER} -k init_that_is_replaced")
def an_init_that_is_replaced_in_vain(original, transformation):
    return getattr(transformation.update, "rule", None) or original(transformation)


@mutant("_trees.rules", "_OnOwnCount.__call__", f"{DRIVER} -k share_a_count")
def count_that_stands_still(original, self, updates, state, params=None, **extra_args):
    updates, moved = original(self, updates, state, params, **extra_args)
    return updates, moved._replace(count=state.count)


@mutant("pieces.chain", "_in_turn", f"{DRIVER} -k chain_is_optaxs")
def links_in_reverse(original, where, links, shared, gradient, state, param):
    where = type(where)(where.keys[::-1])
    shared = shared._replace(by_link=shared.by_link[::-1])
    return original(where, links[::-1], shared, gradient, state, param)


@mutant("pieces.rates", "at_count", f"{DRIVER} -k share_a_count")
def schedules_read_one_step_late(original, argument, value, init, leaf):
    later = (lambda count: value(count + 1)) if callable(value) else value
    return original(argument, later, init, leaf)


@mutant("_trees.mismatch", "check_kept", f"{DRIVER} -k does_not_broadcast")
def state_of_other_parameters_that_broadcasts(original, gradient, observed, kept):
    return None


# Rates and decay.


@mutant("pieces.rates", "_scale", reference("adamw_torch_f64"))
def uphill(original, rate, update, state, param):
    return original(-rate, update, state, param)


@mutant("pieces.rates", "_accumulate", reference("novograd_tfa_f64_plain"))
def momentum_that_is_a_mean(original, decay, shared, update, state, param):
    return original(decay, shared, (1 - decay) * update, state, param)


@mutant("pieces.decay", "_subtract", f"{DECAY} -k coupled_to_nothing")
def decay_that_is_never_subtracted(original, rate, update, state, param):
    return original(-rate, update, state, param)


@mutant("_trees.selection", "matches", reference("bert_adamw_default"))
def patterns_from_the_start_of_the_path(original, patterns, name):
    return any(re.match(pattern, name) for pattern in patterns)


@mutant("_trees.paths", "path_name", f"{PATHS} -k haiku")
def haikus_spelling(original, path):
    return "/".join(str(getattr(key, "key", key)) for key in path)


@mutant("_trees.selection", "check_patterns_match", f"{DECAY} -k matches_nothing")
def patterns_that_may_miss(original, argument, patterns, tree):
    return None


# Optimizers.


@mutant("optimizers.novograd", "novograd", reference("novograd_tfa_f64_averaging"))
def averaging_at_step_1(original, *args, **kwargs):
    return _novograd(bound(original, args, kwargs))


@mutant("optimizers.novograd", "novograd", reference("novograd_tfa_f64_decay"))
def decay_outside_of_the_momentum(original, *args, **kwargs):
    return _novograd(bound(original, args, kwargs), decay_last=True)


def _novograd(a, decay_last=False):
    """NovoGrad without AMSGrad's maximum and stacks, and with BERT's mean."""
    norm = mo.running_average(mo.exponential_from_first(a.b2), of=mo.layer_square_norm())
    mean = mo.running_average(mo.exponential_from_zero(a.b1))
    momentum = mean if a.grad_averaging else mo.momentum(a.b1)
    links = [mo.add_decayed_weights(a.weight_decay, a.exclude_from_weight_decay), momentum]
    normalized = mo.from_estimates(mo.over_rms(a.eps, a.eps_root), second_moment=norm)
    direction = mo.chain(normalized, *(links[::-1] if decay_last else links))
    return mo.optimizer(direction, a.learning_rate)


@mutant("optimizers.expectigrad", "expectigrad", reference("expectigrad_torch_f64_default"))
def momentum_inside_of_the_quotient(original, *args, **kwargs):
    a = bound(original, args, kwargs)
    second_moment = mo.running_average(
        mo.arithmetic(), of=mo.square, count_nonzero=a.sparse_counter
    )
    mean = mo.running_average(mo.exponential(a.beta))
    direction = mo.from_estimates(mo.over_rms(a.eps), second_moment=second_moment, mean=mean)
    return mo.optimizer(direction, a.learning_rate)


@mutant("optimizers.amsgrad", "amsgrad", reference("amsgrad_torch_f64"))
def correction_before_the_maximum(original, *args, **kwargs):
    a = vars(bound(original, args, kwargs))
    return original(**(a | {"correct_before_max": a["bias_correction"]}))


@mutant("optimizers.optimizer", "optimizer", reference("adamw_torch_f64"))
def decay_that_the_rate_does_not_scale(original, *args, **kwargs):
    a = bound(original, args, kwargs)
    exclude = a.exclude_from_weight_decay
    return optax.chain(
        original(a.direction, a.learning_rate),
        mo.subtract_decayed_weights(a.weight_decay, exclude),
    )


@mutant("optimizers.bert", "_clip_by_global_norm", reference("bert_create_optimizer_20_0"))
def bert_without_clipping(original, max_norm):
    return optax.identity()


@mutant(
    "optimizers.bert", "_clip_by_global_norm", "tests/optimizers/test_adamw.py -k cannot_be_squared"
)
def bert_squares_what_it_clips(original, max_norm):
    return optax.clip_by_global_norm(max_norm)


@mutant(
    "optimizers.bert",
    "_clip_by_global_norm",
    f"'{DERIVATIVES}::test_at_gradients_of_zero[bert_adamw]'",
)
def bert_clips_by_the_root_of_zero(original, max_norm):
    def clip(updates, params=None):
        norm = jnp.sqrt(optax.tree.norm(updates, squared=True))
        scale = jnp.where(norm > max_norm, max_norm / jnp.where(norm > max_norm, norm, 1), 1)
        return jax.tree.map(lambda g: g * scale, updates)

    return optax.stateless(clip)


@mutant(
    "optimizers.bert", "_clip_by_global_norm", "tests/optimizers/test_adamw.py -k cannot_be_squared"
)
def bert_divides_by_a_norm_of_zero(original, max_norm):
    def clip(updates, params=None):
        largest = jax.lax.stop_gradient(optax.tree.norm(updates, ord=jnp.inf))
        inner = original(max_norm / largest)
        updates = jax.tree.map(lambda g: g / largest, updates)
        updates, _ = inner.update(updates, inner.init(updates))
        return jax.tree.map(lambda g: g * largest, updates)

    return optax.stateless(clip)


@mutant("optimizers.bert", "_is_spelled_as_in_bert", "tests/optimizers/test_adamw.py -k its_parts")
def berts_biases_decay(original, name, shape):
    return False


@mutant("optimizers.bert", "warmup_linear_decay_schedule", f"{SCHEDULES} -k against")
def decay_from_the_end_of_warm_up(original, init_lr, num_train_steps, num_warmup_steps):
    schedule = original(init_lr, num_train_steps, num_warmup_steps)
    stretched = num_train_steps / (num_train_steps - num_warmup_steps)
    return lambda count: schedule(count) * jnp.where(count < num_warmup_steps, 1, stretched)


@mutant("optimizers.bert", "warmup_linear_decay_schedule", f"{SCHEDULES} -k against")
def warm_up_one_step_early(original, init_lr, num_train_steps, num_warmup_steps):
    schedule = original(init_lr, num_train_steps, num_warmup_steps)
    early = init_lr / max(num_warmup_steps, 1)
    return lambda count: schedule(count) + jnp.where(count < num_warmup_steps, early, 0)


# Wrappers.


@mutant("wrappers.gradientless", "_keep_where", f"{WRAPPERS} -k missing_gradient_leaves")
def parameters_without_gradient_lose_their_state(original, flags, inner, state, new_state):
    return new_state


@mutant("wrappers.gradientless", "_shapes", f"{WRAPPERS} -k does_not_grow")
def state_of_other_parameters_that_grows(original, tree):
    return []


@mutant("_trees.mismatch", "check_is_update", f"{WRAPPERS} -k estimate_is_no_update")
def estimates_taken_for_updates(original, gradient, new):
    return None


@mutant("wrappers.lazy_rows", "_choose", f"{WRAPPERS} -k 'rows_of_their_own and msvag'")
def lazy_rows_that_forget(original, seen, new, old):
    return original(seen, new, 0 * old)


@mutant("wrappers.lazy_rows", "_of_rows", f"{WRAPPERS} -k 'rows_of_their_own and msvag'")
def state_that_is_never_lazy(original, kept, seen):
    return True


@mutant("_trees.mesh_axes", "_is_cut_over", f"{SHARD_MAP} -k make_the_norm")
def replicated_parameters_counted_once_for_each_device(original, name, piece):
    return True


@mutant("_trees.mesh_axes", "sum_over", f"{SHARD_MAP} -k make_the_norm")
def norm_of_a_piece(original, cut, total, piece):
    return total


@mutant("_trees.mesh_axes", "check_whole", f"{SHARD_MAP} -k refuses_a_piece")
def pieces_taken_for_wholes(original, x, remedy):
    return None


@mutant("_compat", "shard_alike", f"{WRAPPERS} -k sharded_like_the_parameters")
def state_replicated_under_jit(original, x, like):
    return x


@mutant("_trees.arrays", "init_like_params", "tests/scale/test_sharded_wrappers.py -k s_own_state")
def optaxs_state_replicated_under_jit(original, transformation, params):
    return transformation.init(params)


# What is read from a state.


@mutant("_signal", "_signal_and_noise", f"{DIAGNOSTICS} -k divided_into_leaves")
def signal_of_each_leaf_for_itself(original, moments, rows=False):
    signal, noise = original(moments, rows)
    return jnp.maximum(0, signal), noise


@mutant("_signal", "_signal_and_noise", f"{DIAGNOSTICS} -k noise_alone")
def signal_with_its_noise(original, moments, rows=False):
    none = jnp.zeros_like(moments.variance_of_mean)
    return original(moments._replace(variance_of_mean=none), rows)


@mutant("diagnostics", "_quotient", f"{DIAGNOSTICS} -k no_gradient")
def no_noise_over_no_signal(original, numerator, denominator):
    return numerator / denominator


# Noise within a batch.


@mutant("pieces.batch_variance", "variance_of", f"{BATCH_VARIANCE} -k sample_variance")
def variance_of_too_many(original, gradient, squares, over_others):
    return original(gradient, squares, over_others / (1 + over_others))


@mutant("pieces.watch_noise", "_observe", f"{BATCH_VARIANCE} -k linear_model")
def length_with_its_noise(original, shared, gradient, state, param, rows=False):
    without = shared._replace(over_size=0 * shared.over_size)
    return original(without, gradient, state, param, rows)


@mutant("microbatches", "_plus", f"{BATCH_VARIANCE} -k any_sizes")
def microbatch_counts_in_full(original, squares, weight, away):
    return original(squares, jnp.ceil(weight), away)


@mutant("microbatches", "Microbatches.result", f"{BATCH_VARIANCE} -k any_sizes")
def microbatches_taken_for_examples(original, self):
    gradient, extra = original(self)
    squares = extra["sum_sq_diff_grads"] * self.count / self.examples
    return gradient, {**extra, "sum_sq_diff_grads": squares}


@mutant("diagnostics", "_if", f"{WATCH_NOISE} -k traced_batch_of_one")
def reading_of_nothing(original, condition, value):
    return value


if __name__ == "__main__":
    main(sys.argv[1:] or map(str.strip, sys.stdin))
