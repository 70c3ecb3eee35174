"""Formulas broken on purpose: the tests have to notice each.

A mutant is a change of one place of the package. It is made in a copy, in which the named tests run
and must fail; without the change, they pass.
"""

import os
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[2]


class Mutant(NamedTuple):
    """A change that breaks a formula, and the tests that must catch it."""

    file: str
    right: str
    wrong: str
    tests: str


GOLDEN = "tests/test_golden.py"
NUMERICS = "tests/test_numerics.py"
AVERAGES = "tests/test_averages.py"
MANUAL = "tests/test_manual.py"
LEAFWISE = "tests/test_leafwise.py"
LEAVES = "tests/test_leaves.py"
FORMULAS = "tests/test_formulas.py"
WEIGHTING = "tests/test_weighting.py"
WRAPPERS = "tests/test_wrappers.py"

MUTANTS = {
    # Weights.
    "1 - b^t by the power t + 1": Mutant(
        "weighting.py",
        "-jnp.expm1(time * log_decay)",
        "-jnp.expm1((time + 1) * log_decay)",
        WEIGHTING,
    ),
    "1 - b^t by the power t - 1 in AMSGrad's correction": Mutant(
        "weighting.py",
        "-jnp.expm1(count.astype(scalar_dtype()) * log_decay)",
        "-jnp.expm1((count - 1).astype(scalar_dtype()) * log_decay)",
        GOLDEN,
    ),
    "1 - decay in float32": Mutant(
        "weighting.py", "-math.inf), 1 - number", "-math.inf), 1 - np.float32(number)", WEIGHTING
    ),
    "arithmetic weight of one more step": Mutant(
        "weighting.py",
        "1 / count.astype(scalar_dtype())",
        "1 / (count + 1).astype(scalar_dtype())",
        GOLDEN,
    ),
    "no whole weight for the first": Mutant(
        "weighting.py",
        "_constant_weight_after, 1, complement",
        "_constant_weight_after, 0, complement",
        GOLDEN,
    ),
    "whole weight for the first of a biased average": Mutant(
        "weighting.py",
        "_constant_weight_after, 0, complement",
        "_constant_weight_after, 1, complement",
        GOLDEN,
    ),
    "a traced decay of one divides 0 by 0": Mutant(
        "weighting.py", "jnp.where(log_decay == 0, time, ", "(", NUMERICS
    ),
    # Formulas.
    "square dropped from the second moment": Mutant(
        "formulas.py", "return jnp.square(x)\n", "return jnp.abs(x)\n", GOLDEN
    ),
    "epsilon moved into the root": Mutant(
        "formulas.py",
        "jnp.sqrt(second_moment + eps_root) + eps\n",
        "jnp.sqrt(second_moment + eps_root + eps)\n",
        GOLDEN,
    ),
    "epsilon moved out of the root": Mutant(
        "formulas.py",
        "jnp.sqrt(second_moment + eps_root) + eps\n",
        "jnp.sqrt(second_moment) + eps_root + eps\n",
        GOLDEN,
    ),
    "square dropped from the factor": Mutant(
        "formulas.py", "safe / (safe + variance / safe)", "safe / (safe + variance)", GOLDEN
    ),
    "factor squares the mean": Mutant(
        "formulas.py",
        "safe / (safe + variance / safe)",
        "safe * safe / (safe * safe + variance)",
        FORMULAS,
    ),
    "M-SVAG with the variance of one gradient": Mutant(
        "formulas.py",
        "moments.mean * variance_adaptation_factor(moments.mean, moments.variance_of_mean)",
        "moments.mean * variance_adaptation_factor(moments.mean, moments.variance)",
        GOLDEN,
    ),
    "SVAG with the variance of the mean": Mutant(
        "formulas.py",
        "gradient * variance_adaptation_factor(moments.mean, moments.variance)",
        "gradient * variance_adaptation_factor(moments.mean, moments.variance_of_mean)",
        GOLDEN,
    ),
    "norm averaged over the elements": Mutant(
        "formulas.py",
        "jnp.sum(absolute_square(gradient)), gradient",
        "jnp.mean(absolute_square(gradient)), gradient",
        GOLDEN,
    ),
    "one norm for a stack": Mutant(
        "formulas.py",
        "axis=axes, keepdims=True",
        "keepdims=True",
        "tests/optimizers/test_novograd.py",
    ),
    "squares that overflow": Mutant(
        "formulas.py",
        "jnp.minimum(x, jnp.finfo(x.dtype).max)",
        "x",
        FORMULAS,
    ),
    "gradients too large to square, divided by the root of less": Mutant(
        "formulas.py", "return jnp.maximum(1, jnp.abs(x) / largest)", "return 1", FORMULAS
    ),
    # Kernels.
    "a link that reads the updates of the link before it, too early": Mutant(
        "_leafwise.py",
        "shares = found is not None and not found.reads_updates",
        "shares = found is not None",
        LEAFWISE,
    ),
    "a kernel for each link": Mutant(
        "_leafwise.py", "if shares and runs and", "if not shares and runs and", LEAFWISE
    ),
    "numbers in another order on a GPU": Mutant(
        "_leaves.py", "for number in numbers], 0)", "for number in numbers[::-1]], 0)", LEAVES
    ),
    # Averages.
    "square dropped from the sum of squared weights": Mutant(
        "averages.py",
        "sum_of_squares + newest * (newest - (2 - newest) * sum_of_squares)",
        "sum_of_squares + newest * (1 - (2 - newest) * sum_of_squares)",
        GOLDEN,
    ),
    "no correction of the variance's bias": Mutant(
        "averages.py",
        "unbias=jnp.where(spread > 0, 1, 0) / over_spread",
        "unbias=jnp.where(spread > 0, 1, 0) / jnp.ones_like(over_spread)",
        GOLDEN,
    ),
    "distances from the new mean taken for the old's": Mutant(
        "averages.py", "square(distance) * weights.over_older", "square(distance)", GOLDEN
    ),
    "variance from v - m²": Mutant(
        "averages.py",
        "biased_variance = toward(biased_variance, squared_distance, weights.newest)",
        "biased_variance = jnp.maximum(0, toward(biased_variance + mean_before**2, "
        "square(gradient), weights.newest) - square(mean))",
        NUMERICS,
    ),
    "no exact weight of one": Mutant(
        "averages.py", "near = weight <= 0.5", "near = weight <= 1.5", NUMERICS
    ),
    "a difference that overflows": Mutant(
        "averages.py",
        "way = pull * observation - pull * average",
        "way = pull * (observation - average)",
        "tests/test_laws.py",
    ),
    "a sum over a layer that stays infinite": Mutant(
        "averages.py",
        "return _move(weight, saturate(norm), average)",
        "return _move(weight, norm, average)",
        AVERAGES,
    ),
    "what is older than a weight of one": Mutant(
        "averages.py", "jnp.where(pull == 0, 0, way)", "way", AVERAGES
    ),
    "norms of several devices in one array": Mutant(
        "averages.py", "for x in concrete}) <= 1", "for x in concrete}) <= 2", AVERAGES
    ),
    "a kept state whose link no longer reads updates": Mutant(
        "wrappers.py",
        "return _leafwise.combined([inner], init, begin)",
        "return _leafwise.leafwise(init, begin)",
        LEAFWISE,
    ),
    "squares decide what is zero": Mutant(
        "averages.py",
        "seen = (gradient if observation.shape == gradient.shape else observation) != 0",
        "seen = observation != 0",
        AVERAGES,
    ),
    "zeros counted": Mutant("averages.py", "jnp.where(seen, moved, average)", "moved", GOLDEN),
    "no maximum": Mutant(
        "averages.py",
        "maximum = jax.tree.map(jnp.maximum, estimate, before)",
        "maximum = estimate",
        GOLDEN,
    ),
    "averages in the gradient's precision": Mutant(
        "averages.py",
        "observation = quantity(_leaves.widen(gradient))",
        "observation = quantity(gradient)",
        AVERAGES,
    ),
    # Optimizers.
    "averaging at step 1": Mutant(
        "optimizers/novograd.py",
        "running_average(exponential_from_first(b1), dtype=mu_dtype)",
        "wrappers.kept_in(optax.chain(optax.scale(1 - b1), optax.trace(b1)), mu_dtype)",
        GOLDEN,
    ),
    "NovoGrad's decay outside of the momentum": Mutant(
        "optimizers/novograd.py",
        "        decay=decoupled_weight_decay(weight_decay, exclude_from_weight_decay),\n"
        "        momentum=momentum,\n",
        "        momentum=momentum,\n"
        "        decay=decoupled_weight_decay(weight_decay, exclude_from_weight_decay),\n",
        GOLDEN,
    ),
    "Expectigrad's momentum inside of the quotient": Mutant(
        "optimizers/expectigrad.py",
        "from_estimates(over_rms(eps), second_moment=second_moment),\n"
        "        momentum=running_average(exponential(beta), dtype=mu_dtype),",
        "from_estimates(over_rms(eps), second_moment=second_moment, "
        "mean=running_average(exponential(beta), dtype=mu_dtype)),",
        GOLDEN,
    ),
    "AMSGrad's correction before its maximum": Mutant(
        "optimizers/amsgrad.py", "if correct_before_max:", "if bias_correction:", GOLDEN
    ),
    "AdamW's decay not scaled by the rate": Mutant(
        "optimizers/adamw.py",
        "        decay=decoupled_weight_decay(weight_decay, exclude_from_weight_decay),\n"
        "        rate=scale_by_learning_rate(learning_rate),\n",
        "        rate=scale_by_learning_rate(learning_rate),\n"
        "        decay=optax.chain(optax.scale(-1.0), decoupled_weight_decay(weight_decay, "
        "exclude_from_weight_decay), optax.scale(-1.0)),\n",
        GOLDEN,
    ),
    "BERT without clipping": Mutant(
        "optimizers/adamw.py",
        "optax.identity() if max_grad_norm is None else",
        "optax.identity() if max_grad_norm else",
        GOLDEN,
    ),
    "BERT's decay counted from the end of warm-up": Mutant(
        "schedules.py",
        "jnp.maximum(num_train_steps - step, 0) / num_train_steps",
        "jnp.maximum(num_train_steps - step, 0) / (num_train_steps - num_warmup_steps)",
        GOLDEN,
    ),
    "BERT's warm-up one step early": Mutant(
        "schedules.py",
        "warmup = step / jnp.maximum",
        "warmup = (step + 1) / jnp.maximum",
        GOLDEN,
    ),
    # Wrappers.
    "finite updates that overflow float16": Mutant(
        "_leaves.py",
        "jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x).astype(dtype)",
        "x.astype(dtype)",
        WRAPPERS,
    ),
    "parameters without gradient lose their state": Mutant(
        "wrappers.py",
        "lambda keep, new, old: old if keep else new",
        "lambda keep, new, old: new",
        WRAPPERS,
    ),
    "lazy rows that forget": Mutant(
        "wrappers.py", "jnp.where(seen, new, old)", "jnp.where(seen, new, 0 * old)", WRAPPERS
    ),
    "replicated parameters counted once for each device": Mutant(
        "_manual.py", "name in _compat.varying_axes(piece) if tracked else True", "True", MANUAL
    ),
    "the norm of a piece": Mutant(
        "_manual.py", "if cut_over else total", "if False else total", MANUAL
    ),
    "state replicated under jit": Mutant(
        "_leaves.py", "return _compat.shard_alike(x, like)", "return x", WRAPPERS
    ),
    "a state of other parameters that grows": Mutant(
        "wrappers.py", "_shapes(new_state) != _shapes(state)", "False", WRAPPERS
    ),
    "a state of other parameters that broadcasts in a kernel": Mutant(
        "_leafwise.py", "if kept.shape != update.shape:", "if False:", LEAFWISE
    ),
    # What is read from a state.
    "the signal of each leaf for itself": Mutant(
        "diagnostics.py",
        "return signal, total(",
        "return jnp.maximum(0, signal), total(",
        "tests/test_diagnostics.py",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_place_that_a_mutant_changes_is_there(name):
    mutant = MUTANTS[name]
    assert (ROOT / "msvag_optax" / mutant.file).read_text().count(mutant.right) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, tmp_path):
    mutant = MUTANTS[name]
    for part in ("msvag_optax", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / part, tmp_path / part)
    path = tmp_path / "msvag_optax" / mutant.file
    text = path.read_text()
    mutated = text.replace(mutant.right, mutant.wrong)
    if "mean_before" in mutant.wrong:
        mutated = mutated.replace(
            "    mean = toward(mean, gradient,",
            "    mean_before = mean\n    mean = toward(mean, gradient,",
        )
    path.write_text(mutated)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", mutant.tests]
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")}  # saves most of the time
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | compiled,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout[-2000:] + run.stderr[-2000:]
    assert " failed" in run.stdout
    assert " error" not in run.stdout.splitlines()[-1]
