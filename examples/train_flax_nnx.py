"""Learns to read handwritten digits, with Flax NNX.

    python train_flax_nnx.py
    python train_flax_nnx.py --checkpoints out/digits --steps 300  # stops half-way
    python train_flax_nnx.py --checkpoints out/digits              # goes on, bit for bit

It needs msvag_optax, flax, orbax-checkpoint and scikit-learn.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn import datasets, model_selection

import msvag_optax as mo

# The data and the network.
SEED = 0  # draws the test images, the first parameters and every mini-batch
BATCH_SIZE = 64  # images in a mini-batch
WIDTH = 64  # of the hidden layer

# The optimizer.
STEPS = 600  # mini-batches until the schedule ends
ACCUMULATE = 2  # mini-batches that one update averages: a larger batch in the same memory
RATE = 0.02  # of the body, at its peak: NovoGrad makes every layer's gradient about as long as 1
HEAD_RATE = 20.0  # times the rate of the body: M-SVAG takes the rates of SGD, which are larger
B2 = 0.98  # the memory of NovoGrad's norms: fifty updates of three hundred
WARM_UP = 30  # updates until the peak
MAX_NORM = 1.0  # of the gradient; a longer one is shortened
DECAY = 1e-3  # of the weights, times the learning rate of their group
NO_DECAY = ["bias$", "^norm/"]  # patterns of paths: what must not shrink
MAX_ERRORS = 10  # mini-batches in a row that are dropped if not finite; one more gets through

# The output.
EVERY = 100  # steps from one line of the log to the next, and from checkpoint to checkpoint

digits: Any = datasets.load_digits()
IMAGES = (digits.data / 16).astype(np.float32)  # rows of 64 pixels, from 0 to 1
LABELS = digits.target.astype(np.int32)
TRAIN, TEST = model_selection.train_test_split(
    np.arange(len(LABELS)), test_size=0.25, random_state=SEED, stratify=LABELS
)


def mini_batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, by seed and step alone: no random state has to be saved."""
    rows = np.random.default_rng((SEED, step)).choice(TRAIN, BATCH_SIZE, replace=False)
    return IMAGES[rows], LABELS[rows]


class Network(nnx.Module):
    """One hidden layer, normalized."""

    def __init__(self, rngs: nnx.Rngs):
        """Draws the first parameters."""
        self.hidden = nnx.Linear(64, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, images):
        """The logits of each image."""
        return self.head(nnx.relu(self.norm(self.hidden(images))))


def loss_of(model, images, labels) -> jax.Array:
    """The mean cross-entropy of a mini-batch."""
    logits = model(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def groups(params):
    """Which optimizer each parameter belongs to, by its path."""
    paths = mo.path_names(params)
    return jax.tree.map(lambda path: "head" if path.startswith("head/") else "body", paths)


SCHEDULE = optax.warmup_cosine_decay_schedule(
    init_value=RATE / WARM_UP,
    peak_value=RATE,
    warmup_steps=WARM_UP,
    decay_steps=STEPS // ACCUMULATE,  # MultiSteps is outside, so that updates are counted
)


def make_optimizer() -> optax.GradientTransformation:
    """From the inside out: an optimizer for each group, and what decides when they are used."""

    @optax.inject_hyperparams  # keeps the rate in the state, whence it can be read
    def make_chain(learning_rate):
        body = mo.novograd(
            learning_rate, b2=B2, weight_decay=DECAY, exclude_from_weight_decay=NO_DECAY
        )
        head = mo.msvag(
            HEAD_RATE * learning_rate, weight_decay=DECAY, exclude_from_weight_decay=NO_DECAY
        )
        return optax.chain(
            optax.clip_by_global_norm(MAX_NORM),  # first, so that no moment sees a wild gradient
            optax.partition({"body": body, "head": head}, groups),
        )

    tx = optax.MultiSteps(make_chain(SCHEDULE), ACCUMULATE).gradient_transformation()
    # Outermost, for what MultiSteps has accumulated would never get rid of a NaN.
    return optax.apply_if_finite(tx, MAX_ERRORS)


tx = make_optimizer()


@functools.partial(nnx.jit, donate_argnums=(0, 1))
def train_step(model: Network, optimizer: nnx.Optimizer, images, labels):
    """One mini-batch. It changes the model and the optimizer."""
    loss, gradients = nnx.value_and_grad(loss_of)(model, images, labels)
    optimizer.update(model, gradients)
    return loss


def restore(manager: ocp.CheckpointManager, state):
    """The newest checkpoint and its step; or `state`, which is fresh, and 0.

    Orbax commits a checkpoint in one act once all of it is written, on a disk by giving its folder
    the final name. What a killed run has left half-written is never found here.
    """
    step = manager.latest_step()
    if step is None:
        return state, 0
    abstract = jax.tree.map(ocp.tree.to_shape_dtype_struct, state)
    return manager.restore(step, args=ocp.args.StandardRestore(abstract)), step


def main(steps: int = STEPS, checkpoints: str | None = None):
    """Trains until step `steps`; returns parameters, optimizer state, test accuracy and log."""
    model = Network(nnx.Rngs(SEED))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    mo.weight_decay_report(nnx.state(model, nnx.Param), NO_DECAY)

    done, manager, log = 0, None, []
    if checkpoints is not None:
        options = ocp.CheckpointManagerOptions(max_to_keep=3)
        manager = ocp.CheckpointManager(Path(checkpoints).absolute(), options=options)
        state, done = restore(manager, nnx.state((model, optimizer)))
        nnx.update((model, optimizer), state)

    for step in range(done + 1, steps + 1):
        loss = train_step(model, optimizer, *mini_batch(step))
        if step % EVERY == 0 or step == steps:
            hyperparams = optax.tree.get(optimizer.opt_state, "hyperparams")  # of the last update
            log.append((step, float(loss), float(hyperparams["learning_rate"])))
            print("step {:4}  loss {:.4f}  learning rate {:.2e}".format(*log[-1]))
            if manager is not None:
                manager.save(step, args=ocp.args.StandardSave(nnx.state((model, optimizer))))
    if manager is not None:
        manager.close()  # waits for the last checkpoint

    read = jnp.argmax(model(IMAGES[TEST]), axis=-1)
    accuracy = float(jnp.mean(read == LABELS[TEST]))
    print(f"{accuracy:.1%} of the test images are read correctly.")
    return nnx.state(model, nnx.Param), optimizer.opt_state, accuracy, log


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=STEPS, help="the last mini-batch")
    parser.add_argument("--checkpoints", help="where to save, and to go on from what is there")
    args = parser.parse_args()
    main(args.steps, args.checkpoints)
