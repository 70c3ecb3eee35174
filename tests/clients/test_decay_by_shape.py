"""Decay as training code states it: a mask of the tree, by name and shape."""

import jax
import jax.numpy as jnp
import optax
import pytest

import msvag_optax as mo
from tests import conformance
from tests.clients import programs

PARAMS = {
    "embed": {"embedding": jnp.ones((5, 8))},
    "block": {
        "norm": {"scale": jnp.ones(8), "bias": jnp.ones(8)},
        "dense": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)},
        "bias_table": jnp.ones((8, 8)),
        "temperature": jnp.ones(()),
    },
}
GRADIENTS = jax.tree.map(lambda p: 0.1 * p, PARAMS)


def has_axes(tree):
    """Optax's mask: what decays has two axes or more."""
    return jax.tree.map(lambda x: x.ndim > 1, tree)


def is_not_named(tree):
    """Optax's mask: what decays has neither word in its path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(word in str(path) for word in ("bias", "scale")), tree
    )


# Each mask, and the same rule for `exclude_from_weight_decay`.
RULES = {
    "by shape": (has_axes, lambda name, shape: shape.ndim < 2),
    "by name": (is_not_named, lambda name, shape: "bias" in name or "scale" in name),
    "by patterns": (is_not_named, ["bias|scale"]),
    "by both": (
        lambda tree: jax.tree.map(lambda a, b: a and b, has_axes(tree), is_not_named(tree)),
        lambda name, shape: shape.ndim < 2 or "bias" in name,
    ),
}
RULE = pytest.mark.parametrize(("mask", "exclude"), RULES.values(), ids=RULES)


@RULE
def test_adamw_is_that_of_optax_with_its_mask(mask, exclude):
    ours = mo.adamw(0.1, weight_decay=0.5, exclude_from_weight_decay=exclude)
    theirs = optax.adamw(0.1, weight_decay=0.5, mask=mask)
    states = [tx.init(PARAMS) for tx in (ours, theirs)]
    for _ in range(programs.STEPS):
        actual, states[0] = ours.update(GRADIENTS, states[0], PARAMS)
        desired, states[1] = theirs.update(GRADIENTS, states[1], PARAMS)
        conformance.assert_close(actual, desired, ulps=64)


@RULE
@pytest.mark.parametrize("build", programs.EVERY)
def test_every_optimizer_decays_what_the_mask_says(mask, exclude, build):
    tx = build(0.1, weight_decay=0.5, exclude_from_weight_decay=exclude)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    decayed = jax.tree.map(lambda u: bool(jnp.all(u < 0)), updates)
    assert decayed == mask(PARAMS)
    assert jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates) == decayed


@RULE
def test_the_report_says_what_the_mask_says(mask, exclude, capsys):
    mo.weight_decay_report(PARAMS, exclude)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:-1]]
    names = jax.tree.leaves(mo.path_names(PARAMS))
    answers = dict(zip(names, jax.tree.leaves(mask(PARAMS)), strict=True))
    assert {name: answer == "yes" for name, _, answer in rows} == answers
