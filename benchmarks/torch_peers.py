"""Measures each optimizer beside its nearest of PyTorch, on the CPU.

    python -m benchmarks.torch_peers

Needs `pip install torch pytorch_optimizer expectigrad`; nothing else of the project does. The
machine must be quiet: the threads of torch spin while they wait for each other, and one that has to
share its core keeps the others waiting for milliseconds, at every leaf. With
`OMP_WAIT_POLICY=PASSIVE` in the environment they sleep instead.
"""

import argparse
import datetime
import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import msvag_optax as mo
from benchmarks.__main__ import describe
from benchmarks.step import (
    WARM_UP,
    Contender,
    Spread,
    as_json,
    checked,
    donated_step,
    least_step,
    machine,
    spread,
    versions,
    write_down,
)
from benchmarks.trees import TREES, Shapes

PACKAGES = ("torch", "pytorch_optimizer", "expectigrad")
RATE = 0.1  # large, so that a step is not lost in the rounding of the parameters
BETAS = (0.9, 0.999)

PAUSE = 0.3  # seconds, longer than the threads of torch spin after a step

# Before any time is counted, both take steps of which all is checked. The gradients differ, so that
# every decay counts; powers of two scale without rounding.
SCALES = (1.0, -0.5, 2.0)
# A hundred roundings to float32, more than there are in a step; a wrong hyperparameter is far off.
TOLERANCE = 1e-5


class Libraries(NamedTuple):
    """What the peers are made of, as modules."""

    torch: Any
    pytorch_optimizer: Any
    expectigrad: Any


class Pair(NamedTuple):
    """An optimizer of torch and ours, with the same hyperparameters.

    Attributes:
      peer: its name.
      build_peer: makes it, of the libraries and the parameters.
      ours: the name of ours.
      build: makes it.
      first_step: how far apart the first steps may be, relative to the longest; later ones may
        always be as far apart as `TOLERANCE`.
    """

    peer: str
    build_peer: Callable[[Libraries, list[Any]], Any]
    ours: str
    build: Callable[[], Any]
    first_step: float = TOLERANCE


def _adamw(**implementation: bool) -> Callable[[Libraries, list[Any]], Any]:
    return lambda libraries, params: libraries.torch.optim.AdamW(
        params, lr=RATE, betas=BETAS, eps=1e-8, weight_decay=1e-2, **implementation
    )


PAIRS = (
    Pair("torch AdamW, fused", _adamw(fused=True), "adamw", lambda: mo.adamw(RATE)),
    Pair("torch AdamW, foreach", _adamw(foreach=True), "adamw", lambda: mo.adamw(RATE)),
    Pair(
        "pytorch_optimizer MSVAG",
        lambda libraries, params: libraries.pytorch_optimizer.MSVAG(params, lr=RATE, beta=0.9),
        "msvag",
        lambda: mo.msvag(RATE),
        # It forms the variance as v - m^2 and caps rho at 0.9999: at the first step the factor,
        # which is 1, comes out of rounding noise, between 0.997 and 1.
        first_step=3.5e-3,
    ),
    Pair(
        "pytorch_optimizer NovoGrad",
        lambda libraries, params: libraries.pytorch_optimizer.NovoGrad(
            params, lr=RATE, betas=BETAS, eps=1e-7
        ),
        "novograd",
        lambda: mo.novograd(RATE),
    ),
    Pair(
        "expectigrad Expectigrad",
        lambda libraries, params: libraries.expectigrad.Expectigrad(params, lr=RATE),
        "expectigrad",
        lambda: mo.expectigrad(RATE),
    ),
)


class Peer(NamedTuple):
    """An optimizer that works in place.

    Attributes:
      params: the memory of the parameters.
      gradients: the memory of the gradients, from which `step` reads them (and some write there).
      step: takes one step.
    """

    params: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    step: Callable[[], Any]


class Row(NamedTuple):
    """One optimizer beside its peer.

    Attributes:
      peer: the optimizer of torch.
      ours: the optimizer of this library.
      step: our time over the peer's.
      floor: our time over that of reading and writing the arrays of our step once.
      peer_floor: the peer's time over the same.
    """

    peer: str
    ours: str
    step: Spread
    floor: Spread
    peer_floor: Spread


class Results(NamedTuple):
    """All that one run has measured.

    Attributes:
      machine: on what.
      versions: of the libraries.
      threads: how many, and how those of torch wait.
      date: when.
      trees: a row for each pair, by the name of the tree.
    """

    machine: str
    versions: str
    threads: str
    date: str
    trees: dict[str, list[Row]]


def load() -> Libraries:
    """The libraries of the peers.

    Raises:
      SystemExit: if one of them is missing.
    """
    try:
        names = "torch", "pytorch_optimizer", "expectigrad.pytorch"
        return Libraries(*map(importlib.import_module, names))
    except ImportError as error:
        raise SystemExit(
            f"The peers are not all installed ({error}): pip install {' '.join(PACKAGES)}"
        ) from None


def cores() -> int:
    """Those that this process may use, for each of which XLA has a thread."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads(torch: Any) -> str:
    """Gives torch as many threads as XLA has, and says how many."""
    torch.set_num_threads(cores())
    policy = os.environ.get("OMP_WAIT_POLICY", "as OpenMP does by default")
    return f"{cores()} threads for XLA, {torch.get_num_threads()} for torch, which wait {policy}"


def random_tree(shapes: Shapes, scale: float, seed: int) -> dict[str, np.ndarray]:
    """Normal numbers in float32, the same in every run."""
    rng, by = np.random.default_rng(seed), np.float32(scale)
    return {leaf: by * rng.standard_normal(shape, np.float32) for leaf, shape in shapes.items()}


def torch_peer(libraries: Libraries, pair: Pair, params: dict[str, np.ndarray]) -> Peer:
    """The optimizer of torch on a copy of the parameters."""
    torch = libraries.torch
    tensors = {leaf: torch.from_numpy(x).clone().requires_grad_() for leaf, x in params.items()}
    for tensor in tensors.values():
        tensor.grad = torch.zeros_like(tensor)
    return Peer(
        {leaf: tensor.detach().numpy() for leaf, tensor in tensors.items()},
        {leaf: tensor.grad.numpy() for leaf, tensor in tensors.items()},
        pair.build_peer(libraries, list(tensors.values())).step,
    )


_scaled = jax.jit(lambda tree, scale: jax.tree.map(lambda x: scale * x, tree))


class Race:
    """An optimizer, its peer and the floor, which take turns."""

    def __init__(
        self,
        pair: Pair,
        peer: Peer,
        params: dict[str, np.ndarray],
        gradients: dict[str, np.ndarray],
    ) -> None:
        """All start from the same parameters."""
        tx = pair.build()
        state = jax.jit(tx.init)(params)
        self.peer, self.gradients, self.our_gradients = peer, gradients, jax.device_put(gradients)
        self.ours = Contender(donated_step(tx), params, state)
        self.theirs = Contender(lambda: (peer.step(), ())[1])
        self.floor = Contender(least_step, params, state)

    def round(self, scale: float = 1.0) -> None:
        """One turn for each; every step finds gradients that were written just before."""
        for contender in (self.ours, self.floor):
            contender.run(jax.block_until_ready(_scaled(self.our_gradients, scale)))
        for leaf, gradient in self.gradients.items():
            np.multiply(gradient, np.float32(scale), out=self.peer.gradients[leaf])
        self.theirs.run()
        time.sleep(PAUSE)

    def params(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """A copy of our parameters, and of the peer's."""
        ours, theirs = self.ours.carry[0], self.peer.params
        return {leaf: np.array(x) for leaf, x in ours.items()}, {
            leaf: x.copy() for leaf, x in theirs.items()
        }


def check_step(before: Any, after: Any, tolerance: float) -> None:
    """Sees that two optimizers have moved their parameters, and by the same.

    Args:
      before: the parameters of both, each a dictionary of arrays.
      after: the same, a step later.
      tolerance: how far apart the steps may be, relative to the longest of an array.

    Raises:
      RuntimeError: if they have not.
    """
    for leaf in before[0]:
        ours, theirs = (b[leaf] - a[leaf] for b, a in zip(before, after, strict=True))
        # Each may round the parameters twice, for the decay and for the step.
        rounding = 2.0**-22 * np.abs(after[0][leaf]).max()
        length, distance = np.abs(ours).max(), np.abs(ours - theirs).max()
        if not (length > 2 * rounding and distance <= tolerance * length + rounding):
            raise RuntimeError(f"the steps of {leaf}, up to {length:.3g}, differ by {distance:.3g}")


def compare(
    pair: Pair, ours: Sequence[float], theirs: Sequence[float], floor: Sequence[float]
) -> Row:
    """The ratios of the seconds of each round."""
    return Row(
        pair.peer, pair.ours, spread(ours, theirs), spread(ours, floor), spread(theirs, floor)
    )


def measure(
    pair: Pair,
    peer: Peer,
    params: dict[str, np.ndarray],
    gradients: dict[str, np.ndarray],
    rounds: int,
) -> Row:
    """Checks that an optimizer and its peer take the same steps, and measures them side by side.

    Raises:
      RuntimeError: if they do not.
    """
    race = Race(pair, peer, params, gradients)
    before = race.params()
    for number, scale in enumerate(SCALES):
        race.round(scale)
        after = race.params()
        try:
            check_step(before, after, pair.first_step if number == 0 else TOLERANCE)
        except RuntimeError as error:
            raise RuntimeError(f"{pair.peer}, step {number + 1}: {error}") from None
        before = after
    for _ in range(WARM_UP + rounds):
        race.round()
    contenders = race.ours, race.theirs, race.floor
    return compare(pair, *(contender.seconds[-rounds:] for contender in contenders))


def run(arguments: argparse.Namespace, libraries: Libraries) -> Results:
    """Measures what the command line asks for."""
    peers = [f"{package} {metadata.version(package)}" for package in PACKAGES]
    results = Results(
        machine(),
        ", ".join([versions(), *peers]),
        threads(libraries.torch),
        f"{datetime.date.today():%Y-%m-%d}",
        {tree: [] for tree in arguments.trees},
    )
    with tqdm(total=len(PAIRS) * len(arguments.trees), disable=None) as progress:
        for tree, rows in results.trees.items():
            params = random_tree(TREES[tree](), 0.1, seed=0)
            gradients = random_tree(TREES[tree](), 1.0, seed=1)
            for pair in PAIRS:
                peer = torch_peer(libraries, pair, params)
                rows.append(measure(pair, peer, params, gradients, arguments.rounds))
                progress.update()
    return results


def in_markdown(results: Results) -> Iterator[str]:
    """The lines of all tables."""
    yield f"{results.machine}; {results.versions}; {results.threads}; {results.date}."
    for tree, rows in results.trees.items():
        yield f"\n**{describe(tree)}** Parameters in float32.\n"
        yield "| ours | peer | ours / peer | ours / floor | peer / floor |"
        yield "| --- | --- | --- | --- | --- |"
        for row in rows:
            yield f"| {row.ours} | {row.peer} | {row.step} | {row.floor} | {row.peer_floor} |"
    yield ""
    yield (
        "Times of a step are ratios within one process, medians, in brackets the least and the "
        "greatest round; below 1, this library is faster. *Floor*: the time of reading and writing "
        "the arrays of our step once, in one kernel for each of parameters and state. Both have "
        "taken the same first steps before, to 1e-5 of the longest, which is checked."
    )


def in_json(results: Results) -> dict[str, Any]:
    """What `in_markdown` shows, to more digits and for programs."""
    trees = [{"tree": tree, **as_json(row)} for tree, rows in results.trees.items() for row in rows]
    return results._asdict() | {"trees": trees}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what the command line asks for, prints it, and writes it down."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.torch_peers",
        description="Optimizers beside those of PyTorch, on the CPU and in one process.",
    )
    parser.add_argument("--trees", nargs="+", choices=TREES, default=[*TREES])
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each (default 20)")
    parser.add_argument("--output", type=Path, help="written as OUTPUT.md and OUTPUT.json as well")
    arguments = checked(parser, argv)
    libraries = load()
    jax.config.update("jax_platforms", "cpu")
    results = run(arguments, libraries)
    tables = "\n".join(in_markdown(results))
    print(tables)
    write_down(arguments.output, tables, in_json(results))


if __name__ == "__main__":
    main()
