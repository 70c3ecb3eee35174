"""Writes the noise of each layer to TensorBoard event files during training."""

import functools
import os
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from msvag_optax import _checks, _compat
from msvag_optax._trees import paths
from msvag_optax._trees.selection import Selection
from msvag_optax.diagnostics import noise_scale, signal_to_noise


class NoiseRecorder:
    """Writes the readings of `noise_scale` and `signal_to_noise` to TensorBoard event files.

    Each layer's ratio has a curve of its own, `signal_to_noise/` and its path; the noise scale has
    one in batches, `noise_scale/batches`, and one in examples where `watch_noise` knows their
    number, `noise_scale/examples`. A text, `noise/source`, says whether readings are from within
    steps or over steps. Where there is no reading, a curve has a gap.

    It may be called inside of `jit` and `lax.scan`, where it leaves a callback to the host in the
    program, and outside. Call it for one model (not under `vmap`), with a state that all devices
    share (not inside of `shard_map`). Of several processes, the first writes. It needs
    tensorboardX: `pip install 'msvag_optax[tensorboard]'`, or `.[tensorboard]` in a clone.

    >>> import tempfile
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import msvag_optax as mo
    >>> tx = mo.msvag(0.1)
    >>> params = {"kernel": jnp.ones(2)}
    >>> with mo.NoiseRecorder(tempfile.mkdtemp(), every=10) as recorder:
    ...     @jax.jit
    ...     def step(params, state, count):
    ...         gradient = jax.tree.map(lambda p: p + jnp.sin(count), params)
    ...         updates, state = tx.update(gradient, state, params)
    ...         recorder.record(count, state)
    ...         return optax.apply_updates(params, updates), state
    ...     state = tx.init(params)
    ...     for count in range(30):
    ...         params, state = step(params, state, count)
    """

    def __init__(self, folder: str | os.PathLike[str], *, every: int = 1) -> None:
        """Opens an event file.

        Args:
          folder: where to write it.
          every: of how many steps to record one.

        Raises:
          ImportError: if tensorboardX is not installed.
          TypeError: if `folder` is no path, or `every` no integer.
          ValueError: if it is less than 1.
        """
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(f"`folder` must be a path, got {folder!r}.")
        self._every = _checks.count("every", every, 1)
        self._writer: Any = None
        self._is_open, self._has_source = True, False
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "`NoiseRecorder` needs tensorboardX: pip install 'msvag_optax[tensorboard]'."
            ) from error
        if jax.process_index() == 0:
            self._writer = SummaryWriter(os.fspath(folder))

    def record(
        self,
        step: int | jax.Array,
        state: optax.OptState,
        *,
        stacked: Selection = (),
    ) -> None:
        """Records what the state says, if it is the turn of this step.

        Args:
          step: the number of the step, an integer, traced or not.
          state: the state of an optimizer, as for `noise_scale`.
          stacked: as for `signal_to_noise`.

        Raises:
          TypeError: if `step` is no integer.
          ValueError: if it is less than 0, there is nothing to read in the state, or the recorder
            is closed.
        """
        if not self._is_open:
            raise ValueError("This recorder is closed.")

        def emit() -> None:
            ratios = signal_to_noise(state, stacked=stacked, details=True)
            scale = noise_scale(state, details=True)
            write = functools.partial(self._write, scale.source)
            jax.debug.callback(write, step, _by_name(ratios.value), scale.value, scale.examples)

        if _compat.is_tracer(step):
            jax.lax.cond(jnp.asarray(step) % self._every == 0, emit, lambda: None)
        elif _checks.count("step", np.asarray(step), 0) % self._every == 0:
            emit()

    def close(self) -> None:
        """Waits for what is still being computed, and closes the file."""
        jax.effects_barrier()
        if self._writer is not None:
            self._writer.close()
        self._writer, self._is_open = None, False

    def __enter__(self) -> "NoiseRecorder":
        """Itself, which the end of the block closes."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the file."""
        self.close()

    def _write(
        self, source: str, step: Any, ratios: dict[str, Any], scale: Any, examples: Any
    ) -> None:
        if self._writer is None:
            return
        step = int(step)
        if not self._has_source:
            self._writer.add_text("noise/source", source, step)
            self._has_source = True
        curves = {f"signal_to_noise/{name}": ratio for name, ratio in ratios.items()}
        curves["noise_scale/batches"] = scale
        if examples is not None:
            curves["noise_scale/examples"] = scale * examples
        for name, value in curves.items():
            if np.isfinite(value):
                self._writer.add_scalar(name, float(value), step)


def _by_name(ratios: Any) -> dict[str, jax.Array]:
    """The ratio of each layer under its name; of stacked layers, each has a number too."""
    found = {}
    names = jax.tree.leaves(paths.path_names(ratios))
    for name, ratio in zip(names, jax.tree.leaves(ratios), strict=True):
        if ratio.ndim:
            found |= {f"{name}/{i}".lstrip("/"): layer for i, layer in enumerate(ratio)}
        else:
            found[name or "params"] = ratio
    return found
