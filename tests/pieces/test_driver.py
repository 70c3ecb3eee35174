"""Pieces are combined before they run: one kernel a leaf, one count, as optax chains them."""

import copy
import gc
import pickle
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

import msvag_optax as mo
from tests.meshes import KINDS, entered, mesh_of

RATE = optax.linear_schedule(0.1, 0.0, 100)
DECAY = {"weight_decay": 1e-2, "exclude_from_weight_decay": ["bias"]}
PARAMS = {"kernel": jnp.ones((5, 7)), "bias": jnp.ones(3)}


def init_zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


def fade(decay, shared, gradient, largest, param):
    largest = jnp.maximum(decay * largest, jnp.abs(gradient))
    return largest, largest


def fading_maximum(decay):
    """A stranger's memory."""
    return mo.piece(init_zeros, Partial(fade, decay), estimates=True)


def adamax(gradient, mean, largest):
    return mean / largest


def strangers_adamax(learning_rate, **decay):
    mean = mo.running_average(mo.exponential(0.9))
    direction = mo.from_estimates(adamax, mean=mean, largest=fading_maximum(0.999))
    return mo.optimizer(direction, learning_rate, **decay)


OPTIMIZERS = {
    "msvag": lambda: mo.msvag(RATE, **DECAY),
    "svag": lambda: mo.svag(0.1),
    "expectigrad": lambda: mo.expectigrad(RATE, **DECAY),
    "expectigrad, dense counter": lambda: mo.expectigrad(0.1, sparse_counter=False),
    "amsgrad": lambda: mo.amsgrad(RATE, **DECAY),
    "adamw": lambda: mo.adamw(RATE, **DECAY),
    "novograd": lambda: mo.novograd(RATE, amsgrad=True, mu_dtype=jnp.bfloat16, **DECAY),
    "novograd, averaging": lambda: mo.novograd(0.1, grad_averaging=True),
    "bert_adamw": lambda: mo.bert_adamw(0.1, 100, 10),
    "a stranger's": lambda: strangers_adamax(RATE, **DECAY),
    "a direction of optax's": lambda: mo.optimizer(optax.scale_by_adam(), 0.1, **DECAY),
    "adapted": lambda: mo.optimizer(mo.variance_adapted(optax.trace(0.9)), 0.1),
}


def kernels_that_read(shape, jaxpr):
    """How many of the driver's kernels take an array of this shape."""
    kernels = [e for e in jaxpr.eqns if "kernel" in str(e.params.get("name"))]
    return sum(any(v.aval.shape == shape for v in kernel.invars) for kernel in kernels)


@pytest.mark.parametrize("name", [*OPTIMIZERS])
def test_a_leaf_is_one_kernel_and_the_state_has_one_count(name):
    tx = OPTIMIZERS[name]()
    state = tx.init(PARAMS)
    jaxpr = jax.make_jaxpr(tx.update)(PARAMS, state, PARAMS)
    assert [kernels_that_read(p.shape, jaxpr) for p in PARAMS.values()] == [1, 1]
    if "optax" not in name:
        assert optax.tree.get(state, "count") == 0


def doubled():
    return mo.piece(lambda params: (), lambda shared, update, state, param: (2 * update, state))


def norms():
    norm = mo.running_average(mo.exponential(0.5), of=mo.layer_square_norm())
    return mo.from_estimates(mo.over_rms(0.1), second_moment=norm)


def traced():
    return mo.from_estimates(lambda gradient, trace: gradient - trace, trace=optax.trace(0.5))


CHAINS = {
    "pieces": lambda: [doubled(), mo.running_average(mo.exponential(0.9)), doubled()],
    "norms after a link": lambda: [doubled(), norms(), doubled()],
    "norms twice": lambda: [norms(), norms()],
    "norms that are kept in another dtype": lambda: [doubled(), mo.kept_in(norms(), jnp.float16)],
    "one of optax's between": lambda: [doubled(), optax.scale_by_adam(), doubled(), doubled()],
    "an estimator of optax's after a link": lambda: [doubled(), traced(), doubled()],
    "kept in another dtype": lambda: [doubled(), mo.kept_in(traced(), jnp.float16), doubled()],
    "chains in a chain": lambda: [mo.chain(doubled(), traced()), mo.chain(norms(), doubled())],
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
    ours, theirs = mo.chain(*CHAINS[name]()), optax.chain(*CHAINS[name]())
    gradients = {"a": jnp.asarray([3.0, -4.0]), "b": {"c": jnp.asarray([2.0, 1.0])}}
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


def test_named_links_are_found_by_their_names_and_keep_their_order():
    tx = mo.chain(z=doubled(), a=optax.clip(1.0), m=mo.momentum(0.5))
    state = tx.init(jnp.zeros(()))
    updates, state = tx.update(jnp.asarray(3.0), state)
    assert updates == 1
    assert optax.tree.get(state, "trace") == 1
    assert sorted(state) == ["a", "m", "z"]


def test_links_on_a_schedule_share_a_count():
    schedule = optax.linear_schedule(0.0, 1.0, 4)
    decay = mo.add_decayed_weights(schedule)
    tx = mo.chain(decay, optax.clip(10.0), decay)
    params, seen = jnp.asarray(1.0), []
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jnp.asarray(0.0), state, params)
        seen.append(float(updates))
    assert seen == [0, 0.5, 1]
    assert optax.tree.get(state, "count") == 3


@pytest.mark.parametrize("make", [mo.chain, lambda x: mo.optimizer(x, 0.1)], ids=["chain", "opt"])
@pytest.mark.parametrize(
    "estimator",
    [
        mo.running_moments(mo.exponential(0.9)),
        mo.running_average(mo.exponential(0.9), of=mo.square),
        mo.running_max(mo.running_average(mo.exponential(0.9))),
        mo.kept_in(mo.running_moments(mo.arithmetic()), jnp.float32),
        fading_maximum(0.9),
    ],
)
def test_an_estimator_is_no_update(make, estimator):
    with pytest.raises(TypeError, match=r"got an estimator.*`from_estimates` turns"):
        make(estimator)


@pytest.mark.parametrize(
    ("links", "named", "message"),
    [
        ([], {}, "all of them by position, or all by keyword"),
        ([doubled()], {"a": doubled()}, "all of them by position, or all by keyword"),
        ([mo.msvag], {}, r"`links\[0\]` must be a GradientTransformation"),
        ([], {"decay": 0.1}, "`decay` must be a GradientTransformation"),
    ],
)
def test_what_is_no_link(links, named, message):
    with pytest.raises(TypeError, match=message):
        mo.chain(*links, **named)


@pytest.mark.parametrize("argument", ["init", "leaf", "advance", "read"])
def test_what_makes_no_piece(argument):
    arguments = {"init": init_zeros, "leaf": Partial(fade, 0.9), argument: 3}
    with pytest.raises(TypeError, match=f"`{argument}` must be a function.*got 3"):
        mo.piece(**arguments)


def test_a_strangers_piece_is_kept_in_float32_and_sharded_like_its_parameter():
    sharding = NamedSharding(mesh_of({"devices": 8}, AxisType.Auto), P("devices"))
    params = jax.device_put({"w": jnp.ones((8, 2), jnp.bfloat16)}, sharding)
    tx = strangers_adamax(0.1)
    state = jax.jit(tx.init)(params)
    for _ in range(2):
        largest = optax.tree.get(state, "inner_states")["largest"]["w"]
        assert largest.dtype == jnp.float32
        assert largest.sharding.is_equivalent_to(sharding, 2)
        updates, state = jax.jit(tx.update)(params, state, params)
    assert updates["w"].dtype == jnp.bfloat16


def test_each_leaf_gets_its_part_of_an_extra_argument():
    def advance(state, extra):
        return (extra["factor"], mo.Parts(extra["variances"])), state

    def leaf(shared, gradient, state, param):
        factor, variance = shared
        return factor * gradient + variance, state

    tx = mo.chain(doubled(), mo.piece(lambda params: None, leaf, advance=advance))
    gradients = {"a": jnp.ones(2), "b": jnp.ones(())}
    variances = {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray(3.0)}
    updates, _ = tx.update(gradients, tx.init(gradients), factor=10.0, variances=variances)
    np.testing.assert_array_equal(updates["a"], [21, 22])
    assert updates["b"] == 23
    with pytest.raises(ValueError, match=r"another tree structure.*only the updates have 'b'"):
        tx.update(gradients, tx.init(gradients), factor=1.0, variances={"a": 0.0})


def test_a_part_where_there_is_no_gradient_goes_to_no_leaf():
    tx = mo.optimizer(
        mo.piece(
            lambda params: None,
            lambda part, gradient, state, param: (part * gradient, state),
            advance=lambda state, extra: (mo.Parts(extra["factors"]), state),
        ),
        1.0,
    )
    params = {"a": jnp.ones(2), "steps": jnp.asarray(3)}
    gradients = {"a": jnp.ones(2), "steps": None}
    factors = {"a": jnp.full(2, 3.0), "steps": jnp.asarray(7)}
    updates, _ = tx.update(gradients, tx.init(params), params, factors=factors)
    np.testing.assert_array_equal(updates["a"], -3)


def test_an_extra_argument_that_is_missing_is_named():
    def advance(state, extra):
        return extra["factor"], state

    tx = mo.piece(lambda params: None, lambda s, g, state, p: (s * g, state), advance=advance)
    with pytest.raises(TypeError, match="needs the extra argument `factor`"):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(TypeError, match=r"`running_max` asks .*, and it failed: .* `factor`"):
        mo.running_max(tx).init(PARAMS)


def test_the_choice_of_a_leaf_is_checked_in_init():
    def check(params):
        raise ValueError("no such parameter")

    leaf = mo.PerLeaf(lambda name, shape: lambda s, g, state, p: (g, state), check)
    with pytest.raises(ValueError, match="no such parameter"):
        mo.piece(lambda params: None, leaf).init(PARAMS)


def test_a_piece_behind_one_of_optaxs_is_given_what_update_was():
    seen = []

    def advance(state, extra):
        seen.append(dict(extra))
        return None, state

    own = mo.piece(lambda params: None, lambda s, g, state, p: (g, state), advance=advance)
    tx = mo.chain(optax.trace(0.9), own)
    tx.update(PARAMS, tx.init(PARAMS), factor=2.0)
    assert seen == [{"factor": 2.0}]


def test_a_piece_that_needs_a_count_has_one():
    def counts(**flag):
        return mo.piece(
            lambda params: None,
            lambda count, gradient, state, param: (count * gradient, state),
            advance=lambda state, extra: (extra["count"], state),
            **flag,
        )

    counted = mo.optimizer(counts(needs_count=True), 1.0)
    _, state = counted.update(PARAMS, counted.init(PARAMS), PARAMS)
    assert counted.update(PARAMS, state, PARAMS)[0]["bias"][0] == -1
    with pytest.raises(TypeError, match=r"`count`.*that needs `needs_count=True`"):
        counts().update(PARAMS, counts().init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("init", "leaf", "message"),
    [
        (lambda p: p["kernel"], fade, "may map over the tree of parameters"),
        (init_zeros, lambda s, g, state, p: (g, (state, state)), "must return an update and a st"),
        (lambda p: (init_zeros(p), 0), lambda s, g, state, p: (g, g), "must return an update and"),
    ],
)
def test_a_strangers_mistake_is_named(init, leaf, message):
    tx = mo.piece(init, Partial(fade, 0.9) if leaf is fade else leaf)
    with pytest.raises(TypeError, match=message):
        tx.update(PARAMS, tx.init(PARAMS))


@pytest.mark.parametrize("argument", ["leaf", "advance"])
def test_a_function_of_other_arguments_is_refused_when_built(argument):
    arguments = {"init": init_zeros, "leaf": Partial(fade, 0.9)} | {argument: lambda x: x}
    with pytest.raises(TypeError, match=f"`{argument}` must be a function of .*too many positi"):
        mo.piece(**arguments)


@pytest.mark.parametrize(
    "estimator",
    [
        mo.running_average(mo.exponential(0.9)),
        mo.running_average(mo.arithmetic(), of=mo.square, count_nonzero=True),
        mo.running_moments(mo.exponential(0.9)),
        mo.running_max(mo.running_average(mo.exponential_from_zero(0.5), of=mo.square)),
        mo.bias_corrected(mo.running_average(mo.exponential_from_zero(0.5)), 0.5),
        mo.kept_in(mo.running_average(mo.exponential(0.9), of=mo.square), jnp.float32),
    ],
)
def test_before_gives_the_estimate_of_the_step_before(estimator):
    late = mo.before(estimator)
    assert isinstance(late, mo.Estimator) == isinstance(estimator, mo.Estimator)
    gradients = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    state, late_state = estimator.init(gradients[0]), late.init(gradients[0])
    estimate = None
    for gradient in gradients:
        now, late_state = late.update(gradient, late_state)
        if estimate is not None:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), now, estimate)
        estimate, state = estimator.update(gradient, state)
    assert jax.tree.structure(state) == jax.tree.structure(late_state)


def test_before_needs_an_estimate_that_can_be_read():
    with pytest.raises(TypeError, match="made with a `read`"):
        mo.before(fading_maximum(0.9))


def test_pieces_survive_copies():
    piece = fading_maximum(0.5)
    copies = {
        "copy": copy.copy(piece),
        "deepcopy": copy.deepcopy(piece),
        "replaced": piece._replace(init=piece.init),
        "pickled": pickle.loads(pickle.dumps(piece)),
        "held": copy.deepcopy({"piece": [piece]})["piece"][0],
    }
    for name, other in copies.items():
        assert type(other) is mo.Estimator, name
        tx = mo.optimizer(mo.from_estimates(adamax, mean=mo.momentum(0.9), largest=other), 0.1)
        jaxpr = jax.make_jaxpr(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
        assert kernels_that_read((5, 7), jaxpr) == 1, name


def test_an_init_that_is_replaced_is_used():
    mean = mo.running_average(mo.exponential_from_zero(0.5))

    def from_ones(params):
        return mean.init(params)._replace(average=jax.tree.map(jnp.ones_like, params))

    tx = mo.chain(mean._replace(init=from_ones))
    updates, _ = tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)))
    np.testing.assert_array_equal(updates, 0.5)


def test_what_is_kept_for_another_parameter_does_not_broadcast():
    for tx in (mo.momentum(0.9), fading_maximum(0.9)):
        state = tx.init({"w": jnp.ones(())})
        with pytest.raises(ValueError, match=r"The update of 'w' has shape \(3,\).* shape \(\)"):
            tx.update({"w": jnp.ones(3)}, state)


def test_equal_leaves_new_numbers_and_later_steps_share_a_trace():
    traced_shapes = []

    def observed(gradient):
        traced_shapes.append(gradient.shape)
        return gradient**2

    params = {"a": jnp.ones((3, 19)), "b": jnp.ones((3, 19))}
    tx = mo.chain(
        mo.from_estimates(
            mo.over_rms(0.1), second_moment=mo.running_average(mo.arithmetic(), of=observed)
        )
    )
    state = tx.init(params)
    traced_shapes.clear()
    for _ in range(3):
        _, state = tx.update(params, state)
    assert traced_shapes == [(3, 19)]


def test_closures_go_with_their_piece():
    alive = []
    for size in range(1000, 1006):
        held = np.ones(size)
        alive.append(weakref.ref(held))
        tx = mo.optimizer(
            mo.from_estimates(
                lambda gradient, mean, held=held: mean * held[0],
                mean=mo.running_average(mo.Weighting(lambda count, held=held: held[0] / count)),
            ),
            lambda count, held=held: held[0],
        )
        jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        del tx, held
    gc.collect()
    assert sum(reference() is not None for reference in alive) == 0


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("tx", [mo.momentum(0.9), mo.adamw(0.1)], ids=["momentum", "adamw"])
def test_an_optimizer_goes_from_mesh_to_mesh(tx, kind):
    """What it has planned for one must not hold it there."""

    def step(params):
        return tx.update(params, tx.init(params), params)[0]

    devices = jax.devices()
    for part in (devices, devices[4:]):
        mesh = jax.make_mesh((len(part),), ("x",), axis_types=(kind,), devices=part)
        params = jax.device_put(jnp.ones(8), NamedSharding(mesh, P("x")))
        for run in (step, jax.jit(step)):
            with entered(mesh):
                assert jnp.isfinite(run(params)).all()
    assert step(jax.device_put(jnp.ones(8), devices[3])).devices() == {devices[3]}


def test_nothing_is_computed_or_sent_while_a_step_is_planned():
    tx = mo.adamw(0.1)
    state = tx.init(PARAMS)
    with jax.transfer_guard("disallow"):
        jax.jit(mo.adamw(0.1).update)(PARAMS, state, PARAMS)
    mesh = jax.sharding.AbstractMesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.sharding.use_abstract_mesh(mesh):
        shape = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=NamedSharding(mesh, P("x")))
        made = jax.eval_shape(lambda p: tx.update(p, tx.init(p), p)[0], shape)
    assert made.shape == (8,)


def test_what_is_chosen_while_tracing_is_not_kept():
    def scaled(name, shape):
        factor = jnp.sqrt(float(len(shape.shape) + 1))
        return lambda gradient: factor * gradient

    tx = mo.running_average(mo.exponential(0.9), of=mo.PerLeaf(scaled))
    state = tx.init(PARAMS)
    jitted, _ = jax.jit(tx.update)(PARAMS, state)
    eager, _ = tx.update(PARAMS, state)
    np.testing.assert_allclose(jitted["bias"], eager["bias"])


def test_a_choice_does_not_depend_on_the_gradients_precision():
    def by_dtype(name, shape):
        return mo.square if shape.dtype == jnp.float32 else mo.layer_square_norm()

    def check(params):
        assert set(params) == {"kernel", "bias"}

    tx = mo.running_average(mo.exponential(0.9), of=mo.PerLeaf(by_dtype, check))
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    estimates, _ = tx.update(params, tx.init(params))
    assert estimates["bias"].shape == (3,)


@pytest.mark.parametrize(
    "estimator",
    [
        lambda: mo.bias_corrected(optax.trace(0.9), 0.9),
        lambda: mo.from_estimates(lambda gradient, d: d * d, d=optax.trace(0.9)),
        lambda: mo.chain(mo.momentum(0.9), optax.scale(2.0)),
    ],
    ids=["corrected", "read", "chained"],
)
def test_a_maximum_of_what_optax_makes(estimator):
    tx = mo.running_max(estimator())
    state = tx.init(PARAMS)
    for gradients in (PARAMS, jax.tree.map(jnp.negative, PARAMS)):
        largest, state = tx.update(gradients, state)
    expected, _ = estimator().update(PARAMS, estimator().init(PARAMS))
    np.testing.assert_allclose(largest["bias"], expected["bias"], rtol=1e-6)
    with pytest.raises(TypeError, match="of pieces alone"):
        mo.before(tx)


@pytest.mark.parametrize(
    ("advance", "leaf", "message"),
    [
        (lambda state, extra: state, None, "`advance` of a piece must return what is shared and"),
        (lambda state, extra: (None, {"n": 0}), None, "`advance` of a piece must return a state"),
        (None, lambda s, g, state, p: g, "`leaf` of a piece must return an update and a state"),
        (None, lambda s, g, state, p: (g, state | {"n": 7}), "with the structure that it is"),
        (
            None,
            lambda s, g, state, p: (g, state | {"m": 0.0}),
            r"For .* has returned a state of shape \(\), and was given one",
        ),
    ],
)
def test_what_a_piece_returns_is_checked(advance, leaf, message):
    tx = mo.piece(
        lambda params: {"n": jnp.zeros([], jnp.int32), "m": init_zeros(params)},
        leaf or (lambda s, g, state, p: (g, state)),
        advance=advance,
    )
    for alone_or_chained in (tx, mo.chain(tx, mo.momentum(0.5))):
        with pytest.raises((TypeError, ValueError), match=message):
            alone_or_chained.update(PARAMS, alone_or_chained.init(PARAMS))


def test_what_is_chosen_for_a_leaf_is_a_function():
    average = mo.running_average(mo.exponential(0.9), of=mo.PerLeaf(lambda name, shape: None))
    with pytest.raises(TypeError, match="A `PerLeaf` must choose a function, got None for 'bias'"):
        average.init(PARAMS)


def test_the_state_of_another_piece_is_refused():
    state = mo.running_average(mo.exponential(0.9)).init(PARAMS)
    with pytest.raises(ValueError, match="The state is none that `init` of this piece makes"):
        mo.momentum(0.9).update(PARAMS, state)
