"""What is saved comes back bit for bit, by every serializer and onto every mesh, and goes on."""

import functools
import itertools
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import msvag_optax as mo
from tests import conformance
from tests.conformance import PARAMS, RATE, ROWS, STREAM
from tests.support import by_speed

# What a tree of parameters may hold, and a gradient of it. Orbax has no empty arrays.
FLOAT0 = jax.dtypes.float0
HOLES = {"masked": optax.MaskedNode(), "none": None}
KINDS = {"bias": jnp.float16, "kernel": jnp.bfloat16}
MIXED: dict[str, Any] = {name: PARAMS[name].astype(dtype) for name, dtype in KINDS.items()} | HOLES
MIXED |= {"complex": jnp.asarray([1 + 2j, 3j]), "integer": jnp.arange(2)}
EMPTY = {"empty": jnp.zeros((0, 3))}


def mixed_gradient(step: int) -> dict[str, Any]:
    own = {name: STREAM[step][name].astype(dtype) for name, dtype in KINDS.items()}
    return own | HOLES | {"complex": (step - 1j) * MIXED["complex"], "integer": np.zeros(2, FLOAT0)}


class Case(NamedTuple):
    tx: Any
    update: Callable[..., Any]
    params: Any
    gradients: list[Any]


def bare(tx: Any) -> Case:
    return Case(tx, tx.update, MIXED, [mixed_gradient(step) for step in range(len(STREAM))])


def wrapped(tx: Any) -> Case:
    """Compiled: what runs eagerly in `optax.apply_if_finite` folds NumPy's arrays as constants."""
    return Case(tx, jax.jit(tx.update), PARAMS, STREAM)


BODY = {"bias": False, "kernel": True}
LABELS = {"bias": "sgd", "kernel": "own"}
NARROW = {"mu_dtype": jnp.bfloat16, "nu_dtype": jnp.bfloat16}
WRAPPED: dict[str, Callable[[Any], Any]] = {
    "MultiSteps": lambda build: optax.MultiSteps(build(RATE), 2),
    "apply_if_finite": lambda build: optax.apply_if_finite(build(RATE), 3),
    "inject_hyperparams": lambda build: optax.inject_hyperparams(build)(
        learning_rate=conformance.decreasing
    ),
    "masked": lambda build: optax.masked(build(RATE), BODY),
    "partition": lambda build: optax.partition(
        {"own": build(RATE), "sgd": optax.sgd(0.5, momentum=0.9)}, LABELS
    ),
    "bfloat16": lambda build: build(RATE, **NARROW),
}
# A state of each kind: it counts for all, for each element, for layers or for rows, has a maximum,
# a link that looks at the whole tree, or a transformation of optax's inside.
TYPICAL = (
    "msvag",
    "expectigrad",
    "novograd-stacked",
    "novograd-averaging",
    "amsgrad",
    "bert_adamw",
    "adapted-lion",
    "lazy_rows",
)
CASES: dict[str, Callable[[], Case]] = {
    row.name: functools.partial(lambda row: bare(row.build(RATE)), row)
    for row in ROWS
    if row.name in TYPICAL
}
# A wrapper holds the state of any optimizer alike.
CASES |= {
    f"{wrapper}(expectigrad)": functools.partial(
        lambda wrapper: (bare if wrapper == "bfloat16" else wrapped)(
            WRAPPED[wrapper](mo.expectigrad)
        ),
        wrapper,
    )
    for wrapper in WRAPPED
}
FAST = {"bfloat16(expectigrad)"}


def orbax_checkpointer(state: Any, fresh: Any, path: Path) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path, fresh)


def orbax_manager(state: Any, fresh: Any, path: Path) -> Any:
    abstract = jax.tree.map(ocp.tree.to_shape_dtype_struct, fresh)
    with ocp.CheckpointManager(path) as manager:
        manager.save(1, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        return manager.restore(1, args=ocp.args.StandardRestore(abstract))


def flax_bytes(state: Any, fresh: Any, path: Path) -> Any:
    path.write_bytes(flax.serialization.to_bytes(state))
    return flax.serialization.from_bytes(fresh, path.read_bytes())


def flax_state_dict(state: Any, fresh: Any, path: Path) -> Any:
    del path
    return flax.serialization.from_state_dict(fresh, flax.serialization.to_state_dict(state))


def pickled(state: Any, fresh: Any, path: Path) -> Any:
    del fresh
    path.write_bytes(pickle.dumps(state))
    return pickle.loads(path.read_bytes())


def pickled_on_the_host(state: Any, fresh: Any, path: Path) -> Any:
    return pickled(jax.device_get(state), fresh, path)


ORBAX = (orbax_checkpointer, orbax_manager)
OTHERS = (flax_bytes, flax_state_dict, pickled, pickled_on_the_host)


def run_on(case: Case, state: Any, steps: slice) -> Any:
    """The updates of these steps, and the state after them; the parameters stay."""
    collected = []
    for gradient in case.gradients[steps]:
        updates, state = case.update(gradient, state, case.params)
        collected.append(updates)
    return collected, state


@pytest.mark.parametrize("name", by_speed({name: name for name in CASES}, FAST))
def test_every_serializer_gives_back_the_bits_and_the_run_goes_on(name, tmp_path):
    """After three gradients, so that `MultiSteps` holds one that waits for the next."""
    case = CASES[name]()
    for serializers, extra in ((ORBAX, {}), (OTHERS, EMPTY if case.params is MIXED else {})):
        full = case._replace(
            params=case.params | extra, gradients=[g | extra for g in case.gradients]
        )
        fresh = full.tx.init(full.params)
        _, state = run_on(full, fresh, slice(3))
        expected = run_on(full, state, slice(3, None))
        for serializer in serializers:
            restored = serializer(state, fresh, tmp_path / serializer.__name__)
            conformance.assert_same(restored, state)
            on_device = jax.tree.map(jnp.asarray, restored)
            conformance.assert_same_types(on_device, jax.tree.map(jnp.asarray, state))
            conformance.assert_same(run_on(full, restored, slice(3, None)), expected)


def test_a_state_on_the_host_can_be_read():
    """As `flax.serialization` restores it: in NumPy's arrays."""
    state = state_of("msvag")
    for read in (mo.signal_to_noise, mo.noise_scale):
        conformance.assert_same(read(jax.device_get(state)), read(state))


# Meshes.


def train_step(tx: Any) -> Any:
    """A donated step, whose gradient is an elementwise function of the parameters."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Any) -> Any:
        params, state = carry
        gradients = jax.tree.map(lambda p: 3 * p - 1, params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def on_the_host(tree: Any) -> Any:
    return jax.tree.map(np.array, tree)


SHAPES = {"kernel": (8, 16), "bias": (8,), "scale": ()}
MESHES = {"8": (8,), "2 x 4": (2, 4), "4": (4,), "1": (1,)}
# Each kind of axis, and each place to start from, with states of some kind.
SHARDED = [
    ("msvag", AxisType.Auto, "8"),
    ("expectigrad", AxisType.Explicit, "1"),
    ("novograd-stacked", AxisType.Auto, "8"),
    ("novograd-stacked", AxisType.Explicit, "8"),
    ("bert_adamw", AxisType.Auto, "1"),
]


def abstract_params(
    mesh_shape: tuple[int, ...], kind: AxisType = AxisType.Auto, shapes: Any = SHAPES
) -> dict[str, jax.ShapeDtypeStruct]:
    """Each axis of a parameter is cut along the axis of the mesh that has its place."""
    names = ("data", "model")[: len(mesh_shape)]
    devices = jax.devices()[: math.prod(mesh_shape)]
    mesh = jax.make_mesh(mesh_shape, names, axis_types=(kind,) * len(names), devices=devices)
    return {
        name: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, P(*names[: len(shape)]))
        )
        for name, shape in shapes.items()
    }


def abstract_carry(tx: Any, params: Any) -> Any:
    """Parameters and state, without values: the target of a restoration."""
    return params, jax.jit(tx.init).lower(params).compile().out_info


def fresh_carry(tx: Any, params: Any) -> Any:
    key = jax.random.key(0)
    drawn = {
        name: jax.device_put(jax.random.normal(key, like.shape), like.sharding)
        for name, like in params.items()
    }
    return drawn, jax.jit(tx.init)(drawn)


def assert_sharded_like(tree: Any, target: Any) -> None:
    for leaf, like in zip(jax.tree.leaves(tree), jax.tree.leaves(target), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim), (leaf.sharding, like)


def sharded_cases() -> list[Any]:
    rows = {row.name: row for row in ROWS}
    return [
        pytest.param(
            rows[name],
            kind,
            start,
            id=f"{name}-{kind.name}-from {start}",
            marks=[] if name == "msvag" else pytest.mark.slow,
        )
        for name, kind, start in SHARDED
    ]


@pytest.mark.parametrize(("row", "kind", "start"), sharded_cases())
def test_a_sharded_run_goes_on_upon_any_mesh(row, kind, start, tmp_path):
    """Bit for bit on the mesh where it was, which runs the same program.

    On others a compiler may round otherwise, and a norm is summed in another order.
    """
    tx = row.build(0.01)
    step = train_step(tx)
    targets = {
        name: abstract_carry(tx, abstract_params(shape, kind)) for name, shape in MESHES.items()
    }
    carry = step(step(fresh_carry(tx, targets[start][0])))
    saved = on_the_host(carry)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "carry", carry)
        checkpointer.wait_until_finished()
        restored = {n: checkpointer.restore(tmp_path / "carry", t) for n, t in targets.items()}
    unbroken = on_the_host(step(step(carry)))
    for name, target in targets.items():
        assert_sharded_like(restored[name], target)
        conformance.assert_same(restored[name], saved)
        end = step(step(restored[name]))
        assert_sharded_like(end, target)
        agree = conformance.assert_same if name == start else conformance.assert_close
        agree(on_the_host(end), unbroken)


# The checkpoint of another optimizer.


def slowing(count: Any) -> Any:
    return 0.1 / (1 + count)


OPTIMIZERS = {
    "msvag": mo.msvag(RATE),
    "msvag, decay": mo.msvag(RATE, weight_decay=0.1, exclude_from_weight_decay=["bias"]),
    "msvag, scheduled": mo.msvag(slowing, weight_decay=slowing),
    "svag": mo.svag(RATE),
    "expectigrad": mo.expectigrad(RATE),
    "expectigrad, dense": mo.expectigrad(RATE, sparse_counter=False),
    "novograd": mo.novograd(RATE),
    "novograd, decay": mo.novograd(slowing, weight_decay=0.1),
    "novograd, amsgrad": mo.novograd(RATE, amsgrad=True),
    "novograd, averaging": mo.novograd(RATE, grad_averaging=True),
    "novograd, stacked": mo.novograd(RATE, stacked=["kernel"]),
    "amsgrad": mo.amsgrad(RATE),
    "amsgrad, uncorrected": mo.amsgrad(RATE, bias_correction=False),
    "amsgrad, corrected first": mo.amsgrad(RATE, correct_before_max=True),
    "adamw": mo.adamw(RATE),
    "adamw, no decay": mo.adamw(slowing, weight_decay=0.0),
    "adamw, uncorrected": mo.adamw(RATE, bias_correction=False),
    "bert_adamw": mo.bert_adamw(RATE, 100, 10),
    "bert_adamw, not clipped": mo.bert_adamw(RATE, 100, 10, max_grad_norm=None),
}
# What no structure tells apart: the same quantities, or the same averages under another option.
ALIKE = [
    {"msvag", "msvag, decay", "msvag, scheduled", "svag"},
    {"novograd", "novograd, decay"},
    {"amsgrad, uncorrected", "amsgrad, corrected first"},
    {"adamw", "adamw, no decay", "adamw, uncorrected"},
    {"bert_adamw", "bert_adamw, not clipped"},
]

ORDERED_PAIRS = [*itertools.permutations(OPTIMIZERS, 2)]
DIFFERENT = [pair for pair in ORDERED_PAIRS if not any({*pair} <= group for group in ALIKE)]
SWAPPABLE = [pair for pair in ORDERED_PAIRS if pair not in DIFFERENT]
# One of each group, and all that are in none.
KINDS_OF_STATE = [
    name for name in OPTIMIZERS if not any(name in group - {min(group)} for group in ALIKE)
]


@functools.cache
def state_of(name: str) -> Any:
    """After three updates, not compiled: the kernels of a leaf are shared by options."""
    tx = OPTIMIZERS[name]
    return run_on(Case(tx, tx.update, PARAMS, STREAM), tx.init(PARAMS), slice(3))[1]


REFUSED = r"it lacks '?\w+.* and has '?\w+|what the state holds for it has shape \("
FLAX_REFUSED = r"keys \{'\w+'|field names .*'\w+'"
# Flax's, where the target counts for each element and the checkpoint holds one count.
FLAX_STUMBLED = "'numpy.ndarray' object has no attribute 'keys'"


@pytest.mark.parametrize("name", KINDS_OF_STATE)
def test_the_checkpoint_of_another_optimizer_is_refused_in_words(name, tmp_path):
    """By the update, which names what the state lacks; or by flax, before it comes to that."""
    tx = OPTIMIZERS[name]
    update = functools.partial(tx.update, STREAM[3], params=PARAMS)
    fresh = tx.init(PARAMS)

    def update_by_flax(state: Any) -> Any:
        return update(flax_bytes(state, fresh, tmp_path / "bytes"))

    for other in KINDS_OF_STATE:
        if other == name:
            continue
        state = state_of(other)
        with pytest.raises(ValueError, match=REFUSED):
            update(state)
        # Flax fills in what has the same names; then it is the update that refuses.
        error = conformance.raised(update_by_flax, state)
        assert re.search(f"{FLAX_REFUSED}|{FLAX_STUMBLED}|{REFUSED}", str(error)), repr(error)


@pytest.mark.parametrize(("saved", "target"), SWAPPABLE)
def test_options_that_share_a_structure_take_the_state_over(saved, target):
    """Nothing could tell them apart, and nothing has to: the run goes on from that state."""
    tx, state = OPTIMIZERS[target], state_of(saved)
    conformance.assert_same_types(state, tx.init(PARAMS))
    _, after = tx.update(STREAM[3], state, PARAMS)
    assert optax.tree.get(after, "count") == 4


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("msvag", "svag"),
        ("msvag", "msvag, decay"),
        ("msvag", "msvag, scheduled"),
        ("adamw", "adamw, no decay"),
    ],
)
def test_these_remember_the_same(name, other):
    """So that one may go on where the other has stopped, as though it had been there all along."""
    conformance.assert_same(state_of(name), state_of(other))


def test_without_correction_the_averages_of_adamw_lack_the_weight_of_what_they_have_seen():
    """A mistake that nothing detects: it fades as the weight, `1 - decay**t`, tends to 1."""
    corrected, uncorrected = (
        state_of(name).links["direction"].inner_states for name in ("adamw", "adamw, uncorrected")
    )
    for average, decay in (("mean", 0.9), ("second_moment", 0.999)):
        weight = jnp.float32(1 - decay**3)
        expected = jax.tree.map(lambda a, w=weight: a * w, corrected[average].average)
        conformance.assert_close(uncorrected[average].average, expected)


OTHER_SHAPES = [
    pytest.param(name, shape, id=f"{name}-{shape}")
    for name, shape in itertools.product(
        ["msvag", "expectigrad", "novograd", "novograd, stacked", "amsgrad", "bert_adamw"],
        [(1, 2), (8, 1), (1, 1), (8, 3), (2,), ()],
    )
    if (name, shape) != ("novograd, stacked", ())  # A scalar has no axis of layers.
]


@pytest.mark.parametrize(("name", "shape"), OTHER_SHAPES)
def test_the_state_of_other_parameters_is_refused_by_name(name, shape):
    """`flax.serialization` and pickle restore any shape, also one that broadcasts."""
    tx = OPTIMIZERS[name]
    state = tx.init(PARAMS | {"kernel": jnp.ones(shape)})
    with pytest.raises(ValueError, match=r"The update of 'kernel' has shape \(8, [12]\), "):
        tx.update(STREAM[0], state, PARAMS)
