# %% [markdown]
# # How noisy is each layer, and can the optimizer's state tell?
#
# M-SVAG's state tells the variance of a mini-batch's gradient well, and the ratio of signal to
# noise as long as there is much signal. Later the optimizer answers its own noise, and a few dozen
# fresh mini-batches at frozen parameters are a better reading.
#
# ![Six panels, one for each kernel and bias: the signal-to-noise ratio against the step, at three
# batch sizes. Lines, from the state, and marks, the truth, agree at first and part later; both
# fall, and larger batches have larger ratios.](images/reading_the_noise.png)

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
# M-SVAG and SVAG keep a mean of the gradient and its variance, to shorten their steps where there
# is more noise than signal ([arXiv 1705.07774](https://arxiv.org/abs/1705.07774)). The same two
# numbers answer questions that one asks of any training run: which layers still learn, and would a
# larger batch help?
#
# The *signal-to-noise ratio* of a layer is the length of its true gradient over the root of the
# variance of a mini-batch's gradient, both summed over the elements of the layer (here: of one
# kernel or bias). Theory expects a few things of it. Averaging over $B$ images divides the variance
# by $B$, so the ratio should grow like $\sqrt B$. Near an optimum the signal vanishes and the noise
# does not, so it should fall. And the squared inverse of the ratio over all layers is the *gradient
# noise scale*, which McCandlish et al. ([arXiv 1812.06162](https://arxiv.org/abs/1812.06162)) found
# to predict the *critical batch size*, beyond which larger batches hardly pay.
#
# But the state has seen one mini-batch a step, at parameters that moved meanwhile. We train a small
# network on digits and compare every reading with the truth, which for so small a data set can be
# computed.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

import msvag_optax as mo
from msvag_optax.compare import train
from msvag_optax.problems.digits import digits
from notebooks.helpers import reading_the_noise as helpers
from notebooks.helpers import say, show, table
from notebooks.helpers.reading_the_noise import NAMES, READINGS, by_name

batch_sizes = (16, 64, 256)
rate = 0.03  # a gentle one, so that the parameters do not jump
beta = 0.9  # M-SVAG's default: the mean of about 19 gradients
seeds = 5
steps, every = 2_000, 50  # the truth is computed every 50 steps
fresh_batches = 64  # what a careful reading takes, see below

# %% [markdown]
# ## The truth, and three ways to read it
#
# A batch is drawn with replacement, so its gradient has the mean $G$ and the variance $\Sigma / B$,
# where $G$ and $\Sigma$ are the mean and the variance of the gradients of all single images. For a
# thousand images or so one can compute them.
#
# `mo.signal_to_noise(state)` makes an estimate from the running moments in the state: $\sum m^2$
# minus what noise alone adds to it, over $\sum \hat s$. We read the moments of
#
# * *the state of M-SVAG*, which is there anyway;
# * *another batch*: a second mini-batch at each step, which never moves the parameters, seen by
#   `mo.watch_moments`;
# * *frozen parameters*: many fresh mini-batches at the parameters of one moment, seen by
#   `mo.watch_moments` under `mo.arithmetic()`.
#
# The training loop is a plain `lax.scan`; it is in `notebooks/helpers/reading_the_noise.py`.

# %%
another_batch = mo.watch_moments(mo.exponential(beta))


def logs_of(tx, batch_size, steps=steps, every=every):
    """The logs of all seeds: arrays of shape (seeds, steps // every, ...)."""
    return helpers.logs_of(tx, seeds, another_batch, batch_size, steps, every, fresh_batches)


logs = {batch_size: logs_of(mo.msvag(rate, beta), batch_size) for batch_size in batch_sizes}
looked_at = every * np.arange(1, steps // every + 1)

# %% [markdown]
# ## What the state says, layer by layer
#
# Lines are what the state of M-SVAG says, medians over the seeds with bands from the least to the
# greatest; marks are the truth. Look for three things: lines and marks agree in the beginning and
# part later, both fall, and a larger batch is higher up.

# %% tags=["hide-input", "answer"]
show(
    helpers.layers(logs, steps, looked_at),
    "In every layer the ratio falls with the steps and is larger for larger batches. The state's "
    "lines follow the true marks at first and are below them later.",
)

# %% [markdown]
# What a larger batch buys is the variance that theory says. Multiplied by the size of the batch, it
# is the variance of the gradient of a single image, and the same for all three:

# %% tags=["hide-input"]
moments_of_interest = (50, 200, 2_000)


def median_at(values, step):
    return float(np.median(values[:, step // every - 1]))


table(
    ["batch", *(f"step {step:,}" for step in moments_of_interest)],
    [
        [batch_size]
        + [
            f"{batch_size * median_at(log.state.noise, step):.1f} "
            f"({batch_size * median_at(log.truth.noise, step):.1f})"
            for step in moments_of_interest
        ]
        for batch_size, log in logs.items()
    ],
    "Batch size times the variance, summed over all layers, as the state has it "
    f"(in brackets: the truth); medians over {seeds} seeds:",
)

# %% [markdown]
# ## How far to trust it
#
# So the variance is read well, always; and the ratio is read well in the beginning. What goes wrong
# later? Each dot below is one layer of one run at one moment. Look at how far the dots are below
# the diagonal, where reading and truth agree. The dashed line is $\sqrt\rho$: a layer with this
# ratio has a mean whose signal equals its noise. Readings of zero ("no signal can be told from
# noise") stand on the floor.

# %% tags=["hide-input"]
rho = (1 - beta) / (1 + beta)  # the sum of the squared weights, after many steps
show(
    helpers.trust(logs, rho, fresh_batches),
    "Readings at frozen parameters lie along the diagonal. Those of another batch are a little "
    "below it, those of M-SVAG's state far below where the true ratio is small.",
)
bins = ((0.1, 0.3), (0.3, 0.7), (0.7, 3.0))


trust = {
    (field, low): np.percentile(helpers.quotients(logs, field, low, high), [25, 50, 75])
    for field in READINGS.values()
    for low, high in bins
}
quartiles = "{1:.2f} ({0:.2f} to {2:.2f})"
table(
    ["true ratio", *READINGS],
    [
        [f"{low:g} to {high:g}", *(quartiles.format(*trust[f, low]) for f in READINGS.values())]
        for low, high in bins
    ],
    "Reading over truth, median (and quartiles) over layers, runs and moments:",
)

# %% [markdown]
# From right to left, one thing is added at a time.
#
# * *Frozen parameters*: no bias. What is left is chance, and it grows where the ratio is small.
# * *Another batch*: a slight one. The parameters move within the memory of about 19 steps; what the
#   gradient does within it counts as noise.
# * *The state*: a large one, where the ratio is small. Each step carries the noise of its
#   mini-batch into the parameters, and the next gradients point back. So noise and later gradients
#   cancel in the mean: it is *shorter* than independent noise would make it, and after the
#   subtraction little is left, or nothing.
#
# The truth at frozen parameters contains a part, then, that the optimizer has made itself and is
# about to undo. The state does not see it. Which of the two is wanted depends on the question; as
# an estimate of the ratio at this moment, the state's is a lower one.
#
# ## From the ratio to the batch
#
# `mo.noise_scale(state)` is noise over signal, over all layers at once, in units of the batch;
# times the size of the batch it is $B_\text{simple} = \operatorname{tr} \Sigma / |G|^2$ of
# McCandlish et al., in images. Below, look at how it rises as the loss falls (to the right).

# %% tags=["hide-input"]
show(
    helpers.scales(logs),
    "The noise scale rises as the loss falls. The state's lines of all batch sizes lie together "
    "down to a loss of about 0.4; the truths part, the lower the smaller the batch.",
)

# %% [markdown]
# Down to a loss of about 0.4 the state says the same at every batch size, and what it says is the
# truth of the largest batch. The truths themselves part: the smaller the batch, the more of the
# gradient at a moment is the optimizer's own jitter, which counts as signal at frozen parameters.
# (McCandlish et al. devote an appendix to it: a larger ratio of learning rate to batch size is a
# higher *temperature*.)
#
# ## Does it predict the critical batch size?
#
# We measure: plain SGD at every batch size, its learning rate tuned for each, and how many steps it
# needs to a train loss of 0.3. The theory's law is $S = S_\text{min} (1 + B_\text{crit} / B)$. Far
# below $B_\text{crit}$, twice the batch needs half the steps; far above, it needs as many as
# before. $B_\text{simple}$ leaves the curvature out of account, and should give the order of
# magnitude.

# %%
target = 0.3  # nats
# Enough steps at each batch size.
lengths = {4: 1500, 8: 1000, 16: 600, 32: 400, 64: 300, 128: 200, 256: 200, 512: 200}
sgd_rates = tuple((0.1 * np.sqrt(2.0) ** np.arange(7)).tolist())
sgd_seeds = 3


needed = {}
for size, length in lengths.items():
    outcome = train(
        digits(helpers.NETWORK, size), optax.sgd, sgd_rates, steps=length, seeds=sgd_seeds
    )
    best, counts = helpers.steps_needed(outcome, target)
    needed[size] = sgd_rates[best], counts

# %% [markdown]
# SGD keeps no moments. `mo.watch_moments` at the head of a chain keeps them for any optimizer, and
# passes the gradients on as they are. We read along the tuned runs at three of the batch sizes.


# %%
def watched(optimizer):
    return optax.chain(mo.watch_moments(mo.exponential(beta)), optimizer)


short, often = 150, 5  # steps, and how often to look
sgd_logs = {
    size: logs_of(watched(optax.sgd(needed[size][0])), size, short, often) for size in batch_sizes
}

gradients = jax.tree.map(jnp.cos, digits(helpers.NETWORK, 1).init(jax.random.key(1)))
passed, _ = another_batch.update(gradients, another_batch.init(gradients))
_ = jax.tree.map(np.testing.assert_array_equal, passed, gradients)  # as they are

# %% [markdown]
# On the left, the steps to the target, with the two dotted limits that meet at $B_\text{crit}$. On
# the right, what was read on the way to the target: dots are medians over moments and seeds, bars
# reach from the first to the third quartile, and a reading that leaves through the right edge has
# found no signal. Look at which readings stand on the dashed line.

# %% tags=["hide-input"]
sizes = np.array(list(needed))
means = np.array([counts.mean() for _, counts in needed.values()])
s_min, critical = helpers.fitted_law(sizes, means)
misfit = np.abs(means / (s_min * (1 + critical / sizes)) - 1).max()


def scales_on_the_way(batch_size, field):
    """Quartiles of the noise scale, in images, over the moments before the target and the seeds."""
    log = sgd_logs[batch_size]
    scales = batch_size * getattr(log, field).scale[log.loss > target]
    return np.percentile(scales, [25, 50, 75], method="inverted_cdf")


show(
    helpers.critical_batch(
        {size: counts for size, (_, counts) in needed.items()},
        s_min,
        critical,
        scales_on_the_way,
        target,
    ),
    "Left, the steps to the target fall with the batch size and level off, as the fitted law has "
    "it. Right, the truth and the readings at frozen parameters lie near the critical batch size; "
    "those of the state and of another batch leave through the right edge.",
)

# %% [markdown]
# The same `watched` wraps optimizers that keep something else. A table of the kernels when the
# train loss has just fallen below 1, at batch size 64: what the state says, in brackets the truth.

# %% tags=["hide-input"]
novograd_rate = 0.01
at_64 = {
    f"M-SVAG, rate {rate:g}": (logs[64], every),
    f"SGD, rate {needed[64][0]:g}": (sgd_logs[64], often),
    f"NovoGrad, rate {novograd_rate:g}": (
        logs_of(watched(mo.novograd(novograd_rate)), 64, short, often),
        often,
    ),
}
kernels = [name for name in NAMES if name.endswith("kernel")]
rows, shares = [], []
for title, (log, spacing) in at_64.items():
    moment = int(np.argmax(log.loss.mean(axis=0) < 1))
    said, true = (
        {name: np.median(leaf[:, moment]) for name, leaf in by_name(source.ratio).items()}
        for source in (log.state, log.truth)
    )
    shares.append(np.mean([said[name] / true[name] for name in kernels]))
    cells = [f"{said[name]:.2f} ({true[name]:.2f})" for name in kernels]
    rows.append([title, spacing * (moment + 1), *cells])
table([f"medians over {seeds} seeds", "step", *kernels], rows)

# %% [markdown]
# At its best rate, SGD swings across the valley from step to step: there is plenty of signal at
# every moment, and next to none in the mean of 19 of them. Even another batch finds little, so it
# is the gradient itself that turns, and not the noise that is answered. NovoGrad at its rate is
# between the two.
#
# ## What the conclusion rests on

# %%
losses = np.array([1.5, 1.0, 0.7, 0.5, 0.4])
said, true = (helpers.at_loss(logs, field, losses) for field in ("state", "truth"))
spread_said, spread_true = (scales.max(axis=0) / scales.min(axis=0) for scales in (said, true))

noise_said, noise_true = (
    np.array(
        [
            [b * median_at(getattr(log, f).noise, t) for t in moments_of_interest]
            for b, log in logs.items()
        ]
    )
    for f in ("state", "truth")
)
noise_error = np.abs(noise_said / noise_true - 1).max()
noise_spread = noise_true[:, 0].max() / noise_true[:, 0].min()


def true_ratio(batch_size, name, step):
    return by_name(logs[batch_size].truth.ratio)[name][:, step // every - 1]


early, late = 100, 2_000
first, last = kernels[0], kernels[-1]
fall = {b: np.median(true_ratio(b, first, early) / true_ratio(b, first, late)) for b in batch_sizes}
gain = true_ratio(256, first, 50) / true_ratio(16, first, 50)
frozen_scale = {b: scales_on_the_way(b, "frozen")[1] for b in batch_sizes}

assert round(1 / rho) == 19
assert noise_error < 0.15  # the variance is read well,
assert noise_spread < 1.15  # and is that of a single image over the batch size
assert np.all((gain > 3) & (gain < 5))  # so that the ratio grows like the root: 4 = sqrt(256 / 16)
assert 1.2 < fall[16] < fall[64] < fall[256]  # it falls, and more so where the batch is large
for batch_size in batch_sizes:  # layers differ: the last bias is noisier than the first kernel
    assert np.all(
        true_ratio(batch_size, "Dense_2/bias", early) < 0.7 * true_ratio(batch_size, first, early)
    )
assert 0.9 < trust["state", 0.7][1] < 1.0  # the state is right where there is much signal,
assert trust["state", 0.3][1] < 0.7  # low where there is not,
assert trust["state", 0.3][0] < 0.1  # and often near zero,
share_of_msvag, share_of_sgd, share_of_novograd = shares
assert share_of_sgd + 0.15 < share_of_novograd < share_of_msvag - 0.1
missing = np.diff([trust[field, 0.3][1] for field in ("state", "another", "frozen")])
assert np.all(missing > 0.1)  # by answered noise, and by drift,
assert missing[0] > missing[1]  # more by the former
assert all(0.9 < trust["frozen", low][1] < 1.1 for low, _ in bins)
assert spread_said.max() < 1.7  # the state says the same at all batch sizes,
assert np.all(np.abs(np.log2(said / true[-1])) < 0.7)  # near the truth of the largest batch;
assert spread_true[-1] > 2.0  # the truths part
assert np.all(np.diff(true[-1]) > 0)  # the scale grows as the loss falls
assert misfit < 0.2
assert all(critical / 3 < scale < 3 * critical for scale in frozen_scale.values())
for field in ("state", "another"):  # with the large steps of tuned SGD, running moments are lost
    assert all(scales_on_the_way(b, field)[1] > 10 * critical for b in batch_sizes)

# %% [markdown]
# ## What was measured

# %% tags=["remove-input"]
say(
    f"""
One network, one small data set, {seeds} seeds; M-SVAG at rate {rate:g} unless said otherwise.

* **The variance is read well.** What the state says is within {noise_error:.0%} of the truth in
  the whole table above, and falls like 1 / batch.
* **The ratio** of `{first}` is {np.median(gain):.1f} times as large at batch 256 as at batch 16
  (theory: 4) at step 50. From step {early} to step {late:,} it falls by a factor of
  {fall[16]:.1f}, {fall[64]:.1f} and {fall[256]:.1f} at batch 16, 64 and 256. Layers differ: at
  step {early} the last bias has less than 0.7 of the first kernel's ratio, with every seed.
* **How far to trust it.** Where the true ratio is above {bins[2][0]:g}, the state says
  {trust["state", 0.7][1]:.2f} of it in the median; between {bins[1][0]:g} and {bins[1][1]:g} only
  {trust["state", 0.3][1]:.2f}, and often next to nothing. With another batch it is
  {trust["another", 0.3][1]:.2f}, and at frozen parameters {trust["frozen", 0.3][1]:.2f}: more than
  half of what is missing is the optimizer's answer to its own noise, the rest is drift.
* **The noise scale** grows as the loss falls, from {said[-1, 0]:.0f} images at a loss of
  {losses[0]:g} to {said[-1, -1]:.0f} at {losses[-1]:g} (state, batch 256). The state's is the
  same at all batch sizes up to a factor of {spread_said.max():.1f}; the truths differ by up to
  {spread_true.max():.1f}, as small batches make jitter.
* **The critical batch size** of tuned SGD is {critical:.0f} images. The noise scale at frozen
  parameters along these runs is {frozen_scale[16]:.0f}, {frozen_scale[64]:.0f} and
  {frozen_scale[256]:.0f} images at batch 16, 64 and 256 in the median. That is closer than the
  theory promises, and may be luck. The running moments of these runs find next to no signal.

So: read the state to watch the noise, and to compare layers and phases of a run with gentle
steps; where its ratio is below about {bins[2][0]:g}, expect the truth to be higher. To choose a
batch size, stop for a moment and look at {fresh_batches} mini-batches through
`mo.watch_moments(mo.arithmetic())`."""
)

# %% [markdown]
# ## Try next
#
# * A smaller `rate`: the state follows the truth for longer. A larger one: not even in the
#   beginning.
# * A longer memory, `mo.exponential(0.99)`: less chance in the reading, and more drift.
# * A network of yours: `digits` takes any Flax module from 64 pixels to 10 logits.
#
# The pieces: `mo.signal_to_noise`, `mo.noise_scale`, `mo.watch_moments` and `mo.moments_in`; their
# formulas are in `msvag_optax/diagnostics.py`, and the moments' in [the design](../docs/design.md).
