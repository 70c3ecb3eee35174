"""What the command line takes and refuses, and never half a picture."""

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from msvag_optax import compare, problems
from msvag_optax.compare import command_line
from msvag_optax.compare.command_line import write_whole
from msvag_optax.problems import library_text

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "a.png"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "no luck"), KeyboardInterrupt()])
def test_a_file_that_cannot_take_its_place_leaves_the_earlier_one_and_nothing_else(
    tmp_path, monkeypatch, failure
):
    path = tmp_path / "a.png"
    path.write_bytes(b"earlier")

    def fail(self, target):
        assert self.read_bytes() == b"later"
        raise failure

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(failure)):
        write_whole(path, b"later")
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_file_is_no_file(tmp_path):
    path = tmp_path / "a.png"
    content: Any = "these are no bytes, and the temporary file is open already"
    with pytest.raises(TypeError):
        write_whole(path, content)
    assert not list(tmp_path.iterdir())


def refusal(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        compare.main(arguments)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--problem", "mnist"], "--problem: there is no problem 'mnist'; choose from digits, "),
        (["--optimizers", "lion"], "--optimizers: there is no optimizer 'lion'; choose from msvag"),
        (["--optimizers", "msvag,lion"], "no optimizer 'lion'"),
        (["--optimizers"], "--optimizers: expected at least one"),
        (["--learning-rates", "0"], "a learning rate must be a number > 0 and finite .* not '0'"),
        (["--learning-rates", "0.1", "-1"], "not '-1'"),
        (["--learning-rates", "nan"], "not 'nan'"),
        (["--learning-rates", "inf"], "not 'inf'"),
        (["--learning-rates", "1e-60"], "not '1e-60'"),
        (["--learning-rates", "fast"], "not 'fast'"),
        (["--steps", "0"], "--steps: must be a whole number from 1 to 2147483647, not '0'"),
        (["--steps", "2.5"], "not '2.5'"),
        (["--steps", "9999999999"], "not '9999999999'"),
        (["--seeds", "-1"], "--seeds: must be a whole number from 1 to 1000, not '-1'"),
        (["--output", "a.gif"], "a picture's name must end in .png, .pdf or .svg, not 'a.gif'"),
        (["--output", "png"], "a picture's name must end in .png, .pdf or .svg, not 'png'"),
        (["--output", "no/such/folder/a.png"], "cannot write 'no/such/folder/a.png': No such file"),
        (["--output", "folder.png"], "cannot write 'folder.png': Is a directory"),
        (["--output", "x" * 300 + ".png"], "File name too long"),
        (["--steeps", "3"], "unrecognized arguments: --steeps"),
        (["--step", "3"], "unrecognized arguments: --step"),
        (["digits"], "unrecognized arguments: digits"),
    ],
)
def test_bad_input_gets_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    message = refusal(capsys, *arguments)
    assert message.startswith("python -m msvag_optax.compare: ")
    before, *after = sentence.split(" .* ")
    assert before in message
    assert all(part in message for part in after)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_missing_package_is_named_with_its_cure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "find_spec", lambda module: module != "sklearn" or None)
    message = refusal(capsys, "--output", str(tmp_path / "a.png"))
    assert "needs scikit-learn:" in message
    # There is nothing by this name on an index of packages.
    assert "from a clone of the repository by pip install '.[demo]'." in message


def test_help_names_everything_there_is(capsys):
    with pytest.raises(SystemExit) as stopped:
        compare.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for name in (*compare.OPTIMIZERS, *compare.EXPERIMENTS):
        assert f"\n  {name} " in text
    assert max(map(len, text.splitlines())) <= 100


def test_every_problem_has_an_experiment():
    assert list(compare.EXPERIMENTS) == list(problems.PROBLEMS)


@pytest.mark.parametrize(
    "problem",
    [pytest.param(p, marks=[pytest.mark.slow] * (p == "char-lm")) for p in compare.EXPERIMENTS],
)
def test_a_small_run_prints_a_table_and_writes_a_picture(tmp_path, capsys, problem):
    path = tmp_path / "picture.png"
    arguments = ["--problem", problem, "--optimizers", "msvag,sgd", "sgd"]
    arguments += ["--learning-rates", "0.1", "0.01", "--steps", "5", "--seeds", "2"]
    assert compare.main([*arguments, "--output", str(path)]) == 0
    out, err = capsys.readouterr()
    data, table = out.split("\n", 1) if out.startswith("Data: ") else ("", out)
    assert ("SHA-256" in data) == (problem in ("char-lm", "rare-words"))
    assert {line.split()[0] for line in table.splitlines()[3:5]} == {"msvag", "sgd"}
    for metric in compare.EXPERIMENTS[problem].columns:
        assert metric.label in table.splitlines()[1]
    assert out.endswith(f"Wrote {path}.\n")
    # There is no terminal here, so that each optimizer has a line instead of a bar.
    assert err == "".join(f"{name}: 5 steps done.\n" for name in ("msvag", "sgd"))
    assert path.read_bytes().startswith(PNG)
    assert list(tmp_path.iterdir()) == [path]


def test_a_single_step_of_everything_is_possible(tmp_path, capsys):
    """Each has a traced rate; here there is no time to warm up."""
    path = tmp_path / "a.PDF"  # the ending chooses the format
    arguments = ["--problem", "reddi-online", "--learning-rates", "0.1", "--steps", "1"]
    arguments += ["--seeds", "1", "--optimizers", *compare.OPTIMIZERS]
    assert compare.main([*arguments, "--output", str(path)]) == 0
    assert path.read_bytes().startswith(b"%PDF-")
    lines = capsys.readouterr().out.splitlines()
    # Here they are but Adam, and say so.
    for name in ("adamw (no decay)  ", "bert_adamw (no decay)  ", "adam  "):
        assert any(line.startswith(name) for line in lines)


def test_a_problem_is_run_with_the_usual_optimizers_and_its_own(tmp_path, monkeypatch):
    runs = []

    def stop(problem, experiment, names):
        runs.append(names)
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "train_all", stop)
    for problem in ("reddi-online", "rare-words"):
        compare.main(["--problem", problem, "--output", str(tmp_path / "a.png")])
    assert runs[1] == [*runs[0], "expectigrad-dense", "lazy_adamw", "adagrad"]
    assert runs[0][0] == "msvag"
    assert not set(runs[0]) & set(runs[1][-3:])


def test_data_that_are_not_there_are_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(library_text.sysconfig, "get_path", lambda name: str(tmp_path))
    path = tmp_path / "a.png"
    assert compare.main(["--problem", "rare-words", "--output", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(f"made of Python's own sources, and {tmp_path} has no argparse.py.\n")
    assert err.count("\n") == 1


def test_a_picture_that_cannot_be_written_in_the_end_is_one_sentence(tmp_path, monkeypatch, capsys):
    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(command_line, "write_whole", fail)
    path = tmp_path / "a.png"
    arguments = ["--problem", "reddi-online", "--optimizers", "sgd", "--steps", "3"]
    assert compare.main([*arguments, "--output", str(path)]) == 1
    out, err = capsys.readouterr()
    assert "best rate" in out
    assert err.endswith(f"cannot write {path}: No space left on device.\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_the_earlier_picture_and_nothing_else(tmp_path, sent):
    path = tmp_path / "a.png"
    path.write_bytes(b"earlier")
    # A shell may have told its background jobs to ignore Ctrl-C; this one listens.
    program = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "runpy.run_module('msvag_optax.compare', run_name='__main__', alter_sys=True)"
    )
    arguments = ["--problem", "reddi-online", "--optimizers", "sgd", "adam"]
    arguments += ["--steps", "60000000", "--learning-rates", "1e-4", "--output", str(path)]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "sgd: 60,000,000 steps done.\n"
            time.sleep(0.5)  # Inside of its constructor, tqdm has an error of its own to print.
            process.send_signal(sent)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert (out, err) == ("", "\nInterrupted.\n")
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_the_core_imports_no_demo_and_the_demo_no_extras_before_it_needs_them():
    program = """if True:
        import json, sys
        import msvag_optax
        core = set(sys.modules)
        import msvag_optax.compare
        print(json.dumps([sorted(core), sorted(sys.modules)]))
    """
    printed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    core, demo = map(set, json.loads(printed))
    extras = {"flax", "matplotlib", "sklearn", "tqdm"}
    assert not core & {"msvag_optax.compare", "msvag_optax.problems", *extras}
    assert not demo & extras
