"""Published optimizers, each in a few lines of public pieces.

Each function makes a *direction*, which points uphill as a gradient does; `mo.optimizer(direction,
learning_rate)` makes it an optimizer. Where a paper has a decay of its own, the function takes the
rate and makes the optimizer. `python -m tests.gallery` compares each with another implementation.
"""

import jax.numpy as jnp
import optax
import optax.contrib

import msvag_optax as mo

# What many of them average.


def mean(b):
    """The exponential mean, without bias."""
    return mo.running_average(mo.exponential(b))


def squares(b):
    """The exponential mean of squares, without bias."""
    return mo.running_average(mo.exponential(b), of=mo.square)


def from_zero(b, of=None):
    """The exponential mean that starts at zero, and is left biased towards it."""
    return mo.running_average(mo.exponential_from_zero(b), of)


def from_first(b, of=None):
    """The exponential mean that starts at the first observation."""
    return mo.running_average(mo.exponential_from_first(b), of)


def last():
    """The gradient before this one."""
    return mo.before(mo.running_average(mo.exponential(0.0)))


# The mean and the mean square, and what is made of them.


def adam(b1=0.9, b2=0.999, eps=1e-8):
    """Kingma and Ba, *Adam* (2015)."""
    return mo.from_estimates(mo.over_rms(eps), mean=mean(b1), second_moment=squares(b2))


def adamw(learning_rate, weight_decay=1e-2):
    """Loshchilov and Hutter, *Decoupled Weight Decay Regularization* (2019)."""
    return mo.optimizer(adam(), learning_rate, weight_decay)


def lamb(weight_decay=1e-2, eps=1e-6):
    """You et al., *Large Batch Optimization for Deep Learning* (2020)."""
    decay = mo.add_decayed_weights(weight_decay)
    return mo.chain(adam(eps=eps), decay, optax.scale_by_trust_ratio())


def nadam(b1=0.9, b2=0.999, eps=1e-8):
    """Dozat, *Incorporating Nesterov Momentum into Adam* (2016)."""

    def nesterov(g, m, v, t):
        now, then = mo.bias_correction(b1, t), mo.bias_correction(b1, t + 1)
        return mo.over_rms(eps)(b1 * m * now / then + (1 - b1) * g / now, v)

    return mo.from_estimates(nesterov, m=mean(b1), v=squares(b2), t=mo.observations())


def radam(b1=0.9, b2=0.999, eps=1e-8):
    """Liu et al., *On the Variance of the Adaptive Learning Rate and Beyond* (2020)."""

    def rectified(g, m, v, t):
        most = 2 / (1 - b2) - 1
        age = most - 2 * t * b2**t / mo.bias_correction(b2, t)
        shrink = jnp.maximum(age - 4, 0) * (age - 2) * most / ((most - 4) * (most - 2) * age)
        return jnp.where(age >= 5, jnp.sqrt(shrink) * mo.over_rms(eps)(m, v), m)

    return mo.from_estimates(rectified, m=mean(b1), v=squares(b2), t=mo.observations())


def ademamix(b1=0.9, b2=0.999, b3=0.9999, alpha=6.0, eps=1e-8):
    """Pagliardini et al., *The AdEMAMix Optimizer: Better, Faster, Older* (2024)."""

    def mixed(g, m, slow, v):
        return mo.over_rms(eps)(m + alpha * slow, v)

    return mo.from_estimates(mixed, m=mean(b1), slow=from_zero(b3), v=squares(b2))


def grams(b1=0.9, b2=0.999, eps=1e-8):
    """Cao et al., *Grams: Gradient Descent with Adaptive Momentum Scaling* (2024)."""

    def formula(g, m, v):
        return jnp.abs(mo.over_rms(eps)(m, v)) * jnp.sign(g)

    return mo.from_estimates(formula, m=mean(b1), v=squares(b2))


def cautious_adam(b1=0.9, b2=0.999, eps=1e-8):
    """Liang et al., *Cautious Optimizers* (2024)."""
    return mo.cautious(adam(b1, b2, eps))


def laprop(b1=0.9, b2=0.999, eps=1e-15):
    """Ziyin et al., *LaProp: Separating Momentum and Adaptivity in Adam* (2020)."""
    normed = mo.from_estimates(mo.over_rms(eps), second_moment=squares(b2))
    return mo.chain(normed, mean(b1))


# Signs of a mean.


def signum(beta=0.9):
    """Bernstein et al., *signSGD: Compressed Optimisation for Non-Convex Problems* (2018)."""
    return mo.chain(from_zero(beta), optax.scale_by_sign())


def tiger(learning_rate, weight_decay=0.01, beta=0.965):
    """Su, *Tiger: A Tight-fisted Optimizer* (2023)."""
    return mo.optimizer(signum(beta), learning_rate, weight_decay)


def lion(b1=0.9, b2=0.99):
    """Chen et al., *Symbolic Discovery of Optimization Algorithms* (2023)."""

    def sign(g, past):
        return jnp.sign(b1 * past + (1 - b1) * g)

    return mo.from_estimates(sign, past=mo.before(from_zero(b2)))


# Squares alone, with other weights or another memory.


def rmsprop(decay=0.9, eps=1e-8):
    """Tieleman and Hinton, *Lecture 6.5: RMSProp* (2012)."""
    return mo.from_estimates(mo.over_rms(0.0, eps), second_moment=from_zero(decay, mo.square))


def centred_rmsprop(decay=0.9, eps=1e-8):
    """Graves, *Generating Sequences With Recurrent Neural Networks* (2013)."""

    def over_deviation(g, m, v):
        return g / jnp.sqrt(v - mo.square(m) + eps)

    return mo.from_estimates(over_deviation, m=from_zero(decay), v=from_zero(decay, mo.square))


def adagrad(start=0.1, eps=1e-7):
    """Duchi et al., *Adaptive Subgradient Methods* (2011)."""
    total = mo.recurrence(lambda total, g: total + mo.square(g), start)
    return mo.from_estimates(mo.over_rms(0.0, eps), second_moment=total)


def adamax(b1=0.9, b2=0.999, eps=1e-8):
    """Kingma and Ba, *Adam* (2015), section 7.1."""
    largest = mo.recurrence(lambda u, g: jnp.maximum(b2 * u, jnp.abs(g) + eps))
    return mo.from_estimates(lambda g, m, u: m / u, m=mean(b1), u=largest)


def amsgrad(b1=0.9, b2=0.999, eps=1e-8):
    """Reddi et al., *On the Convergence of Adam and Beyond* (2018), corrected, then the maximum."""
    largest = mo.running_max(squares(b2))
    return mo.from_estimates(mo.over_rms(eps), mean=mean(b1), second_moment=largest)


def yogi(b1=0.9, b2=0.999, eps=1e-3, start=1e-6):
    """Zaheer et al., *Adaptive Methods for Nonconvex Optimization* (2018)."""
    m = mo.recurrence(lambda m, g: b1 * m + (1 - b1) * g, start)
    v = mo.recurrence(lambda v, g: v - (1 - b2) * jnp.sign(v - g**2) * g**2, start)
    m, v = mo.bias_corrected(m, b1), mo.bias_corrected(v, b2)
    return mo.from_estimates(mo.over_rms(eps), mean=m, second_moment=v)


def adafactor(decay=0.8, eps=1e-30):
    """Shazeer and Stern, *Adafactor* (2018), of matrices: a number for each row and column."""

    def factored(g, row, column):
        return g / jnp.sqrt((row + eps) * (column + eps) / jnp.mean(row + eps))

    newest = mo.Weighting(lambda t: t**-decay)
    row, column = (mo.running_average(newest, of=mo.mean_square(axis)) for axis in (1, 0))
    return mo.from_estimates(factored, row=row, column=column)


def adam_mini(b1=0.9, b2=0.999, eps=1e-8):
    """Zhang et al., *Adam-mini: Use Fewer Learning Rates To Gain More* (2024)."""
    v = mo.running_average(mo.exponential(b2), of=mo.mean_square(mo.adam_mini_axes()))
    return mo.from_estimates(mo.over_rms(eps), mean=mean(b1), second_moment=v)


# What surprises, and what was before.


def adabelief(b1=0.9, b2=0.999, eps=1e-16):
    """Zhuang et al., *AdaBelief Optimizer* (2020)."""

    def step(past, g):
        m = b1 * past[0] + (1 - b1) * g
        return m, b2 * past[1] + (1 - b2) * mo.square(g - m) + eps

    def corrected(g, s, t):
        return mo.over_rms(eps)(s[0] / mo.bias_correction(b1, t), s[1] / mo.bias_correction(b2, t))

    return mo.from_estimates(corrected, s=mo.recurrence(step, (0.0, 0.0)), t=mo.observations())


def acprop(b1=0.9, b2=0.999, eps=1e-16):
    """Zhuang et al., *Momentum Centering and Asynchronous Update* (2021)."""

    def formula(g, v, t):
        return mo.over_rms(eps)(g, jnp.where(t == 1, 1, v))

    surprise = mo.from_estimates(lambda g, m: g - m, m=mo.before(from_zero(b1)))
    v = mo.chain_estimators(surprise, mo.before(squares(b2)))
    return mo.from_estimates(formula, v=v, t=mo.observations())


def mvn_grad(b1=0.9, b2=0.999, eps=1e-8):
    """Patitucci and Mokhtari, *Momentum on Variance-Normalized Gradients* (2026)."""
    surprise = mo.from_estimates(lambda g, m: g - m, m=from_zero(b1))
    v = mo.chain_estimators(surprise, squares(b2))
    return mo.chain(mo.from_estimates(mo.over_rms(eps), second_moment=v), mean(b1))


def adopt(b1=0.9, b2=0.9999, eps=1e-6):
    """Taniguchi et al., *ADOPT: Modified Adam Can Converge with Any b2* (2024)."""

    def normed(g, v, t):
        return jnp.clip(g / jnp.maximum(jnp.sqrt(v), eps), -((t - 1) ** 0.25), (t - 1) ** 0.25)

    v = mo.before(from_first(b2, mo.square))
    return mo.chain(mo.from_estimates(normed, v=v, t=mo.observations()), from_zero(b1))


def adan(b1=0.98, b2=0.92, b3=0.99, eps=1e-8):
    """Xie et al., *Adan* (2022). The mean of changes is what a mean from the first lags behind."""

    def ahead(g, past, t):
        return g + (1 - b2) * jnp.where(t == 1, 0, g - past)

    def formula(g, m, a, v, t):
        return mo.over_rms(eps)(m + (1 - b2) ** 2 / b2 * (g - a) / mo.bias_correction(b2, t), v)

    v = mo.chain_estimators(mo.from_estimates(ahead, past=last(), t=mo.observations()), squares(b3))
    return mo.from_estimates(formula, m=mean(b1), a=from_first(b2), v=v, t=mo.observations())


# Round a transformation of optax's that is given whole matrices.


def orthogonal():
    """Muon's orthogonal matrix, of whatever comes: optax's, without its mean."""
    muon = optax.contrib.scale_by_muon(beta=0.0, nesterov=False)
    return optax.stateless_with_tree_map(lambda u, _: muon.update(u, muon.init(u))[0])


def normuon(b1=0.95, b2=0.95, eps=1e-8):
    """Li et al., *NorMuon* (2025): output units of equal size, after Muon."""

    def normed(u, v):
        return 0.2 * u / (jnp.sqrt(v) + eps) / jnp.sqrt(jnp.mean(u**2 / (jnp.sqrt(v) + eps) ** 2))

    units = from_zero(b2, mo.mean_square(0))
    return mo.chain(mean(b1), orthogonal(), mo.from_estimates(normed, v=units))


def muon_nsr(beta=0.95, gamma=1.0, eps=1e-8):
    """Li et al., *Variance-Adaptive Muon* (2026): less of what is noisy, before Muon."""

    def modulated(g, s, t):
        ahead = g + beta / (1 - beta) * s.mean / mo.bias_correction(beta, t)
        noise = (s.second_moment - mo.square(s.mean)) / mo.bias_correction(beta, t)
        return ahead / jnp.sqrt(mo.square(ahead) + gamma * noise + eps)

    s = mo.running_moments(mo.exponential_from_zero(beta))
    return mo.chain(mo.from_estimates(modulated, s=s, t=mo.observations()), orthogonal())
