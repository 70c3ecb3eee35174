"""`watch_noise` in wrappers, on meshes and in low precision; what is read of it; bad input."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import msvag_optax as mo
from tests.meshes import KINDS, entered, mesh_of
from tests.pieces.test_batch_variance import EXAMPLES, PARAMS, parts, sample

WATCH = mo.watch_noise(mo.exponential(0.9))
GRADIENT, EXTRA = sample()


def by_label(**options):
    labels = {"w": "watched", "b": "plain"}
    watched = optax.chain(WATCH, optax.sgd(0.1))
    return optax.partition({"watched": watched, "plain": optax.sgd(0.1)}, labels, **options)


def masked(**options):
    return optax.chain(optax.masked(WATCH, {"w": True, "b": False}, **options), optax.sgd(0.1))


ALL = {
    "mo.chain": mo.chain(WATCH, mo.momentum(0.9), optax.scale(-0.1)),
    "before a link of optax's": mo.chain(WATCH, optax.clip(1.0), mo.momentum(0.9)),
    "optax.chain": optax.chain(WATCH, optax.adam(0.1)),
    "optax.named_chain": optax.named_chain(("noise", WATCH), ("adam", optax.adam(0.1))),
    "optimizer": mo.optimizer(mo.chain(WATCH, mo.momentum(0.9)), 0.1, 0.01),
    "dependable": mo.dependable(optax.chain(WATCH, optax.adam(0.1))),
    "lazy_rows": mo.lazy_rows(optax.chain(WATCH, mo.momentum(0.9))),
    "kept_in": mo.kept_in(mo.chain(WATCH, mo.momentum(0.9)), jnp.float32),
    "inject_hyperparams": optax.inject_hyperparams(
        lambda decay: mo.chain(mo.watch_noise(mo.exponential(decay)), mo.momentum(0.9))
    )(decay=0.9),
    "apply_if_finite": optax.apply_if_finite(optax.chain(WATCH, optax.sgd(0.1)), 3),
    "before moments": optax.chain(WATCH, mo.msvag(0.1)),
}
SOME = {
    "partition": by_label(),
    "partition that masks extra arguments": by_label(mask_compatible_extra_args=True),
    "masked": masked(),
    "masked with its extra arguments": masked(mask_compatible_extra_args=True),
}


def watched(gradients=GRADIENT, extra=EXTRA, params=PARAMS, tx=WATCH, steps=3):
    """The state after some steps of the same batch."""
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(steps):
        _, state = update(gradients, state, params, **extra)
    return state


@pytest.mark.parametrize("tx", ALL.values(), ids=ALL)
def test_inside_of_wrappers_it_reads_what_it_reads_alone(tx):
    state = watched(tx=tx)
    reading = mo.noise_scale(state, details=True)
    assert reading.source == "within steps"
    assert reading.examples == 12
    np.testing.assert_allclose(reading.value, mo.noise_scale(watched()), rtol=1e-5)


@pytest.mark.parametrize("tx", SOME.values(), ids=SOME)
def test_beside_holes_it_reads_the_leaves_that_are_there(tx):
    """Whether or not the wrapper cuts extra arguments like the gradients."""
    ratios = mo.signal_to_noise(watched(tx=tx))
    np.testing.assert_allclose(
        jax.tree.leaves(ratios), [mo.signal_to_noise(watched())["w"]], rtol=1e-5
    )


def test_around_multi_steps_it_watches_each_gradient():
    tx = optax.chain(WATCH, optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation())
    np.testing.assert_allclose(mo.noise_scale(watched(tx=tx)), mo.noise_scale(watched()), rtol=1e-5)


def test_inside_of_multi_steps_it_watches_the_batch_that_the_microbatches_make():
    """With the extra arguments of all microbatches so far, those of the last are the batch's."""
    tx = optax.MultiSteps(optax.chain(WATCH, optax.sgd(0.1)), 4)

    @jax.jit
    def step(carry, part):
        state, batch = carry
        batch = batch.add(part, 3)
        _, extra = batch.result()
        return (tx.update(part, state, PARAMS, **extra)[1], batch), None

    means = jax.tree.map(lambda g: g.reshape(4, 3, *g.shape[1:]).mean(1), EXAMPLES)
    (state, _), _ = jax.lax.scan(step, (tx.init(PARAMS), mo.Microbatches.init(PARAMS)), means)
    gradient, extra = parts()
    reading = mo.noise_scale(state, details=True)
    assert (reading.examples, reading.steps) == (12, 1)
    np.testing.assert_allclose(
        reading.value, mo.noise_scale(watched(gradient, extra, steps=1)), rtol=1e-5
    )


def test_updates_pass_as_they_are():
    low = jax.tree.map(lambda g: g.astype(jnp.bfloat16), GRADIENT)
    updates, state = WATCH.update(low, WATCH.init(low), **EXTRA)
    jax.tree.map(np.testing.assert_array_equal, updates, low)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {
        jnp.dtype(jnp.float32),
        jnp.dtype(jnp.int32),
    }
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert sizes == [1] * (3 + 2 * len(PARAMS))


def test_low_precision_and_leaves_without_gradient():
    params = {**PARAMS, "steps": jnp.asarray(0), "frozen": None}
    zero = np.zeros((), jax.dtypes.float0)
    gradients = {**GRADIENT, "steps": zero, "frozen": None}
    for part in (zero, None, jnp.zeros(())):
        squares = {**EXTRA["sum_sq_diff_grads"], "steps": part, "frozen": None}
        extra = {**EXTRA, "sum_sq_diff_grads": squares}
        state = WATCH.init(params)
        _, state = WATCH.update(gradients, state, params, **extra)
        np.testing.assert_allclose(mo.noise_scale(state), mo.noise_scale(watched()), rtol=1e-5)


def test_batches_of_different_sizes_count_in_their_own():
    tx = mo.watch_noise(mo.arithmetic())
    state, lengths, variances = tx.init(PARAMS), [], []
    for size in (4, 12):
        examples = jax.tree.map(lambda g, size=size: g[:size], EXAMPLES)
        gradient, extra = sample(examples)
        _, state = tx.update(gradient, state, **extra)
        variance = sum(jnp.sum(g.var(0, ddof=1)) for g in jax.tree.leaves(examples))
        variances.append(variance)
        lengths.append(optax.tree.norm(gradient, squared=True) - variance / size)
    expected = np.mean(variances) / 8 / np.mean(lengths)
    np.testing.assert_allclose(mo.noise_scale(state), expected, rtol=1e-5)


def test_a_traced_batch_of_one_is_not_counted():
    before = watched()
    one = {**EXTRA, "sample_size": jnp.asarray(1)}
    _, after = jax.jit(WATCH.update)(GRADIENT, before, **one)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    _, never = jax.jit(WATCH.update)(GRADIENT, WATCH.init(PARAMS), **one)
    assert mo.noise_scale(never, details=True).steps == 0
    for read in (mo.noise_scale, mo.signal_to_noise):
        with pytest.raises(ValueError, match="not enough steps"):
            read(never)
    ratios = mo.signal_to_noise(never, details=True).value
    assert all(jnp.isnan(ratio) for ratio in ratios.values())


@pytest.mark.parametrize("size", [0, 1])
def test_a_batch_that_is_not_counted_leaves_nothing_behind(size):
    """Whatever is in it: the mean over no examples is NaN, and so are the squares over one less."""
    before = watched()
    nothing = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), GRADIENT)
    extra = {"sum_sq_diff_grads": nothing, "sample_size": jnp.asarray(size)}
    _, after = jax.jit(WATCH.update)(nothing, before, **extra)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_batch_of_one_traced_microbatch_is_not_counted():
    @jax.jit
    def step(state, sizes):
        def add(batch, size):
            return batch.add(GRADIENT, size), None

        batch, _ = jax.lax.scan(add, mo.Microbatches.init(PARAMS), sizes)
        gradient, extra = batch.result()
        return WATCH.update(gradient, state, **extra)[1]

    before = watched()
    after = step(before, jnp.asarray([8]))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert step(before, jnp.asarray([8, 0, 4])).observations == before.observations + 1


def test_a_missing_gradient_may_lack_its_squares():
    """What is kept of the other leaves moves; an argument that is no tree like them stays."""
    before = watched()
    squares = {**EXTRA["sum_sq_diff_grads"], "b": None}
    seen = {}

    def look(updates, state, params=None, **extra):
        seen.update(extra)
        return updates, state

    looking = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), look)
    tx = mo.dependable(optax.chain(looking, WATCH))
    others = {"value": None, "value_fn": jnp.sum, "pair": {"w": None}}
    _, (_, after) = tx.update(
        {**GRADIENT, "b": None},
        (optax.EmptyState(), before),
        PARAMS,
        **{**EXTRA, "sum_sq_diff_grads": squares},
        **others,
    )
    _, full = WATCH.update(GRADIENT, before, PARAMS, **EXTRA)
    assert after.variance["b"] == before.variance["b"]
    np.testing.assert_allclose(after.variance["w"], full.variance["w"], rtol=1e-6)
    assert seen.items() >= others.items()


def test_huge_gradients_leave_the_state_finite():
    huge = jax.tree.map(lambda g: 1e37 * jnp.sign(g), GRADIENT)
    zero = jax.tree.map(jnp.zeros_like, huge)
    largest = jax.tree.map(lambda g: jnp.full_like(g, 3e38), huge)
    state = WATCH.init(PARAMS)
    for gradient, squares in ((huge, zero), (zero, largest), (huge, largest), (huge, zero)):
        _, state = WATCH.update(gradient, state, sum_sq_diff_grads=squares, sample_size=2)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_stacked_layers_have_numbers_of_their_own():
    stacked = mo.watch_noise(mo.exponential(0.9), stacked=["^w"])
    apart = {f"w{i}": EXAMPLES["w"][:, i] for i in range(3)}
    gradient, extra = sample(apart)
    expected = mo.signal_to_noise(watched(gradient, extra, gradient))
    ratios = mo.signal_to_noise(watched(tx=stacked))
    np.testing.assert_allclose(ratios["w"], [expected[f"w{i}"] for i in range(3)], rtol=1e-5)
    assert ratios["b"].shape == ()
    with pytest.raises(ValueError, match="`stacked` must be given to `watch_noise` itself"):
        mo.signal_to_noise(watched(), stacked=["w"])
    with pytest.raises(ValueError, match="`stacked` has the pattern 'layers'"):
        mo.watch_noise(mo.exponential(0.9), stacked=["layers"]).init(PARAMS)


def test_it_is_preferred_to_moments_and_said_so():
    state = watched(tx=optax.chain(WATCH, mo.msvag(0.1)))
    assert mo.signal_to_noise(state, details=True).source == "within steps"
    reading = jax.jit(partial(mo.signal_to_noise, details=True))(state[1:])
    assert (reading.source, reading.examples) == ("over steps", None)
    assert 2 < reading.steps < 3
    alone = mo.signal_to_noise(state[1:], details=True).value
    jax.tree.map(np.testing.assert_allclose, reading.value, alone)
    twice = optax.chain(WATCH, WATCH).init(PARAMS)
    with pytest.raises(ValueError, match=r"noise of the batches.*in one place.*in 2"):
        mo.noise_scale(twice)


def test_one_gradient_over_steps_says_nothing():
    tx = mo.msvag(0.1)
    _, state = tx.update(GRADIENT, tx.init(PARAMS), PARAMS)
    for read in (mo.noise_scale, mo.signal_to_noise):
        with pytest.raises(ValueError, match=r"not enough steps.*`watch_noise`"):
            read(state)
    assert jnp.isnan(jax.jit(mo.noise_scale)(state))


def test_moments_without_signal_are_refused_and_the_remedy_is_named():
    tx = mo.watch_moments(mo.arithmetic())
    state = tx.init(jnp.zeros(()))
    for gradient in (1.0, -1.0, 1.0, -1.0):
        _, state = tx.update(jnp.asarray(gradient), state)
    with pytest.raises(ValueError, match=r"in 4 gradients over steps.*by `watch_noise`"):
        mo.noise_scale(state)


def test_read_from_flax_nnx():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(WATCH, optax.sgd(0.1)), wrt=nnx.Param)
    batch = mo.Microbatches.init(nnx.state(model, nnx.Param))
    for scale in (1.0, 3.0):
        x = scale * jnp.ones((4, 3))
        batch = batch.add(nnx.grad(lambda m, x=x: jnp.sum(m(x)))(model), 4)
    gradient, extra = batch.result()
    optimizer.update(model, gradient, **extra)
    assert jnp.isfinite(mo.noise_scale(optimizer.opt_state))
    assert mo.noise_scale(optimizer.opt_state, details=True).examples == 8


# Several devices.


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_arrays_on_a_mesh_are_watched_like_any_others(kind):
    """Each device holds a piece of `w`; the sums are those of the whole."""
    mesh = mesh_of({"model": 4}, kind)
    specs = {"w": P(None, "model"), "b": P()}
    shardings = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
    place = partial(jax.device_put, device=shardings)
    squares = place(EXTRA["sum_sq_diff_grads"])
    tx = mo.watch_noise(mo.exponential(0.9), stacked=["^w"])
    with entered(mesh):
        state = jax.jit(tx.init)(place(PARAMS))
        extra = {**EXTRA, "sum_sq_diff_grads": squares}
        _, state = jax.jit(tx.update)(place(GRADIENT), state, place(PARAMS), **extra)
    expected = mo.signal_to_noise(watched(tx=tx, steps=1))
    ratios = mo.signal_to_noise(state)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), ratios, expected)


def vary(tree):
    """`jax.lax.pcast`, which is `jax.lax.pvary` in old versions."""
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(tree, "data", to="varying")
    return jax.lax.pvary(tree, "data")


def replicas(step, check_vma=True):
    """Runs `step` on four devices, each of which has 3 of 12 inputs."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (P(), P("data")), "out_specs": P()}
    return jax.jit(jax.shard_map(step, mesh=mesh, check_vma=check_vma, **specs))


INPUTS = jnp.asarray(np.random.default_rng(4).normal(size=(12, 3, 4)), jnp.float32)
ONES = {"w": jnp.ones((3, 4))}


def mean_gradient(params, inputs):
    return jax.grad(lambda p: jnp.mean(jnp.sum(p["w"] * inputs, axis=(1, 2)) ** 2))(params)


def of_replicas(params, inputs):
    params = vary(params)
    batch = mo.Microbatches.init(params).add(mean_gradient(params, inputs), 3)
    return batch.across("data").result()


@pytest.mark.parametrize("check_vma", [True, False])
def test_replicas_are_microbatches(check_vma):
    examples = jax.vmap(lambda x: mean_gradient(ONES, x[None]))(INPUTS)
    gradient, extra = replicas(of_replicas, check_vma)(ONES, INPUTS)
    expected, expected_extra = parts(examples, params=ONES)
    np.testing.assert_allclose(gradient["w"], expected["w"], rtol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (extra, expected_extra)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_microbatches_on_each_of_the_replicas_are_parts_of_one_batch():
    def step(params, inputs):
        params = vary(params)

        def add(batch, x):
            return batch.add(mean_gradient(params, x[None]), 1), None

        batch, _ = jax.lax.scan(add, mo.Microbatches.init(params), inputs)
        return batch.across("data").result()

    _, extra = replicas(step)(ONES, INPUTS)
    _, expected = sample(jax.vmap(lambda x: mean_gradient(ONES, x[None]))(INPUTS))
    assert extra["sample_size"] == 12
    np.testing.assert_allclose(
        extra["sum_sq_diff_grads"]["w"], expected["sum_sq_diff_grads"]["w"], rtol=1e-5
    )


def test_replicas_cost_one_more_all_reduce():
    def plain(params, inputs):
        return jax.lax.pmean(mean_gradient(vary(params), inputs), "data")

    def count(step):
        compiled = replicas(step).lower(ONES, INPUTS).compile().as_text()
        return len(re.findall(r" all-reduce(?:-start)?\(", compiled))

    assert (count(plain), count(of_replicas)) == (1, 2)


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_device_without_examples_counts_for_nothing(check_vma):
    """Its gradient is 0 / 0."""
    sizes = jnp.asarray([3, 3, 0, 3])

    def step(params, inputs):
        params = vary(params)
        size = sizes[jax.lax.axis_index("data")]
        gradient = jax.tree.map(lambda g: g * size / size, mean_gradient(params, inputs))
        return mo.Microbatches.init(params).add(gradient, size).across("data").result()

    there = jnp.concatenate([INPUTS[:6], INPUTS[9:]])
    examples = jax.vmap(lambda x: mean_gradient(ONES, x[None]))(there)
    expected = parts(examples, sizes=(3, 3, 3), params=ONES)
    actual = replicas(step, check_vma)(ONES, INPUTS)
    for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_under_strict_promotion_a_step_is_counted_and_read():
    def step(params, inputs):
        params = vary(params)
        gradient = jax.tree.map(lambda g: g.astype(jnp.bfloat16), mean_gradient(params, inputs))
        batch = mo.Microbatches.init(params).add(gradient, jnp.asarray(3, jnp.int32))
        gradient, extra = batch.across("data").result()
        return WATCH.update(gradient, WATCH.init(ONES), **extra)[1]

    with jax.numpy_dtype_promotion("strict"):
        state = replicas(step)(ONES, INPUTS)
        moments = watched(tx=mo.watch_moments(mo.arithmetic()), extra={})
        read = [f(s) for s in (state, moments) for f in (mo.noise_scale, mo.signal_to_noise)]
    assert all(jnp.all(jnp.isfinite(x) | jnp.isinf(x)) for x in jax.tree.leaves(read))


def test_a_gradient_that_is_summed_already_is_refused():
    def step(params, inputs):
        batch = mo.Microbatches.init(params).add(mean_gradient(params, inputs), 3)
        return batch.across("data").result()

    with pytest.raises(ValueError, match=r"the same on all devices.*pcast\(params, 'data'"):
        replicas(step)(ONES, INPUTS)


def test_a_gradient_of_a_part_of_the_batch_is_not_watched():
    def step(params, inputs):
        gradient = mean_gradient(vary(params), inputs)
        tx = mo.watch_noise(mo.exponential(0.9))
        extra = {"sum_sq_diff_grads": gradient, "sample_size": 3}
        return tx.update(gradient, tx.init(params), **extra)[1]

    with pytest.raises(ValueError, match="Average gradients over the whole batch"):
        replicas(step)(ONES, INPUTS)


# Bad input.


@pytest.mark.parametrize("tx", [WATCH, mo.batch_variance()], ids=["watch", "estimate"])
@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"sample_size": None}, TypeError, "was not given `sample_size`"),
        ({"sum_sq_diff_grads": None}, TypeError, "was not given `sum_sq_diff_grads`"),
        ({"sample_size": 1}, ValueError, "`sample_size` must be at least 2.*got 1: one example"),
        ({"sample_size": jnp.asarray(1)}, ValueError, "`sample_size` must be at least 2"),
        ({"sample_size": "12"}, TypeError, "`sample_size` must be a number"),
        ({"sample_size": jnp.ones(3)}, TypeError, "`sample_size` must be a number"),
        (
            {"sum_sq_diff_grads": {"w": GRADIENT["w"]}},
            ValueError,
            "than the extra argument `sum_sq_diff_grads`: only the updates have 'b'",
        ),
        (
            {"sum_sq_diff_grads": {**GRADIENT, "more": jnp.ones(5)}},
            ValueError,
            "only the extra argument `sum_sq_diff_grads` has 'more'",
        ),
        (
            {"sum_sq_diff_grads": {**GRADIENT, "b": jnp.ones(5)}},
            ValueError,
            r"`sum_sq_diff_grads` has shape \(5,\) for 'b', whose gradient has shape \(4,\)",
        ),
        (
            {"sum_sq_diff_grads": {**GRADIENT, "b": None}},
            ValueError,
            "`sum_sq_diff_grads` has nothing for 'b'",
        ),
        (
            {"sum_sq_diff_grads": {**GRADIENT, "b": 1j * jnp.ones(4)}},
            ValueError,
            r"has complex numbers of shape \(4,\) for 'b'",
        ),
    ],
    ids=[
        *("no size", "no squares", "one", "array of one", "text", "sizes"),
        *("tree", "more", "shape", "nothing", "complex"),
    ],
)
def test_bad_extra_arguments_are_refused(tx, change, error, sentence):
    extra = {k: v for k, v in {**EXTRA, **change}.items() if v is not None}
    with pytest.raises(error, match=sentence):
        tx.update(GRADIENT, tx.init(PARAMS), **extra)


def test_bad_arguments_are_refused_when_it_is_built():
    with pytest.raises(TypeError, match="`weighting` must be a Weighting"):
        mo.watch_noise(0.9)
    with pytest.raises(TypeError, match="`stacked` must be a list of regular"):
        mo.watch_noise(mo.exponential(0.9), stacked="w")
    with pytest.raises(TypeError, match="`details` must be True or False"):
        mo.noise_scale(watched(), details="all")
    with pytest.raises(ValueError, match=r"see `watch_noise`.*keeps none"):
        mo.noise_scale(optax.adam(0.1).init(PARAMS))


def test_bad_microbatches_are_refused():
    batch = mo.Microbatches.init(PARAMS)
    with pytest.raises(ValueError, match="two microbatches or more, got 0"):
        batch.result()
    with pytest.raises(ValueError, match="two microbatches or more, got 1"):
        batch.add(GRADIENT, 12).result()
    with pytest.raises(ValueError, match="`size` must be an integer >= 1, got 0"):
        batch.add(GRADIENT, 0)
    with pytest.raises(TypeError, match=r"`size` must be an integer >= 1, got 1\.5"):
        batch.add(GRADIENT, 1.5)
    with pytest.raises(ValueError, match="only the microbatches before have 'b'"):
        batch.add({"w": GRADIENT["w"]}, 12)
    with pytest.raises(ValueError, match=r"The update of 'b' has shape \(5,\)"):
        batch.add({**GRADIENT, "b": jnp.ones(5)}, 12)
    with pytest.raises(ValueError, match=r"The gradient of 'b' is missing: initialize .* None"):
        batch.add({**GRADIENT, "b": None}, 12)
    for size in (2.5, 3.0):
        with pytest.raises(TypeError, match=r"`size` must be an integer >= 1, got .*"):
            batch.add(GRADIENT, jnp.float32(size))
