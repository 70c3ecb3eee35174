"""The demo: one compiled loop for a whole grid, an honest table, and never half a picture."""

import errno
import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from msvag_optax import compare, problems

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def quadratic() -> problems.Problem:
    return problems.noisy_quadratic(dimension=6)


def outcome(name="sgd", losses=((0.2, 0.4), (0.1, 0.3)), rates=(0.1, 1.0)) -> compare.Outcome:
    """An outcome that measured 1.0 at the start and `losses[seed][rate]` at the end."""
    final = np.asarray(losses, np.float32)
    return compare.Outcome(
        name,
        np.asarray(rates),
        steps=np.array([0, 10]),
        history={"expected loss": np.stack([np.ones_like(final), final])},
        seconds=1.234e-6,
        state_bytes=4.0,
    )


COLUMNS = compare.EXPERIMENTS["noisy-quadratic"].columns


# --- training


def test_a_grid_is_the_same_as_its_runs_one_by_one(quadratic):
    rates, steps = [0.003, 0.01, 0.03], 40
    grid = compare.train(quadratic, optax.adam, rates, steps=steps, seeds=2)
    assert grid.history["expected loss"].shape == (41, 2, 3)

    @jax.jit
    def one_step(params, state, rate, step, key):
        loss, gradient = quadratic.value_and_grad(params, step, jax.random.fold_in(key, step + 1))
        updates, state = optax.adam(rate).update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    for seed, (column, rate) in itertools.product(range(2), enumerate(rates)):
        key, losses = jax.random.key(seed), []
        params = quadratic.init(jax.random.fold_in(key, 0))
        state = optax.adam(rate).init(params)
        for step in range(steps):
            measured = grid.history["expected loss"][step, seed, column]
            expected = quadratic.metrics(params)["expected loss"]
            np.testing.assert_allclose(measured, expected, rtol=1e-4)
            params, state, loss = one_step(params, state, rate, step, key)
            losses.append(loss)
            average = grid.history["average loss"][step + 1, seed, column]
            np.testing.assert_allclose(average, np.mean(losses), rtol=1e-4)


def test_one_compilation_serves_all_rates_and_seeds_and_steps(quadratic):
    """251 steps are measured in spans of two and of three, which makes no difference either."""
    once = quadratic._replace(loss=chex.assert_max_traces(quadratic.loss, n=1))
    result = compare.train(once, optax.adam, [0.01, 0.1], steps=251, seeds=2)
    assert set(np.diff(result.steps)) == {2, 3}
    assert result.steps[-1] == 251


def test_every_step_is_reported_once(quadratic):
    counts = []
    compare.train(quadratic, optax.sgd, [0.1], steps=117, seeds=1, advanced=counts.append)
    assert sum(counts) == 117


def test_the_iterates_are_projected():
    away = optax.sgd(1e3)
    result = compare.train(problems.reddi_online(), lambda _: away, [1.0], steps=9, seeds=1)
    np.testing.assert_array_equal(result.history["x"][:, 0, 0], [0, -1, *[1] * 8])
    np.testing.assert_allclose(
        result.history["average loss"][:4, 0, 0], [np.nan, 1010, 505, (1010 - 20) / 3]
    )


def test_the_average_of_a_million_losses_is_not_rounded_away():
    """At `x = s - 1` the loss is `1010 s` once and `-10 s` a hundred times: `10 s / 101` each."""
    size = 0.7123
    problem = problems.reddi_online()._replace(init=lambda key: jnp.float32(size - 1))
    stay = optax.set_to_zero()
    result = compare.train(problem, lambda _: stay, [1.0], steps=2_020_000, seeds=1)
    np.testing.assert_allclose(result.history["average loss"][-1], 10 * size / 101, rtol=1e-3)


def test_every_seed_starts_elsewhere_and_the_same_for_every_optimizer(quadratic):
    starts = [
        compare.train(quadratic, build, [0.1, 0.2], steps=1, seeds=3).history["expected loss"][0]
        for build in (optax.sgd, optax.adam)
    ]
    np.testing.assert_array_equal(*starts)
    assert len(np.unique(starts[0])) == 3


@pytest.mark.parametrize(("build", "copies"), [(optax.sgd, 0), (optax.adam, 2), (optax.amsgrad, 3)])
def test_state_bytes_are_counted_for_each_parameter(quadratic, build, copies):
    result = compare.train(quadratic, build, [0.1], steps=1, seeds=1)
    count = 4 if copies else 0
    assert result.state_bytes == 4 * copies + count / 6


# --- choosing the best rate, and the table


def test_the_best_rate_has_the_lowest_final_mean():
    assert (
        outcome(losses=[[0.2, 0.4, 0.3], [0.4, 0.1, 0.3]], rates=[1, 2, 3]).best("expected loss")
        == 1
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_rate_at_which_a_seed_diverged_is_never_the_best(bad):
    assert outcome(losses=[[0.0, 0.4], [bad, 0.4]]).best("expected loss") == 1
    assert outcome(losses=[[bad, np.inf], [bad, bad]]).best("expected loss") is None


def test_real_divergence_is_seen(quadratic):
    result = compare.train(quadratic, optax.sgd, [0.1, 1e9], steps=50, seeds=2)
    assert not np.isfinite(result.history["expected loss"][-1, :, 1]).any()
    assert result.best("expected loss") == 0


def test_the_table_says_what_was_measured_best_first():
    table = compare.format_table(
        [
            outcome("sgd", [[0.2, 0.5, 9], [0.4, 0.5, 9]], [0.01, 0.1, 1]),
            outcome("adam", [[0.9, 0.1, 9], [0.9, 0.2, 9]], [0.01, 0.1, 1])._replace(
                state_bytes=8.02
            ),
            outcome("svag", np.full((2, 3), np.nan), [0.01, 0.1, 1]),
        ],
        COLUMNS,
    )
    lines = table.splitlines()
    assert lines[0].split() == [
        *("optimizer", "best", "rate", "expected", "loss"),
        *("time/step/run", "state", "bytes/param"),
    ]
    assert lines[2].split() == ["adam", "0.1", "0.150", "±", "0.0500", "1.23", "µs", "8.0"]
    assert lines[3].split() == ["sgd", "0.01*", "0.300", "±", "0.100", "1.23", "µs", "4.0"]
    assert lines[4].split() == ["svag", "diverged", "-", "1.23", "µs", "4.0"]
    # Columns line up: every line ends where the last column ends.
    assert len({len(line) for line in lines[:5]}) == 1
    assert "lowest final expected loss, averaged over 2 seeds" in table
    assert "* the best rate is at an edge" in table
    assert "all 6 runs" in table


def test_a_single_seed_has_no_spread():
    table = compare.format_table([outcome(losses=[[0.2, 0.4]])], COLUMNS)
    assert "±" not in table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.5, "2.50 s"),
        (0.0123, "12.3 ms"),
        (4.56e-5, "45.6 µs"),
        (1.2e-4, " 120 µs"),
        (2.4e-9, "2 ns"),
    ],
)
def test_durations_have_a_unit_that_suits_them(seconds, text):
    assert text in compare.format_table([outcome()._replace(seconds=seconds)], COLUMNS)


# --- the picture


def results(experiment: compare.Experiment, names) -> list[compare.Outcome]:
    """Made-up runs that all end at nearly the same place, which is hard on labels."""
    generator = np.random.default_rng(0)
    rates = np.array([1e-3, 1e-2, 1e-1])
    steps = np.array([0, 5, 10])
    keys = {panel.metric.key for panel in experiment.panels} | {experiment.columns[0].key}
    return [
        outcome(name, rates=rates)._replace(
            steps=steps,
            history={key: generator.uniform(0.5, 0.52, (3, 2, 3)) for key in keys},
        )
        for name in names
    ]


@pytest.mark.parametrize("problem", compare.EXPERIMENTS)
def test_every_optimizer_has_a_name_in_the_picture_and_no_two_overlap(problem):
    experiment = compare.EXPERIMENTS[problem]
    figure = compare.draw(results(experiment, compare.OPTIMIZERS), experiment, "a title")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert len(figure.axes) == len(experiment.panels)

    names = [text for text in figure.axes[0].texts if text.get_text() in compare.OPTIMIZERS]
    assert {text.get_text() for text in names} == set(compare.OPTIMIZERS)
    # Of the words alone: an annotation's own extent includes the line that leads to it.
    boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in names]
    width, height = canvas.get_width_height()
    for index, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y0 >= 0
        assert box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_colours_tell_the_optimizers_apart():
    assert len({style.colour for style in compare.OPTIMIZERS.values()}) == len(compare.OPTIMIZERS)


def test_what_diverged_leaves_a_gap():
    experiment = compare.EXPERIMENTS["noisy-quadratic"]
    losses = [[0.1, np.nan, 0.2], [0.1, 0.3, 0.2]]
    figure = compare.draw([outcome(losses=losses, rates=[1, 2, 3])], experiment, "a title")
    drawn = figure.axes[1].lines[0].get_ydata()
    np.testing.assert_array_equal(np.isfinite(drawn), [True, False, True])
    assert compare.render(figure).startswith(PNG)


def test_a_picture_in_which_all_diverged_can_still_be_drawn():
    experiment = compare.EXPERIMENTS["noisy-quadratic"]
    nothing = outcome(losses=np.full((2, 3), np.nan), rates=[1, 2, 3])
    figure = compare.draw([nothing], experiment, "a title")
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["every run diverged"] * 2
    assert compare.render(figure).startswith(PNG)


# --- writing it


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "a.png"
    compare.write_whole(path, b"first")
    compare.write_whole(path, b"second")
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
        compare.write_whole(path, b"later")
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_file_is_no_file(tmp_path):
    path = tmp_path / "a.png"
    content: Any = "these are no bytes, and the temporary file is open already"
    with pytest.raises(TypeError):
        compare.write_whole(path, content)
    assert not list(tmp_path.iterdir())


# --- the command line


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
        (["--output", "a.pdf"], "--output: must be the name of a .png file, not 'a.pdf'"),
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
    monkeypatch.setattr(compare, "find_spec", lambda module: module != "sklearn" or None)
    message = refusal(capsys, "--output", str(tmp_path / "a.png"))
    assert "needs scikit-learn:" in message
    assert 'pip install "msvag_optax[demo]"' in message


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


@pytest.mark.parametrize("problem", compare.EXPERIMENTS)
def test_a_small_run_prints_a_table_and_writes_a_picture(tmp_path, capsys, problem):
    path = tmp_path / "picture.png"
    arguments = ["--problem", problem, "--optimizers", "msvag,sgd", "sgd"]
    arguments += ["--learning-rates", "0.1", "0.01", "--steps", "5", "--seeds", "2"]
    assert compare.main([*arguments, "--output", str(path)]) == 0
    out, err = capsys.readouterr()
    assert {line.split()[0] for line in out.splitlines()[3:5]} == {"msvag", "sgd"}
    for metric in compare.EXPERIMENTS[problem].columns:
        assert metric.label in out.splitlines()[1]
    assert out.endswith(f"Wrote {path}.\n")
    # There is no terminal here, so that each optimizer has a line instead of a bar.
    assert err == "".join(f"{name}: 5 steps done.\n" for name in ("msvag", "sgd"))
    assert path.read_bytes().startswith(PNG)
    assert list(tmp_path.iterdir()) == [path]


def test_a_single_step_of_everything_is_possible(tmp_path):
    """By default all optimizers run, each with a traced rate; here there is no time to warm up."""
    path = tmp_path / "a.png"
    arguments = ["--problem", "reddi-online", "--learning-rates", "0.1", "--steps", "1"]
    assert compare.main([*arguments, "--seeds", "1", "--output", str(path)]) == 0


def test_a_picture_that_cannot_be_written_in_the_end_is_one_sentence(tmp_path, monkeypatch, capsys):
    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compare, "write_whole", fail)
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
    arguments += ["--steps", "300000000", "--learning-rates", "1e-4", "--output", str(path)]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "sgd: 300,000,000 steps done.\n"
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
