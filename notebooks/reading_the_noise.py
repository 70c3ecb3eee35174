# %% [markdown]
# # How noisy is each layer, and can the optimizer's state tell?
#
# Comparing the gradients of one batch with one another tells the noise within a factor of two in
# the median, also at the learning rates used in practice. Comparing the gradients of different
# steps, as the moments in an optimizer's state do, does not: each step undoes the noise of the one
# before, and no signal is left to read.
#
# ![Two panels of the noise scale against the step, at a gentle and at a tuned rate. Readings within
# steps, from examples and from four microbatches, scatter about the exact noise scale in both.
# Readings over steps leave it early at the gentle rate, and at the tuned rate all but one find no
# signal.](images/reading_the_noise.png)

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
# The *signal-to-noise ratio* of a layer is the length of its true gradient over the root of the
# variance of a mini-batch's gradient, both summed over the elements of the layer. Over all layers,
# noise over signal is the *noise scale*: how many examples it takes until the noise of their mean
# equals the signal. McCandlish et al. ([arXiv 1812.06162](https://arxiv.org/abs/1812.06162)) found
# it to predict the *critical batch size*, beyond which larger batches hardly pay.
#
# Both need the variance of a gradient, for which there are three sources:
#
# * *examples*: the gradients of all images of a mini-batch, as `optax.experimental.aggregating`
#   hands them to a chain;
# * *4 microbatches*: the gradients of the quarters of a mini-batch, as an accumulation loop has
#   them, in `mo.Microbatches`;
# * *over steps*: the gradients of different mini-batches, at parameters that move meanwhile.
#
# `mo.watch_noise` averages what the first two tell, and `mo.watch_moments` keeps the third. We
# train a small network on digits with M-SVAG, once gently and once at its best constant rate, and
# compare all readings with the truth, which for so small a data set can be computed.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

import msvag_optax as mo
from msvag_optax.compare import noise_map, train
from msvag_optax.problems.digits import digits
from notebooks.helpers import reading_the_noise as helpers
from notebooks.helpers import say, show, table

batch, seeds = 32, 3
memory = 0.95  # averages over about 39 steps

# %% [markdown]
# What the two links need beside the gradient of the batch are two extra arguments of `update`: a
# sum of squared differences, and a number of examples. Of the images themselves that is


# %%
def from_examples(gradients):
    """The gradient of the batch, and the extra arguments, as optax makes them."""
    mean = jax.tree.map(lambda g: g.mean(0), gradients)
    squares = jax.tree.map(lambda g, m: jnp.sum((g - m) ** 2, axis=0), gradients, mean)
    return mean, {"sum_sq_diff_grads": squares, "sample_size": len(jax.tree.leaves(gradients)[0])}


# %% [markdown]
# and of microbatches, which need no gradients of single images, but are cut from them here:


# %%
def from_microbatches(gradients, count=4):
    size = len(jax.tree.leaves(gradients)[0]) // count
    batch = mo.Microbatches.init(jax.tree.map(lambda g: g[0], gradients))
    for i in range(count):
        part = jax.tree.map(lambda g, i=i: g[i * size : (i + 1) * size].mean(0), gradients)
        batch = batch.add(part, size)
    return batch.result()


rng = np.random.default_rng(0)
some = {"w": jnp.asarray(rng.normal(1.0, 2.0, (20_000, 4)), jnp.float32)}
for source in (from_examples, from_microbatches):
    gradient, extra = source(some)
    estimator = mo.batch_variance()
    estimate, _ = estimator.update(gradient, estimator.init(gradient), **extra)
    assert np.all(np.abs(estimate["w"].mean - 1.0) < 0.06)
    assert 1.0 < np.mean(estimate["w"].variance) < 10.0  # of one image: 4, whatever it is cut into

# %% [markdown]
# The training loop is a plain `lax.scan`; it is in `notebooks/helpers/reading_the_noise.py`.

# %%
gentle, tuned = "rate 0.03", "rate 2"
rates = {gentle: 0.03, tuned: 2.0}
lengths, every = {gentle: 2_000, tuned: 400}, {gentle: 100, tuned: 25}
samples = (from_examples, from_microbatches)


def logs_of(tx, batch, steps, every):
    """Arrays of shape (seeds, steps // every, ...)."""
    return helpers.logs_of(tx, seeds, memory, samples, batch, steps, every)


logs = {
    name: logs_of(mo.msvag(rate), batch, lengths[name], every[name]) for name, rate in rates.items()
}

# %% [markdown]
# ## The sources and the truth
#
# The line is the median of the truth over the seeds, its band reaches from the least to the
# greatest, and marks are single readings. Look at where the crosses are.

# %% tags=["hide-input", "answer"]
show(
    helpers.readings(logs, every),
    "At both rates, readings within steps, from examples and from microbatches, scatter about the "
    "exact noise scale; some late ones at the gentle rate find no signal. Readings over steps are "
    "far above it from step 400 of the gentle rate, and at the tuned rate all but one find none.",
)

# %% tags=["hide-input"]
quality = {
    (name, source): helpers.found_and_error(log, source)
    for name, log in logs.items()
    for source in helpers.SOURCES
}
table(
    ["M-SVAG, batch 32", "source", "readings that found a noise scale", "median error"],
    [
        [name, source, f"{found} of {count}", f"a factor of {error:.1f}" if found else "none"]
        for (name, source), (found, count, error) in quality.items()
    ],
)

# %% [markdown]
# What goes wrong over steps: each step carries the noise of its mini-batch into the parameters,
# and the next gradient points back. Successive gradients cancel in the mean. What noise alone would
# have added to the mean's square is subtracted, and less than nothing is left. The larger the
# steps, the sooner.
#
# Within steps there is no such answer, and yet no certainty. Late at the gentle rate the noise
# scale is twenty times the batch and more: the signal is a twentieth of the noise, and 39 batches
# may not be enough to tell it from zero. `mo.noise_scale` then says so, as it does over steps.
#
# ## Layer by layer
#
# `mo.signal_to_noise` reads each layer. As a heat map, at the tuned rate, one run:

# %% tags=["hide-input"]
one_run = jax.tree.map(lambda leaf: leaf[0], logs[tuned].ratio)
steps_of_tuned = every[tuned] * np.arange(1, lengths[tuned] // every[tuned] + 1)
show(
    noise_map(one_run, steps_of_tuned, title="The signal-to-noise ratio of each layer"),
    "Six rows, one for each kernel and bias, which become darker up to step 300 and are a little "
    "lighter at the end: the signal fades in all layers, and is at no time the same in all.",
)

# %% [markdown]
# During training, `mo.NoiseRecorder` writes the same to TensorBoard, from inside of `jit`.
#
# ## From the noise scale to the batch
#
# Does the noise scale say which batch size to take? SGD is tuned for each batch size, and its steps
# to a train loss of 0.3 are counted. McCandlish's law for them is
# $S = S_\text{min} (1 + B_\text{crit} / B)$: two numbers, fitted to eight batch sizes.

# %%
target = 0.3  # nats
enough = {4: 1500, 8: 1000, 16: 600, 32: 400, 64: 300, 128: 200, 256: 200, 512: 200}
sgd_rates = tuple((0.1 * np.sqrt(2.0) ** np.arange(7)).tolist())
counts, best_rates = {}, {}
for size, length in enough.items():
    problem = digits(helpers.NETWORK, size)
    outcome = train(problem, optax.sgd, sgd_rates, steps=length, seeds=seeds)
    best, counts[size] = helpers.steps_needed(outcome, target)
    best_rates[size] = sgd_rates[best]
sizes, means = np.array(list(counts)), np.array([count.mean() for count in counts.values()])
s_min, critical = helpers.fitted_law(sizes, means)
misfit = np.abs(means / (s_min * (1 + critical / sizes)) - 1).max()

# %% tags=["hide-input"]
show(
    helpers.critical_batch(counts, s_min, critical, target),
    "The steps to the target fall with the batch size and level off, as the fitted law has it.",
)

# %% [markdown]
# Along these tuned runs, up to the target, the noise scale was, in images:

# %% tags=["hide-input"]
short, often = 150, 5
sgd_logs = {
    size: logs_of(optax.sgd(best_rates[size]), size, short, often) for size in (16, 64, 256)
}
on_the_way = {
    (size, source): np.percentile(
        np.nan_to_num(log.scale[source], nan=np.inf)[log.loss > target],
        [25, 50, 75],
        method="inverted_cdf",
    )
    for size, log in sgd_logs.items()
    for source in helpers.STYLES
}
table(
    ["batch size", *helpers.STYLES],
    [
        [size]
        + [
            "{1:.0f} ({0:.0f} to {2:.0f})".format(*on_the_way[size, source]).replace("inf", "none")
            for source in helpers.STYLES
        ]
        for size in sgd_logs
    ],
    f"Medians (and quartiles) over moments and seeds, beside a critical batch size of "
    f"{critical:.0f} images:",
)

# %% [markdown]
# Both are of one size here, which may be luck. The law assumes that the best rate and
# the noise scale stay what they are during a run; but the noise scale rises several times over, so
# that the choice of moments can make the two agree or not. Merrill et al.
# ([arXiv 2505.23971](https://arxiv.org/abs/2505.23971)) doubt for such reasons that the noise scale
# is to be trusted as a proxy, and measure the critical batch size of language models directly, by
# branching off runs. That is what the figure above does, and it is what to believe.
#
# ## Does it train better?
#
# M-SVAG and SVAG shorten each element of a step by the factor $m^2 / (m^2 + \sigma^2)$, with a
# variance over steps. If that is so bad an estimate of the noise, the variance within the batch
# should serve better. It does not:

# %%
training_rates = (0.5, 1.0, 2.0, 4.0)
trained = {}
for size in (16, 128):
    trained |= helpers.trained(size, 0.9, 400, training_rates, seeds)
losses, shares = ({key: pair[i] for key, pair in trained.items()} for i in range(2))

# %% [markdown]
# To find out why, the variance over steps is taken apart. One part is *within the batch*, averaged
# like the moments. *The rest* is what the true gradient itself does within the memory of the
# moments: it turns, as the parameters swing to and fro across a valley. Steps are shortened by the
# whole, by each part alone, or not at all.

# %% tags=["hide-input"]
show(
    helpers.training(losses, training_rates),
    "Four panels of the last train loss against the rate. At batch 16 the best losses of all three "
    "variances are close. At batch 128, SVAG fails at rates of 2 and 4 with the variance within "
    "the batch, like without any, and does not with the whole variance over steps or the rest.",
)


def best_of(name, size, variance):
    medians = np.median(losses[name, size, variance], axis=1)
    return float(medians.min()), training_rates[int(medians.argmin())]


table(
    ["", *helpers.VARIANCES, "share of the variance over steps that is within the batch"],
    [
        [f"{name}, batch {size}"]
        + ["{:.3f} (rate {:g})".format(*best_of(name, size, v)) for v in helpers.VARIANCES]
        + [f"{np.median(shares[name, size, 'over steps'][1]):.0%}"]
        for name, size in dict.fromkeys(key[:2] for key in losses)
    ],
    f"The last train loss at the best rate, medians of {seeds} seeds; the share is at rate 1:",
)

# %% [markdown]
# At batch 128 the noise is shortened away at rates at which no shortening is needed, and at larger
# ones the noise alone does not keep SVAG from diverging: it fails where unshortened steps fail. The
# rest alone does, and trains best. So the variance over steps is useful there *because* it is no
# estimate of the noise: it holds back the elements whose gradient turns from step to step, and lets
# the rate be large. At batch 16 four fifths of it are noise, and either part serves. (Nor is much
# to be had at batch 128: plain momentum, "none", ends as low as M-SVAG at half its rate.)
#
# ## What the conclusion rests on

# %%
for name in (gentle, tuned):
    for source in helpers.SOURCES[:2]:
        found, count, error = quality[name, source]
        assert found > 0.7 * count
        assert error < 2.0
assert quality[tuned, "examples"][0] == quality[tuned, "examples"][1]
assert quality[tuned, "over steps"][0] < 0.2 * quality[tuned, "over steps"][1]
assert quality[gentle, "over steps"][2] > 2 * quality[gentle, "examples"][2]
fall = {
    name: np.median(leaf[:, 0] / leaf[:, -4:].mean(axis=1))
    for name, leaf in zip(
        jax.tree.leaves(mo.path_names(logs[tuned].ratio)),
        jax.tree.leaves(logs[tuned].ratio),
        strict=True,
    )
}
assert min(fall.values()) > 1.2  # the signal fades in every layer
assert misfit < 0.25
for size in sgd_logs:
    assert critical / 4 < on_the_way[size, "exact"][1] < 4 * critical
    assert critical / 4 < on_the_way[size, "examples"][1] < 4 * critical
within, over, rest = "within the batch", "over steps", "the rest"
for name in ("M-SVAG", "SVAG"):
    assert best_of(name, 128, within)[0] > 1.5 * best_of(name, 128, over)[0]
    assert best_of(name, 128, rest)[0] < 1.3 * best_of(name, 128, over)[0]
    assert 0.5 < best_of(name, 16, within)[0] / best_of(name, 16, over)[0] < 2.0
at_the_largest = [np.median(losses["SVAG", 128, v][-1]) for v in (within, "none", over, rest)]
assert min(at_the_largest[:2]) > 10 * max(at_the_largest[2:])
plain, with_variance = (best_of("M-SVAG", 128, v) for v in ("none", over))
assert plain[0] < 1.5 * with_variance[0]
assert plain[1] == with_variance[1] / 2

# %% [markdown]
# ## What was measured

# %% tags=["remove-input"]
within_error, parts_error, over_error = (quality[tuned, s][2] for s in helpers.SOURCES)
say(
    f"""
One network, one small data set, {seeds} seeds.

* **Within steps** the median reading at the tuned rate is off by a factor of {within_error:.1f}
  from examples, and of {parts_error:.1f} from 4 microbatches, and every one finds a noise scale.
* **Over steps** {quality[tuned, "over steps"][0]} of {quality[tuned, "over steps"][1]} readings
  find one at the tuned rate. At the gentle rate {quality[gentle, "over steps"][0]} of
  {quality[gentle, "over steps"][1]} do, and the median one is off by a factor of
  {quality[gentle, "over steps"][2]:.1f}.
* **All layers lose signal** at the tuned rate, by a factor of {min(fall.values()):.1f} to
  {max(fall.values()):.1f} from step {every[tuned]} to the end.
* **The critical batch size** of tuned SGD is {critical:.0f} images; the exact noise scale along
  these runs has medians of {on_the_way[16, "exact"][1]:.0f}, {on_the_way[64, "exact"][1]:.0f} and
  {on_the_way[256, "exact"][1]:.0f} images at batch 16, 64 and 256.
* **Training** by the variance within the batch is worse at batch 128: SVAG ends at
  {best_of("SVAG", 128, within)[0]:.3f} against {best_of("SVAG", 128, over)[0]:.3f}, M-SVAG at
  {best_of("M-SVAG", 128, within)[0]:.4f} against {best_of("M-SVAG", 128, over)[0]:.4f}. What is
  left of the variance over steps without it does better than either in SVAG:
  {best_of("SVAG", 128, rest)[0]:.3f}."""
)

# %% [markdown]
# ## Try next
#
# * A longer memory, `mo.exponential(0.99)`: less chance in the readings, and they are late, since
#   the larger gradients of the past dominate the averages.
# * More microbatches, or fewer: two are enough to read something.
# * A network of yours: any Flax module from 64 pixels to 10 logits.
#
# The page [Reading the noise](../docs/noise.md) shows how to watch examples, microbatches and
# devices in a training of your own.
