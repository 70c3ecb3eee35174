import jax
import jax.numpy as jnp
import optax
import pytest

import msvag_optax as mo

PARAMS = {
    "embed": jnp.ones((10, 4)),
    "head": {"w": jnp.ones((4, 2), jnp.bfloat16), "b": jnp.ones(2)},
    "steps": jnp.asarray(3),
}


def total_of(tx, params):
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def pair():
    memory = mo.recurrence(lambda memory, gradient: memory, (0.0, 1.0))
    return mo.from_estimates(lambda gradient, memory: memory[0], memory=memory)


TRANSFORMATIONS = {
    "adamw": mo.adamw(0.1),
    "expectigrad": mo.expectigrad(0.1),
    "novograd": mo.novograd(0.1),
    "several arrays of a leaf": mo.optimizer(pair(), 0.1),
    "optax.adam": optax.adam(optax.linear_schedule(0.1, 0.0, 10)),
    "masked": optax.masked(optax.adam(0.1), {"embed": True, "head": False, "steps": False}),
    "inject": optax.inject_hyperparams(optax.adam)(0.1),
    "nothing": optax.identity(),
    "in turn": optax.chain(optax.clip(1.0), mo.msvag(0.1), mo.lazy_rows(optax.trace(0.9))),
    "partition": optax.partition(
        {"a": mo.adamw(0.1), "b": optax.sgd(0.1, 0.9)}, {"embed": "a", "head": "b", "steps": "b"}
    ),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_all_bytes_are_counted_once(name):
    tx = TRANSFORMATIONS[name]
    counted = mo.state_bytes(tx, PARAMS)
    assert counted.total == total_of(tx, PARAMS)
    assert mo.state_bytes(tx, jax.eval_shape(lambda: PARAMS)) == counted
    last = str(counted).splitlines()[-1].split()
    assert (last[0], last[-1]) == ("total", str(counted.total))


def test_bytes_belong_to_a_link_and_a_group():
    counted = mo.state_bytes(mo.adamw(0.1), PARAMS)
    groups = {"embed": 160, "head": 40, "steps": 0}
    assert counted.by_link == {
        "direction/mean/average": groups,
        "direction/second_moment/average": groups,
    }
    assert counted.of_parameters == 400
    by_kind = mo.state_bytes(mo.adamw(0.1), PARAMS, group=lambda path: path.split("/")[-1])
    assert by_kind.by_link["direction/mean/average"] == {"embed": 160, "w": 32, "b": 8, "steps": 0}


def test_a_single_number_has_the_bytes_of_its_averages():
    for build, numbers in ((mo.amsgrad, 3), (mo.adamw, 2), (optax.adam, 2), (mo.msvag, 2)):
        counted = mo.state_bytes(build(0.1), jnp.zeros(()))
        assert counted.of_parameters == 4 * numbers
        assert counted.total == total_of(build(0.1), jnp.zeros(()))


def test_what_is_no_transformation_is_refused():
    with pytest.raises(TypeError, match="`tx` must be a GradientTransformation"):
        mo.state_bytes(mo.adamw, PARAMS)
    with pytest.raises(TypeError, match="`group` must be a function of a parameter's path"):
        mo.state_bytes(mo.adamw(0.1), PARAMS, group=lambda: "all")


def test_a_state_that_cannot_be_taken_apart_is_refused():
    with pytest.raises(TypeError, match=r"`tx` must keep trees like the parameters'.*it fails"):
        mo.state_bytes(optax.lbfgs(0.1), PARAMS)
