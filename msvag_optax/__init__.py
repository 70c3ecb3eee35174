"""Optimizers for stochastic gradients, and the pieces that they are made of, for optax.

*Average what, with which weights, read by which formula*: a weighting says how much the newest
observation counts, an average remembers some quantity of the gradient, a formula reads averages,
and `from_estimates` puts them together. The named optimizers are recipes of a few lines.
"""

from typing import NoReturn as _NoReturn

from msvag_optax import _compat as _compat  # first: it refuses versions that are too old
from msvag_optax._trees.arrays import saturate as saturate
from msvag_optax._trees.layout import Parts as Parts
from msvag_optax._trees.paths import PerLeaf as PerLeaf
from msvag_optax._trees.paths import path_names as path_names
from msvag_optax._trees.rules import Estimator as Estimator
from msvag_optax._trees.rules import Piece as Piece
from msvag_optax._trees.selection import fewer_than_two_axes as fewer_than_two_axes
from msvag_optax.diagnostics import Reading as Reading
from msvag_optax.diagnostics import noise_scale as noise_scale
from msvag_optax.diagnostics import signal_to_noise as signal_to_noise
from msvag_optax.memory import StateBytes as StateBytes
from msvag_optax.memory import state_bytes as state_bytes
from msvag_optax.microbatches import Microbatches as Microbatches
from msvag_optax.optimizers.adamw import adamw as adamw
from msvag_optax.optimizers.amsgrad import amsgrad as amsgrad
from msvag_optax.optimizers.bert import bert_adamw as bert_adamw
from msvag_optax.optimizers.bert import warmup_linear_decay_schedule as warmup_linear_decay_schedule
from msvag_optax.optimizers.dissection import Dissection as Dissection
from msvag_optax.optimizers.dissection import dissection as dissection
from msvag_optax.optimizers.expectigrad import expectigrad as expectigrad
from msvag_optax.optimizers.msvag import msvag as msvag
from msvag_optax.optimizers.msvag import svag as svag
from msvag_optax.optimizers.novograd import novograd as novograd
from msvag_optax.optimizers.optimizer import OptimizerState as OptimizerState
from msvag_optax.optimizers.optimizer import optimizer as optimizer
from msvag_optax.pieces.around import before as before
from msvag_optax.pieces.around import bias_corrected as bias_corrected
from msvag_optax.pieces.around import running_max as running_max
from msvag_optax.pieces.batch_variance import batch_variance as batch_variance
from msvag_optax.pieces.cautious import cautious as cautious
from msvag_optax.pieces.chain import chain as chain
from msvag_optax.pieces.chain_estimators import chain_estimators as chain_estimators
from msvag_optax.pieces.decay import add_decayed_weights as add_decayed_weights
from msvag_optax.pieces.decay import subtract_decayed_weights as subtract_decayed_weights
from msvag_optax.pieces.decay_report import weight_decay_report as weight_decay_report
from msvag_optax.pieces.formulas import adapted_gradient as adapted_gradient
from msvag_optax.pieces.formulas import adapted_mean as adapted_mean
from msvag_optax.pieces.formulas import mean_of as mean_of
from msvag_optax.pieces.formulas import mean_over_rms as mean_over_rms
from msvag_optax.pieces.formulas import over_rms as over_rms
from msvag_optax.pieces.formulas import sign_of_mean as sign_of_mean
from msvag_optax.pieces.formulas import variance_adaptation_factor as variance_adaptation_factor
from msvag_optax.pieces.from_estimates import from_estimates as from_estimates
from msvag_optax.pieces.mean_square import adam_mini_axes as adam_mini_axes
from msvag_optax.pieces.mean_square import mean_square as mean_square
from msvag_optax.pieces.observations import observations as observations
from msvag_optax.pieces.piece import piece as piece
from msvag_optax.pieces.quantities import layer_square_norm as layer_square_norm
from msvag_optax.pieces.quantities import square as square
from msvag_optax.pieces.rates import momentum as momentum
from msvag_optax.pieces.recurrence import recurrence as recurrence
from msvag_optax.pieces.running_average import running_average as running_average
from msvag_optax.pieces.running_moments import Moments as Moments
from msvag_optax.pieces.running_moments import moments_in as moments_in
from msvag_optax.pieces.running_moments import running_moments as running_moments
from msvag_optax.pieces.variance_adapted import variance_adapted as variance_adapted
from msvag_optax.pieces.watch_moments import watch_moments as watch_moments
from msvag_optax.pieces.watch_noise import watch_noise as watch_noise
from msvag_optax.pieces.weightings import Weighting as Weighting
from msvag_optax.pieces.weightings import arithmetic as arithmetic
from msvag_optax.pieces.weightings import bias_correction as bias_correction
from msvag_optax.pieces.weightings import exponential as exponential
from msvag_optax.pieces.weightings import exponential_from_first as exponential_from_first
from msvag_optax.pieces.weightings import exponential_from_zero as exponential_from_zero
from msvag_optax.recorder import NoiseRecorder as NoiseRecorder
from msvag_optax.wrappers.dependable import dependable as dependable
from msvag_optax.wrappers.kept_in import kept_in as kept_in
from msvag_optax.wrappers.lazy_rows import lazy_rows as lazy_rows
from msvag_optax.wrappers.parameters import master_copy as master_copy
from msvag_optax.wrappers.parameters import rounded_parameters as rounded_parameters
from msvag_optax.wrappers.sharding import shard_like_params as shard_like_params

_BY_NAME = "`optax.tree.get(state, {!r})`, which needs no class"
_INSTEAD = {
    "formulas": "the same names in `msvag_optax` itself",
    "weight_decay_mask": "`exclude_from_weight_decay` with a function, or `path_names` for a mask",
    "full_precision": "`dependable`",
    "skip_gradientless": "`dependable`",
    "adapted_direction": "`variance_adapted`",
    "adapted_direction_of_mean": "`variance_adapted(..., of_mean=True)`",
    **{
        name: f"`import msvag_optax.{name}`, a module of its own"
        for name in ("compare", "problems", "testing")
    },
    **{
        name: _BY_NAME.format(name)
        for name in (
            "BiasCorrectedState",
            "FromEstimatesState",
            "RunningAverageState",
            "RunningMaxState",
            "RunningMomentsState",
        )
    },
}


def __getattr__(name: str) -> _NoReturn:
    hint = f" Use {_INSTEAD[name]}." if name in _INSTEAD else ""
    raise AttributeError(f"module 'msvag_optax' has no attribute {name!r}.{hint}")
