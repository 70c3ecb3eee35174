import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import msvag_optax as mo
from msvag_optax._trees import paths, selection


def names_of(tree):
    return sorted(jax.tree.leaves(mo.path_names(tree)))


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(3, rngs=rngs)


class NNXModel(nnx.Module):
    def __init__(self, rngs):
        self.encoder = NNXBlock(rngs)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        boxed = nn.with_partitioning(nn.initializers.ones, (None, "model"))
        return nn.LayerNorm(name="norm")(nn.Dense(3, kernel_init=boxed, name="dense")(x))


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        return LinenBlock(name="encoder")(x)


class HaikuModel(hk.Module):
    def __init__(self):
        super().__init__(name="encoder")
        self.dense = hk.Linear(3, name="dense")
        self.norm = hk.LayerNorm(-1, True, True, name="norm")

    def __call__(self, x):
        return self.norm(self.dense(x))


class EquinoxBlock(eqx.Module):
    dense: eqx.nn.Linear
    norm: eqx.nn.LayerNorm


class EquinoxModel(eqx.Module):
    encoder: EquinoxBlock


def parameters_of(framework):
    key, x = jax.random.key(0), jnp.ones((1, 2))
    match framework:
        case "dict":
            dense, norm = {"kernel": 0.0, "bias": 0.0}, {"scale": 0.0, "bias": 0.0}
            return {"encoder": {"dense": dense, "norm": norm}}
        case "nnx":
            return nnx.state(NNXModel(nnx.Rngs(0)), nnx.Param)
        case "linen":
            return LinenModel().init(key, x)["params"]
        case "haiku":
            return hk.transform(lambda x: HaikuModel()(x)).init(key, x)
        case "equinox":
            block = EquinoxBlock(eqx.nn.Linear(2, 3, key=key), eqx.nn.LayerNorm(3))
            return eqx.filter(EquinoxModel(block), eqx.is_inexact_array)


SPELLINGS = {
    "dict": ("bias", "kernel", "bias", "scale"),
    "nnx": ("bias", "kernel", "bias", "scale"),
    "linen": ("bias", "kernel", "bias", "scale"),
    "haiku": ("b", "w", "offset", "scale"),
    "equinox": ("bias", "weight", "bias", "weight"),
}


@pytest.mark.parametrize("framework", SPELLINGS)
def test_one_spelling_for_every_framework(framework):
    dense, norm = "encoder/dense/", "encoder/norm/"
    leaves = SPELLINGS[framework]
    expected = [dense + leaves[0], dense + leaves[1], norm + leaves[2], norm + leaves[3]]
    assert names_of(parameters_of(framework)) == sorted(expected)


@pytest.mark.parametrize("framework", SPELLINGS)
def test_exclusions_work_in_every_framework(framework):
    params = parameters_of(framework)
    tx = mo.adamw(0.0, weight_decay=0.5, exclude_from_weight_decay=["/norm/", "/(bias|b)$"])
    independent = optax.chain(tx, mo.subtract_decayed_weights(0.5, ["/norm/", "/(bias|b)$"]))
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = independent.update(ones, independent.init(params), ones)
    names = jax.tree.leaves(mo.path_names(updates))
    decayed = [n for n, u in zip(names, jax.tree.leaves(updates), strict=True) if jnp.any(u != 0)]
    assert decayed == ["encoder/dense/" + SPELLINGS[framework][1]]


def test_sequences_and_bare_arrays_have_names():
    assert names_of([0.0, {"x": (1.0, 2.0)}]) == ["0", "1/x/0", "1/x/1"]
    assert names_of(jnp.ones(2)) == [""]
    assert names_of(optax.TraceState(trace=1.0)) == ["trace"]


def test_a_key_called_value_is_kept():
    assert names_of({"attention": {"value": 1.0, "key": 2.0}}) == [
        "attention/key",
        "attention/value",
    ]


class Head(eqx.Module):
    value: jax.Array
    key: jax.Array


def test_a_field_called_value_is_kept():
    head = Head(jnp.ones(2), jnp.ones(2))
    assert names_of({"head": head}) == ["head/key", "head/value"]


def test_names_make_labels():
    params = {"encoder": {"w": jnp.ones(2)}, "head": {"w": jnp.ones(2)}}
    labels = jax.tree.map(lambda name: name.split("/")[0], mo.path_names(params))
    tx = optax.partition({"encoder": mo.novograd(0.1), "head": mo.adamw(0.1)}, labels)
    tx.update(params, tx.init(params), params)
    assert labels == {"encoder": {"w": "encoder"}, "head": {"w": "head"}}


def test_holes_have_names():
    tree = {"a": None, "b": optax.MaskedNode(), "c": 1.0}
    selection.check_patterns_match("exclude", ["^a$", "^b$", "^c$"], tree)
    with pytest.raises(ValueError, match=r"'d', which is found in no .* 'a', 'b', 'c'"):
        selection.check_patterns_match("exclude", ["d"], tree)


@pytest.mark.parametrize("empty", [{}, [], (), {"a": {}}])
def test_an_empty_tree_is_no_mistake(empty):
    selection.check_patterns_match("exclude", ["bias"], empty)


@pytest.mark.parametrize("framework", SPELLINGS)
def test_a_masked_parameter_has_a_name_in_every_framework(framework):
    """`optax.masked` puts its hole inside of the box that NNX or Linen puts around an array."""
    seen = []

    def init(params):
        seen.extend(paths.names(params))
        return optax.EmptyState()

    def update(updates, state, params=None):
        return updates, state

    params = parameters_of(framework)
    nothing = jax.tree.map(lambda _: False, params)
    optax.masked(optax.GradientTransformation(init, update), nothing).init(params)
    assert sorted(seen) == names_of(params)
