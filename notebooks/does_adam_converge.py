# %% [markdown]
# # Does Adam converge?
#
# Not always: on a convex problem with one parameter, Adam walks to the *worst* point there is and
# stays, at every learning rate. AMSGrad and Expectigrad, whose divisors do not forget a large
# gradient, walk to the best one.
#
# ![Four panels. Above, the parameter against the steps: Adam rises to the worst point, +1, while
# AMSGrad in three dialects and Expectigrad fall to the best one, -1; AMSGrad in optax's dialect is
# the slowest. Below, the average regret: Adam's stays high, that of the others
# falls.](images/does_adam_converge.png)

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
# Reddi, Kale and Kumar ([arXiv 1904.09237](https://arxiv.org/abs/1904.09237)) found a flaw in
# Adam's proof, and examples to go with it. Two cures are tried here. AMSGrad, from the same paper,
# divides by the root of the *largest* second moment so far. Expectigrad
# ([arXiv 2010.01356](https://arxiv.org/abs/2010.01356)) divides by the root of the mean of *all*
# squared gradients; its authors prove that it diverges on no instance of that problem. We repeat
# the paper's experiment (section 5 and Figure 1), online for twelve million steps and stochastic
# for six million. A large gradient is rare and right; small ones are frequent and wrong:
#
# $$
# f_t(x) = \begin{cases} 1010 x &
# \text{at every 101st step (online), or with probability 0.01 (stochastic),} \cr
# -10 x & \text{otherwise,} \end{cases} \qquad x \in [-1, 1].
# $$
#
# One period of the online problem sums to $+10 x$, and the stochastic one is $+0.2 x$ in
# expectation, so the best point is $x^* = -1$ and the worst is $x = +1$. The *average regret*,
# $\frac1T \sum_t \left(f_t(x_t) - f_t(x^*)\right)$, is the cost of not sitting at the best point.
# All runs start halfway, at $x = 0$.

# %%
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import SummaryWriter

import msvag_optax as mo
from msvag_optax.compare import train
from msvag_optax.problems import reddi_online, reddi_stochastic
from msvag_optax.problems.reddi import LARGE, PERIOD, PROBABILITY, SMALL
from notebooks.helpers import does_adam_converge as helpers
from notebooks.helpers import median_and_range, say, show, table

# Upward and downward steps differ by one part in a hundred. Where a step is a few hundred units in
# the last place of x, as in float32 at small rates, rounding would matter as much.
jax.config.update("jax_enable_x64", True)

b1, b2 = 0.9, 0.99  # as in the paper's Figure 1
steps_online = 120_000 * PERIOD  # so long that the slowest dialect arrives; in whole periods
steps_stochastic = 60_000 * PERIOD  # the mean gradient is twice as large, so half the steps will do
seeds = 5  # of the stochastic problem; the online one has nothing random
rates = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
rate_online = 1e-3  # in the main figure
rate_stochastic = 3e-4  # smaller, since the noise of x at the end is proportional to the rate

builds = {
    "Adam": lambda rate: optax.adam(rate, b1, b2),
    "AMSGrad (paper)": lambda rate: mo.amsgrad(rate, b1, b2, bias_correction=False),
    "AMSGrad (PyTorch)": lambda rate: mo.amsgrad(rate, b1, b2),
    "AMSGrad (optax)": lambda rate: mo.amsgrad(rate, b1, b2, correct_before_max=True),
    "Expectigrad": lambda rate: mo.expectigrad(rate, b1),
}
adam, *amsgrads, expectigrad = builds
cures = (*amsgrads, expectigrad)

# %% [markdown]
# The paper corrects no bias. PyTorch takes the maximum of the uncorrected second moments and
# corrects it afterwards; optax corrects each second moment before it takes the maximum.
# `msvag_optax.amsgrad` has all three dialects. One call of `train` runs all rates and seeds of an
# optimizer in one compiled loop.


# %%
def train_all(build, rates, rate_of=lambda build: build):
    """The runs of an optimizer on both problems."""
    build = rate_of(build)
    return (
        train(reddi_online(), build, rates, steps=steps_online, seeds=1),
        train(reddi_stochastic(), build, rates, steps=steps_stochastic, seeds=seeds),
    )


runs = {name: train_all(build, rates) for name, build in builds.items()}
online, stochastic = ({name: pair[i] for name, pair in runs.items()} for i in range(2))
worst = {  # the regret of sitting at +1
    "online": 2 * (LARGE + (PERIOD - 1) * SMALL) / PERIOD,
    "stochastic": 2 * (PROBABILITY * LARGE + (1 - PROBABILITY) * SMALL),
}
problems = {
    "online": (online, rate_online, worst["online"]),
    "stochastic": (stochastic, rate_stochastic, worst["stochastic"]),
}

# %% [markdown]
# In the upper row, look at where each line ends: at the best point, $-1$, or at $+1$. In the lower
# row, the dotted line is the regret of sitting at the worst point from the beginning. Here and
# below, lines are medians over the seeds, and bands reach from the least to the greatest.

# %% tags=["hide-input", "answer"]
show(
    helpers.walks(problems, rates),
    "Adam's parameter rises to the worst point, the others fall to the best; Adam's average "
    "regret stays high, the others' falls.",
)

# %% [markdown]
# Adam is at the wrong end as soon as it can be. Expectigrad and AMSGrad, in every dialect, walk to
# the right one. The dialects are not equally quick: optax's corrects the very first second moment,
# $(1010)^2$, to its full size, so its maximum remains that of a gradient that was always large. In
# the others a square never counts for more than about a hundredth, $1 - \beta_2$, once the
# beginning is past. On the stochastic problem, where the first gradient is mostly a small one, the
# three end up alike. (The stochastic regret counts the gradients that were drawn, and so is noisy
# itself, most of all in the beginning.)
#
# ## Why: one period
#
# None of these gradients depends on $x$. So the steps of an optimizer are a fixed sequence, times
# the learning rate, and the sign of their sum over a period decides where it goes. The table has
# it for a period in which everything has settled, at learning rate 1, without the bounds of $x$.


# %%
def steps_in_last_period(gradients, b2, build):
    """The updates of the last period, and nothing of x: these gradients do not depend on it."""
    tx = build(1.0, b2)

    def step(state, gradient):
        update, state = tx.update(gradient, state, jnp.zeros([]))
        return state, update

    _, updates = jax.lax.scan(step, tx.init(jnp.zeros([])), gradients)
    return updates[-PERIOD:]


gradients = jnp.tile(jnp.where(jnp.arange(PERIOD) == 0, LARGE, SMALL), 2_000)
one_period = jax.jit(steps_in_last_period, static_argnums=2)
last_steps = {
    name: np.asarray(one_period(gradients, b2, lambda rate, b2, build=build: build(rate)))
    for name, build in builds.items()
}
drift = {name: float(steps.sum()) for name, steps in last_steps.items()}
sum_of_gradients = float(gradients[-PERIOD:].sum())


def way(name):
    return "wrong" if drift[name] > 0 else "right"


table(
    ["optimizer", "first 50 steps", "the other 51", "sum of the period", "direction"],
    [
        [name, f"{s[:50].sum():+.2f}", f"{s[50:].sum():+.2f}", f"{drift[name]:+.3f}", way(name)]
        for name, s in last_steps.items()
    ],
    f"The gradients of one period sum to {sum_of_gradients:+g}: descent must lead down.",
)

# %% [markdown]
# The left panel shows how it comes about. The large gradient pulls $x$ down, by momentum over some
# twenty steps. It also enters its own divisor at once, so it is never counted in full. Then Adam's
# memory fades, at $\beta_2 = 0.99$ by two thirds within the period, the divisor falls, and each
# small gradient counts for more than the one before. AMSGrad and Expectigrad divide the large and
# the small alike; what they lose by the small is a little less than what they gained by the large.
# A longer memory would fade less. The right panel asks how long it has to be.

# %% tags=["hide-input"]
memories = np.geomspace(1e-1, 1e-5, 33)  # 1 - b2


def adams_drift(gradients, b2):
    return steps_in_last_period(gradients, b2, lambda rate, b2: optax.adam(rate, b1, b2)).sum()


memory_drift = np.array(
    jax.jit(jax.vmap(adams_drift, (None, 0)))(gradients, jnp.asarray(1 - memories))
)
show(
    helpers.one_period(last_steps, memories, memory_drift),
    "Left, within a period Adam first falls and then rises above its start, AMSGrad and "
    "Expectigrad end below it. Right, Adam's movement in a period is positive at a beta2 of 0.99 "
    "and 0.999 and changes its sign at a longer memory.",
)
at_default = np.interp(np.log(1e-3), np.log(memories)[::-1], memory_drift[::-1])
enough = 1 / np.exp(np.interp(0.0, memory_drift[::-1], np.log(memories)[::-1]))  # steps of memory
assert np.all(np.diff(memory_drift) < 0)
assert at_default > 0.05
assert memory_drift[-1] < -0.05
say(
    f"""The sum changes sign where the memory, $1 / (1 - \\beta_2)$, is about {enough:,.0f} steps:
Adam's default, 0.999, goes the wrong way as well. A longer memory fixes this instance and no more:
by the paper's Theorem 2 there is another for *every* fixed pair $\\beta_1 < \\sqrt{{\\beta_2}}$."""
)

# %% [markdown]
# ## Does it depend on the learning rate?
#
# It cannot: the steps are proportional to the rate, which sets the pace and not the direction. Look
# at which side of zero each line is on. At small rates $x$ is still on its way. At large ones, on
# the stochastic problem, a single large gradient carries $x$ far from where it belongs.

# %% tags=["hide-input"]
show(
    helpers.against_rate(problems, rates),
    "At every learning rate Adam ends above zero. The others end below zero, at -1 for middling "
    "rates; on the stochastic problem they spread widely at the largest rate.",
)

# %% [markdown]
# At a constant rate, nobody's average regret goes to zero: each large gradient meets an $x$ that
# the small ones have just pushed up. (That is why Adam's regret even exceeds the dotted line.) What
# is left is proportional to the rate, as the regret of AMSGrad in PyTorch's dialect shows, online,
# averaged over the last tenth of the run:


# %%
def late_regret(outcome, rate):
    """The average regret over the last tenth of the steps."""
    column = outcome.history["average loss"][:, 0, rates.index(rate)]
    total = column * outcome.steps
    since = len(total) - 1 - len(total) // 10
    return (total[-1] - total[since]) / (outcome.steps[-1] - outcome.steps[since])


floors = {rate: late_regret(online["AMSGrad (PyTorch)"], rate) for rate in (1e-3, 3e-3, 1e-2)}
table(
    ["learning rate", "late regret", "late regret / learning rate"],
    [[f"{rate:g}", f"{r:.4f}", f"{r / rate:.1f}"] for rate, r in floors.items()],
)
assert np.ptp([r / rate for rate, r in floors.items()]) < 0.1 * floors[1e-3] / 1e-3

# %% [markdown]
# Hence the theorems ask for a rate that falls like $\alpha / \sqrt t$. We take $\alpha = 1$.
# Online, the first step then carries everyone to the best point; Adam leaves it. On the stochastic
# problem it carries everyone to the worst point (unless the very first gradient is a large one);
# all but Adam leave it. Look at whose regret goes on falling.


# %% tags=["hide-input"]
def falling(build):
    """`build`, at a rate that falls with the root of the time."""
    return lambda alpha: build(lambda count: alpha / jnp.sqrt(count + 1.0))


falling_runs = {name: train_all(build, (1.0,), falling) for name, build in builds.items()}
falling_online, falling_stochastic = (
    {name: pair[i] for name, pair in falling_runs.items()} for i in range(2)
)
show(
    helpers.falling_rate({"online": falling_online, "stochastic": falling_stochastic}, worst),
    "Online, the regret of the cures falls along parallel lines on logarithmic axes, with optax's "
    "dialect of AMSGrad lowest; Adam's levels off high above. On the stochastic problem, Adam's "
    "stays near that of the worst point, and the others' fall.",
)
regret_falling = {
    name: outcome.history["average loss"][:, 0, 0] for name, outcome in falling_online.items()
}
pace = drift["AMSGrad (PyTorch)"] / drift["AMSGrad (optax)"]
lower = regret_falling["AMSGrad (PyTorch)"][-1] / regret_falling["AMSGrad (optax)"][-1]
assert 7 < pace < 9
assert 7 < lower < 9
say(
    f"""Why does optax's dialect, the slowest above, end with the *lowest* regret here? Its divisor
is {pace:.1f} times PyTorch's throughout, and so its steps are {pace:.1f} times shorter. At a small
constant rate, it is {pace:.1f} times longer on its way. Here the first step, which has the same
length in every dialect, has brought everyone to the best point. What remains to pay is how far the
small gradients of a period push $x$ away from it, and that is as short as the steps: the regret in
the end is {lower:.1f} times lower, as it would be at a rate {pace:.0f} times smaller after the
first steps."""
)

# %% [markdown]
# ## And the others?
#
# NovoGrad normalizes by an exponential average, as Adam does. M-SVAG and SVAG ask how much of a
# gradient is noise, and a rare large gradient looks like noise. So all three ought to follow Adam.
# SGD weighs all gradients alike. The same runs for them:

# %%
other_builds = {  # scaled so that all move about as far in a step
    "SGD": lambda rate: optax.sgd(rate / 1000, momentum=0.9),  # it sums ten gradients of size 100
    "M-SVAG": lambda rate: mo.msvag(rate / 100, b1),
    "SVAG": lambda rate: mo.svag(rate / 100, b1),
    "NovoGrad": lambda rate: mo.novograd(rate / 10, b1, b2),  # it sums ten normalized gradients
}
ends_online, ends_stochastic = {}, {}
for name, build in other_builds.items():
    both = train_all(build, (rate_online, rate_stochastic))
    ends_online[name] = both[0].history["x"][-1, 0, 0]
    ends_stochastic[name] = both[1].history["x"][-1, :, 1]
table(
    ["optimizer", "x in the end, online", f"stochastic: median of {seeds} seeds (and range)"],
    [
        [name, f"{ends_online[name]:+.3f}", median_and_range(ends_stochastic[name], "+.3f")]
        for name in other_builds
    ],
)

# %% [markdown]
# ## The same in TensorBoard
#
# Each optimizer gets a run directory of its own, so that TensorBoard draws its curves in one colour
# over those of the others. In a training loop `add_scalar` follows the step; here the curves of the
# main figure are written at once, to a temporary folder, and TensorBoard's own reader finds every
# number in it, in the float32 that an event file keeps. With a lasting folder, say `runs`,
# `tensorboard --logdir runs` shows them in the browser.


# %%
def scalars_of(name):
    """Everything to be logged of an optimizer: {tag: (steps, values)}."""
    scalars = {}
    for kind, (outcomes, rate, _) in problems.items():
        outcome = outcomes[name]
        for tag, key in {"iterate": "x", "average_regret": "average loss"}.items():
            values = np.median(outcome.history[key][:, :, rates.index(rate)], axis=1)
            # At step 0 nothing has been regretted yet, and there is no average.
            scalars[f"{kind}/{tag}"] = (outcome.steps[1:], values[1:])
    return scalars


with tempfile.TemporaryDirectory() as folder:
    for name in builds:
        with SummaryWriter(f"{folder}/{name}") as writer:
            for tag, (steps, values) in scalars_of(name).items():
                for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                    writer.add_scalar(tag, value, step)
        reader = EventAccumulator(f"{folder}/{name}").Reload()
        assert set(reader.Tags()["scalars"]) == set(scalars_of(name))
        for tag, (steps, values) in scalars_of(name).items():
            assert [event.step for event in reader.Scalars(tag)] == steps.tolist()
            read = np.array([event.value for event in reader.Scalars(tag)])
            np.testing.assert_array_equal(read, values.astype(np.float32))

# %% [markdown]
# ## What the conclusion rests on

# %%
at_online, at_stochastic = rates.index(rate_online), rates.index(rate_stochastic)
x_online = {name: outcome.history["x"][-1, 0] for name, outcome in online.items()}
x_stochastic = {name: outcome.history["x"][-1] for name, outcome in stochastic.items()}
tenth = len(regret_falling[adam]) // 10  # the log-log slope from here to ten times as many steps:
slopes = {name: np.log10(r[-1] / r[tenth]) for name, r in regret_falling.items()}

assert sum_of_gradients == 10
assert drift[adam] > 1
assert all(drift[name] < 0 for name in cures)
assert np.all(x_online[adam] > 0.99)  # at every rate
assert -0.2 < slopes[adam] < 0.05
assert np.all(x_stochastic[adam] > 0.5)  # at every rate, with every seed
for name in cures:
    assert x_online[name][at_online] < -0.98
    assert np.all(x_online[name] < 0)  # at every rate
    assert np.all(x_stochastic[name][:, at_stochastic] < -0.85)
    assert np.all(np.median(x_stochastic[name], axis=0) < 0)
    assert regret_falling[name][-1] < 0.25 * regret_falling[adam][-1]
    assert -0.65 < slopes[name] < -0.45
for name in other_builds:
    side = -1 if name == "SGD" else 1
    assert side * ends_online[name] > 0.9
    assert np.all(side * ends_stochastic[name] > 0.7)

# %% [markdown]
# ## What was measured

# %% tags=["remove-input"]
adams = x_stochastic[adam][:, at_stochastic]
cured = np.stack([x_stochastic[name][:, at_stochastic] for name in cures])
cured_online = [x_online[name][at_online] for name in cures]
least, greatest = (f"$10^{{{np.log10(rate):.0f}}}$" for rate in (min(rates), max(rates)))
say(
    f"""
* **Adam does not converge to the best point.** Online it ends at {x_online[adam][at_online]:+.3f}
  after {steps_online / 1e6:.1f} million steps, at each of {len(rates)} learning rates from {least}
  to {greatest}. On the stochastic problem it ends between {adams.min():+.3f} and
  {adams.max():+.3f} with {seeds} seeds at rate {rate_stochastic:g}, and nowhere below
  {x_stochastic[adam].min():+.2f} over all rates.
* **AMSGrad in all three dialects, and Expectigrad, do.** Online they end between
  {min(cured_online):+.3f} and {max(cured_online):+.3f} at rate {rate_online:g}; on the stochastic
  problem between {cured.min():+.3f} and {cured.max():+.3f} at rate {rate_stochastic:g}, over all
  four and {seeds} seeds. At the largest rate the noise of the stochastic problem drowns the
  direction.
* **The dialects differ in the length of their steps.** Where the first gradient is a large one,
  optax's walks {pace:.1f} times slower than PyTorch's throughout, and strays as much less from the
  point where it has arrived. The paper's and PyTorch's differ in the beginning only.
* **Why.** The gradients of a period sum to {sum_of_gradients:+g}; Adam moves *up* by
  {drift[adam]:.2f} learning rates. AMSGrad (PyTorch) moves down by
  {-drift["AMSGrad (PyTorch)"]:.3f}, Expectigrad by {-drift[expectigrad]:.3f}. The learning rate is
  a factor of all steps alike, and changes no sign.
* **The regret.** At a constant rate, all are left with one that is proportional to the rate. At the
  rate $1 / \\sqrt t$, online, Adam's average regret is {regret_falling[adam][-1]:.3f} in the end,
  hardly falling any more; that of the others is at most
  {max(regret_falling[name][-1] for name in cures):.3f} and falls like
  $t^{{{max(slopes[name] for name in cures):.2f}}}$, or faster, over the last factor of ten.
* M-SVAG, SVAG and NovoGrad end where Adam does, SGD where AMSGrad does.

One bounded parameter, and gradients chosen to mislead: this says what can happen, not what happens
when a network is trained."""
)

# %% [markdown]
# ## Try next
#
# * Make the large gradient rarer and larger (a `Problem` of your own, as in
#   `msvag_optax/problems/reddi.py`) until Adam fails with `b2=0.9999`, too.
# * Mix the cures: `mo.running_max` of `mo.running_average(mo.arithmetic(), of=mo.square)`, as in
#   the README's "Mixing pieces".
# * `python -m msvag_optax.compare --problem reddi-online` runs every named optimizer on this
#   problem.
