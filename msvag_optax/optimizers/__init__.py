"""The named optimizers: each a chain of pieces that shows its paper's update at a glance."""

from msvag_optax.optimizers._named import OptimizerState as OptimizerState
from msvag_optax.optimizers.adamw import adamw as adamw
from msvag_optax.optimizers.adamw import bert_adamw as bert_adamw
from msvag_optax.optimizers.amsgrad import amsgrad as amsgrad
from msvag_optax.optimizers.dissection import Dissection as Dissection
from msvag_optax.optimizers.dissection import dissection as dissection
from msvag_optax.optimizers.expectigrad import expectigrad as expectigrad
from msvag_optax.optimizers.msvag import msvag as msvag
from msvag_optax.optimizers.msvag import svag as svag
from msvag_optax.optimizers.novograd import novograd as novograd
