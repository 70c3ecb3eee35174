# %% [markdown]
# # What does a layer's norm buy?
#
# Half of Adam's state, and steps whose length is known, if the average of the norms forgets faster
# than gradients change. It does not make the learning rate easier to choose than Adam's, nor
# does it make large batches work better than with Adam.
#
# ![Two panels, the train loss and the share of misread test images against the learning rate.
# NovoGrad with a b2 of 0.25, AdamW and SGD have valleys of similar depth; AdamW's is the widest,
# and NovoGrad's ends at smaller rates the longer its
# memory.](images/what_does_a_layers_norm_buy.png)

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
# Adam keeps a second moment for every parameter. NovoGrad
# ([Ginsburg et al., 2019](https://arxiv.org/abs/1905.11286)) keeps one for every *layer*: a
# running average $v_t$ of the squared norm of the layer's gradient $g_t$. It divides the gradient
# by $\sqrt{v_t}$ and passes the quotient $x_t$ to momentum:
#
# $$
# \begin{aligned}
# v_1 &= \lVert g_1 \rVert^2, & v_t &= \beta_2 v_{t-1} + (1 - \beta_2) \lVert g_t \rVert^2, &
# x_t &= \frac{g_t}{\sqrt{v_t} + \varepsilon}, \cr
# b_0 &= 0, & b_t &= \beta_1 b_{t-1} + x_t, & p_t &= p_{t-1} - \eta b_t .
# \end{aligned}
# $$
#
# The versions of the paper promise four things for that one number a layer: half of Adam's memory,
# training without warm-up, tolerance of the learning rate, and large batches. We measure all four
# on a small network. Much depends on $\beta_2$, about which implementations disagree.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax

import msvag_optax as mo
from msvag_optax.compare import Outcome, train
from msvag_optax.problems.digits import Perceptron, digits
from notebooks.helpers import median_and_range, parameter_trees, say, show, table
from notebooks.helpers import what_does_a_layers_norm_buy as helpers
from notebooks.helpers.what_does_a_layers_norm_buy import final_error, final_loss, least_losses

# %%
HIDDEN = (32,) * 4  # four hidden layers without normalization, so that scale is a problem
IMAGES = 38_400  # that each run sees, whatever the batch size
BATCH = 64  # where the batch size is not what is studied
BATCHES = (16, 64, 256, 1024)  # where it is, up to most of the training images at once
SEEDS = 5  # each draws a starting point and mini-batches, the same for all optimizers
RATES = np.geomspace(1e-3, 1, 10)  # three decades, three rates in each
WARM_UP = 0.1  # the share of the steps over which the rate rises, in runs with warm-up
# The defaults of implementations: optax; OpenSeq2Seq, the authors' own; tensorflow-addons and this
# library after it.
B2S = B2_OPTAX, B2_AUTHORS, B2_ADDONS = 0.25, 0.98, 0.999
B2 = B2_OPTAX  # where nothing else is said; the figures below show why
POINTS = 0.02  # of test accuracy: what a usable rate may lose to the best of all runs
FACTOR = 10  # or, judged by the train loss: how far it may be above the least
STEPS = IMAGES // BATCH
problem = digits(Perceptron(HIDDEN), BATCH)

# %% [markdown]
# ## Half of the state
#
# `jax.eval_shape` tells what `tx.init` would return without allocating it, so the state can be
# measured for a ResNet-50 and the small GPT-2 as well, beside the network of this page.

# %%
trees = {
    "digits": jax.eval_shape(problem.init, jax.random.key(0)),
    "ResNet-50": parameter_trees.resnet50(),
    "GPT-2, small": parameter_trees.gpt2(),
}
keepers = {
    "SGD with momentum": optax.sgd(0.1, momentum=0.9),
    "NovoGrad": mo.novograd(0.1),
    "NovoGrad, `mu_dtype=bfloat16`": mo.novograd(0.1, mu_dtype=jnp.bfloat16),
    "AdamW": mo.adamw(0.1),
    "AMSGrad": mo.amsgrad(0.1),
}
state = {
    name: np.array([helpers.state_bytes(tx, tree) for tree in trees.values()])
    for name, tx in keepers.items()
}
leaves = [jax.tree.leaves(tree) for tree in trees.values()]
sizes = np.array([sum(leaf.size for leaf in tree) for tree in leaves])
table(
    ["", *trees],
    [
        ["parameters", *(f"{size:,}" for size in sizes)],
        ["arrays, each a layer to NovoGrad", *(f"{len(tree):,}" for tree in leaves)],
        *([f"{name}, kB", *(f"{b / 1e3:,.0f}" for b in kept)] for name, kept in state.items()),
    ],
)
state_ratio = state["NovoGrad"] / state["AdamW"]
# Parameters and gradients, of four bytes each, have to be kept too, by every optimizer.
whole_ratio = (8 * sizes + state["NovoGrad"]) / (8 * sizes + state["AdamW"])
assert max(state_ratio) < 0.502
say(
    f"NovoGrad's state is at most {max(state_ratio):.3f} of AdamW's: that promise is kept. "
    "Parameters and gradients need memory as well; with them the saving is "
    f"{1 - max(whole_ratio):.0%} and not half, before activations are counted."
)

# %% [markdown]
# ## A step whose length is known
#
# Every layer's $x_t$ is *about* as long as
# 1, so that the rate says how far a layer moves. The first step shows it in full: here is its
# length for every kernel of the network, over the learning rate.

# %%
steppers = {
    "SGD": lambda rate: optax.sgd(rate, momentum=0.9),
    "NovoGrad": lambda rate: mo.novograd(rate, b2=B2),
    "AdamW": lambda rate: mo.adamw(rate, weight_decay=0.0),
}
key = jax.random.key(0)
start = jax.jit(problem.init)(jax.random.fold_in(key, 0))
_, gradient = jax.jit(problem.value_and_grad)(start, 0, jax.random.fold_in(key, 1))
first_steps = {}
for name, make in steppers.items():
    tx = make(1.0)
    updates, _ = jax.jit(tx.update)(gradient, tx.init(start), start)
    first_steps[name] = helpers.kernel_lengths(updates)
parameters = {layer: f"{start[layer]['kernel'].size:,}" for layer in start}
table(
    ["kernel", "parameters", *(f"{name}: length of step 1" for name in steppers)],
    [[k, n, *(f"{s[k]:.3g}" for s in first_steps.values())] for k, n in parameters.items()],
)

# %% [markdown]
# SGD's step is as long as the gradient. Adam moves every *parameter* by the rate, hence a layer by
# the rate times the root of its size (a little less here, as some gradients are 0). NovoGrad moves
# every *layer* by the rate, in the direction of its gradient.
#
# The scale of the loss drops out of NovoGrad and Adam, up to $\varepsilon$. How far apart do two
# runs of thirty steps end, one with the loss times 1000, as a share of the way gone?


# %%
apart, rows = {}, []
for name, rate in {"SGD": 0.02, "NovoGrad": 0.02, "AdamW": 0.01}.items():
    once, thousandfold = helpers.end_points(problem, steppers[name](rate), [1.0, 1000.0])
    apart[name] = helpers.distance(once, thousandfold) / helpers.distance(once, start)
    rows.append([name, f"{apart[name]:.1e}" if np.isfinite(apart[name]) else "one diverges"])
table(["loss as it is, and times 1000", "apart by"], rows)
assert apart["NovoGrad"] < 1e-3 < 1e-2 < apart["AdamW"]
assert not np.isfinite(apart["SGD"]) or apart["SGD"] > 1

elements = np.concatenate([np.abs(leaf).ravel() for leaf in jax.tree.leaves(gradient)])
tiny = np.mean((elements > 0) & (elements < 100 * 1e-8))
least_norm = min(float(length) for length in helpers.kernel_lengths(gradient).values())
say(
    f"""NovoGrad takes the same steps. So would Adam, were it not for $\\varepsilon$, which is
$10^{{-8}}$: {tiny:.1%} of the parameters have a first gradient that is not zero but smaller than a
hundred times that. There the scale of the loss still decides, and the run amplifies the difference.
Norms are never that small: the least of a kernel's is {least_norm:.2f}."""
)

# %% [markdown]
# ### *About* as long as 1
#
# $v_t$ contains $(1 - \beta_2) \lVert g_t \rVert^2$, so $x_t$ is never longer than
# $1 / \sqrt{1 - \beta_2}$ (after the first step, where it is 1): a tight promise if $\beta_2$ is
# small, and an empty one if it is near 1. Which is it in practice? Left, the norms of the gradients
# in a run of NovoGrad; right, the longest $x_t$ of any kernel if these same gradients are
# normalized under the $\beta_2$ of three implementations. The thin lines are the bounds.

# %% tags=["hide-input"]
raw, normalized = helpers.lengths_along_a_run(
    problem, mo.novograd(0.05, b2=B2), {b2: helpers.normalization(b2) for b2 in B2S}, 100
)
growth = max(float(lengths.max() / lengths[0]) for lengths in raw.values())
longest = {b2: np.max(list(kernels.values()), axis=0) for b2, kernels in normalized.items()}
show(
    helpers.lengths(raw, longest),
    "Left, the gradients of all kernels grow within the first steps. Right, the longest normalized "
    "gradient stays near 1 at a beta2 of 0.25 and exceeds 8 at 0.999.",
)
assert longest[B2_OPTAX].max() < 1.2 < 3 < longest[B2_AUTHORS].max() < 8 < longest[B2_ADDONS].max()
say(
    f"""The gradients of this network *grow* by a factor of up to {growth:.0f} within its first
steps, and an average that began with the small first ones takes about $1 / (1 - \\beta_2)$ steps
to notice. Meanwhile steps are up to {longest[B2_ADDONS].max():.0f} times longer than the rate at
$\\beta_2 = {B2_ADDONS}$, {longest[B2_AUTHORS].max():.1f} times at {B2_AUTHORS}, and
{longest[B2_OPTAX].max():.2f} times at {B2_OPTAX}. The default of this library is
{B2_ADDONS}, as in tensorflow-addons."""
)

# %% [markdown]
# ## Three decades of learning rates, with and without warm-up
#
# Every optimizer is trained at all of `RATES`. The rate falls to zero along half a cosine, as
# NovoGrad's steps do not get shorter by themselves; with warm-up it first rises linearly. Weight
# decay is off. The figure shows what remains at the end: the loss over all training images, and the
# share of test images misread. Low is good, and a wide valley is easy to tune.


# %%
def outcome(make, *, task=problem, steps=STEPS, shape=None, rates=RATES) -> Outcome:
    shape = optax.cosine_decay_schedule(1.0, steps) if shape is None else shape

    def build(rate):
        return make(lambda count: rate * shape(count))

    return train(task, build, rates, steps=steps, seeds=SEEDS, measurements=1)  # at the end


makers = {
    **{f"NovoGrad, b2 = {b2}": lambda rate, b2=b2: mo.novograd(rate, b2=b2) for b2 in B2S},
    "AdamW": lambda rate: mo.adamw(rate, weight_decay=0.0),
    "SGD": lambda rate: optax.sgd(rate, momentum=0.9),
}
MAIN = f"NovoGrad, b2 = {B2}"
rise = int(WARM_UP * STEPS)
warming = optax.warmup_cosine_decay_schedule(1 / rise, 1.0, rise, STEPS)
cold = {name: outcome(make) for name, make in makers.items()}
warm = {name: outcome(make, shape=warming) for name, make in makers.items()}


# %% tags=["hide-input", "answer"]
show(
    helpers.valleys(cold),
    "Without warm-up, NovoGrad with a short memory, AdamW and SGD reach similar losses; AdamW's "
    "valley is the widest, and NovoGrad's is the narrower the longer its memory.",
)

# %% [markdown]
# How wide are the valleys, and does warm-up widen them? A rate is *usable* here if at most two
# images in a hundred more are misread than by the best of all runs. Bars are medians over the
# seeds; a black line shows how far the right end varies. Look at the right ends.


# %% tags=["hide-input"]
least_error = min(np.median(final_error(result), axis=0).min() for result in cold.values())


def usable(outcome: Outcome) -> list[tuple[float, float]]:
    """The ends of the valley, for each seed."""
    return helpers.valleys_of(outcome.rates, final_error(outcome), least_error + POINTS)


show(
    helpers.usable_rates(cold, warm, usable, (RATES[0], RATES[-1])),
    "AdamW's bars are the longest. Warm-up lengthens NovoGrad's bars the more, the longer its "
    "memory, and hardly at a b2 of 0.25.",
)

rows, widths, edge_gains = [], {}, {}
for name, result in cold.items():
    widths[name] = helpers.decades(usable(result))
    (_, ends), (_, warm_ends) = np.transpose(usable(result)), np.transpose(usable(warm[name]))
    edge_gains[name] = warm_ends / ends
    limit = FACTOR * np.median(final_loss(result), axis=0).min()
    by_loss = helpers.decades(helpers.valleys_of(result.rates, final_loss(result), limit))
    losses = [1e3 * least_losses(runs[name]) for runs in (cold, warm)]
    row = [f"{result.rates[result.best('train loss')]:.2g}"]
    row += [median_and_range(values, ".1f") for values in losses]
    row += [median_and_range(values, ".2f") for values in (widths[name], by_loss, edge_gains[name])]
    rows.append([name, *row])
header = ["", "best rate", "loss there, 0.001 nats", "with warm-up", "usable, decades"]
header += [f"decades within {FACTOR} times the least loss", "warm-up moves the right end by"]
table(header, rows)

# %% [markdown]
# ### Which memory?
#
# The three greens differ in $\beta_2$ alone. The longer the memory, the earlier a run without
# warm-up fails at large rates, by its overlong first steps. From here on $\beta_2$ is 0.25, chosen
# for runs of hundreds of steps in view of these very results. Does Adam need the same freedom?

# %%
adam_98 = outcome(lambda rate: mo.adamw(rate, b2=B2_AUTHORS, weight_decay=0.0))
adam_98_widths = helpers.decades(usable(adam_98))
assert abs(np.median(adam_98_widths) - np.median(widths["AdamW"])) < 0.25
say(
    f"With a $\\beta_2$ of {B2_AUTHORS} instead of 0.999, AdamW's usable rates span "
    f"{median_and_range(adam_98_widths, '.2f')} decades instead of "
    f"{median_and_range(widths['AdamW'], '.2f')}: it does not matter here."
)

# %% [markdown]
# ## Larger batches, fewer steps
#
# Now every run sees the same number of images: a batch four times as large leaves a fourth of the
# steps. From left to right: the best rate, what is reached with it, and what is reached at the rate
# that was best for the smallest batch.

# %%
compared = [MAIN, "AdamW", "SGD"]
by_batch = {BATCH: cold}
for size in set(BATCHES) - {BATCH}:
    task = problem._replace(loss=digits(Perceptron(HIDDEN), size).loss)
    by_batch[size] = {
        name: outcome(makers[name], task=task, steps=IMAGES // size) for name in compared
    }

# %% tags=["hide-input"]
best_rates, at_best, at_fixed = {}, {}, {}
for name in compared:
    results = [by_batch[size][name] for size in BATCHES]
    best = [result.best("train loss") for result in results]
    best_rates[name] = RATES[best]
    at_best[name] = np.array([final_loss(r)[:, i] for r, i in zip(results, best, strict=True)])
    at_fixed[name] = np.array([final_loss(r)[:, best[0]] for r in results])

show(
    helpers.batches(BATCHES, best_rates, at_best, at_fixed),
    "The best rates of NovoGrad and SGD rise tenfold with the batch, AdamW's twofold. In large "
    "batches, NovoGrad and AdamW end nearly level, and SGD higher.",
)

# %% [markdown]
# ## Two modes, and steps that do not shrink
#
# `grad_averaging` makes momentum a mean, so that every $x_t$ after the first counts for a tenth,
# $1 - \beta_1$, and the rate has to be ten times larger. The first still counts in full: a first
# step ten times as long. `amsgrad` divides by the largest $\sqrt{v_t}$ so far; steps get shorter as
# gradients do. Otherwise they stay about as long as the rate to the very end, which is why a
# falling rate is part of the recipe. Compare where the valleys lie and how deep they are.


# %%
def averaging(rate):
    return mo.novograd(rate, b2=B2, grad_averaging=True)


def holding_maximum(rate):
    return mo.novograd(rate, b2=B2, amsgrad=True)


constant = optax.constant_schedule(1.0)
long_memory = f"NovoGrad, b2 = {B2_ADDONS}"
falling_rate = {
    "NovoGrad": cold[MAIN],
    "grad_averaging": outcome(averaging, rates=10 * RATES),
    "grad_averaging, warm-up": outcome(averaging, rates=10 * RATES, shape=warming),
    "amsgrad": outcome(holding_maximum),
}
at_constant = {"NovoGrad": makers[MAIN], "amsgrad": holding_maximum}
at_constant[long_memory] = makers[long_memory]
constant_rate = {name: outcome(make, shape=constant) for name, make in at_constant.items()}
show(
    helpers.modes(falling_rate, constant_rate),
    "Left, grad_averaging needs a tenfold rate and a warm-up, and amsgrad ends higher than the "
    "plain form. Right, at a constant rate amsgrad and a long memory end lower than it.",
)

# %% [markdown]
# ## Two pitfalls
#
# A *layer* is an array of the tree. In models that scan over their layers these share one array and
# so a norm; `stacked` gives each row its own. And a layer whose first gradient is zero or tiny
# begins with $v_1 \approx 0$: its next step may be as long as the bound allows. Where it is exactly
# zero, an average that counts nonzero gradients only is the cure.

# %%
two_layers = {"blocks": jnp.stack([jnp.ones(16), 1e-3 * jnp.ones(16)])}  # one loud, one quiet


rows = {
    "two layers in one array": helpers.row_lengths(mo.novograd(1.0), two_layers),
    "the same, `stacked`": helpers.row_lengths(mo.novograd(1.0, stacked=["blocks"]), two_layers),
}
table(
    ["step over rate", "loud layer", "quiet layer"],
    [[name, *(f"{length:.3g}" for length in lengths)] for name, lengths in rows.items()],
)
firsts = {"1, as long as the second": 1.0, "0.000001": 1e-6, "0": 0.0}
seconds = {name: [helpers.second_length(g, b2) for b2 in B2S] for name, g in firsts.items()}
seconds["0, with `count_nonzero=True`"] = [
    helpers.second_length(0.0, b2, count_nonzero=True) for b2 in B2S
]
table(
    ["second step over rate, after a first gradient of", *(f"b2 = {b2}" for b2 in B2S)],
    [[name, *(f"{length:.3g}" for length in lengths)] for name, lengths in seconds.items()],
)

# %% tags=["hide-input"]
right_ends = {name: [high for _, high in usable(result)] for name, result in cold.items()}
by_memory = [np.median(right_ends[f"NovoGrad, b2 = {b2}"]) for b2 in B2S]


ends = [usable(result) for result in (*cold.values(), *warm.values())]
assert RATES[0] < np.min(ends)
assert np.max(ends) < RATES[-1]
# Memory decides how large a rate may be, and what warm-up is worth.
assert by_memory[0] > 1.3 * by_memory[1] > 1.3**2 * by_memory[2]
assert np.median(edge_gains[MAIN]) < 1.3 < 1.5 < np.median(edge_gains[long_memory])
# At the edge of divergence a last digit decides which rate of the grid still trains AdamW.
assert np.median(edge_gains["AdamW"]) > 1.2
# At their own best rates, none needs a warm-up.
assert all(helpers.overlap(least_losses(cold[name]), least_losses(warm[name])) for name in makers)
assert np.median(widths["AdamW"]) > np.median(widths[MAIN]) + 0.15
for of_sgd, of_adam, ours in zip(*(at_best[k][2:] for k in ("SGD", "AdamW", MAIN)), strict=True):
    assert np.median(of_sgd) > 1.5 * np.median(ours)
    assert 0.3 < np.median(ours) / np.median(of_adam) < 3
assert np.median(at_fixed["AdamW"][-1]) < np.median(at_fixed[MAIN][-1]) < at_fixed["SGD"][-1].min()
mean_warm = least_losses(falling_rate["grad_averaging, warm-up"])
mean_cold = least_losses(falling_rate["grad_averaging"])
assert helpers.overlap(mean_warm, least_losses(warm[MAIN]))
assert np.median(mean_cold) > 2 * np.median(mean_warm)
plain, held = (least_losses(constant_rate[name]) for name in ("NovoGrad", "amsgrad"))
plain_falling, held_falling = (least_losses(falling_rate[name]) for name in ("NovoGrad", "amsgrad"))
assert np.median(plain) > 2 * np.median(held)
assert np.median(held_falling) > 1.5 * np.median(plain_falling)

# %% [markdown]
# ## What was measured

# %% tags=["remove-input"]
large = BATCHES.index(256)


def nats(losses) -> str:
    return median_and_range(losses, ".2g")


factor = {name: median_and_range(gains, ".2f") for name, gains in edge_gains.items()}
width = {name: median_and_range(values, ".2f") for name, values in widths.items()}
say(
    f"""
Medians over {SEEDS} seeds, in brackets the range over the seeds; one small network, one data set.

- **Half of Adam's state: yes.** At most {max(state_ratio):.3f} of it in the trees above.
- **No warm-up: yes, if $\\beta_2$ is small.** Warm-up moves the largest usable rate by a factor of
  {factor[MAIN]} at $\\beta_2 = {B2}$, but by {factor[long_memory]} at {B2_ADDONS}, where the long
  memory makes the first steps up to {longest[B2_ADDONS].max():.0f} times too long. It moves AdamW's
  by {factor["AdamW"]}. At its own best rate, however, *no* optimizer here, AdamW included, gains
  more by warm-up than its seeds differ.
- **Tolerance of the rate: not more than Adam's.** Usable rates span {width[MAIN]} decades for
  NovoGrad, {width["AdamW"]} for AdamW and {width["SGD"]} for SGD; judged by the train loss, the
  three are closer still. But the valley stays where it is when the loss is scaled; SGD's does not.
- **Large batches: better than SGD, level with AdamW.** With the best rate for each, batches of 256
  leave a train loss of {nats(at_best[MAIN][large])} to NovoGrad,
  {nats(at_best["AdamW"][large])} to AdamW and {nats(at_best["SGD"][large])} to SGD; batches of
  {BATCHES[-1]} leave {nats(at_best[MAIN][-1])}, {nats(at_best["AdamW"][-1])} and
  {nats(at_best["SGD"][-1])}. The best rate for {BATCHES[0]} serves none of them at {BATCHES[-1]},
  and AdamW least badly: {nats(at_fixed[MAIN][-1])}, {nats(at_fixed["AdamW"][-1])} and
  {nats(at_fixed["SGD"][-1])}.
- **`grad_averaging`** wants ten times the rate, and a warm-up: it reaches {nats(mean_cold)}
  without, and {nats(mean_warm)} with one, no better than the plain form without.
- **`amsgrad`** can stand in for a falling rate: at a constant one it reaches {nats(held)}, and the
  plain form {nats(plain)}. If the rate falls it only costs: {nats(held_falling)}, and the plain
  form {nats(plain_falling)}.

So the norm buys memory, and steps whose length is known, *on condition that the average forgets
faster than gradients change*: it looks back over some $1 / (1 - \\beta_2)$ steps, and a run of
hundreds has no thousand to spare. For short runs set `b2` yourself."""
)

# %% [markdown]
# ## Try next
#
# - Multiply the initial kernels by 1/4 and by 4 (`problem._replace(init=...)`): whose valley moves?
# - Switch weight decay on. It joins NovoGrad's momentum, beside an $x_t$ of length 1: what decay
#   corresponds to AdamW's 0.01?
# - Ten times as many steps: does $\beta_2 = 0.999$ come into its own?
