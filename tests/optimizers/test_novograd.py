import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import msvag_optax as mo
from tests.optimizers.trajectories import noise, updates_of


def reference(gradients, b1, b2, eps, eps_root, averaging, amsgrad):
    norm, largest, momentum, updates = None, 0.0, 0.0, []
    for step, gradient in enumerate(np.asarray(gradients, np.float64)):
        square = np.sum(gradient**2)
        norm = square if norm is None else b2 * norm + (1 - b2) * square
        largest = max(largest, norm) if amsgrad else norm
        term = gradient / (np.sqrt(largest + eps_root) + eps)
        if averaging and step > 0:
            term = (1 - b1) * term
        momentum = b1 * momentum + term
        updates.append(momentum)
    return np.stack(updates)


@pytest.mark.parametrize("averaging", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("eps_root", [0.0, 0.5])
def test_updates_are_the_papers(averaging, amsgrad, eps_root):
    gradients = noise(20, 2, 3)
    tx = mo.novograd(
        1.0, 0.8, 0.7, 0.1, grad_averaging=averaging, amsgrad=amsgrad, eps_root=eps_root
    )
    expected = reference(gradients, 0.8, 0.7, 0.1, eps_root, averaging, amsgrad)
    np.testing.assert_allclose(-updates_of(tx, gradients), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_default_is_optax_novograd(decay):
    gradients, params = noise(20, 7), jnp.ones(7)
    ours = mo.novograd(0.1, 0.9, 0.98, 1e-6, decay)
    theirs = optax.novograd(0.1, 0.9, 0.98, eps=1e-6, weight_decay=decay)
    np.testing.assert_allclose(
        updates_of(ours, gradients, params), updates_of(theirs, gradients, params), rtol=1e-5
    )


@pytest.mark.parametrize("amsgrad", [False, True])
def test_stacked_layers_are_layers(amsgrad):
    """The trajectory of a stack is that of its layers, whatever their scales."""
    stack = noise(15, 4, 2, 3) * jnp.asarray([1e-6, 1.0, 10.0, 1e6])[:, None, None]
    options = {"amsgrad": amsgrad, "grad_averaging": True}
    stacked = mo.novograd(0.1, stacked=["^blocks/"], **options)
    ours = updates_of(stacked, {"blocks": {"kernel": stack}, "head": stack[:, 0]})
    apart = updates_of(mo.novograd(0.1, **options), list(jnp.moveaxis(stack, 1, 0)))
    together = jnp.stack(apart, axis=1)
    np.testing.assert_allclose(ours["blocks"]["kernel"], together, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(ours["head"], apart[0], rtol=1e-5, atol=1e-8)


def test_zero_first_gradient_makes_the_next_step_too_long():
    """As the docstring says, and all references do."""
    gradients = jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    updates = updates_of(mo.novograd(1.0, 0.0, 0.99), gradients)
    np.testing.assert_allclose(jnp.linalg.norm(updates[1]), 10.0, rtol=1e-5)


def test_one_float_a_layer():
    params = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}
    state = mo.novograd(0.1).init(params)
    norms = optax.tree.get(state, "second_moment").average
    assert jax.tree.map(jnp.shape, norms) == {"kernel": (), "bias": ()}
    floats = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32)
    assert floats == 64 * 32 + 32 + 2


def test_stacked_must_match():
    with pytest.raises(ValueError, match=r"`stacked` has the pattern 'blocks'.*'kernel'"):
        mo.novograd(0.1, stacked=["blocks"]).init({"kernel": jnp.ones(2)})
    with pytest.raises(TypeError, match="`stacked` must be a list of regular expressions"):
        mo.novograd(0.1, stacked="blocks")
