"""The training program for several processes: two agree with one, and go on when killed."""

import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

PROGRAM = Path(__file__).parents[2] / "examples" / "train_distributed.py"
LIMIT = 240  # seconds that a run may take

# A run that hangs says where, and ends by itself even if nobody is left to kill it.
RUN = f"""
import faulthandler, runpy, sys
faulthandler.dump_traceback_later({LIMIT}, exit=True)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Result(NamedTuple):
    params: dict[str, np.ndarray]
    printed: list[str]  # by each process


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment() -> dict[str, str]:
    """Without what would give the program other devices, or its messages another way."""
    ours = re.compile("JAX_|XLA_|.*_proxy$", re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if not ours.match(name)}


class Processes:
    """So many processes of the program, in a folder of their own, which end with the block."""

    def __init__(self, folder: Path, processes: int, *arguments: str):
        folder.mkdir()
        self.logs = [folder / f"{process}.log" for process in range(processes)]
        self.running: list[subprocess.Popen] = []
        self.command = [sys.executable, "-c", RUN, str(PROGRAM), "--processes", str(processes)]
        self.command += ["--coordinator", f"127.0.0.1:{free_port()}", *arguments]
        self.folder = folder

    def __enter__(self):
        for process, path in enumerate(self.logs):
            with path.open("w") as log:
                started = subprocess.Popen(
                    [*self.command, "--process", str(process)],
                    cwd=self.folder,
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            self.running.append(started)
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        """By SIGKILL, since JAX catches SIGTERM."""
        for process in self.running:
            process.kill()
        for process in self.running:
            process.wait()

    def wait_until(self, condition):
        """Fails, and says what was printed, if a process fails or the time is over before."""
        end = time.monotonic() + LIMIT + 10  # by then, all have ended by themselves
        while not condition():
            codes = [process.poll() for process in self.running]
            late = time.monotonic() > end
            if late or any(codes) or (None not in codes and not condition()):
                printed = "\n".join(f"--- {path.name}\n{path.read_text()}" for path in self.logs)
                pytest.fail(f"{'too late' if late else 'ended'}, exit codes {codes}\n{printed}")
            time.sleep(0.01)

    def ended(self) -> bool:
        return all(process.poll() == 0 for process in self.running)


def arguments(optimizer: str, layout: str, steps: int) -> list[str]:
    return [
        *("--optimizer", optimizer, "--layout", layout),
        *("--steps", str(steps), "--every", "10", "--output", "params.npz"),
    ]


def train(folder: Path, processes: int, *more: str) -> Result:
    """Two devices train, divided among so many processes."""
    with Processes(folder, processes, "--devices", str(2 // processes), *more) as started:
        started.wait_until(started.ended)
    with np.load(folder / "params.npz") as archive:
        return Result(dict(archive), [path.read_text() for path in started.logs])


def share(printed: str) -> float:
    """How much of parameters and state a process had."""
    held, size = map(int, re.findall(r"holds (\d+) bytes; one copy of all has (\d+)", printed)[0])
    return held / size


def assert_same_params(actual: Result, expected: Result):
    assert sorted(actual.params) == sorted(expected.params)
    for name, array in expected.params.items():
        np.testing.assert_array_equal(actual.params[name], array, err_msg=name)


def log(printed: str) -> dict[int, float]:
    """Step and loss of each line."""
    lines = re.findall(r"^step +(\d+)  loss (\S+)$", printed, re.MULTILINE)
    return {int(step): float(loss) for step, loss in lines}


def assert_learnt(printed: str):
    first, *_, last = log(printed).values()
    assert last < first / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "layout"), [("msvag", "data-parallel"), ("novograd", "fsdp")]
)
def test_two_processes_train_as_one_does(optimizer, layout, tmp_path):
    alone = train(tmp_path / "alone", 1, *arguments(optimizer, layout, 60))
    together = train(tmp_path / "together", 2, *arguments(optimizer, layout, 60))
    assert_learnt(together.printed[0])
    # Of two devices, every sum has two summands, and addition commutes: all bits are the same.
    assert_same_params(together, alone)
    # All is cut in two but counts and NovoGrad's norms of layers, which are a few bytes.
    least, most = (0.5, 0.501) if layout == "fsdp" else (1, 1)
    assert all(least <= share(printed) <= most for printed in together.printed)
    assert share(alone.printed[0]) == sum(map(share, together.printed))


@pytest.mark.slow
def test_two_killed_processes_end_where_they_would_have_ended(tmp_path):
    more = ["--checkpoints", str(tmp_path / "checkpoints")]
    for_ever = [*arguments("novograd", "fsdp", 1_000_000), *more]
    with Processes(tmp_path / "killed", 2, *for_ever) as killed:
        # A line of the log comes before its checkpoint, so that two are complete, the third is not.
        killed.wait_until(lambda: len(log(killed.logs[0].read_text())) >= 3)
        killed.kill()
    assert [process.returncode for process in killed.running] == [-signal.SIGKILL] * 2

    printed = max(log(killed.logs[0].read_text()))
    end = arguments("novograd", "fsdp", printed + 20)
    continued = train(tmp_path / "continued", 2, *end, *more)
    (start,) = re.findall(r"^Starts after step (\d+)\.$", continued.printed[0], re.MULTILINE)
    assert int(start) in (printed - 10, printed)
    assert_same_params(continued, train(tmp_path / "undisturbed", 1, *end))


def test_state_is_cut_like_parameters_from_the_start(capsys):
    train = runpy.run_path(str(PROGRAM))["train"]
    for trained in (train("novograd", "fsdp", 0, 10), train("novograd", "fsdp", 40, 10)):
        shapes = [(x.shape, x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(trained)]
        assert len(shapes) == 6 + 6 + 6 + 2, "parameters, momenta, norms, counts"
        for whole, part in shapes:
            cut = whole != () and whole[0] % 8 == 0
            assert part == ((whole[0] // 8, *whole[1:]) if cut else whole)
    assert_learnt(capsys.readouterr().out)
