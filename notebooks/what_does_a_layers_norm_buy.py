# %% [markdown]
# # What does a layer's norm buy?
#
# Adam keeps a second moment for every parameter. NovoGrad
# ([Ginsburg et al., 2019](https://arxiv.org/abs/1905.11286)) keeps one for every *layer*: a
# running average $v_t$ of the squared norm of the layer's gradient $g_t$. It divides the gradient
# by $\sqrt{v_t}$ and hands the quotient $x_t$ to momentum:
#
# $$
# \begin{aligned}
# v_1 &= \|g_1\|^2, & v_t &= \beta_2 v_{t-1} + (1 - \beta_2) \|g_t\|^2, &
# x_t &= \frac{g_t}{\sqrt{v_t} + \varepsilon}, \\
# m_0 &= 0, & m_t &= \beta_1 m_{t-1} + x_t, & p_t &= p_{t-1} - \eta \, m_t .
# \end{aligned}
# $$
#
# Between them, the versions of the paper promise four things for that one number a layer: half of
# Adam's memory, training without warm-up, tolerance of the learning rate, and large batches. This
# page measures all four on a network small enough to be trained many times. Much will hang on
# $\beta_2$, about which implementations disagree.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Markdown, display

import msvag_optax as mo
from msvag_optax.compare import OPTIMIZERS, Outcome, train
from msvag_optax.problems.digits import Perceptron, digits

plt.style.use("msvag_optax.compare.figures")

# %% [markdown]
# ## Settings

# %%
# The task: scikit-learn's digits
HIDDEN = (32,) * 4  # four hidden layers without normalization, so that scale is a problem
IMAGES = 38_400  # that each run sees, whatever the batch size
BATCH = 64  # where the batch size is not what is studied
BATCHES = (16, 64, 256, 1024)  # where it is, up to most of the training images at once

# The runs
SEEDS = 5  # each draws a starting point and mini-batches, the same for all optimizers
RATES = np.geomspace(1e-3, 1, 10)  # three decades, three rates in each
WARM_UP = 0.1  # the share of the steps over which the rate rises, in runs with warm-up

# What implementations of NovoGrad take for b2 unless told otherwise
B2_OPTAX = 0.25
B2_AUTHORS = 0.98  # OpenSeq2Seq, the authors' own code
B2_ADDONS = 0.999  # tensorflow-addons, and this library after it
B2 = B2_OPTAX  # where nothing else is said; the figures below show why

# What counts as trained
POINTS = 0.02  # of test accuracy: what a usable rate may lose to the best of all runs
FACTOR = 10  # or, judged by the train loss: how far it may be above the least

# %% tags=["hide-input"]
STEPS = IMAGES // BATCH
problem = digits(Perceptron(HIDDEN), BATCH)


def table(header: list[str], rows: list[list[str]]) -> Markdown:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))


# %% [markdown]
# ## Half of the state
#
# `jax.eval_shape` tells what `tx.init` would return without allocating it, so the state can be
# measured for real trees of parameters that are nothing but shapes: a ResNet-50 and the small
# GPT-2 (folded away below), beside the network of this page.

# %% tags=["hide-input"]


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def dense(inputs: int, outputs: int) -> dict:
    return {"kernel": array(inputs, outputs), "bias": array(outputs)}


def norm(width: int) -> dict:
    return {"scale": array(width), "bias": array(width)}


def convolution(size: int, inputs: int, outputs: int) -> dict:
    return {"kernel": array(size, size, inputs, outputs), "norm": norm(outputs)}


def resnet50() -> dict:
    tree, inputs = {"stem": convolution(7, 3, 64)}, 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            tree[f"stage_{stage}/block_{block}"] = {
                "reduce": convolution(1, inputs, width),
                "mix": convolution(3, width, width),
                "expand": convolution(1, width, 4 * width),
            } | ({} if block else {"shortcut": convolution(1, inputs, 4 * width)})
            inputs = 4 * width
    return tree | {"head": dense(inputs, 1000)}


def gpt2(layers: int = 12, width: int = 768, vocabulary: int = 50_257, context: int = 1024) -> dict:
    block = {
        "attention_norm": norm(width),
        "queries_keys_values": dense(width, 3 * width),
        "attention_out": dense(width, width),
        "mlp_norm": norm(width),
        "mlp_in": dense(width, 4 * width),
        "mlp_out": dense(4 * width, width),
    }
    embeddings = {"tokens": array(vocabulary, width), "positions": array(context, width)}
    return embeddings | {f"block_{i}": block for i in range(layers)} | {"norm": norm(width)}


# %%
def size_in_bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def state_bytes(tx: optax.GradientTransformation, params) -> int:
    return size_in_bytes(jax.eval_shape(tx.init, params))


trees = {
    "digits": jax.eval_shape(problem.init, jax.random.key(0)),
    "ResNet-50": resnet50(),
    "GPT-2, small": gpt2(),
}
keepers = {
    "SGD with momentum": optax.sgd(0.1, momentum=0.9),
    "NovoGrad": mo.novograd(0.1),
    "NovoGrad, `mu_dtype=bfloat16`": mo.novograd(0.1, mu_dtype=jnp.bfloat16),
    "AdamW": mo.adamw(0.1),
    "AMSGrad": mo.amsgrad(0.1),
}
counts = {
    "parameters": lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree)),
    "arrays, each a layer to NovoGrad": lambda tree: len(jax.tree.leaves(tree)),
}
rows = [[name, *(f"{count(tree):,}" for tree in trees.values())] for name, count in counts.items()]
rows += [
    [f"{name}, kB", *(f"{state_bytes(tx, tree) / 1e3:,.0f}" for tree in trees.values())]
    for name, tx in keepers.items()
]
display(table(["", *trees], rows))

# %% tags=["remove-input"]
state_ratio = [
    state_bytes(keepers["NovoGrad"], tree) / state_bytes(keepers["AdamW"], tree)
    for tree in trees.values()
]
# Parameters and gradients have to be kept too, by every optimizer.
whole_ratio = [
    (2 * size_in_bytes(tree) + state_bytes(keepers["NovoGrad"], tree))
    / (2 * size_in_bytes(tree) + state_bytes(keepers["AdamW"], tree))
    for tree in trees.values()
]
assert max(state_ratio) < 0.502
display(
    Markdown(
        f"NovoGrad's state is at most {max(state_ratio):.3f} of AdamW's: that promise is "
        "arithmetic, and kept. Parameters and gradients need memory as well; with them the saving "
        f"is {1 - max(whole_ratio):.0%} and not half, before activations are counted."
    )
)

# %% [markdown]
# ## A step whose length is known
#
# What is the norm good for, besides being small to store? Every layer's $x_t$ is *about* as long as
# 1, so that the rate says how far a layer moves. The first step shows it in full: here is its
# length for every kernel of the network, over the learning rate.


# %%
def kernel_lengths(tree) -> dict[str, jax.Array]:
    return {name: jnp.linalg.norm(layer["kernel"]) for name, layer in tree.items()}


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
    first_steps[name] = kernel_lengths(jax.jit(tx.update)(gradient, tx.init(start), start)[0])
display(
    table(
        ["kernel", "parameters", *(f"{name}: length of step 1" for name in steppers)],
        [
            [layer, f"{start[layer]['kernel'].size:,}"]
            + [f"{steps[layer]:.3g}" for steps in first_steps.values()]
            for layer in start
        ],
    )
)

# %% [markdown]
# SGD's step is as long as the gradient. Adam moves every *parameter* by the rate, hence a layer by
# the rate times the root of its size (a little less here, as some gradients are 0). NovoGrad moves
# every *layer* by the rate, and leaves the proportions within the layer to the gradient.
#
# The scale of the loss drops out of NovoGrad and Adam, up to $\varepsilon$. Below, the same thirty
# steps are taken with the loss as it is and with the loss times 1000. How far apart do the two runs
# end, as a share of the way gone?


# %%
def end_points(tx: optax.GradientTransformation, scales: list[float], steps: int = 30):
    """The parameters after some steps, one run for each factor of the gradient."""

    def run(key: jax.Array, scale: jax.Array):
        def step(carry, t):
            params, state = carry
            gradient = problem.value_and_grad(params, t, jax.random.fold_in(key, t + 1))[1]
            scaled = jax.tree.map(lambda g: scale * g, gradient)
            updates, state = tx.update(scaled, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = problem.init(jax.random.fold_in(key, 0))
        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[0][0]

    ends = jax.jit(jax.vmap(run, in_axes=(None, 0)))(key, jnp.asarray(scales))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], ends) for i in range(len(scales))]


def distance(a, b) -> float:
    return float(optax.tree.norm(optax.tree.sub(a, b)))


apart, rows = {}, []
for name, rate in {"SGD": 0.02, "NovoGrad": 0.02, "AdamW": 0.01}.items():
    once, thousandfold = end_points(steppers[name](rate), [1.0, 1000.0])
    apart[name] = distance(once, thousandfold) / distance(once, start)
    rows.append([name, f"{apart[name]:.1e}" if np.isfinite(apart[name]) else "one diverges"])
display(table(["loss as it is, and times 1000", "apart by"], rows))
assert apart["NovoGrad"] < 1e-3 < 1e-2 < apart["AdamW"]
assert not np.isfinite(apart["SGD"]) or apart["SGD"] > 1

# %% tags=["remove-input"]
elements = np.concatenate([np.abs(leaf).ravel() for leaf in jax.tree.leaves(gradient)])
tiny = np.mean((elements > 0) & (elements < 100 * 1e-8))
least_norm = min(float(length) for length in kernel_lengths(gradient).values())
display(
    Markdown(
        f"""NovoGrad takes the same steps. So would Adam, were it not for $\\varepsilon$, which is
$10^{{-8}}$: {tiny:.1%} of the parameters have a first gradient that is not zero but smaller than a
hundred times that. There the scale of the loss still decides, and the run amplifies the difference.
Norms are never that small: the least of a kernel's is {least_norm:.2f}."""
    )
)

# %% [markdown]
# ### *About* as long as 1
#
# $v_t$ contains $(1 - \beta_2) \|g_t\|^2$, so $x_t$ is never longer than
# $1 / \sqrt{1 - \beta_2}$ (after the first step, where it is 1). That is a tight promise if
# $\beta_2$ is small, and an empty one if it is near 1. Which is it in practice? On the left are the
# norms of the gradients in a run of NovoGrad, one line a kernel; on the right, the longest $x_t$ of
# any kernel if these same gradients are normalized under the three $\beta_2$ that
# implementations default to. The thin lines are the bounds.

# %%
B2_STYLES = {  # one green, from dark to light
    B2_OPTAX: {"color": "#00543d", "linestyle": "-", "marker": "o"},
    B2_AUTHORS: {"color": OPTIMIZERS["novograd"].colour, "linestyle": "--", "marker": "s"},
    B2_ADDONS: {"color": "#66c2a5", "linestyle": "-.", "marker": "^"},
}
FIRST_STEPS = 100


def lengths_along_a_run(tx: optax.GradientTransformation, normalizations: dict):
    """The lengths of every kernel's gradient, raw and normalized in several ways, at each step."""

    def run(key: jax.Array):
        def step(carry, t):
            params, state, states = carry
            gradient = problem.value_and_grad(params, t, jax.random.fold_in(key, t + 1))[1]
            normalized = {}
            for b2, normalize in normalizations.items():
                normalized[b2], states[b2] = normalize.update(gradient, states[b2])
            seen = (
                kernel_lengths(gradient),
                jax.tree.map(kernel_lengths, normalized, is_leaf=lambda node: "Dense_0" in node),
            )
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state, states), seen

        params = problem.init(jax.random.fold_in(key, 0))
        states = {b2: normalize.init(params) for b2, normalize in normalizations.items()}
        return jax.lax.scan(step, (params, tx.init(params), states), jnp.arange(FIRST_STEPS))[1]

    return jax.jit(run)(key)


normalizations = {
    b2: mo.from_estimates(
        mo.over_rms(1e-7),
        second_moment=mo.running_average(mo.exponential_from_first(b2), of=mo.layer_square_norm()),
    )
    for b2 in B2_STYLES
}
raw, normalized = lengths_along_a_run(mo.novograd(0.05, b2=B2), normalizations)
growth = max(float(lengths.max() / lengths[0]) for lengths in raw.values())
longest = {b2: np.max(list(kernels.values()), axis=0) for b2, kernels in normalized.items()}

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
steps = np.arange(1, FIRST_STEPS + 1)
for i, (name, lengths) in enumerate(raw.items()):
    left.plot(steps, lengths, color=plt.cm.viridis(i / 5), label=name)
left.set(title="The gradient of each kernel", ylabel=r"length of $g_t$")
left.legend(loc="lower right", ncols=2)
for b2, style in B2_STYLES.items():
    right.plot(steps, longest[b2], **(style | {"marker": ""}))
    bound = (1 - b2) ** -0.5
    right.axhline(bound, color=style["color"], linestyle=style["linestyle"], linewidth=0.8)
    right.annotate(
        f"$\\beta_2$ = {b2}:\nat most {bound:.3g}",
        (1.01, bound),
        xycoords=("axes fraction", "data"),
        verticalalignment="center",
    )
right.set(title="The longest normalized gradient", ylabel=r"length of $x_t$", ylim=(0.3, 60))
for axes in (left, right):
    axes.set(yscale="log", xlabel="step")

# %% tags=["remove-input"]
assert longest[B2_OPTAX].max() < 1.2 < 3 < longest[B2_AUTHORS].max() < 8 < longest[B2_ADDONS].max()
display(
    Markdown(
        f"""The gradients of this network *grow* by a factor of up to {growth:.0f} within its first
steps, and an average that began with the small first ones takes about $1 / (1 - \\beta_2)$ steps
to notice. Meanwhile steps are up to {longest[B2_ADDONS].max():.0f} times longer than the rate at
$\\beta_2 = {B2_ADDONS}$, {longest[B2_AUTHORS].max():.1f} times at {B2_AUTHORS}, and
{longest[B2_OPTAX].max():.2f} times at {B2_OPTAX}. The default of this library is
{B2_ADDONS}, as in tensorflow-addons."""
    )
)

# %% [markdown]
# ## Three decades of learning rates, with and without warm-up
#
# Every optimizer is trained at all of `RATES`. The rate falls to zero along half a cosine, as
# NovoGrad's steps do not get shorter by themselves; with warm-up it first rises linearly. Weight
# decay is off.
#
# The figure shows what remains at the end: the loss over all training images on the left, the
# share of test images misread on the right. Low is good, and a wide valley is easy to tune.


# %%
def schedule(steps: int, warm_up: bool) -> optax.Schedule:
    """What the rate is multiplied by: from 1 to 0, or from nearly 0 to 1 to 0."""
    if not warm_up:
        return optax.cosine_decay_schedule(1.0, steps)
    rise = int(WARM_UP * steps)
    return optax.warmup_cosine_decay_schedule(1 / rise, 1.0, rise, steps)


def outcome(make, *, task=problem, steps=STEPS, shape=None, rates=RATES) -> Outcome:
    shape = schedule(steps, warm_up=False) if shape is None else shape
    return train(
        task,
        lambda rate: make(lambda count: rate * shape(count)),
        rates,
        steps=steps,
        seeds=SEEDS,
        measurements=1,  # at the end
    )


makers = {
    **{f"NovoGrad, b2 = {b2}": lambda rate, b2=b2: mo.novograd(rate, b2=b2) for b2 in B2_STYLES},
    "AdamW": lambda rate: mo.adamw(rate, weight_decay=0.0),
    "SGD": lambda rate: optax.sgd(rate, momentum=0.9),
}
MAIN = f"NovoGrad, b2 = {B2}"
styles = {
    **{f"NovoGrad, b2 = {b2}": style for b2, style in B2_STYLES.items()},
    "AdamW": {"color": OPTIMIZERS["adamw"].colour, "linestyle": "-", "marker": "D"},
    "SGD": {"color": OPTIMIZERS["sgd"].colour, "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
}
cold = {name: outcome(make) for name, make in makers.items()}
warm = {name: outcome(make, shape=schedule(STEPS, warm_up=True)) for name, make in makers.items()}


# %% tags=["hide-input"]
def final_loss(outcome: Outcome) -> np.ndarray:
    """Of shape (seeds, rates); a run that has diverged has lost everything."""
    return np.nan_to_num(outcome.history["train loss"][-1], nan=np.inf)


def final_error(outcome: Outcome) -> np.ndarray:
    """The share of test images misread, of shape (seeds, rates)."""
    return 1 - outcome.history["test accuracy"][-1]


def draw(axes, outcome: Outcome, values: np.ndarray, label: str, **style):
    style = {"markersize": 4} | style
    axes.plot(outcome.rates, np.median(values, axis=0), label=label, **style)
    axes.fill_between(
        outcome.rates, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15
    )


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4))
for name, result in cold.items():
    draw(left, result, final_loss(result), name, **styles[name])
    draw(right, result, final_error(result), name, **styles[name])
left.set(title="Train loss at the end", ylabel="nats", ylim=(3e-4, 5))
right.set(title="Test images misread at the end", ylabel="share")
for axes in (left, right):
    axes.set(xscale="log", yscale="log", xlabel="learning rate")
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
_ = figure.suptitle(f"Without warm-up (median over {SEEDS} seeds; band: least to greatest)")

# %% [markdown]
# How wide are the valleys, and does warm-up widen them? A rate is *usable* here if at most two
# images in a hundred more are misread than by the best of all runs. The bars span the usable
# rates, medians over the seeds; a black line shows how far the right end varies from seed to seed,
# and a dot is the rate of the least train loss. Look at the right ends, which warm-up moves.


# %% tags=["hide-input"]
def valley(rates: np.ndarray, values: np.ndarray, limit: float) -> tuple[float, float]:
    """The lowest and the highest rate around the best whose value, interpolated, is in the limit.

    On logarithmic axes, between the rates of the grid.
    """
    x, excess = np.log(rates), np.log(np.clip(values, 1e-9, 1e9)) - np.log(limit)
    best = int(np.argmin(excess))
    if excess[best] > 0:
        return rates[best], rates[best]
    low = high = best
    while low > 0 and excess[low - 1] <= 0:
        low -= 1
    while high < len(x) - 1 and excess[high + 1] <= 0:
        high += 1

    def crossing(inside: int, outside: int) -> float:
        if not 0 <= outside < len(x):
            return float(rates[inside])
        share = excess[inside] / (excess[inside] - excess[outside])
        return float(np.exp(x[inside] + share * (x[outside] - x[inside])))

    return crossing(low, low - 1), crossing(high, high + 1)


def decades(ends: tuple[float, float]) -> float:
    return float(np.log10(ends[1] / ends[0]))


def median_and_range(values, spec: str) -> str:
    return f"{np.median(values):{spec}} ({np.min(values):{spec}} to {np.max(values):{spec}})"


least_error = min(np.median(final_error(result), axis=0).min() for result in cold.values())


def usable(outcome: Outcome) -> list[tuple[float, float]]:
    """The ends of the valley, for each seed."""
    return [valley(outcome.rates, e, least_error + POINTS) for e in final_error(outcome)]


def middle(ends: list[tuple[float, float]]) -> tuple[float, float]:
    low, high = np.median(ends, axis=0)
    return low, high


figure, axes = plt.subplots(figsize=(10, 3.4))
for row, name in enumerate(makers):
    for results, height, alpha, hatch in ((cold, -0.19, 1.0, ""), (warm, 0.19, 0.45, "////")):
        low, high = middle(usable(results[name]))
        best = results[name].rates[results[name].best("train loss")]
        y, colour = row + height, styles[name]["color"]
        axes.barh(
            y, high - low, 0.34, low, color=colour, alpha=alpha, hatch=hatch, edgecolor="white"
        )
        axes.plot(best, y, "o", color="white", markeredgecolor="black", markersize=6)
        tips = [high for _, high in usable(results[name])]
        axes.plot([min(tips), max(tips)], [y, y], color="black", linewidth=1.2)
axes.set(
    title="Usable rates: without warm-up (plain) and with (hatched)",
    xscale="log",
    xlabel="learning rate",
    xlim=(RATES[0], RATES[-1]),
    yticks=range(len(makers)),
)
axes.set_yticklabels(makers)
axes.invert_yaxis()
axes.grid(visible=False, axis="y")

# %% tags=["hide-input"]
rows, widths, edge_gains, best_gains = [], {}, {}, {}
for name, result in cold.items():
    widths[name] = [decades(ends) for ends in usable(result)]
    by_loss = [
        decades(valley(result.rates, losses, FACTOR * np.median(final_loss(result), axis=0).min()))
        for losses in final_loss(result)
    ]
    edge_gains[name] = [
        with_it[1] / without[1]
        for with_it, without in zip(usable(warm[name]), usable(result), strict=True)
    ]
    best, best_warm = result.best("train loss"), warm[name].best("train loss")
    best_gains[name] = final_loss(result)[:, best] / final_loss(warm[name])[:, best_warm]
    rows.append(
        [
            name,
            f"{result.rates[best]:.2g}",
            median_and_range(1e3 * final_loss(result)[:, best], ".1f"),
            median_and_range(1e3 * final_loss(warm[name])[:, best_warm], ".1f"),
            median_and_range(widths[name], ".2f"),
            median_and_range(by_loss, ".2f"),
            median_and_range(edge_gains[name], ".2f"),
        ]
    )
display(
    table(
        [
            "",
            "best rate",
            "loss there, 0.001 nats",
            "with warm-up",
            "usable, decades",
            f"loss within {FACTOR} times the least, decades",
            "warm-up moves the right end by a factor of",
        ],
        rows,
    )
)

# %% [markdown]
# ### Which memory?
#
# The three greens differ in $\beta_2$ alone. The longer the memory, the earlier a run without
# warm-up fails at large rates: those are the overlong first steps of the first figure. From here
# on $\beta_2$ is 0.25, a choice for runs of hundreds of steps, made in view of these very results.
# To be fair to Adam, its $\beta_2$ should have the same freedom:

# %%
adam_98 = outcome(lambda rate: mo.adamw(rate, b2=B2_AUTHORS, weight_decay=0.0))
adam_98_widths = [decades(ends) for ends in usable(adam_98)]

# %% tags=["remove-input"]
assert abs(np.median(adam_98_widths) - np.median(widths["AdamW"])) < 0.25
display(
    Markdown(
        f"With a $\\beta_2$ of {B2_AUTHORS} instead of 0.999, AdamW's usable rates span "
        f"{median_and_range(adam_98_widths, '.2f')} decades instead of "
        f"{median_and_range(widths['AdamW'], '.2f')}: it does not matter here."
    )
)

# %% [markdown]
# ## Larger batches, fewer steps
#
# Now every run sees the same number of images, in batches of different size: a batch four times as
# large leaves a fourth of the steps. From left to right: how the best rate moves, what is reached
# with it, and what is reached by one who stays at the rate that was best for the smallest batch.

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

figure, panels = plt.subplots(1, 3, figsize=(10, 3.9))
for name in compared:
    style = styles[name] | {"markersize": 5}
    panels[0].plot(BATCHES, best_rates[name], label=name, **style)
    for axes, losses in ((panels[1], at_best[name]), (panels[2], at_fixed[name])):
        axes.plot(BATCHES, np.median(losses, axis=1), **style)
        axes.fill_between(
            BATCHES, losses.min(axis=1), losses.max(axis=1), color=style["color"], alpha=0.15
        )
panels[0].set(title="The best rate", ylabel="learning rate")
panels[1].set(title="Train loss at the best rate", ylabel="nats", ylim=(5e-4, 4))
panels[2].set(title=f"... at the best rate for {BATCHES[0]}", ylabel="nats", ylim=(5e-4, 4))
for axes in panels:
    axes.set(xscale="log", yscale="log", xlabel="batch size", xticks=BATCHES)
    axes.set_xticklabels(BATCHES)
    axes.minorticks_off()
_ = figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

# %% [markdown]
# ## Two modes, and steps that do not shrink
#
# `grad_averaging` makes momentum a mean, so that every $x_t$ after the first counts for
# $1 - \beta_1$, a tenth, and the rate has to be ten times larger. The first, $x_1$, still counts in
# full: at the tenfold rate that makes a first step ten times as long. `amsgrad` divides by the
# largest $\sqrt{v_t}$ so far; steps get shorter as gradients do. Otherwise they stay about as long
# as the rate to the very end, which is why a rate that falls is part of the recipe.
#
# On the left the rate falls to zero, as before: compare where the valleys lie, and how deep they
# are. On the right it is constant: compare the depths.


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
    "grad_averaging, warm-up": outcome(
        averaging, rates=10 * RATES, shape=schedule(STEPS, warm_up=True)
    ),
    "amsgrad": outcome(holding_maximum),
}
constant_rate = {
    "NovoGrad": outcome(makers[MAIN], shape=constant),
    "amsgrad": outcome(holding_maximum, shape=constant),
    long_memory: outcome(makers[long_memory], shape=constant),
}
# %% tags=["hide-input"]
mode_styles = {
    "NovoGrad": styles[MAIN],
    "grad_averaging": {"color": "#7b3294", "linestyle": "-", "marker": "P"},
    "grad_averaging, warm-up": {"color": "#7b3294", "linestyle": ":", "marker": "X"},
    "amsgrad": {"color": OPTIMIZERS["amsgrad"].colour, "linestyle": "--", "marker": "d"},
    long_memory: styles[long_memory],
}

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
for axes, results in ((left, falling_rate), (right, constant_rate)):
    for name, result in results.items():
        draw(axes, result, final_loss(result), name, **mode_styles[name])
    axes.set(xscale="log", yscale="log", xlabel="learning rate")
    axes.legend(loc="lower left")
left.set(title="The rate falls to zero", ylabel="train loss at the end, nats", ylim=(1e-4, 5))
_ = right.set(title="The rate is constant")

# %% [markdown]
# ## Two pitfalls
#
# A *layer* is an array of the tree. Models that scan over their layers keep all of them in one
# array, whose rows would share a norm; `stacked` gives each row its own. And a layer whose first
# gradient is zero or tiny begins with $v_1 \approx 0$: its next step may be as long as the bound
# allows. Where it is exactly zero, an average that counts nonzero gradients only is the cure.

# %%
two_layers = {"blocks": jnp.stack([jnp.ones(16), 1e-3 * jnp.ones(16)])}  # one loud, one quiet


def row_lengths(tx: optax.GradientTransformation) -> jax.Array:
    updates, _ = tx.update(two_layers, tx.init(two_layers), two_layers)
    return jnp.linalg.norm(updates["blocks"], axis=1)


together = row_lengths(mo.novograd(1.0))
each_its_own = row_lengths(mo.novograd(1.0, stacked=["blocks"]))


def second_length(first: float, b2: float, **options) -> float:
    """How long $x_2$ is if the gradients' lengths are `first` and 1."""
    normalize = mo.from_estimates(
        mo.over_rms(1e-7),
        second_moment=mo.running_average(
            mo.exponential_from_first(b2), of=mo.layer_square_norm(), **options
        ),
    )
    state = normalize.init(jnp.zeros(1))
    _, state = normalize.update(jnp.asarray([first]), state)
    return float(normalize.update(jnp.ones(1), state)[0][0])


display(
    table(
        ["step over rate", "loud layer", "quiet layer"],
        [
            ["two layers in one array", *(f"{length:.3g}" for length in together)],
            ["the same, `stacked`", *(f"{length:.3g}" for length in each_its_own)],
        ],
    )
)
display(
    table(
        ["second step over rate, after a first gradient of", *(f"b2 = {b2}" for b2 in B2_STYLES)],
        [
            [label, *(f"{second_length(first, b2, **options):.3g}" for b2 in B2_STYLES)]
            for label, first, options in (
                ("1, as long as the second", 1.0, {}),
                ("0.000001", 1e-6, {}),
                ("0", 0.0, {}),
                ("0, with `count_nonzero=True`", 0.0, {"count_nonzero": True}),
            )
        ],
    )
)

# %% tags=["hide-input"]
right_ends = {name: [high for _, high in usable(result)] for name, result in cold.items()}
by_memory = [np.median(right_ends[f"NovoGrad, b2 = {b2}"]) for b2 in B2_STYLES]


def overlap(a, b) -> bool:
    """Whether the ranges over the seeds have a point in common."""
    return bool(np.min(a) <= np.max(b) and np.min(b) <= np.max(a))


def least_losses(outcome: Outcome) -> np.ndarray:
    """The train loss of each seed at the best rate."""
    return final_loss(outcome)[:, outcome.best("train loss")]


# No valley is cut off by the grid.
assert all(
    RATES[0] < low and high < RATES[-1]
    for result in (*cold.values(), *warm.values())
    for low, high in usable(result)
)
# Memory decides how large a rate may be, and what warm-up is worth.
assert by_memory[0] > 1.3 * by_memory[1] > 1.3**2 * by_memory[2]
assert np.median(edge_gains[MAIN]) < 1.3 < 1.5 < np.median(edge_gains[long_memory])
# At the edge of divergence a last digit decides which rate of the grid still trains AdamW.
assert np.median(edge_gains["AdamW"]) > 1.2
# At their own best rates, none needs a warm-up.
assert all(overlap(least_losses(cold[name]), least_losses(warm[name])) for name in makers)
# Rates: AdamW tolerates most.
assert np.median(widths["AdamW"]) > np.median(widths[MAIN]) + 0.15
# Batches: level with AdamW, ahead of SGD where batches are large.
for size in (256, 1024):
    losses = {name: at_best[name][BATCHES.index(size)] for name in compared}
    assert np.median(losses["SGD"]) > 1.5 * np.median(losses[MAIN])
    assert 0.3 < np.median(losses[MAIN]) / np.median(losses["AdamW"]) < 3
assert np.median(at_fixed["AdamW"][-1]) < np.median(at_fixed[MAIN][-1]) < at_fixed["SGD"][-1].min()
# Modes.
mean_warm = least_losses(falling_rate["grad_averaging, warm-up"])
mean_cold = least_losses(falling_rate["grad_averaging"])
assert overlap(mean_warm, least_losses(warm[MAIN]))
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


def factor(name: str) -> str:
    return median_and_range(edge_gains[name], ".2f")


def width(name: str) -> str:
    return median_and_range(widths[name], ".2f")


display(
    Markdown(
        f"""
Medians over {SEEDS} seeds, in brackets the range over the seeds; one small network, one data set.

- **Half of Adam's state: yes.** At most {max(state_ratio):.3f} of it in the trees above.
- **No warm-up: yes, if $\\beta_2$ is small.** Warm-up moves the largest usable rate by a factor of
  {factor(MAIN)} at $\\beta_2 = {B2}$, but by {factor(long_memory)} at {B2_ADDONS}, where the long
  memory makes the first steps up to {longest[B2_ADDONS].max():.0f} times too long. It moves AdamW's
  by {factor("AdamW")}. At its own best rate, however, *no* optimizer here, AdamW included, gains
  more by warm-up than its seeds differ.
- **Tolerance of the rate: not more than Adam's.** Usable rates span {width(MAIN)} decades for
  NovoGrad, {width("AdamW")} for AdamW and {width("SGD")} for SGD. Judged by the train loss, in the
  last column but one of the table, the three are closer still. What the norm does buy is a valley
  that stays where it is when the loss is scaled, which SGD's does not.
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
)

# %% [markdown]
# ## Try next
#
# - Multiply the initial kernels by 1/4 and by 4 (`problem._replace(init=...)`): whose valley moves?
# - Switch weight decay on. It joins NovoGrad's momentum, beside an $x_t$ of length 1: what decay
#   corresponds to AdamW's 0.01?
# - Ten times as many steps: does $\beta_2 = 0.999$ come into its own?
#
# Used here: `novograd`, `adamw`, `from_estimates`, `over_rms`, `running_average`,
# `exponential_from_first`, `layer_square_norm`; `compare.train` and `problems.digits`.
