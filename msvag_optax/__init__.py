"""Optimizers for stochastic gradients, and the pieces that they are made of, for optax.

*Average what, with which weights, read by which formula*: a weighting says how much the newest
observation counts, an average remembers some quantity of the gradient, a formula reads averages,
and `from_estimates` puts them together. The named optimizers are recipes of a few lines.
"""

from msvag_optax import _compat as _compat  # first: it refuses versions that are too old
from msvag_optax import formulas as formulas
from msvag_optax.averages import BiasCorrectedState as BiasCorrectedState
from msvag_optax.averages import RunningAverageState as RunningAverageState
from msvag_optax.averages import RunningMaxState as RunningMaxState
from msvag_optax.averages import RunningMomentsState as RunningMomentsState
from msvag_optax.averages import bias_corrected as bias_corrected
from msvag_optax.averages import moments_in as moments_in
from msvag_optax.averages import running_average as running_average
from msvag_optax.averages import running_max as running_max
from msvag_optax.averages import running_moments as running_moments
from msvag_optax.combining import FromEstimatesState as FromEstimatesState
from msvag_optax.combining import chain_estimators as chain_estimators
from msvag_optax.combining import from_estimates as from_estimates
from msvag_optax.combining import variance_adapted as variance_adapted
from msvag_optax.diagnostics import noise_scale as noise_scale
from msvag_optax.diagnostics import signal_to_noise as signal_to_noise
from msvag_optax.diagnostics import watch_moments as watch_moments
from msvag_optax.formulas import Moments as Moments
from msvag_optax.formulas import adapted_direction as adapted_direction
from msvag_optax.formulas import adapted_direction_of_mean as adapted_direction_of_mean
from msvag_optax.formulas import adapted_gradient as adapted_gradient
from msvag_optax.formulas import adapted_mean as adapted_mean
from msvag_optax.formulas import layer_square_norm as layer_square_norm
from msvag_optax.formulas import mean_of as mean_of
from msvag_optax.formulas import mean_over_rms as mean_over_rms
from msvag_optax.formulas import over_rms as over_rms
from msvag_optax.formulas import sign_of_mean as sign_of_mean
from msvag_optax.formulas import square as square
from msvag_optax.formulas import variance_adaptation_factor as variance_adaptation_factor
from msvag_optax.optimizers import Dissection as Dissection
from msvag_optax.optimizers import OptimizerState as OptimizerState
from msvag_optax.optimizers import adamw as adamw
from msvag_optax.optimizers import amsgrad as amsgrad
from msvag_optax.optimizers import bert_adamw as bert_adamw
from msvag_optax.optimizers import dissection as dissection
from msvag_optax.optimizers import expectigrad as expectigrad
from msvag_optax.optimizers import msvag as msvag
from msvag_optax.optimizers import novograd as novograd
from msvag_optax.optimizers import svag as svag
from msvag_optax.paths import PerLeaf as PerLeaf
from msvag_optax.paths import path_names as path_names
from msvag_optax.schedules import warmup_linear_decay_schedule as warmup_linear_decay_schedule
from msvag_optax.weight_decay import add_decayed_weights as add_decayed_weights
from msvag_optax.weight_decay import subtract_decayed_weights as subtract_decayed_weights
from msvag_optax.weight_decay import weight_decay_mask as weight_decay_mask
from msvag_optax.weight_decay import weight_decay_report as weight_decay_report
from msvag_optax.weighting import Weighting as Weighting
from msvag_optax.weighting import arithmetic as arithmetic
from msvag_optax.weighting import bias_correction as bias_correction
from msvag_optax.weighting import exponential as exponential
from msvag_optax.weighting import exponential_from_first as exponential_from_first
from msvag_optax.weighting import exponential_from_zero as exponential_from_zero
from msvag_optax.wrappers import dependable as dependable
from msvag_optax.wrappers import full_precision as full_precision
from msvag_optax.wrappers import kept_in as kept_in
from msvag_optax.wrappers import lazy_rows as lazy_rows
from msvag_optax.wrappers import shard_like_params as shard_like_params
from msvag_optax.wrappers import skip_gradientless as skip_gradientless
