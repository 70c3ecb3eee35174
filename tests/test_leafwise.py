"""However many links a chain has, a leaf is one kernel; and the chain is what `optax.chain` is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import msvag_optax as mo
from msvag_optax import _leafwise

RATE = optax.linear_schedule(0.1, 0.0, 100)
DECAY = {"weight_decay": 1e-2, "exclude_from_weight_decay": ["bias"]}
OPTIMIZERS = {
    "msvag": (lambda: mo.msvag(RATE, **DECAY), 1),
    "svag": (lambda: mo.svag(0.1), 1),
    "expectigrad": (lambda: mo.expectigrad(RATE, **DECAY), 1),
    "expectigrad, dense counter": (lambda: mo.expectigrad(0.1, sparse_counter=False), 1),
    "amsgrad": (lambda: mo.amsgrad(RATE, **DECAY), 1),
    "adamw": (lambda: mo.adamw(RATE, **DECAY), 1),
    # The norm of each leaf is computed first, so that on a GPU all norms are averaged together.
    "novograd": (lambda: mo.novograd(RATE, amsgrad=True, mu_dtype=jnp.bfloat16, **DECAY), 2),
    "novograd, averaging": (lambda: mo.novograd(0.1, grad_averaging=True), 2),
    "bert_adamw": (lambda: mo.bert_adamw(0.1, 100, 10, max_grad_norm=None), 1),
}


def kernels_that_read(shape, jaxpr):
    """How many kernels take an array of this shape."""
    kernels = [e for e in jaxpr.eqns if str(e.params.get("name")).startswith("call")]
    return sum(any(v.aval.shape == shape for v in kernel.invars) for kernel in kernels)


@pytest.mark.parametrize("name", [*OPTIMIZERS])
def test_a_leaf_is_one_kernel(name):
    build, kernels = OPTIMIZERS[name]
    params = {"kernel": jnp.ones((5, 7)), "bias": jnp.ones(3)}
    tx = build()
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
    assert [kernels_that_read(p.shape, jaxpr) for p in params.values()] == [kernels, kernels]


def doubled():
    return _leafwise.elementwise(Partial(optax.scale, 2.0))


def norms():
    return mo.from_estimates(
        mo.over_rms(0.1),
        second_moment=mo.running_average(mo.exponential(0.5), of=mo.layer_square_norm()),
    )


def traced():
    return mo.from_estimates(lambda gradient, trace: gradient - trace, trace=optax.trace(0.5))


CHAINS = {
    "leafwise": lambda: [doubled(), mo.running_average(mo.exponential(0.9)), doubled()],
    "norms after a link": lambda: [doubled(), norms(), doubled()],
    "norms twice": lambda: [norms(), norms()],
    "norms that are kept in another dtype": lambda: [doubled(), mo.kept_in(norms(), jnp.float16)],
    "one of optax's between": lambda: [doubled(), optax.scale_by_adam(), doubled(), doubled()],
    "an estimator of optax's after a link": lambda: [doubled(), traced(), doubled()],
    "estimators of both kinds": lambda: [
        doubled(),
        mo.variance_adapted(optax.scale_by_sign()),
        mo.from_estimates(
            mo.over_rms(0.1),
            mean=optax.ema(0.9),
            second_moment=mo.running_average(mo.exponential(0.9), of=mo.square),
        ),
    ],
}


@pytest.mark.parametrize("name", [*CHAINS])
def test_a_chain_is_optaxs(name):
    ours, theirs = _leafwise.chain(CHAINS[name]()), optax.chain(*CHAINS[name]())
    gradients = {"a": jnp.asarray([3.0, -4.0]), "b": {"c": jnp.asarray(2.0)}}
    state, state_of_optax = ours.init(gradients), theirs.init(gradients)
    assert jax.tree.structure(state) == jax.tree.structure(state_of_optax)
    for step in range(3):
        scaled = jax.tree.map(lambda g, factor=step - 1.5: factor * g, gradients)
        updates, state = ours.update(scaled, state, gradients)
        updates_of_optax, state_of_optax = theirs.update(scaled, state_of_optax, gradients)
        # One kernel may round a product and a sum once, where two kernels round twice.
        for mine, other in zip(
            jax.tree.leaves((updates, state)),
            jax.tree.leaves((updates_of_optax, state_of_optax)),
            strict=True,
        ):
            np.testing.assert_allclose(mine, other, rtol=1e-6)


def test_an_estimator_may_be_given_another_init():
    mean = mo.running_average(mo.exponential(0.9))
    mean = mean._replace(init=mean.init)
    tx = mo.from_estimates(mo.over_rms(1.0), mean=mean, second_moment=mean)
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    np.testing.assert_array_equal(updates, 0.5)


def test_a_state_of_nothing_may_be_anything():
    scale = doubled()
    updates, state = scale.update(jnp.ones(2), None)
    np.testing.assert_array_equal(updates, 2.0)
    assert state is None


def test_what_is_kept_for_another_parameter_does_not_broadcast():
    momentum = _leafwise.elementwise(Partial(optax.trace, 0.9))
    state = momentum.init({"w": jnp.ones(())})
    with pytest.raises(ValueError, match=r"The update of 'w' has shape \(3,\).* has shape \(\)"):
        momentum.update({"w": jnp.ones(3)}, state)
