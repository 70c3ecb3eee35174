"""Trains one problem with many optimizers, each over a grid of learning rates and several seeds.

::

    python -m msvag_optax.compare --help

The result is a table on standard output and a picture. `train` does the same for any optimizer and
any `Problem`, in one compiled loop.
"""

from msvag_optax.compare.command_line import main as main
from msvag_optax.compare.experiments import EXPERIMENTS as EXPERIMENTS
from msvag_optax.compare.experiments import Experiment as Experiment
from msvag_optax.compare.experiments import Metric as Metric
from msvag_optax.compare.experiments import Panel as Panel
from msvag_optax.compare.noise_map import noise_map as noise_map
from msvag_optax.compare.optimizers import OPTIMIZERS as OPTIMIZERS
from msvag_optax.compare.optimizers import Optimizer as Optimizer
from msvag_optax.compare.optimizers import Settings as Settings
from msvag_optax.compare.picture import draw as draw
from msvag_optax.compare.picture import render as render
from msvag_optax.compare.table import format_table as format_table
from msvag_optax.compare.training import Outcome as Outcome
from msvag_optax.compare.training import train as train
