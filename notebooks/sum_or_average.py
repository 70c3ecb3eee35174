# %% [markdown]
# # Sum or average?
#
# Neither always: the arithmetic mean cures Adam's walk to the worst point but is slow to notice
# that gradients have shrunk, and the sum is slower still. The place of the momentum hardly matters,
# and on an embedding with rarely seen rows, the shrinking steps of the sum did best.
#
# ![Three panels for rows of an embedding. Steps of Expectigrad have the same length however rarely
# a row is seen if visits are counted, and grow like a root if steps are, as Adam's nearly do. The
# rarest rows have the least error where steps are counted, most others with AdaGrad. The best rate
# moves with the batch size for Adam and where steps count.](images/sum_or_average.png)

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
# An adaptive optimizer divides each gradient by a root of past squares. AdaGrad takes the *sum* of
# all squares, and its steps fade like $1/\sqrt t$. Adam takes an *exponential mean*, which forgets,
# and which Reddi's counterexample turns against it. Expectigrad ([arXiv
# 2010.01356](https://arxiv.org/abs/2010.01356)) takes the *arithmetic mean*: a sum that does not
# grow. It differs from Adam in two more ways. Its momentum is *outer*: an average of gradients that
# are already normalized, where Adam normalizes an average of gradients. And its mean counts,
# element by element, the nonzero gradients only, which concerns rarely seen rows of an embedding.

# %%
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import msvag_optax as mo
from msvag_optax.compare import train
from msvag_optax.problems import reddi_online
from msvag_optax.problems.digits import Perceptron, digits
from msvag_optax.problems.reddi import PERIOD
from notebooks.helpers import half_decades, median_and_range, say, show, table
from notebooks.helpers import sum_or_average as helpers

beta = 0.9  # the decay of the momentum, wherever it stands
b2 = 0.999  # the decay of the exponential mean of squares: Adam's default
eps = 1e-8  # the default of both
seeds = 5  # each draws a starting point and the noise
steps = 2_000  # on the stationary problems: twice the memory of b2

# %% [markdown]
# ## Two choices, four optimizers
#
# A chain says what is averaged before and what after the division:


# %%
def mean_of_squares(weights: str, b2=b2):
    if weights == "arithmetic":
        return mo.running_average(mo.arithmetic(), of=mo.square, count_nonzero=True)
    return mo.running_average(mo.exponential(b2), of=mo.square)


def cell(weights: str, momentum: str, rate, b2=b2):
    """One of the four optimizers."""
    squares = mean_of_squares(weights, b2)
    average = mo.running_average(mo.exponential(beta))
    if momentum == "inner":
        direction = mo.from_estimates(mo.over_rms(eps), mean=average, second_moment=squares)
    else:
        direction = optax.chain(mo.from_estimates(mo.over_rms(eps), second_moment=squares), average)
    return optax.chain(direction, optax.scale_by_learning_rate(rate))


cells = [(w, m) for w in ("arithmetic", "exponential") for m in ("inner", "outer")]

# %% [markdown]
# Two of the four are named optimizers:

# %%
named = {
    "arithmetic, outer: `mo.expectigrad`": (cell(*cells[1], 0.01), mo.expectigrad(0.01)),
    "exponential, inner: `optax.adam`": (cell(*cells[2], 0.01), optax.adam(0.01)),
    "for comparison, `mo.expectigrad` and `optax.adam`": (mo.expectigrad(0.01), optax.adam(0.01)),
}
apart = {name: helpers.greatest_difference(*pair) for name, pair in named.items()}
table(["", "greatest difference in 500 steps"], [[k, f"{v:.1e}"] for k, v in apart.items()])

# %% [markdown]
# ## Does it matter where the momentum stands?
#
# The noisy quadratic has a hundred parameters of known curvature, and gradients with three kinds of
# noise: Gaussian; with heavy tails (Student's distribution with two degrees of freedom, whose
# variance is infinite); and skewed, as in Reddi's problem, where one gradient in fifty is large and
# balances all others. The decay of the mean of squares goes from one half, which remembers two
# gradients, to 0.999, which remembers a thousand; the arithmetic mean remembers all.

# %%
memories = {0.5: "2", 0.9: "10", 0.99: "100", 0.999: "1,000"}
noise_size = 0.1  # times the noise below
rates = half_decades(-4, -1)


# One compiled loop for all decays and rates: `train` is given numbers of settings.
settings = jnp.asarray([(b2, rate) for b2 in memories for rate in rates])
losses = {}
for noise, draw in helpers.NOISES.items():
    for momentum in ("inner", "outer"):

        def exponential(index, momentum=momentum):
            b2, rate = settings[jnp.asarray(index, int)]
            return cell("exponential", momentum, rate, b2)

        def arithmetic(rate, momentum=momentum):
            return cell("arithmetic", momentum, rate)

        problem = helpers.with_noise(draw, noise_size)
        fading = train(problem, exponential, range(len(settings)), steps=steps, seeds=seeds)
        lasting = train(problem, arithmetic, rates, steps=steps, seeds=seeds)
        losses[noise, momentum] = helpers.at_best_rates((fading, lasting), len(rates))

# %% tags=["hide-input"]
show(
    helpers.place_of_momentum(losses, [*memories.values(), "all"]),
    "Inner and outer momentum coincide from a memory of a hundred on. Where two gradients are "
    "remembered, the outer one is better with heavy tails and worse with skewed noise.",
)

# %% [markdown]
# The same on real data: the training loss of a small network that reads digits, at the best of six
# rates. And on Reddi's problem, where all gradients but every 101st point the wrong way: the end of
# the way from 0 to the optimum at -1 or to the worst point at +1. (The decay of the exponential
# mean is 0.99 there, as in the paper that posed the problem.)

# %%
digit_steps, digit_seeds, digit_rates = 600, 3, half_decades(-3, -0.5)
reddi_steps, reddi_rate = 5_000 * PERIOD, 3e-3
reading = digits(Perceptron((32,)), batch_size=32)
read, ends = {}, {}
for key in cells:

    def build(rate, b2=b2, key=key):
        return cell(*key, rate, b2)

    def walker(rate, build=build):
        return build(rate, 0.99)

    outcome = train(reading, build, digit_rates, steps=digit_steps, seeds=digit_seeds)
    read[key] = outcome.history["train loss"][-1, :, outcome.best("train loss")]
    outcome = train(reddi_online(), walker, [reddi_rate], steps=reddi_steps, seeds=1)
    ends[key] = float(outcome.history["x"][-1, 0, 0])
table(
    ["mean", "momentum", "digits: loss of the seeds", f"Reddi: x after {reddi_steps:,} steps"],
    [[*key, median_and_range(read[key], ".3f"), f"{ends[key]:+.2f}"] for key in cells],
)

# %% [markdown]
# ## When old squares mislead
#
# What never forgets is slow to notice a change. Here the quadratic's loss is scaled by a hundred in
# the first part of the run. Then the scale drops to one, and the minimum moves. The exponential
# mean forgets old squares at its own pace, $\beta_2^t$; the arithmetic mean only as they are
# outnumbered. AdaGrad, the sum, is drawn too, at rates of its own. Look, left, at how long after
# the change each line takes to come down, and, right, at what it has to wait for.

# %%
before, after = 4_000, 16_000  # steps on the first and on the second task
drop = 100.0  # how much smaller the gradients are on the second task


def adagrad(rate):
    return optax.adagrad(rate, initial_accumulator_value=0.0)


changing = {
    name: train(
        helpers.shrinking_loss(before, drop), build, grid, steps=before + after, seeds=seeds
    )
    for name, build, grid in (
        ("arithmetic mean", lambda r: cell("arithmetic", "outer", r), half_decades(-3, 0.5)),
        ("exponential mean", lambda r: cell("exponential", "outer", r), half_decades(-3, 0.5)),
        ("sum", adagrad, half_decades(-2, 1.5)),
    )
}


def tuned(outcome) -> int:
    """The rate that is best at the end of the first task: one cannot tune for what is to come."""
    end_of_first = outcome.steps.tolist().index(before)
    return int(outcome.history["first task"][end_of_first].mean(axis=0).argmin())


divisors = {
    f"{weights} mean": helpers.divisor(mean_of_squares(weights), [drop] * before + [1.0] * after)
    for weights in ("arithmetic", "exponential")
}

# %% tags=["hide-input"]
show(
    helpers.change(changing, tuned, divisors, before),
    "Left, after the change the loss of the exponential mean falls soon, the arithmetic mean's "
    "slowly, the sum's hardly. Right, the divisors fall to 1 and to about 45.",
)
ends_of_second, rows = {}, []
for name, outcome in changing.items():
    final = outcome.history["second task"][-1]
    ends_of_second[name], best = final[:, tuned(outcome)], final.mean(axis=0).argmin()
    rows.append([name, f"{outcome.rates[tuned(outcome)]:.2g}"])
    rows[-1].append(median_and_range(ends_of_second[name], ".3f"))
    rows[-1].append(f"{np.median(final[:, best]):.3f} (rate {outcome.rates[best]:.2g})")
table(
    ["", "rate of the first task", "loss of the second in the end", "at the best rate for it"], rows
)

# %% [markdown]
# ## The sum is the average, times $t$
#
# With $v_t$ the arithmetic mean of the squares, AdaGrad's step is
# $g_t / \sqrt{t v_t} = \frac{1}{\sqrt t} g_t / \sqrt{v_t}$: that of Expectigrad without momentum,
# counting every step, on the schedule $1/\sqrt t$. In numbers, on the same gradients:

# %%
gradients = jax.random.normal(jax.random.key(0), (10_000,))
plain = helpers.steps_for(mo.expectigrad(0.1, beta=0.0, sparse_counter=False), gradients)
faded = helpers.steps_for(
    mo.expectigrad(lambda count: 0.1 / jnp.sqrt(count + 1), beta=0.0, sparse_counter=False),
    gradients,
)
summed = helpers.steps_for(optax.adagrad(0.1, initial_accumulator_value=0.0, eps=1e-14), gradients)
table(
    ["$t$", "AdaGrad", "Expectigrad", "quotient", "$\\sqrt t$", "Expectigrad at $1/\\sqrt t$"],
    [
        [f"{i:,}", f"{s:+.6f}", f"{e:+.6f}", f"{e / s:.4f}", f"{i**0.5:.4f}", f"{f:+.6f}"]
        for i, s, e, f in zip(range(1, 10_001), summed, plain, faded, strict=True)
        if i in (1, 10, 100, 1_000, 10_000)
    ],
)

# %% [markdown]
# ## Rows that are rarely seen
#
# A row of an embedding may have a gradient at one step in a thousand. At all others its gradient is
# zero, and zeros are squares too. A mean over $t$ steps of which $n$ were visits is $n/t$ times the
# mean over the visits, and a step that is divided by its root is $\sqrt{t/n}$ times as long.
# Expectigrad's `sparse_counter` counts, for each element, its nonzero gradients. Is that good?
#
# A table of a thousand rows is learned from tokens that follow Zipf's law: the row of rank
# $k$ has a share proportional to $1/k$. Each token shows its row's target, with noise. The same
# tokens are read once in large batches and once in small ones: a rare row is visited as often, with
# ten times as many steps between its visits.

# %%
embedding_seeds = 3
batches = {"large batches": 50, "small batches": 5}
embedding_rates = half_decades(-3, 0.5)
tokens = helpers.Tokens.draw(60_000, np.random.default_rng(0))  # the rarest row is seen as well

# %% [markdown]
# `mo.lazy_rows` goes one step further: a row without gradient is left alone altogether, momentum
# and all. Around Expectigrad it stops the momentum but not the clock by which the momentum is
# corrected: a row that is first seen late has a momentum that believes in zeros before. Averages
# that count nonzero gradients have their own clocks. So if both averages count, `mo.lazy_rows`
# makes each row an optimizer of its own, which knows only its visits:


# %%
def own_clocks(rate):
    normalized = mo.from_estimates(mo.over_rms(eps), second_moment=mean_of_squares("arithmetic"))
    momentum = mo.running_average(mo.exponential(beta), count_nonzero=True)
    return mo.lazy_rows(
        optax.chain(normalized, momentum, optax.scale_by_learning_rate(rate)),
    )


every = 10  # a row that is seen at every tenth step ...
dense = helpers.steps_for(mo.expectigrad(0.1), gradients[:100, None])
gaps = jnp.zeros((100, every, 1)).at[:, -1].set(gradients[:100, None]).reshape(-1, 1)
# ... is moved at every tenth step, as far as one that is seen at all steps.
lazies = {
    "`mo.expectigrad(0.1)`": mo.expectigrad(0.1),
    "`mo.lazy_rows(mo.expectigrad(0.1))`": mo.lazy_rows(mo.expectigrad(0.1)),
    "`own_clocks(0.1)`": own_clocks(0.1),
}
off = {
    name: float(np.abs(helpers.steps_for(tx, gaps)[every - 1 :: every] - dense).max())
    for name, tx in lazies.items()
}
table(
    ["", "with gaps against without, at most"],
    [[k, f"{v:.1e}"] for k, v in off.items()],
)

# %%
embedders = {
    "Expectigrad, counts visits": lambda rate: mo.expectigrad(rate),
    "Expectigrad, counts steps": lambda rate: mo.expectigrad(rate, sparse_counter=False),
    "Adam": optax.adam,
    "Expectigrad, lazy rows": lambda rate: mo.lazy_rows(mo.expectigrad(rate)),
    "own clocks, lazy rows": own_clocks,
    "AdaGrad": adagrad,
}
compared = [*list(embedders)[:3], "AdaGrad"]  # with both sizes of batches
learned = {}
for (size, batch_size), (name, build) in itertools.product(batches.items(), embedders.items()):
    if size == "small batches" or name in compared:
        problem, count = tokens.problem(batch_size), len(tokens.text) // batch_size
        outcome = train(problem, build, embedding_rates, steps=count, seeds=embedding_seeds)
        learned[name, size] = outcome

# Step lengths, without momentum.
spacings = np.array([1, 3, 10, 30, 100, 300, 1_000])
walkers = (mo.expectigrad(1.0, 0.0), mo.expectigrad(1.0, 0.0, sparse_counter=False))
mean_lengths = {
    name: helpers.mean_lengths(tx, spacings)
    for name, tx in zip(embedders, (*walkers, optax.adam(1.0, b1=0.0)), strict=False)
}

# %% [markdown]
# Left: the length of a step, without momentum, against the steps per visit. Middle: the error of a
# row against the number of its visits, each optimizer at its best rate: look at the rare rows, on
# the left. Right: the final loss against the rate: does the best rate move with the batch size?

# %% tags=["hide-input", "answer"]
visits = tokens.visits(batches["small batches"])


def row_errors(name: str) -> np.ndarray:
    """The median error of the rows in each group, at the best rate: (groups, seeds)."""
    outcome = learned[name, "small batches"]
    errors = outcome.history["error of each row"][-1][:, outcome.best("expected loss")]
    return np.stack([np.median(errors[:, g], axis=1) for g in helpers.groups_of(visits)])


show(
    helpers.rare_rows(spacings, mean_lengths, visits, row_errors, learned),
    "Left, steps are equally long if visits are counted and grow like a root if steps are. Middle, "
    "the rarest rows have the least error where steps are counted, most others with AdaGrad. "
    "Right, the best rate moves with the batch size for Adam and where steps are counted.",
)


visits_counted, steps_counted, adam, lazy, own, _ = embedders
best = {key: outcome.best("expected loss") for key, outcome in learned.items()}
best_rates = {key: float(outcome.rates[best[key]]) for key, outcome in learned.items()}
final_losses = {
    key: outcome.history["expected loss"][-1][:, best[key]] for key, outcome in learned.items()
}
rarest = {name: f"{np.median(row_errors(name)[0]):.2f}" for name in embedders}
table(
    ["small batches", "best rate", "final loss", "error of the rarest rows"],
    [
        [name, f"{best_rates[k]:.2g}", median_and_range(final_losses[k], ".4f"), rarest[name]]
        for name, k in ((name, (name, "small batches")) for name in embedders)
    ],
)


def moved(name: str) -> float:
    """By what the best rate in large batches differs from that in small ones."""
    return best_rates[name, "large batches"] / best_rates[name, "small batches"]


# Two cells have names.
*same, other = apart.values()
assert max(same) < 1e-4 < 1e-2 < other
# Where the momentum stands matters where the memory of squares is as short as its own.
gaps = {
    noise: np.abs(np.median(losses[noise, "inner"] - losses[noise, "outer"], axis=1))
    / np.ptp(losses[noise, "inner"], axis=1)
    for noise in helpers.NOISES
}
largest_gap = max(gap[2:].max() for gap in gaps.values())
assert largest_gap < 0.6
for noise, momentum in losses:
    fading, lasting = losses[noise, momentum][-2:]  # of a thousand gradients, and of all
    assert abs(np.median(fading - lasting)) < 0.5 * np.ptp(lasting)
shortest = {key: np.median(values[0]) for key, values in losses.items()}
assert shortest["heavy tails", "outer"] < 0.75 * shortest["heavy tails", "inner"]
assert shortest["skewed noise", "inner"] < 0.75 * shortest["skewed noise", "outer"]
longest = {key: np.median(values[-1]) for key, values in losses.items()}
assert longest["skewed noise", "outer"] < 0.3 * shortest["skewed noise", "inner"]
assert max(values.min() for values in read.values()) < min(values.max() for values in read.values())
assert all((x < 0) == (weights == "arithmetic") for (weights, _), x in ends.items())
# Old squares.
arithmetic_end, exponential_end, sum_end = ends_of_second.values()
assert exponential_end.max() < 0.5 * arithmetic_end.min()
assert arithmetic_end.max() < 0.5 * sum_end.min()
half = {name: int((values > np.sqrt(drop)).sum()) - before for name, values in divisors.items()}
# Sum and average.
roots = np.sqrt(np.arange(1, len(plain) + 1))
assert np.allclose(plain, roots * summed, rtol=1e-3)
assert np.allclose(faded, summed, rtol=1e-3)
# Rare rows.
assert visits.min() >= 1
assert np.allclose(mean_lengths[visits_counted], 1, rtol=1e-3)
assert np.allclose(mean_lengths[steps_counted], np.sqrt(spacings), rtol=0.02)
assert off["`own_clocks(0.1)`"] < 1e-6
assert 0.9 < moved(visits_counted) < 1.1 < 2 < moved(steps_counted)
assert 0.9 < moved("AdaGrad") < 1.1
assert (
    final_losses["AdaGrad", "small batches"].max()
    < final_losses[steps_counted, "small batches"].min()
)
assert (
    final_losses[steps_counted, "small batches"].max()
    < 0.75 * final_losses[visits_counted, "small batches"].min()
)

# %% [markdown]
# ## What was measured

# %% tags=["remove-input"]
small = {name: np.median(final_losses[name, "small batches"]) for name in embedders}
say(
    f"""
* **The place of the momentum made no difference** on the stationary problems, as long as the mean
  of squares remembers a hundred gradients or more. Over {seeds} seeds and three kinds of noise,
  inner and outer momentum then differ by at most {largest_gap:.0%} of the range of the seeds. Nor
  did it matter there whether squares are remembered for a thousand steps or without end. On the
  digits, with {digit_seeds} seeds, the ranges of all four overlap: too little to rank them.
* **With a memory of two gradients the place counts**, and not always in favour of the outer one.
  Under heavy tails its loss is {shortest["heavy tails", "outer"]:.2g} against
  {shortest["heavy tails", "inner"]:.2g}: each gradient is cut to size before it is averaged, and
  that beats the {longest["heavy tails", "outer"]:.2g} of the arithmetic mean. Under skewed noise
  the same cut takes away what is rare and right: {shortest["skewed noise", "outer"]:.2g} against
  {shortest["skewed noise", "inner"]:.2g}, where the arithmetic mean has
  {longest["skewed noise", "outer"]:.2g}.
* **On Reddi's problem the mean decides, not the momentum**: with either, the arithmetic mean goes
  to the optimum and the exponential one to the worst point.
* **A long memory has its price.** When gradients become a hundredfold smaller, the exponential
  mean's divisor comes down to ten times their size within {half["exponential mean"]:,} steps; the
  arithmetic mean's is still {divisors["arithmetic mean"][-1]:.0f} times their size after {after:,}.
  At rates tuned on the first task, the loss of the second in the end is
  {np.median(exponential_end):.3f} for the exponential mean, {np.median(arithmetic_end):.3f} for the
  arithmetic one and {np.median(sum_end):.2f} for the sum; the ranges of the {seeds} seeds do not
  touch. A larger rate helps the slower two, but it would have to be known beforehand.
* **Sum and average differ by $\\sqrt t$**, to a relative
  {np.abs(plain / (roots * summed) - 1).max():.0e} in {len(plain):,} steps.
* **The sparse counter does what it says.** Where all steps are counted, the step of an element that
  is seen at every thousandth is {mean_lengths[steps_counted][-1]:.1f} times as long
  ($\\sqrt{{1000}} = {np.sqrt(1000):.1f}$); where visits are counted it is
  {mean_lengths[visits_counted][-1]:.2f} times. So with ten times as many steps for the same visits,
  the best rate falls by a factor of {moved(steps_counted):.1f} (the grid has steps of
  {np.sqrt(10):.1f}) if steps are counted, by {moved(adam):.1f} for Adam, and stays where it is if
  visits are counted, or for AdaGrad.
* **Longer steps for rare rows were of use here, though.** The best loss is
  {small[visits_counted]:.3f} if visits are counted and {small[steps_counted]:.3f} if steps are;
  Adam's is {small[adam]:.3f}. One rate has to serve rows that are seen a few times, which need long
  steps, and rows that are seen a thousand times, which have to average. Counting steps gives the
  former the longer steps. The sum does so too, and its steps shrink as visits add up: AdaGrad, even
  without momentum, has the least loss of all, {small["AdaGrad"]:.3f} ({embedding_seeds} seeds; the
  ranges are disjoint).
* **Lazy rows** around Expectigrad hold the momentum back ({small[lazy]:.3f}); with clocks of their
  own they do not ({small[own]:.3f}), and each row goes exactly the way that it would go alone.
"""
)

# %% [markdown]
# ## Try next
#
# * A memory between the two: `mo.exponential(0.9999)`, or a weighting of your own, such as
#   `mo.Weighting(lambda count: 2 / (count + 1))`, where old squares fade as they age.
# * AdaGrad with momentum, in the embedding: `mo.expectigrad` with `sparse_counter=False` on the
#   schedule $1/\sqrt t$.
# * Targets that drift: does the embedding still prefer steps that shrink?
