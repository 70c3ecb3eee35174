# %% [markdown]
# # What is in Adam?
#
# A sign, and a factor that adapts to the variance: each can be used without the other. The sign
# wins on ill-conditioned bowls whose noise has the shape of their curvature and whose axes are
# those of the parameters; the factor helps the sign more than the gradient, and a falling rate does
# part of its work.
#
# ![Eight panels of the expected loss against the steps, for momentum SGD, M-SVAG, M-SSD and Adam.
# Under even noise, and in rotated bowls, all four end close together. Under curved noise along the
# axes, Adam ends lowest, and at condition 1,000 the two signs end far below the
# rest.](images/what_is_in_adam.png)

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
# Balles and Hennig take Adam apart in *Dissecting Adam* ([arXiv
# 1705.07774](https://arxiv.org/abs/1705.07774)). With $m$ the mean of the gradients, $s$ their
# biased variance, and $v = m^2 + s$ their second moment, Adam's direction is
#
# $$
# \frac{m}{\sqrt v} = \mathrm{sign}(m) \cdot \sqrt{\frac{m^2}{m^2 + s}},
# $$
#
# the *sign* of the mean, times a factor that *adapts to the variance*. With and without each, that
# makes four optimizers. The paper's theory says when a sign is a better direction than the gradient
# itself (on quadratics that are noisy, ill-conditioned and aligned with the axes), and by how much
# a noisy direction should be shortened. We measure the four on noisy quadratics and compare with
# two theories: the paper's, which looks one step ahead, and one that looks ahead to the end.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import erf, erfc

import msvag_optax as mo
from msvag_optax.compare import train
from notebooks.helpers import say, show, table
from notebooks.helpers import what_is_in_adam as helpers
from notebooks.helpers.what_is_in_adam import LABELS, Bowl

# %% [markdown]
# ## Two aspects, four optimizers
#
# `mo.dissection(rate)` holds the four: one average of gradients, read by four formulas. Here they
# are after two gradients. The first parameter has seen 1 and 1, the second 3 and -1: their means
# are nearly the same, but the second is noisy.

# %%
gradients = jnp.asarray([[1.0, 3.0], [1.0, -1.0]])
formulas = {
    "momentum_sgd": "$m$",
    "msvag": r"$m \cdot m^2 / (m^2 + \sigma_m^2)$",
    "m_ssd": r"$\mathrm{sign}(m)$",
    "adam": r"$\mathrm{sign}(m) \cdot \sqrt{m^2 / (m^2 + s)}$",
}


def last_update(tx, gradients):
    state = tx.init(gradients[0])
    for gradient in gradients:
        update, state = tx.update(gradient, state)
    return np.asarray(update)


directions = {name: -last_update(getattr(mo.dissection(1.0), name), gradients) for name in LABELS}
second_moment = last_update(mo.running_average(mo.exponential(0.9), of=mo.square), gradients)
shrinkage = np.sqrt(directions["momentum_sgd"] ** 2 / second_moment)
np.testing.assert_allclose(directions["adam"], directions["m_ssd"] * shrinkage, rtol=1e-6)
table(
    ["", "direction", "after 1, 1", "after 3, -1"],
    [
        [LABELS[name], formulas[name], f"{calm:.2f}", f"{noisy:.2f}"]
        for name, (calm, noisy) in directions.items()
    ],
)

# %% [markdown]
# ## The bowls and their noise
#
# The loss is $\frac12 x^\top Q x$ in a hundred dimensions; the gradient that an optimizer sees is
# $Qx$ plus Gaussian noise. The shape of that noise matters more than anything else here:
#
# * **even** noise, as in `noisy_quadratic`: $\mathcal N(0, \sigma^2 I)$, the same in all
#   directions. Steep directions have a clear gradient, flat ones drown.
# * **curved** noise, as in the paper: every step sees a bowl of the same shape whose bottom is
#   displaced at random by $\mathcal N(0, \sigma^2 I)$, as if it were another part of the data. The
#   gradient's noise is then $\mathcal N(0, \sigma^2 Q^2)$, largest where the bowl is steepest.
#
# The paper has curved noise, eigenvalues that are evenly mixed (or many small and a few large), two
# optimizers without momentum (sign and gradient), and at each step the best rate from the exact
# gradient. We add even noise and momentum, space the eigenvalues evenly in the logarithm, and tune
# rates that fall to 0. All four work element by element, so all bowls can be rows of one array, and
# one call of `train` runs all bowls, rates and seeds of an optimizer. The peak of the rate is the
# one with the lowest final loss, averaged over the seeds, for each optimizer and each bowl. (A sign
# never gets shorter by itself; runs at a constant rate come later.)

# %%
conditions = (1, 30, 1_000)  # the largest eigenvalue, which is 1, over the smallest
noises = (0.1, 0.3, 1.0)  # sigma; starting points are standard normal
steps = 500
seeds = 5  # each draws a starting point and all the noise, the same for every optimizer
beta = 0.9  # the decay of the mean, Adam's default
gradient_rates = 2.0 ** np.arange(-8, 6)  # so wide that no best rate is at an edge
sign_rates = 2.0 ** np.arange(-10, -1)

# With all eigenvalues 1, curved noise is even, and a rotation changes nothing.
bowls = [Bowl(1, noise, False, False) for noise in noises] + [
    Bowl(condition, noise, curved, rotated)
    for condition in conditions[1:]
    for rotated in (False, True)
    for curved in (False, True)
    for noise in noises
]
all_bowls = helpers.side_by_side(bowls)


def run(name: str, decay: float = beta, *, falling: bool = True):
    def build(rate):
        schedule = optax.linear_schedule(rate, 0.0, steps) if falling else rate
        return getattr(mo.dissection(schedule, decay), name)

    rates = gradient_rates if name in ("momentum_sgd", "msvag") else sign_rates
    return train(all_bowls, build, rates, steps=steps, seeds=seeds, name=name)


falling = {name: run(name) for name in LABELS}
constant = {name: run(name, falling=False) for name in LABELS}
no_momentum = {name: run(name, decay=0.0) for name in ("momentum_sgd", "m_ssd")}


def tuned(outcome, bowl: Bowl) -> np.ndarray:
    """The expected loss at the best rate, of shape (times, seeds)."""
    best = outcome.best(str(bowl))
    assert 0 < best < len(outcome.rates) - 1, "the best rate is at an edge of the grid"
    return outcome.history[str(bowl)][:, :, best]


def gain(loser, winner) -> dict[Bowl, np.ndarray]:
    """How many times lower the winner's final loss is, for each bowl and seed."""
    return {bowl: tuned(loser, bowl)[-1] / tuned(winner, bowl)[-1] for bowl in bowls}


# %% [markdown]
# Compare two pairs of lines in each panel: momentum SGD and M-SVAG follow the gradient's magnitude,
# M-SSD and Adam its sign. Only in the lower row, along the axes, do signs come out ahead: Adam in
# both bowls, M-SSD at condition 1,000.

# %% tags=["hide-input", "answer"]
show(
    helpers.histories(falling, tuned, noises[1], conditions[1:]),
    "With curved noise along the axes, Adam ends lowest, at condition 1,000 by far and with M-SSD "
    "next to it; in the other six panels the four end close together.",
)

# %% [markdown]
# ## What a rotation does
#
# Momentum SGD alone does not notice: rotate the gradients, and its direction is rotated with them.
# The others work element by element, and a rotation changes what an element is. The table has the
# distance between the direction of the rotated gradients and the rotated direction, after twenty
# noisy gradients, relative to the length of the direction.

# %%
generator = np.random.default_rng(0)
rotation, _ = np.linalg.qr(generator.standard_normal((helpers.DIMENSION, helpers.DIMENSION)))
true_gradient, noise = (generator.standard_normal((n, helpers.DIMENSION)) for n in (1, 20))
off = {}
for name in LABELS:
    tx = getattr(mo.dissection(1.0), name)
    direction = last_update(tx, jnp.asarray(true_gradient + noise))
    of_rotated = last_update(tx, jnp.asarray((true_gradient + noise) @ rotation.T))
    off[name] = np.linalg.norm(of_rotated - rotation @ direction) / np.linalg.norm(direction)
table(["", "relative distance"], [[LABELS[name], f"{value:.1g}"] for name, value in off.items()])
assert off["momentum_sgd"] < 1e-5
assert min(off[name] for name in LABELS if name != "momentum_sgd") > 0.03

by_sgd = {b: tuned(falling["momentum_sgd"], b)[-1] for b in bowls}
turned = [
    np.median(by_sgd[b._replace(rotated=True)]) / np.median(by_sgd[b])
    for b in bowls
    if b.condition > 1 and not b.rotated
]
spread = max(losses.max() / losses.min() for losses in by_sgd.values())
assert 1 / spread < min(turned) < max(turned) < spread
say(
    "In the runs above, rotated bowls start elsewhere. Momentum SGD ends at the same loss up to "
    f"chance, at {min(turned):.2f} to {max(turned):.2f} times that along the axes; seeds of one "
    f"bowl differ by a factor of up to {spread:.1f}."
)

# %% [markdown]
# ## What theory expects
#
# **Of one step.** A step of length $\eta$ along $-z$, where $z$ is made of the noisy gradient,
# lowers the expected loss at the best $\eta$ by
#
# $$
# \mathcal I = \frac{(\nabla^\top \mathrm E[z])^2}{2 \mathrm E[z^\top Q z]}.
# $$
#
# For the gradient, $\mathrm E[z] = \nabla$ and $\mathrm E[z z^\top] = \nabla \nabla^\top + C$, with
# $C$ the covariance of the noise. For the sign,
# $\mathrm E[z_i] = \mathrm{sign}(\nabla_i) (2 P_i - 1)$, where
# $P_i = \tfrac12 + \tfrac12 \mathrm{erf}(|\nabla_i| / (\sqrt 2 \sigma_i))$ is the
# probability that the sign is right; $\mathrm E[z_i z_j]$ is 1 on the diagonal and
# $\mathrm E[z_i] \mathrm E[z_j]$ elsewhere, if the noise of $i$ and $j$ is independent. Only curved
# noise in a rotated bowl is not; there, a few thousand draws replace the formula. (The paper bounds
# the denominator by $\sum_{ij} |q_{ij}|$, which is exact along the axes and needs no noise model,
# but is far too large after a rotation.) The paper also derives the factors that bring a noisy
# direction closest to the noiseless one: $\nabla_i^2 / (\nabla_i^2 + \sigma_i^2)$ for the gradient,
# $2 P_i - 1$ for its sign. They would give the other two optimizers, if these knew the gradient
# and its noise.
#
# **In the end.** Over random starts and noise, the iterate $x$ and the mean $m$ start as centred
# Gaussians. If they remained so, then
#
# $$
# \mathrm E[x \mathrm{sign}(m)] = \sqrt{\frac{2}{\pi}} \frac{\mathrm E[x m]}{\tau}, \qquad
# \tau^2 = \mathrm E[m^2],
# $$
#
# and a sign would act on average like the mean divided by its own root mean square $\tau$, with
# some noise of its own. Along the axes, each eigendirection of $Q$ is a coordinate with a $\tau$ of
# its own. After a rotation, every coordinate mixes all directions, and all have about the same
# $\tau$; to divide all alike is to divide by nothing. That is the whole difference: **own divisors,
# or a shared one.** Near the minimum $\tau$ is the noise. If that is even, the divisors are all
# alike, and there is nothing to win. If it is curved, they are proportional to the eigenvalues, and
# the sign takes something like Newton's step: no condition number is left. For the gradient this
# theory is exact. Both are in `notebooks/helpers/what_is_in_adam.py`.

# %%
starts = generator.standard_normal((seeds, helpers.DIMENSION))


def expected_gain(plain: str, other: str, bowl: Bowl, noise_share: float = 1.0) -> float:
    """How many times more one step is worth to the other, the median over random starts."""
    worth = [helpers.improvements(bowl, x, noise_share, generator) for x in starts]
    return float(np.median([w[other] / w[plain] for w in worth]))


in_one_step = {bowl: expected_gain("momentum_sgd", "m_ssd", bowl) for bowl in bowls}
with np.errstate(over="ignore", invalid="ignore"):
    expected = {
        (bowl, decay, sign): helpers.loss_in_the_end(bowl, rates, decay, steps, sign=sign)
        for bowl in bowls
        for decay in (0.0, beta)
        for sign, rates in ((False, gradient_rates), (True, sign_rates))
    }
in_the_end = {
    decay: {b: expected[b, decay, False] / expected[b, decay, True] for b in bowls}
    for decay in (0.0, beta)
}
by_sign = {  # measured gains of the sign over the gradient: without momentum, and with it
    0.0: gain(no_momentum["momentum_sgd"], no_momentum["m_ssd"]),
    beta: gain(falling["momentum_sgd"], falling["m_ssd"]),
}

# Where there is a formula for the signs, the draws agree with it.
bowl = Bowl(1_000, 1.0, curved=False, rotated=True)
q = helpers.curvature(bowl)
signs = q @ starts[0], helpers.covariance(bowl, q)
by_formula, by_draws = (
    np.sum(q * helpers.products_of_signs(*signs, draws)) for draws in (None, generator)
)
np.testing.assert_allclose(by_draws, by_formula, rtol=0.02)

# %% [markdown]
# Each point is a bowl. To the right are those where theory expects the sign to win, at the top
# those where it did; on the dotted line the two agree. The one-step theory is about optimizers
# without momentum (hollow markers), so the left panel has those alone.

# %% tags=["hide-input"]
show(
    helpers.theory_and_measurement(in_one_step, in_the_end, by_sign),
    "Left, the one-step theory expects no win of the sign, while bowls with curved noise along the "
    "axes are won by factors of up to six. Right, the theory of the end puts nearly all bowls near "
    "the diagonal.",
)

# %% [markdown]
# The one-step theory gets most losers right and misses the winners. It weighs all directions by
# what they contribute to the loss now, and at the start those are mostly the steep ones, with which
# everyone is done soon. What decides in the end is the flat ones, where the sign's own divisors are
# worth most. The theory that goes to the end sees that. It does not see that signs walk at a
# constant pace: what starts far out arrives late, and the iterates do not stay Gaussian.
#
# ## What variance adaptation does
#
# The two adapted optimizers shorten their directions where these are noisy. They do not know the
# gradient and its noise, as the best factors would have to; they read both from the gradients that
# they have seen. The left panel shows what comes of it: dashed, the best factors; solid, what
# M-SVAG and Adam apply on average. The other panels show what it is worth, as measured (solid, the
# median of all bowls, and a dot for each) and as one step from the start would have it, with the
# best factors (dashed).

# %% tags=["hide-input"]
share_of_mean = (1 - beta) / (1 + beta)  # the variance of the mean over that of one gradient
relative_noises = np.geomspace(0.1, 100, 31)
read = helpers.factors_as_read(jax.random.key(0), relative_noises, beta)
best = {
    "adam": erf(1 / (np.sqrt(2 * share_of_mean) * relative_noises)),
    "msvag": 1 / (1 + share_of_mean * relative_noises**2),
}
pairs = {"adam": "m_ssd", "msvag": "momentum_sgd"}  # what each adapted optimizer adapts
adaptation = {
    (kind, name): gain(runs[plain], runs[name])
    for kind, runs in (("constant", constant), ("falling", falling))
    for name, plain in pairs.items()
} | {
    ("expected", name): {b: [expected_gain(plain, name, b, share_of_mean)] for b in bowls}
    for name, plain in pairs.items()
}


def typical_gain(kind, name, noise):
    """The median over the bowls with this noise, of the medians over the seeds."""
    return np.median([np.median(adaptation[kind, name][b]) for b in bowls if b.noise == noise])


show(
    helpers.adaptation(relative_noises, best, read, adaptation, typical_gain, noises, pairs),
    "Left, the best factors fall from 1 to 0 as noise grows; Adam's falls to about 0.2 and "
    "M-SVAG's to about 0.4. Middle, at a constant rate Adam ends well below M-SSD, M-SVAG about "
    "level with momentum SGD. Right, at a falling rate the gain of Adam is smaller.",
)

# %% [markdown]
# Dividing a mean by its root mean square gives a sign its magnitude back wherever noise prevails:
# there Adam is momentum SGD with a divisor for each element. On the way down its factor falls from
# 1 to the value at the right of the left panel, and so its steps get shorter near the minimum. A
# schedule does the same, and leaves the factor less to gain. Where the start is noisy already, the
# factor is small from the beginning and gains least; one step, seen from the start, expects the
# opposite.
#
# M-SVAG's factor cannot fall far. It compares the mean with the mean's own noise, and a mean of
# pure noise is about as large as that. If it knew the variance exactly, its factor would average
# $\mathrm E[z^2 / (z^2 + 1)]$ for a standard normal $z$ there, where the best factor is 0.

# %% tags=["hide-input"]
factor_of_noise = 1 - np.sqrt(np.pi * np.e / 2) * erfc(1 / np.sqrt(2))  # that expectation
assert abs(read["msvag"][-1] - factor_of_noise) < 0.03
assert abs(read["adam"][-1] - np.sqrt(2 * share_of_mean / np.pi)) < 0.03


def medians(gains, kind, condition=None):
    members = [b for b in bowls if b.kind == kind and condition in (None, b.condition)]
    return [float(np.median(gains[b])) for b in members]


def span(values, spec=".2f"):
    return f"{min(values):{spec}} to {max(values):{spec}}"


def typical_error(theory, measured):
    """By what factor theory is off: the root mean square of its logarithm."""
    off = [np.log(theory[b] / np.median(measured[b])) for b in bowls]
    return float(np.exp(np.sqrt(np.mean(np.square(off)))))


by_adam = gain(falling["momentum_sgd"], falling["adam"])
steepest = conditions[-1]
curved_axes, curved_rotated = (True, False), (True, True)
even_noise = [(False, False), (False, True)]
won = [b for b in bowls if b.kind == curved_axes and b.condition == steepest]
even_by_sign = [v for kind in even_noise for v in medians(by_sign[beta], kind)]
even_by_adam = [v for kind in even_noise for v in medians(by_adam, kind)]
least_by_sign = min(by_sign[beta][b].min() for b in won)
least_by_adam = min(by_adam[b].min() for b in won)
exact = {b: expected[b, beta, False] for b in bowls}  # for momentum SGD, theory is exact
error = {
    "one step": typical_error(in_one_step, by_sign[0.0]),
    "no momentum": typical_error(in_the_end[0.0], by_sign[0.0]),
    "momentum": typical_error(in_the_end[beta], by_sign[beta]),
}
overall = {key: np.median([np.median(v) for v in g.values()]) for key, g in adaptation.items()}

assert typical_error(exact, by_sgd) < 1.2
assert least_by_sign > 1.3
assert least_by_adam > 2
assert max(medians(by_sign[beta], curved_rotated)) < 0.95
assert max(medians(by_adam, curved_rotated)) < 1.1
assert max(medians(by_adam, None)) < 0.9
assert max(even_by_sign) < 1.15
assert max(even_by_adam) < 1.15
assert max(in_one_step.values()) < 1.1
assert error["one step"] > 1.5 > error["momentum"] > error["no momentum"]
assert overall["constant", "adam"] > overall["falling", "adam"] > 1.1
assert 0.9 < overall["falling", "msvag"] < 1.1 < overall["constant", "adam"]
for kind in ("constant", "falling"):
    assert typical_gain(kind, "adam", noises[0]) > typical_gain(kind, "adam", noises[-1])
assert typical_gain("expected", "adam", noises[0]) < typical_gain("expected", "adam", noises[-1])

# %% [markdown]
# ## What was measured

# %% tags=["remove-input"]
say(
    f"""
On {len(bowls)} bowls of {helpers.DIMENSION} dimensions, {steps} steps, rates tuned for each
optimizer and bowl. Gains are ratios of final losses: medians over {seeds} seeds, from the least to
the greatest of the bowls.

* **The sign wins where the bowl is ill-conditioned, along the axes, and its noise is curved.** At
  condition {steepest:,}, M-SSD ends {span(medians(by_sign[beta], curved_axes, steepest), ".1f")}
  times lower than momentum SGD, and Adam {span(medians(by_adam, curved_axes, steepest), ".1f")}
  times (in every single seed at least {least_by_sign:.1f} and {least_by_adam:.1f} times). At
  condition {conditions[1]} it takes both aspects: {
        span(medians(by_sign[beta], curved_axes, conditions[1]))
    } times for M-SSD, {span(medians(by_adam, curved_axes, conditions[1]))} for Adam.
* **Elsewhere it is a draw at best.** Rotated, the gain of M-SSD is {
        span(medians(by_sign[beta], curved_rotated))
    }, of Adam {span(medians(by_adam, curved_rotated))}; less than 1 is a loss. With
  even noise it is {span(even_by_sign)} and {span(even_by_adam)}, whatever the condition number and
  the rotation. At condition 1 it is {span(medians(by_sign[beta], None))} and
  {span(medians(by_adam, None))}.
* **One step is too short a view.** The one-step theory never expects more of the sign than
  {max(in_one_step.values()):.2f} times the gradient's improvement, and is off by a factor of
  {error["one step"]:.2f} (root mean square, without momentum). Followed to the end, with one
  divisor for each direction along the axes and a shared one after a rotation, theory is off by
  {error["no momentum"]:.2f}, and with momentum by {error["momentum"]:.2f}.
* **Variance adaptation is worth more to the sign than to the magnitude, and a schedule takes part
  of it over.** In the middle of all bowls, Adam ends {overall["constant", "adam"]:.2f} times lower
  than M-SSD at a constant rate and {overall["falling", "adam"]:.2f} times at a falling one; M-SVAG
  {overall["constant", "msvag"]:.2f} and {overall["falling", "msvag"]:.2f} times lower than momentum
  SGD, the latter within the spread of the bowls around 1. In pure noise M-SVAG's factor is still
  {read["msvag"][-1]:.2f}, Adam's {read["adam"][-1]:.2f}.

So the paper's three conditions hold here, with a fourth that its model contains: the shape of the
noise. These are quadratics with Gaussian noise; nothing here says which shape a network's noise
has."""
)

# %% [markdown]
# ## Try next
#
# * Rotate in a few planes only, and see how much alignment the sign needs.
# * Put `mo.variance_adapted(optax.scale_by_sign())` or Lion beside the four.
# * `mo.signal_to_noise(state)` reads from M-SVAG's state which parameters of a network are noise:
#   is it the shape of their noise that decides there, too?
