"""The dtype in which an optimizer keeps its state."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax import _checks
from msvag_optax._trees import arrays, mismatch, partials, paths, rules
from msvag_optax._trees.driver import Rule
from msvag_optax._trees.keeping import (
    Keeping,
    Located,
    check_can_be_taken_apart,
    keeping_of,
    located,
    map_kept,
    narrow_init_of,
)
from msvag_optax._trees.rounding import Chances, RoundedState, array_number
from msvag_optax._trees.rules import wrapper_of
from msvag_optax._trees.slices import Slices
from msvag_optax.wrappers.dependable import dependable
from msvag_optax.wrappers.gradientless import skip_gradientless


def kept_in(
    inner: optax.GradientTransformation,
    dtype: jax.typing.DTypeLike | None,
    rounding: Literal["nearest", "stochastic"] = "nearest",
    *,
    seed: jax.typing.ArrayLike = 0,
    exclude: Sequence[str] = (),
    specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the real floating-point arrays of a transformation's state in another dtype.

    The state is widened on the way in and rounded on the way out, so that only what is remembered
    from step to step loses digits, and nothing that is computed. What all leaves share, integers
    and complex arrays stay as they are. Updates have the dtypes of the gradients.

    Rounded to the nearest number, an average whose newest weight is below :math:`2^{-9}` (bfloat16)
    or :math:`2^{-12}` (float16) stops moving: each of its steps is rounded away. With
    `rounding="stochastic"` it is rounded up or down at random, and is right on average:

    .. math::
        P(x \mapsto x^+) = \frac{x - x^-}{x^+ - x^-}

    where :math:`x^-` and :math:`x^+` are the neighbours of :math:`x` in `dtype`. The random bits
    are a hash of the seed, the step, the array and the element's place in it, and so are the same
    on one device or many, and after a restart. Only arrays of their parameter's shape are kept in
    `dtype` then: the norm of a layer keeps its digits. The maximum of `running_max` is rounded to
    nearest, which keeps order: the largest of rounded numbers is the largest number, rounded. Any
    other maximum creeps upwards, by less than one step of `dtype`, unless `exclude` names it.

    Args:
      inner: any transformation.
      dtype: the dtype to keep its state in; None changes nothing. Stochastic rounding needs
        bfloat16 or float16.
      rounding: `"nearest"` or `"stochastic"`.
      seed: an integer of at least 0 (each below :math:`2^{32}` gives other bits), for random bits
        that differ from run to run, or between averages of one optimizer that are wrapped one by
        one.
      exclude: names of what keeps its dtype: fields of the state such as `("nu_max",)`, or parts
        of a parameter's path.
      specs: inside of `jax.shard_map`, how the parameters are cut: the tree of their partition
        specs, or one for all. It says where in the whole array an element is; without it,
        stochastic rounding refuses a parameter that is cut. (In `jax.pmap` a cut cannot be
        detected: always give the specs there.)

    Returns:
      The same transformation. With stochastic rounding its state also has a `count`, unless it is a
      piece that is given one by an `optimizer`.

    Raises:
      TypeError: if `dtype` is no dtype, `specs` holds anything but partition specs, or the state
        cannot be taken apart.
      ValueError: if `dtype` is no real floating-point dtype, or has no stochastic rounding, or
        `rounding` is neither; in `init`, if the state has no
        name that is in `exclude`, or `specs` does not fit the parameters.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = mo.kept_in(optax.trace(0.9), jnp.bfloat16)
    >>> update, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
    >>> update.dtype.name, state.trace.dtype.name
    ('float32', 'bfloat16')

    An average of 10,000 elements, after 1,000 steps from 0 towards 1, of a thousandth each:

    >>> def mean_of(rounding):
    ...     tx = mo.kept_in(mo.running_average(slow), jnp.bfloat16, rounding)
    ...     step = lambda _, state: tx.update(jnp.ones(10_000), state)[1]
    ...     state = jax.lax.fori_loop(0, 1_000, step, tx.init(jnp.ones(10_000)))
    ...     return optax.tree.get(state, "average").astype(jnp.float32).mean()
    >>> slow = mo.exponential_from_zero(0.999)
    >>> print(*(f"{mean_of(rounding):.2f}" for rounding in ("nearest", "stochastic")))
    0.25 0.63

    Source: Gupta et al., *Deep Learning with Limited Numerical Precision* (2015), section 3.1.
    """
    _checks.check_dtypes(dtype=dtype)
    _checks.check_transformation("inner", inner)
    keeping = keeping_of(dtype, rounding, exclude)
    chances = Chances(seed, specs)
    inner = optax.with_extra_args_support(inner)
    if dtype is None:
        return inner
    rule = rules.rule_of(inner)
    if not rule.needs_tree:
        rule = _kept_rule(rule, keeping, chances)
        piece = rules.from_rule(rule, estimates=isinstance(inner, rules.Estimator))
        return dependable(piece) if rules.is_wrapped(inner) else piece
    check_can_be_taken_apart("inner", inner)
    wrap = _by_chance if keeping.stochastic else _nearest
    return wrap(inner, keeping, chances)


# Pieces: what is kept is rounded by the kernel that computes it.


def _kept_rule(rule: Rule, keeping: Keeping, chances: Chances) -> Rule:
    rule = rule._replace(init=narrow_init_of(keeping, chances, rule.init))
    if not keeping.stochastic:
        return rule  # A piece keeps the dtypes that it begins with.

    def advance(state: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
        shared, state = rule.advance(state, extra)
        return (chances.key_of_step(extra["count"]), shared), state

    def at(name: str, shape: jax.ShapeDtypeStruct) -> Partial:
        leaf = partials.as_partial(paths.function_at(rule.leaf, name, shape))
        if not keeping.exclude.isdisjoint(name.split("/")):
            return Partial(_as_it_is, leaf)
        cut = chances.slices_of(name, shape.shape)
        return Partial(_rounded, keeping, cut, leaf, array_number(name))

    return rule._replace(advance=advance, leaf=paths.PerLeaf(at), needs_count=True)


def _as_it_is(leaf: Partial, shared: Any, *arguments: Any) -> tuple[Any, Any]:
    return leaf(shared[1], *arguments)


def _rounded(
    keeping: Keeping,
    cut: Slices,
    leaf: Partial,
    number: jax.Array,
    shared: Any,
    gradient: jax.Array,
    state: Any,
    param: Any,
) -> tuple[Any, Any]:
    key, inner_shared = shared
    update, state = leaf(inner_shared, gradient, state, param)
    places, treedef = jax.tree.flatten(located(state))
    kept = [
        keeping.draw(place, key, array_number(place.path) ^ number, cut)
        if keeping.keeps(place, gradient)
        else place.x
        for place in places
    ]
    return update, treedef.unflatten(kept)


# Any other transformation: its state is rounded when it has been computed.


def _nearest(
    inner: Any, keeping: Keeping, chances: Chances
) -> optax.GradientTransformationExtraArgs:
    def narrow(place: Located) -> jax.Array:
        return arrays.narrow(place.x, keeping.dtype) if keeping.keeps(place) else place.x

    init: Any = narrow_init_of(keeping, chances, inner.init)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        with arrays.standard_promotion():
            wide = _widened(inner.init, state)
            new, state = inner.update(updates, wide, params, **extra_args)
            return _in_dtypes_of(updates, new, inner), map_kept(narrow, inner.init, state)

    return wrapper_of(inner, init, update)


def _by_chance(
    inner: Any, keeping: Keeping, chances: Chances
) -> optax.GradientTransformationExtraArgs:
    narrow_init = narrow_init_of(keeping, chances, inner.init)

    def init(params: optax.Params) -> RoundedState:
        return RoundedState(jnp.zeros([], jnp.int32), narrow_init(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RoundedState]:
        like = updates if params is None else params

        def narrow(place: Located, name: str, param: Any) -> jax.Array:
            if not keeping.keeps(place, param):
                return place.x
            cut = chances.slices_of(name, arrays.shape_of(param))
            return keeping.draw(place, key, array_number(place.path), cut)

        with mismatch.own_state(state, RoundedState, init, like), arrays.standard_promotion():
            key = chances.key_of_step(state.draws)
            wide = _widened(inner.init, state.inner_state)
            new, inner_state = inner.update(updates, wide, params, **extra_args)
            names = paths.path_names(like)
            inner_state = map_kept(narrow, inner.init, inner_state, names, like)
        draws = arrays.increment(state.draws)
        return _in_dtypes_of(updates, new, inner), RoundedState(draws, inner_state)

    return skip_gradientless(wrapper_of(inner, init, update))


def _in_dtypes_of(gradients: optax.Updates, new: Any, inner: Any) -> Any:
    """The updates in the gradients' dtypes, which a wide state has widened; an estimate stays."""
    same_tree = jax.tree.structure(gradients) == jax.tree.structure(new)
    if isinstance(inner, rules.Estimator) or not same_tree:
        return new

    def narrow(gradient: Any, update: Any) -> Any:
        is_update = (
            arrays.is_inexact(gradient)
            and arrays.is_inexact(update)
            and arrays.shape_of(gradient) == arrays.shape_of(update)
            and jnp.iscomplexobj(gradient) == jnp.iscomplexobj(update)
        )
        return arrays.narrow(update, arrays.dtype_of(gradient)) if is_update else update

    return jax.tree.map(narrow, gradients, new)


def _widened(init: Callable[[Any], Any], state: Any) -> Any:
    return optax.tree.map_params(
        init, lambda x: arrays.widen(x) if arrays.is_inexact(x) else x, state
    )
