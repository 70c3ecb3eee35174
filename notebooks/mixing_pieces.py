# %% [markdown]
# # Does a mixture beat its parents?
#
# As first built, layerwise M-SVAG beats one of its parents at most; with one word changed, it is
# ahead of both where layers differ in scale, and of NovoGrad alone where they do not. Adam is well
# ahead of all of them where layers differ.
#
# ![Four panels of the train loss, for digits and for digits in odd units: above along the runs at
# the best rates, below against the learning rate. On digits, Adam and M-SVAG end lowest; in odd
# units, Adam ends lowest, and layerwise M-SVAG and NovoGrad end below
# M-SVAG.](images/mixing_pieces.png)

# %% tags=["hide-input"]
# Runs in a checkout of the repository, and installs what is missing from there: there is no
# release on a package index. By hand, in its root: pip install ".[notebooks]"
import importlib.util
import subprocess
import sys
from pathlib import Path

places = (Path.cwd(), *Path.cwd().parents)
root = next((place for place in places if (place / "notebooks/helpers").is_dir()), None)
assert root, "Open this notebook in a checkout of the repository."
needed = ("optax", "flax", "sklearn", "matplotlib", "tensorboardX")
if not all(map(importlib.util.find_spec, needed)):
    subprocess.run([sys.executable, "-m", "pip", "install", f"{root}[notebooks]"], check=True)
sys.path.insert(0, str(root))

# %% [markdown]
# ## How it was found
#
# Every optimizer of this library is one sentence: *average what, with which weights, read by which
# formula*. Change a word, and there is an optimizer that no paper has. Three are built here:
#
# | | average what | with which weights | read by which formula |
# | --- | --- | --- | --- |
# | *layerwise Expectigrad* | the layer's squared norm | arithmetic | $g / \sqrt v$ |
# | *adapted Lion* | the gradient | exponential | Lion's $d$ times $m^2 / (m^2 + \sigma^2)$ |
# | *layerwise M-SVAG* | $g$ over the layer's norm | exponential | $m^3 / (m^2 + \sigma_m^2)$ |
#
# Building is easy, and so is a mistake: each mixture is compared with a few lines of plain NumPy
# that say the same without any of the pieces. Whether it is any good is another question. The last
# one has a reason to exist and two parents in the library,
# [M-SVAG](https://arxiv.org/abs/1705.07774) and [NovoGrad](https://arxiv.org/abs/1905.11286); it is
# measured beside them, on handwritten digits.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

import msvag_optax as mo
from msvag_optax.compare import train
from msvag_optax.problems.digits import digits
from notebooks.helpers import median_and_range, say, show, table
from notebooks.helpers import mixing_pieces as helpers

# %% [markdown]
# ## The pieces, and what holds them together
#
# * `from_estimates(formula, name=estimator, ...)` passes each gradient to all estimators, and the
#   gradient with their estimates to the formula. The result is a direction.
# * `chain(first, second, ...)` passes on that result: a momentum averages steps that are already
#   normalized, and "average what" can be the outcome of another piece.
# * `optimizer(direction, rate)` turns a direction into a descent: it multiplies by the rate, or by
#   a schedule of it, and changes the sign. It also handles real parameter trees: it computes in
#   float32 whatever their dtype, ignores what has no gradient, and is sharded like the parameters.
#
# To see them work, take NovoGrad with AMSGrad's maximum, which exists as a flag. In words: average
# each layer's squared norm, exponentially from the first; keep the largest average; divide the
# gradient by its root; then momentum. In pieces:

# %%
b1, b2, eps = 0.9, 0.99, 1e-7

layer_norms = mo.running_average(mo.exponential_from_first(b2), of=mo.layer_square_norm())


def novograd_with_maximum(rate):
    normalized = mo.from_estimates(mo.over_rms(eps), second_moment=mo.running_max(layer_norms))
    return mo.optimizer(mo.chain(normalized, mo.momentum(b1)), rate)


# %% [markdown]
# To test it, and all that follows, `helpers` has ten gradients of two layers. The second layer is
# not used in some of the steps, the first among them: there its gradient is zero.

# %%
composed = helpers.updates_of(novograd_with_maximum(0.1))
flagged = helpers.updates_of(mo.novograd(0.1, b1, b2, eps, amsgrad=True))
for ours, theirs in zip(*map(jax.tree.leaves, (composed, flagged)), strict=True):
    # One kernel may round a product and a sum once, where two round twice.
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)

# %% [markdown]
# The composition and the flag agree up to rounding. That says that they are the same, and not yet
# that they are right. So here is what "right" means, in NumPy and double precision: a function from
# all gradients of one layer so far to the update. It has no state and no recurrence.


# %%
def exponential_weights(count, decay):
    """How much each of `count` observations counts, oldest first."""
    weights = decay ** np.arange(count)[::-1]
    return weights / weights.sum()


def novograd_with_maximum_in_numpy(seen):
    norms = [np.sum(g**2) for g in seen]
    averages = []
    for t in range(len(seen)):
        from_first = np.array([b2**t] + [(1 - b2) * b2 ** (t - i) for i in range(1, t + 1)])
        averages.append(from_first @ norms[: t + 1])
    largest = np.maximum.accumulate(averages)
    momentum = sum(
        b1 ** (len(seen) - 1 - i) * g / (np.sqrt(largest[i]) + eps) for i, g in enumerate(seen)
    )
    return -momentum


deviations = {
    "NovoGrad with AMSGrad's maximum": helpers.deviation(
        novograd_with_maximum, novograd_with_maximum_in_numpy
    )
}

# %% [markdown]
# ## Layerwise Expectigrad
#
# Expectigrad ([arXiv 2010.01356](https://arxiv.org/abs/2010.01356)) divides by the root of the mean
# of *all* squares so far. It forgets nothing, and counts nonzero gradients only, so that a weight
# that is seldom used is not taken for one whose gradients are small. It keeps a mean and a counter
# for each weight. NovoGrad keeps one number a layer, but forgets. Average NovoGrad's quantity under
# Expectigrad's weights, and there is one number and one counter a layer, and nothing is forgotten.


# %%
def layerwise_expectigrad(rate):
    norms = mo.running_average(mo.arithmetic(), of=mo.layer_square_norm(), count_nonzero=True)
    direction = mo.chain(
        normalized=mo.from_estimates(mo.over_rms(eps), second_moment=norms),
        momentum=mo.running_average(mo.exponential(b1)),
    )
    return mo.optimizer(direction, rate)


def layerwise_expectigrad_in_numpy(seen):
    normalized = []
    for t, g in enumerate(seen):
        norms = [np.sum(past**2) for past in seen[: t + 1] if past.any()]
        normalized.append(g / (np.sqrt(np.mean(norms)) + eps) if norms else g)
    return -np.tensordot(exponential_weights(len(seen), b1), normalized, 1)


deviations["layerwise Expectigrad"] = helpers.deviation(
    layerwise_expectigrad, layerwise_expectigrad_in_numpy
)

# %% [markdown]
# The momentum is a `running_average` that stands in the chain, where an estimate is an update: it
# averages steps. The mean of squared norms could not stand there, since a squared norm is no step.
# It is an estimator by its type, and refused:

# %%
try:
    mo.optimizer(layer_norms, 0.1)
except TypeError as error:
    print(error)

# %% [markdown]
# An optimizer of pieces handles real trees. A kernel in bfloat16 is averaged in float32 and
# gets its update in bfloat16; an integer has no gradient, and nothing is kept for it.

# %%
tree = {"kernel": jnp.ones((4, 3), jnp.bfloat16), "steps taken": jnp.asarray(7)}
tree_gradients = {"kernel": jnp.ones((4, 3), jnp.bfloat16), "steps taken": None}
tx = layerwise_expectigrad(0.1)
tree_updates, state = tx.update(tree_gradients, tx.init(tree), tree)
momentum = state.links["direction"]["momentum"]
print("update:  ", jax.tree.map(lambda leaf: leaf.dtype.name, tree_updates))
print("momentum:", jax.tree.map(lambda leaf: leaf.dtype.name, momentum.average))

# %% [markdown]
# ## Adapted Lion
#
# Lion ([arXiv 2302.06675](https://arxiv.org/abs/2302.06675)) steps by a sign, which is as long
# where the gradient is noise as where it is clear. `variance_adapted` wraps any direction and
# shortens each of its elements by the noise of the gradient there. It is a sentence itself,
# `from_estimates(formula, direction=..., moments=...)`, whose formula is the direction times
# `variance_adaptation_factor` of the moments.

# %%
lion_b1, lion_b2 = 0.9, 0.99  # Lion's defaults in optax
lion_beta = 0.99  # noise is judged over as long a time as Lion remembers


def adapted_lion(rate):
    lion = optax.scale_by_lion(lion_b1, lion_b2)
    return mo.optimizer(mo.variance_adapted(lion, beta=lion_beta), rate)


def adapted_lion_in_numpy(seen):
    *past, newest = seen
    momentum = sum((1 - lion_b2) * lion_b2**age * g for age, g in enumerate(reversed(past)))
    lion = np.sign(lion_b1 * momentum + (1 - lion_b1) * newest)
    weights = exponential_weights(len(seen), lion_beta)
    mean, second_moment = np.tensordot(weights, seen, 1), np.tensordot(weights, np.square(seen), 1)
    if len(seen) == 1:
        return -lion  # one gradient shows no variance
    variance = (second_moment - mean**2) / (1 - np.sum(weights**2))
    return -lion * np.divide(mean**2, mean**2 + variance, where=mean != 0, out=np.zeros_like(mean))


deviations["adapted Lion"] = helpers.deviation(adapted_lion, adapted_lion_in_numpy)

# %% [markdown]
# ## Layerwise M-SVAG
#
# M-SVAG has one learning rate for layers whose gradients may differ in size by orders of magnitude,
# and needs another rate if the loss is multiplied by 2. NovoGrad divides by each layer's norm, and
# needs neither; but then it averages clear and noisy elements alike. So let M-SVAG average what
# NovoGrad makes: gradients over their layer's norm. "Average what" is now a direction of its own,
# `normalized`, and `chain` passes it to the moments.


# %%
def layerwise_msvag(rate, norms=layer_norms):
    normalized = mo.from_estimates(mo.over_rms(eps), second_moment=norms)
    moments = mo.running_moments(mo.exponential(b1))
    adapted = mo.from_estimates(mo.adapted_mean, moments=moments)
    return mo.optimizer(mo.chain(normalized, adapted), rate)


def layerwise_msvag_in_numpy(seen):
    normalized, v = [], 0.0
    for t, g in enumerate(seen):
        v = np.sum(g**2) if t == 0 else b2 * v + (1 - b2) * np.sum(g**2)
        normalized.append(g / (np.sqrt(v) + eps))
    weights = exponential_weights(len(seen), b1)
    mean = np.tensordot(weights, normalized, 1)
    if len(seen) == 1:
        return -mean
    rho = np.sum(weights**2)
    variance = (np.tensordot(weights, np.square(normalized), 1) - mean**2) / (1 - rho)
    factor = np.divide(mean**2, mean**2 + rho * variance, where=mean != 0, out=np.zeros_like(mean))
    return -mean * factor


deviations["layerwise M-SVAG"] = helpers.deviation(layerwise_msvag, layerwise_msvag_in_numpy)

# %% [markdown]
# ## Are they right?
#
# The table has the largest difference between the pieces, in float32, and NumPy, in double
# precision, relative to the largest update; and how many numbers each mixture keeps for each
# parameter, on a layer of 64 by 64 weights.

# %%
layer = jax.ShapeDtypeStruct((64, 64), jnp.float32)


def numbers_kept(tx):
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(tx.init, layer))) / layer.size


mixtures = {
    "NovoGrad with AMSGrad's maximum": novograd_with_maximum,
    "layerwise Expectigrad": layerwise_expectigrad,
    "adapted Lion": adapted_lion,
    "layerwise M-SVAG": layerwise_msvag,
}
assert max(deviations.values()) < 1e-5
table(
    ["mixture", "deviation from NumPy", "numbers kept"],
    [
        [name, f"{deviations[name]:.0e}", f"{numbers_kept(build(1.0)):.3f}"]
        for name, build in mixtures.items()
    ],
)

# %% [markdown]
# ## One of them, beside its parents
#
# What should layerwise M-SVAG be good for? Where gradients are noisy, it has what NovoGrad lacks;
# where layers differ in the size of their gradients, what M-SVAG lacks. So there are two tasks,
# both with small and therefore noisy batches:
#
# * **digits** as they are: the layers' gradients are of similar size, the norms should not be
#   missed;
# * **digits in odd units**: the same network and the same function at the start, but the weights of
#   the first layer are measured in units a tenth as large, and those of the last in units ten times
#   as large. This makes the gradients of the one a tenth, of the other ten times what they were.
#
# All have the same rates, which fall linearly to 0. The best is the one with the lowest final loss
# over all training images, averaged over the seeds; the test images choose nothing. Adam is there
# as a measure of what is usual.

# %%
batch_size = 8  # of 1,347 images: gradients are mostly noise
steps = 300
seeds = 6  # each draws initial weights and mini-batches, the same for every optimizer
rates = 10.0 ** np.arange(-2.5, 1.0, 0.5)
tasks = {"digits": (1.0, 1.0, 1.0), "digits in odd units": (0.1, 1.0, 10.0)}


child, *parents = "layerwise M-SVAG", "M-SVAG", "NovoGrad"
builds = {
    "layerwise M-SVAG": layerwise_msvag,
    "M-SVAG": lambda rate: mo.msvag(rate, b1),
    "NovoGrad": lambda rate: mo.novograd(rate, b1, b2, eps, grad_averaging=True),
    "Adam": lambda rate: optax.adam(rate, b1),
}


def train_all(builds, seen_through=lambda problem: problem):
    return {
        (task, name): train(
            seen_through(digits(helpers.Perceptron(units), batch_size)),
            lambda rate, build=build: build(optax.linear_schedule(rate, 0.0, steps)),
            rates,
            steps=steps,
            seeds=seeds,
            measurements=30,
        )
        for task, units in tasks.items()
        for name, build in builds.items()
    }


outcomes = train_all(builds)

# %% [markdown]
# Look at the valleys in the lower row: how deep each is, and how wide. Dots mark the best rates, at
# which the runs of the upper row were made.


# %% tags=["hide-input", "answer"]
def at_best(task, name, metric, outcomes=outcomes):
    """A metric along the runs at the best rate, of shape (times, seeds)."""
    outcome = outcomes[task, name]
    best = outcome.best("train loss")
    assert 0 < best < len(rates) - 1, "the best rate is at an edge of the grid"
    return outcome.history[metric][:, :, best]


def best_rate(task, name):
    return outcomes[task, name].rates[outcomes[task, name].best("train loss")]


def final(task, name, metric="train loss", outcomes=outcomes, spec=".3f"):
    return median_and_range(at_best(task, name, metric, outcomes)[-1], spec)


show(
    helpers.beside_parents(outcomes, at_best, tasks, seeds),
    "On digits, M-SVAG and Adam end lower than layerwise M-SVAG and NovoGrad. In odd units, Adam "
    "ends lowest, and M-SVAG highest. Layerwise M-SVAG tolerates larger rates than NovoGrad.",
)
table(
    ["task", "optimizer", "best rate", "final train loss", "test accuracy"],
    [
        [*run, f"{best_rate(*run):.2g}", final(*run), final(*run, "test accuracy", spec=".1%")]
        for run in outcomes
    ],
)

# %% [markdown]
# ## Which word matters?
#
# A mixture differs from a parent in one word, and so words can be tried one at a time. Between
# NovoGrad and its child the formula has changed, from the mean to the adapted mean. Another word
# suggests itself: NovoGrad starts its average of squared norms at the first gradient, which keeps a
# large weight for a long time. `exponential(b2)` would give it no more than its due. Here are both
# formulas under both weights. And since this word is tried after looking, on the same seeds, the
# rewording then meets the parents again, on seeds that have not been seen.

# %%
unbiased_norms = mo.running_average(mo.exponential(b2), of=mo.layer_square_norm())


def novograd_unbiased(rate):
    normalized = mo.from_estimates(mo.over_rms(eps), second_moment=unbiased_norms)
    mean = mo.running_average(mo.exponential_from_first(b1))
    return mo.optimizer(mo.chain(normalized, mean), rate)


reworded = f"{child}, unbiased"
rewordings = {
    "NovoGrad, unbiased": novograd_unbiased,
    reworded: lambda rate: layerwise_msvag(rate, unbiased_norms),
}
outcomes |= train_all(rewordings)
again = {name: (builds | rewordings)[name] for name in (*parents, reworded)}
fresh_outcomes = train_all(again, helpers.on_fresh_seeds)

# %% tags=["hide-input"]
table(
    ["task", "weights of the norms", "the mean (NovoGrad)", "the adapted mean (layerwise M-SVAG)"],
    [
        [task, weights, *(final(task, name + suffix) for name in ("NovoGrad", child))]
        for task in tasks
        for weights, suffix in (("from the first", ""), ("unbiased", ", unbiased"))
    ],
)
table(
    ["on fresh seeds", *again],
    [[task, *(final(task, name, outcomes=fresh_outcomes) for name in again)] for task in tasks],
)

# %% tags=["hide-input"]
plain, odd = tasks


def losses(task, name, outcomes=outcomes):
    return at_best(task, name, "train loss", outcomes)[-1]


def wins(task, name, other, outcomes=outcomes):
    """In how many seeds an optimizer ends below another."""
    return int(np.sum(losses(task, name, outcomes) < losses(task, other, outcomes)))


def verdict(task, name, other, outcomes=outcomes):
    count = wins(task, name, other, outcomes)
    word = {seeds: "wins", 0: "loses"}.get(count, "ties")
    return f"{word} ({count} of {seeds} seeds)"


def middle(task, name, outcomes=outcomes):
    return float(np.median(losses(task, name, outcomes)))


def accuracy(task, name):
    return float(np.median(at_best(task, name, "test accuracy")[-1]))


rate_too_large = list(outcomes[plain, "NovoGrad"].rates).index(np.float32(1.0))
at_large_rate = {
    name: float(np.median(outcomes[plain, name].history["train loss"][-1, :, rate_too_large]))
    for name in (child, "NovoGrad")
}

assert not any(all(wins(task, child, p) == seeds for p in parents) for task in tasks)
assert wins(plain, child, "M-SVAG") == 0
assert middle(plain, child) > 1.3 * middle(plain, "M-SVAG")
assert wins(odd, child, "M-SVAG") >= seeds - 1
assert middle(odd, "M-SVAG") > 1.1 * middle(odd, child)
assert all(0.8 < middle(task, child) / middle(task, "NovoGrad") < 1.25 for task in tasks)
assert middle(odd, "Adam") < 0.7 * min(middle(odd, name) for name in (child, *parents))
assert at_large_rate["NovoGrad"] > 1.5 * at_large_rate[child]
for runs in (outcomes, fresh_outcomes):
    assert middle(plain, reworded, runs) < 0.9 * middle(plain, "NovoGrad", runs)
    assert middle(plain, "M-SVAG", runs) < 0.9 * middle(plain, reworded, runs)
    assert all(middle(odd, reworded, runs) < 0.95 * middle(odd, p, runs) for p in parents)
assert middle(plain, reworded) < 0.9 * min(
    middle(plain, name) for name in (child, "NovoGrad, unbiased")
)

# %% [markdown]
# ## What was measured

# %% tags=["remove-input"]
say(
    f"""
{steps} steps with batches of {batch_size}, {seeds} seeds, each optimizer at its best of
{len(rates)} rates. To win is to end with the lower train loss in every seed, to lose in none.

* **The pieces do what the sentences say.** All four compositions agree with NumPy to
  {max(deviations.values()):.0e} of the largest update, and the one that is a flag as well agrees
  with it up to rounding.
* **As first built, the mixture beats one parent at most.** On digits as they are, layerwise M-SVAG
  {verdict(plain, child, "M-SVAG")} against M-SVAG, at a final loss of {middle(plain, child):.3f}
  to {middle(plain, "M-SVAG"):.3f}, and {verdict(plain, child, "NovoGrad")} against NovoGrad, at
  {middle(plain, "NovoGrad"):.3f}. In odd units it {verdict(odd, child, "M-SVAG")} against M-SVAG,
  {middle(odd, child):.3f} to {middle(odd, "M-SVAG"):.3f}, and {verdict(odd, child, "NovoGrad")}
  against NovoGrad, at {middle(odd, "NovoGrad"):.3f}. It is as indifferent to units as NovoGrad, and
  at the best rates the adapted mean makes no difference beyond chance. It tolerates larger
  rates: at 1 it ends at {at_large_rate[child]:.2f} on digits as they are, NovoGrad at
  {at_large_rate["NovoGrad"]:.2f}.
* **Reworded, it is ahead of both where it was meant to be.** With unbiased weights, in odd units
  and on fresh seeds, it {verdict(odd, reworded, "M-SVAG", fresh_outcomes)} against M-SVAG and
  {verdict(odd, reworded, "NovoGrad", fresh_outcomes)} against NovoGrad. On digits as they are it
  still {verdict(plain, reworded, "M-SVAG", fresh_outcomes)} against M-SVAG, and
  {verdict(plain, reworded, "NovoGrad", fresh_outcomes)} against NovoGrad. There, neither word would
  have done it alone: the new weights take NovoGrad from {middle(plain, "NovoGrad"):.3f} to
  {middle(plain, "NovoGrad, unbiased"):.3f}, the new formula to {middle(plain, child):.3f}, both to
  {middle(plain, reworded):.3f}.
* **Adam needs no mixture here.** It ends at {middle(plain, "Adam"):.3f} and, in odd units, at
  {middle(odd, "Adam"):.3f}, with test accuracies of {accuracy(plain, "Adam"):.1%} and
  {accuracy(odd, "Adam"):.1%}; layerwise M-SVAG has {accuracy(plain, child):.1%} and
  {accuracy(odd, child):.1%}.

This is one small network, trained for a short time. A mixture costs a few lines; what it is worth
has to be measured where it is to be used, beside its parents, each at its own best rate."""
)

# %% [markdown]
# ## Try next
#
# * A layer that is not used at first has a norm of 0, and its first steps are too long. Add
#   `count_nonzero=True` to `layer_norms`, and let NumPy confirm it.
# * Measure the adapted Lion beside Lion: `train` takes any function from a rate to an optimizer.
# * One norm for each row of a kernel: `of=lambda g: jnp.sum(g**2, axis=-1, keepdims=True)` is all
#   that it takes.
