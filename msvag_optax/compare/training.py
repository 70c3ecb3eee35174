"""All runs of an optimizer, rates times seeds, as one compiled loop.

`advance` is written for a single run, and two `jax.vmap`s make it the whole grid. Every optimizer
sees the same initial parameters and the same mini-batches (or noise) under a given seed, so that
differences are its own.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msvag_optax.memory import state_bytes
from msvag_optax.problems import Problem

_PATIENCE = 0.2  # Seconds until the progress bar moves and Ctrl-C is heard, at the latest.


class Run(NamedTuple):
    """The state of one run.

    Attributes:
      params: the iterate.
      state: the optimizer's.
      total: the sum of the losses of all steps so far, each before its update.
      lost: what rounding has added to `total`.
    """

    params: Any
    state: optax.OptState
    total: jax.Array
    lost: jax.Array


class Outcome(NamedTuple):
    """All runs of one optimizer.

    Attributes:
      name: of the optimizer.
      rates: the learning rates, of shape `(rates,)`.
      steps: when the runs were measured, of shape `(times,)`; the first is 0, the last the end.
      history: each metric, and `average loss`, as an array of shape `(times, seeds, rates)`. What
        is not finite has diverged.
      seconds: of one step of one run: the wall-clock time of one step of the whole grid, divided by
        the number of runs in it; the median over time, without compilation.
      state_bytes: bytes of optimizer state for each parameter.
      parameters: how many parameters the problem has.
    """

    name: str
    rates: np.ndarray
    steps: np.ndarray
    history: dict[str, np.ndarray]
    seconds: float
    state_bytes: float
    parameters: int

    def best(self, key: str) -> int | None:
        """Which rate has the lowest final `history[key]`, averaged over the seeds.

        A rate at which any seed has diverged is never the best; where that leaves none, `None`.
        """
        with np.errstate(all="ignore"):
            final = self.history[key][-1].mean(axis=0)
        if not np.isfinite(final).any():
            return None
        return int(np.argmin(np.where(np.isfinite(final), final, np.inf)))

    def went_wrong(self, key: str) -> bool:
        """Whether `history[key]`, averaged over the seeds, rose at every rate that is finite."""
        with np.errstate(all="ignore"):
            first, final = self.history[key][0].mean(axis=0), self.history[key][-1].mean(axis=0)
        finite = np.isfinite(final)
        return bool(finite.any() and (final > first)[finite].all())


def train(
    problem: Problem,
    build: Callable[[Any], optax.GradientTransformation],
    rates: Sequence[float] | np.ndarray,
    *,
    steps: int,
    seeds: int,
    name: str = "",
    measurements: int = 100,
    advanced: Callable[[int], object] = lambda steps: None,
) -> Outcome:
    """Trains `problem` at every learning rate with every seed, all in one compiled loop.

    Args:
      problem: what to train.
      build: makes the optimizer from a learning rate, which is traced: the rates are one axis of
        the compiled loop, not many compilations.
      rates: the learning rates.
      steps: the length of each run.
      seeds: the number of runs at each rate. Seed `i` draws the starting point and all noise from
        `jax.random.key(i)`, whatever the rate and the optimizer.
      name: of the optimizer.
      measurements: how often each run is measured after its start, at equal distances, at least
        once; the last is at the end. Where a step takes less than a measurement, few save time.
      advanced: called now and then with the number of steps since the last call.

    Returns:
      The `Outcome`.

    Raises:
      ValueError: if `measurements` is less than 1.

    A problem of your own says where to start, the loss of a step, which may draw a mini-batch with
    its key, and what to measure:

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> from msvag_optax.compare import train
    >>> from msvag_optax.problems import Problem
    >>> x = jax.random.normal(jax.random.key(0), (64, 3))
    >>> y = x @ jnp.asarray([1.0, -2.0, 0.5])
    >>> def loss_of(params, rows):
    ...     return jnp.mean((x[rows] @ params - y[rows]) ** 2)
    >>> own = Problem(
    ...     init=lambda key: jnp.zeros(3),
    ...     loss=lambda params, step, key: loss_of(params, jax.random.choice(key, 64, (16,))),
    ...     metrics=lambda params: {"loss": loss_of(params, jnp.arange(64))},
    ... )
    >>> outcome = train(own, mo.msvag, rates=[0.001, 0.1], steps=100, seeds=2, name="msvag")
    >>> print(outcome.rates[outcome.best("loss")])
    0.1
    """
    if measurements < 1:
        raise ValueError(f"`measurements` must be an integer >= 1, got {measurements!r}.")

    def start(params: Any, rate: jax.Array) -> Run:
        return Run(params, build(rate).init(params), jnp.zeros([]), jnp.zeros([]))

    def advance(
        run: Run, rate: jax.Array, key: jax.Array, first: jax.Array, stop: jax.Array
    ) -> Run:
        tx = build(rate)

        def step(t: jax.Array, run: Run) -> Run:
            loss, gradient = problem.value_and_grad(run.params, t, jax.random.fold_in(key, t + 1))
            updates, state = tx.update(gradient, run.state, run.params)
            params = problem.project(optax.apply_updates(run.params, updates))
            # Kahan's sum: a plain one of a million float32 numbers rounds the many small losses of
            # an online problem all the same way, and they no longer balance the few large ones.
            term = loss - run.lost
            total = run.total + term
            return Run(params, state, total, (total - run.total) - term)

        # A scan whose length is an argument: spans of any length share one compilation.
        return jax.lax.fori_loop(first, stop, step, run)

    def measure(runs: Run, steps: int) -> dict[str, np.ndarray]:
        metrics = jax.device_get(_metrics_of_all(problem.metrics, runs.params))
        # At the start this is an average of nothing.
        average = np.asarray(runs.total, np.float64) / steps if steps else np.full(shape, np.nan)
        return metrics | {"average loss": average}

    shape = (seeds, len(rates))
    rates_array = np.asarray(rates, np.float32)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    times = np.linspace(0, steps, min(steps, measurements) + 1).round().astype(np.int32)

    runs = jax.jit(_grid(start, (0, None), (None, 0)))(_starts(problem.init, keys), rates_array)
    advance_all = (
        jax.jit(
            _grid(advance, (0, 0), (None, 0), (0, None), (None, None), (None, None)),
            donate_argnums=0,
        )
        .lower(runs, rates_array, keys, times[0], times[0])
        .compile()
    )
    measured, seconds, pace = [measure(runs, 0)], [], _PATIENCE
    for first, stop in itertools.pairwise(times.tolist()):
        while first < stop:
            until = min(stop, first + max(1, int(_PATIENCE / pace)))
            began = time.perf_counter()
            runs = advance_all(runs, rates_array, keys, np.int32(first), np.int32(until))
            jax.block_until_ready(runs)
            pace = max(time.perf_counter() - began, 1e-9) / (until - first)
            seconds.append(pace)
            advanced(until - first)
            first = until
        measured.append(measure(runs, stop))

    history = {key: np.stack([values[key] for values in measured]) for key in measured[0]}
    return Outcome(
        name,
        rates_array,
        times,
        history,
        float(np.median(seconds)) / math.prod(shape),
        *_state_bytes_per_parameter(problem, build(float(rates[0]))),
    )


def _grid(function: Callable[..., Any], *axes: tuple[int | None, int | None]) -> Any:
    """`function` for all seeds and rates; `axes` are the (seed, rate) axes of each argument."""
    seed_axes, rate_axes = zip(*axes, strict=True)
    # The rates are the inner axis: what depends on the seed alone (the mini-batch, the noise) is
    # computed once for all of them.
    return jax.vmap(jax.vmap(function, in_axes=rate_axes), in_axes=seed_axes)


# These two know nothing of the optimizer: compiled for the first one, they serve the others too.


@functools.partial(jax.jit, static_argnums=0)
def _starts(init: Callable[[jax.Array], Any], keys: jax.Array) -> Any:
    return jax.vmap(lambda key: init(jax.random.fold_in(key, 0)))(keys)


@functools.partial(jax.jit, static_argnums=0)
def _metrics_of_all(metrics: Callable[[Any], dict[str, jax.Array]], params: Any) -> Any:
    return jax.vmap(jax.vmap(metrics))(params)


def _state_bytes_per_parameter(
    problem: Problem, tx: optax.GradientTransformation
) -> tuple[float, int]:
    """The bytes for each parameter, and the number of parameters."""
    params = jax.eval_shape(problem.init, jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    # A count is no bytes of a parameter's.
    return state_bytes(tx, params).of_parameters / parameters, parameters
