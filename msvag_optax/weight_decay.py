r"""Weight decay: which parameters, and coupled to what.

The decay of a parameter :math:`p` at rate :math:`\lambda` comes in four couplings, each a chain
round a named optimizer (here `msvag`; any other serves), where :math:`u_t` is its direction:

* to the learning rate, as AdamW has it, :math:`p \leftarrow p - \eta_t (u_t + \lambda p)`::

      mo.msvag(learning_rate, weight_decay=decay)

* to the schedule alone, as Loshchilov and Hutter wrote it,
  :math:`p \leftarrow p - s_t (\alpha u_t + \lambda p)`::

      optax.chain(
          mo.msvag(alpha), mo.subtract_decayed_weights(decay), optax.scale_by_schedule(schedule)
      )

* to nothing, :math:`p \leftarrow p - \eta_t u_t - \lambda p`::

      optax.chain(mo.msvag(learning_rate), mo.subtract_decayed_weights(decay))

* to the gradient, which is L2 regularization, :math:`g_t \leftarrow g_t + \lambda p`::

      optax.chain(mo.add_decayed_weights(decay), mo.msvag(learning_rate))

All take a number or a schedule, and regular expressions of the parameters that do not decay.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from msvag_optax import _checks, _leafwise, paths, wrappers
from msvag_optax._leafwise import Leaves, Step


def weight_decay_mask(exclude: Sequence[str]) -> Callable[[Any], Any]:
    """The mask of what decays: every parameter in whose path no pattern is found.

    Args:
      exclude: regular expressions, searched (`re.search`) in paths such as
        `encoder/layer_0/LayerNorm/scale`, spelled alike for every framework.

    Returns:
      A function from a tree to a tree of bools, as optax's `mask` arguments take it.

    Raises:
      TypeError: if `exclude` is no sequence of strings.
      ValueError: if a pattern is no regular expression; from the mask, if a pattern is found in no
        path of the tree.

    >>> import msvag_optax as mo
    >>> params = {"dense": {"kernel": 1.0, "bias": 2.0}, "norm": {"scale": 3.0}}
    >>> mo.weight_decay_mask(["bias$", "^norm/"])(params)
    {'dense': {'bias': False, 'kernel': True}, 'norm': {'scale': False}}
    """
    _checks.check_patterns("exclude", exclude)

    def mask(tree: Any) -> Any:
        paths.check_patterns_match("exclude", exclude, tree)
        return _decays(exclude, tree)

    return mask


def _decays(exclude: Sequence[str], tree: Any) -> Any:
    return paths.map_with_name(lambda name, _: not paths.matches(exclude, name), tree)


def add_decayed_weights(
    weight_decay: optax.ScalarOrSchedule,
    exclude: Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Adds decayed weights to the updates.

    .. math::
        u_t \leftarrow u_t + \lambda_t \, p_t

    where :math:`\lambda_t` is `weight_decay` and :math:`p_t` the parameter. Before a named
    optimizer it is L2 regularization; inside of a chain, before the learning rate, it is AdamW's
    decoupled decay.

    Args:
      weight_decay: the rate, a finite number of at least 0, or a schedule of it.
      exclude: regular expressions; a parameter in whose path one is found does not decay.

    Returns:
      A transformation that needs `params`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if the rate is negative or not finite, or a pattern is no regular expression; in
        `init`, if a pattern is found in no parameter's path.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> params = {"kernel": jnp.asarray([10.0]), "bias": jnp.asarray([10.0])}
    >>> tx = mo.add_decayed_weights(0.5, exclude=["bias"])
    >>> gradients = {"kernel": jnp.ones(1), "bias": jnp.ones(1)}
    >>> updates, _ = tx.update(gradients, tx.init(params), params)
    >>> print(updates["kernel"], updates["bias"])
    [6.] [1.]

    Source: Loshchilov and Hutter, *Decoupled Weight Decay Regularization* (2019), algorithm 2.
    """
    _checks.check_number("weight_decay", weight_decay, schedule=True)
    exclusions = Exclusions(exclude)
    if callable(weight_decay):
        return wrappers.dependable(_on_schedule(weight_decay, exclusions))
    return wrappers.dependable(decayed_weights(weight_decay, exclusions))


def subtract_decayed_weights(
    weight_decay: optax.ScalarOrSchedule,
    exclude: Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Subtracts decayed weights from the updates: decay that no learning rate scales.

    .. math::
        u_t \leftarrow u_t - \lambda_t \, p_t

    where :math:`\lambda_t` is `weight_decay` and :math:`p_t` the parameter. After a named
    optimizer, whose updates are ready to be added to the parameters, each step multiplies them by
    :math:`1 - \lambda_t`.

    Args:
      weight_decay: the rate, a finite number of at least 0, or a schedule of it.
      exclude: regular expressions; a parameter in whose path one is found does not decay.

    Returns:
      A transformation that needs `params`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if the rate is negative or not finite, or a pattern is no regular expression; in
        `init`, if a pattern is found in no parameter's path.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import msvag_optax as mo
    >>> tx = optax.chain(optax.sgd(0.0), mo.subtract_decayed_weights(0.1))
    >>> params = jnp.asarray(10.0)
    >>> update, _ = tx.update(jnp.asarray(5.0), tx.init(params), params)
    >>> print(optax.apply_updates(params, update))
    9.0

    Source: Loshchilov and Hutter, *Decoupled Weight Decay Regularization* (2019), section 2.
    """
    _checks.check_number("weight_decay", weight_decay, schedule=True)
    exclusions = Exclusions(exclude)
    if callable(weight_decay):
        return wrappers.dependable(
            _on_schedule(lambda count: jnp.negative(weight_decay(count)), exclusions)
        )
    return wrappers.dependable(decayed_weights(-weight_decay, exclusions))


class Exclusions:
    """Which parameters do not decay, by regular expressions."""

    def __init__(
        self, patterns: Sequence[str], *, argument: str = "exclude", strict: bool = True
    ) -> None:
        """Checks the patterns.

        Args:
          patterns: what is searched in the parameters' paths.
          argument: how an error names them.
          strict: whether a pattern that is found in no path is an error.
        """
        _checks.check_patterns(argument, patterns)
        self.patterns, self.argument, self.strict = patterns, argument, strict
        self._decaying: dict[Any, list[bool]] = {}

    def check_match(self, params: optax.Params) -> None:
        """Raises if a pattern is to be found, and is not."""
        if self.strict:
            paths.check_patterns_match(self.argument, self.patterns, params)

    def mask(self, tree: Any) -> Any:
        """Of each leaf, whether it decays."""
        return _decays(self.patterns, tree)

    def decaying(self, leaves: Leaves) -> list[bool]:
        """The same, looked up where it was asked before, since finding names takes time."""
        if leaves.treedef not in self._decaying:
            self._decaying[leaves.treedef] = leaves.split(self.mask(leaves.tree))
        return self._decaying[leaves.treedef]


def decayed_weights(
    weight_decay: jax.typing.ArrayLike, exclusions: Exclusions
) -> optax.GradientTransformationExtraArgs:
    """`optax.add_decayed_weights` with exclusions; a plain zero needs no parameters."""
    decay = Partial(optax.add_decayed_weights, weight_decay)
    none_decays = _checks.is_concrete(weight_decay) and weight_decay == 0

    def init(params: optax.Params) -> optax.OptState:
        exclusions.check_match(params)
        return decay().init(params)

    def begin(leaves: Leaves, state: Any, params: Any, extra_args: dict[str, Any]) -> Step:
        del extra_args
        kernel = Partial(_decay, decay)
        if none_decays:
            return Step(kernel, [None] * len(leaves), lambda _: state)
        if params is None:
            decay().update(leaves.tree, state, params)  # raises, as optax does
        pairs = zip(leaves.split(params), exclusions.decaying(leaves), strict=True)
        return Step(kernel, [p if decays else None for p, decays in pairs], lambda _: state)

    return _leafwise.leafwise(init, begin)


def _decay(decay: Partial, update: jax.Array, param: jax.Array | None) -> tuple[jax.Array, None]:
    """The update with its decayed weight; the bare update where no parameter is given."""
    if param is not None:
        update, _ = decay().update(update, optax.EmptyState(), param)
    return update, None


def _on_schedule(
    schedule: optax.Schedule, exclusions: Exclusions
) -> optax.GradientTransformationExtraArgs:
    """`optax.add_decayed_weights`, which keeps a count of its own, with exclusions."""
    link = optax.add_decayed_weights(schedule)
    if exclusions.patterns:
        link = optax.masked(link, exclusions.mask)

    def init(params: optax.Params) -> optax.OptState:
        exclusions.check_match(params)
        return link.init(params)

    return optax.GradientTransformationExtraArgs(init, optax.with_extra_args_support(link).update)


def weight_decay_report(
    params: optax.Params, exclude: Sequence[str] = (), *, file: TextIO | None = None
) -> None:
    """Prints which parameters decay, and how many elements that is.

    Args:
      params: the parameters; arrays or their shapes (`jax.eval_shape` gives them).
      exclude: regular expressions; a parameter in whose path one is found does not decay.
      file: where to print; None is the standard output.

    Raises:
      TypeError: if `exclude` is no sequence of strings.
      ValueError: if a pattern is no regular expression, or is found in no parameter's path.

    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3), "steps": jnp.asarray(0)}
    >>> mo.weight_decay_report(params, exclude=["bias"])
    parameter  elements  weight decay
    bias              3  no
    kernel           12  yes
    steps             1  no (not trained)
    12 of 16 elements decay, in 1 of 3 parameters.
    """
    trees = paths.path_names(params), params, weight_decay_mask(exclude)(params)
    rows = []
    for name, leaf, decays in zip(*map(jax.tree.leaves, trees), strict=True):
        size = math.prod(getattr(leaf, "shape", ()))
        answer = "yes" if decays else "no"
        rows.append((name, size, answer if wrappers.is_inexact(leaf) else "no (not trained)"))
    heading = ("parameter", "elements", "weight decay")
    width = max(len(name) for name in (heading[0], *(name for name, _, _ in rows)))
    digits = max(len(heading[1]), *(len(str(size)) for _, size, _ in rows), 0)
    lines = [f"{heading[0]:<{width}}  {heading[1]:>{digits}}  {heading[2]}"]
    lines += [f"{name:<{width}}  {size:>{digits}}  {answer}" for name, size, answer in rows]
    decaying = [size for _, size, answer in rows if answer == "yes"]
    lines.append(
        f"{sum(decaying)} of {sum(size for _, size, _ in rows)} elements decay, "
        f"in {len(decaying)} of {len(rows)} parameters."
    )
    print("\n".join(lines), file=file or sys.stdout)
