"""The benchmarks run, and say what they have found; no test looks at a time."""

import json
import math
import re
import subprocess

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as main
from benchmarks import accelerator, growth, problems, rounding, step
from benchmarks.step import Eager, Row, Spread
from benchmarks.trees import TREES, many_leaves
from tests.compare.outcomes import outcome

CASE = ("tiny", "float32")
SEPARATOR = re.compile(r"\|( --- \|)+")


def two_leaves():
    """Two leaves."""
    return many_leaves(2)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Small trees, in a process that goes on remembering what it has compiled."""
    monkeypatch.setitem(TREES, "tiny", two_leaves)
    monkeypatch.setattr(main, "EAGER_LEAVES", 2)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    monkeypatch.setattr(step, "WARM_UP", 1)


def row(median, **changes):
    """One of an optimizer whose every ratio is the same."""
    ratio = Spread(median, median / 2, 2 * median)
    return Row("msvag", "adam", *[ratio] * 5, 8.0, 8.0, 0, 64)._replace(**changes)


def results(median):
    ratio = Spread(median, median / 2, 2 * median)
    eager = Eager("msvag", "adam", ratio, ratio, ratio, ratio)
    return main.Results("a machine", "versions", "a day", {CASE: [row(median)]}, [eager])


def assert_tables_are_whole(markdown, tables):
    """As many tables, and in each the head, the line below it and all rows have as many cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", markdown + "\n", flags=re.MULTILINE)
    assert len(blocks) == tables
    for block in blocks:
        head, separator, *rows = block.splitlines()
        assert SEPARATOR.fullmatch(separator)
        assert rows
        assert {line.count("|") for line in rows} == {head.count("|")} == {separator.count("|")}


def test_runs_are_merged_to_the_median_of_their_medians():
    runs = [results(median) for median in (1.0, 1.5, 0.8, 1.1, 1.2)]
    merged = main.merge(runs)
    over_runs = Spread(1.1, 0.8, 1.5)
    (found,) = merged.trees[CASE]
    assert found[2:7] == (over_runs,) * 5
    assert found[-4:] == (8.0, 8.0, 0, 64)
    assert merged.eager == [Eager("msvag", "adam", *(over_runs,) * 4)]
    assert merged.runs == tuple(runs)


def test_runs_of_different_optimizers_are_not_merged():
    short = results(1.0)._replace(eager=[])
    with pytest.raises(ValueError, match="shorter"):
        main.merge([results(1.0), short])


@pytest.mark.parametrize("found", [results(0.5), main.merge([results(0.5), results(0.7)])])
def test_what_is_written_as_json_is_read_again(found):
    assert main.from_json(json.loads(json.dumps(main.in_json(found)))) == found


def test_the_tables_tell_what_their_spread_is_of():
    alone, merged = (
        "\n".join(main.in_markdown(found))
        for found in (results(1.0), main.merge([results(1.0), results(2.0)]))
    )
    assert "1.00 (0.50 to 2.00)" in alone
    assert "processes" not in alone
    assert "1.50 (1.00 to 2.00)" in merged
    assert "medians of 2 processes" in merged
    assert_tables_are_whole(merged, tables=2)


@pytest.mark.slow
def test_one_run_measures_every_case(tmp_path, capsys):
    asked = ["--trees", "tiny", "--optimizers", "msvag", "novograd-decay", "--rounds", "1"]
    output = tmp_path / "found.here"
    main.main([*asked, "--compilations", "1", "--runs", "1", "--output", str(output)])
    tables = capsys.readouterr().out
    assert (tmp_path / "found.here.md").read_text() == tables
    assert_tables_are_whole(tables, tables=3)
    assert "Two leaves. 528 parameters in 2 leaves." in tables
    found = main.from_json(json.loads((tmp_path / "found.here.json").read_text()))
    assert [*found.trees] == [("tiny", "float32"), ("tiny", "bfloat16")]
    msvag, novograd = found.trees["tiny", "float32"]
    # Two float32 for each of 528 parameters, and counts.
    assert 8 * 528 <= 528 * msvag.state < 8 * 528 + 64
    assert 8 * 528 <= 528 * msvag.peer_state < 8 * 528 + 64
    assert (novograd.name, novograd.peer) == ("novograd-decay", "novograd-decay")
    assert [row.name for row in found.eager] == ["msvag", "novograd-decay"]


def test_several_runs_are_processes_of_the_same_command(tmp_path, capsys, monkeypatch):
    asked = ["--runs", "3", "--trees", "tiny", "--output", str(tmp_path / "all")]
    commands = []

    def run(command, **options):
        assert options["check"]
        commands.append(command[1:-1])
        main.write(results(float(len(commands))), command[-1])

    monkeypatch.setattr(main.subprocess, "run", run)
    main.main(asked)
    # What is said last counts.
    assert commands == [["-m", "benchmarks", *asked, "--runs", "1", "--output"]] * 3
    found = main.from_json(json.loads((tmp_path / "all.json").read_text()))
    assert [run.trees[CASE][0].step.median for run in found.runs] == [1.0, 2.0, 3.0]
    assert found.trees[CASE][0].step == Spread(2.0, 1.0, 3.0)
    assert (tmp_path / "all.md").read_text() == capsys.readouterr().out


def test_a_run_that_fails_leaves_what_those_before_it_have_found(tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(command)
        if len(commands) == 3:
            raise subprocess.CalledProcessError(1, command)
        main.write(results(float(len(commands))), command[-1])

    monkeypatch.setattr(main.subprocess, "run", run)
    with pytest.raises(subprocess.CalledProcessError):
        main.main(["--output", str(tmp_path / "all")])
    found = main.from_json(json.loads((tmp_path / "all.json").read_text()))
    assert found.trees[CASE][0].step == Spread(1.5, 1.0, 2.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_floor_overwrites_every_array_and_computes_nothing(dtype):
    params, gradients = step.filled(two_leaves(), dtype)
    state = {"count": jnp.asarray(7, jnp.int32), "mean": jnp.full(1_000, 0.25)}
    memory = step.least_step.lower(params, state, gradients).compile().memory_analysis()
    assert memory.temp_size_in_bytes == 0
    assert memory.alias_size_in_bytes == step.bytes_in((params, state))
    before = jax.device_get((params, state))
    once = step.least_step(params, state, gradients)
    changed = jax.tree.map(lambda a, b: np.all(a != np.asarray(b)), before, once)
    assert all(jax.tree.leaves(changed))
    twice = step.least_step(*once, gradients)
    chex.assert_trees_all_equal(jax.device_get(twice), before)


def test_seconds_are_those_of_one_step_and_warm_up_does_not_count():
    taken = []

    def count(total):
        taken.append(total)
        return (total + 1,)

    contender = step.Contender(count, jnp.asarray(0))
    (seconds,) = step.interleave([contender], rounds=3, steps=4)
    assert len(seconds) == 3
    assert int(contender.carry[0]) == len(taken) == (step.WARM_UP + 3) * 4


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0, 2.5])
def test_the_exponent_of_a_power_law(power):
    sizes = [125, 250, 500, 1_000]
    assert growth.exponent(sizes, [3e-4 * size**power for size in sizes]) == pytest.approx(power)


def test_growth_is_shown_beside_that_of_the_peer():
    sizes = [1, 10, 100]
    found = {
        quantity: ([x**2 for x in sizes], [2 * x for x in sizes]) for quantity in growth.QUANTITIES
    }
    times = [{q: ([a[i]], [b[i]]) for q, (a, b) in found.items()} for i in range(3)]
    rows = growth.grow("novograd-decay", sizes, times)
    assert [row.quantity for row in rows] == [*growth.QUANTITIES]
    assert {growth.cell(row) for row in rows} == {"2.00 (1.00): 0.50 to 50.00"}


@pytest.mark.slow
def test_growth_is_measured_at_every_size(tmp_path, capsys, monkeypatch):
    axes = {"leaves": (many_leaves, (2, 4)), "parameters": (growth.wide_leaves, (1, 2))}
    monkeypatch.setattr(growth, "AXES", axes)
    monkeypatch.setattr(growth, "LEAVES", 2)
    output = tmp_path / "growth"
    asked = ["--optimizers", "novograd", "--rounds", "1", "--compilations", "1"]
    growth.main([*asked, "--output", str(output)])
    tables = capsys.readouterr().out
    assert (tmp_path / "growth.md").read_text() == tables
    assert_tables_are_whole(tables, tables=2)
    found = json.loads((tmp_path / "growth.json").read_text())
    assert [row["quantity"] for row in found["leaves"]] == [*growth.QUANTITIES]
    assert [row["sizes"] for row in found["leaves"]] == [[2, 4]] * 4
    assert [row["sizes"] for row in found["parameters"]] == [[2 * 128 * 128, 4 * 128 * 128]] * 4
    assert {
        len(row["peer_seconds"]) for rows in (found["leaves"], found["parameters"]) for row in rows
    } == {2}


@pytest.mark.parametrize(
    ("decoder", "parameters", "leaves"),
    [(accelerator.GPT_2, 124e6, 148), (accelerator.GPT_2_XL, 1.56e9, 580)],
    ids=["GPT-2", "GPT-2 XL"],
)
def test_the_decoders_are_as_large_as_they_are_called(decoder, parameters, leaves):
    sizes = [math.prod(shape) for shape in decoder.shapes().values()]
    assert sum(sizes) == pytest.approx(parameters, rel=0.005)
    assert len(sizes) == leaves


@pytest.mark.slow
def test_the_decoder_that_is_trained_uses_every_parameter():
    decoder = accelerator.TINY
    keys = jax.random.split(jax.random.key(0), len(decoder.shapes()))
    params = {
        leaf: 0.02 * jax.random.normal(key, shape)
        for key, (leaf, shape) in zip(keys, decoder.shapes().items(), strict=True)
    }
    tokens = jax.random.randint(keys[0], (2, decoder.places), 0, decoder.words)
    # Nothing is learned yet: each word is as likely as the other.
    assert accelerator.loss(params, tokens) == pytest.approx(math.log(decoder.words), rel=0.02)
    gradients = accelerator.gradient(params, tokens)
    assert all(jnp.any(x != 0) and jnp.all(jnp.isfinite(x)) for x in gradients.values())


@pytest.mark.slow
def test_an_accelerator_is_measured_row_by_row(tmp_path, capsys, monkeypatch):
    asked = ["--scale", "tiny", "--optimizers", "novograd", "--output", str(tmp_path / "found")]
    accelerator.main(asked)
    tables = capsys.readouterr().out
    assert (tmp_path / "found.md").read_text() == tables
    assert_tables_are_whole(tables, tables=2)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["leaves"] for row in found["steps"]] == [len(accelerator.TINY.shapes())]
    assert [row["tokens"] for row in found["training"]] == [2 * accelerator.TINY.places]

    def out_of_memory(*arguments):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(accelerator, "measure_training", out_of_memory)
    (tmp_path / "found.json").unlink()
    with pytest.raises(RuntimeError, match="out of memory"):
        accelerator.main(asked)
    assert len(json.loads((tmp_path / "found.json").read_text())["steps"]) == 1


def test_an_accelerator_is_given_up_in_time(capsys):
    accelerator.main(["--scale", "tiny", "--minutes", "0"])
    asked = len(step.PAIRS)
    assert f"after 0 minutes, {2 * asked} not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (main, ["--runs", "0"], "argument --runs: must be at least 1, got 0"),
        (main, ["--rounds", "-1"], "argument --rounds: must be at least 1, got -1"),
        (main, ["--compilations", "0"], "argument --compilations: must be at least 1, got 0"),
        (main, ["--trees", "oak"], "invalid choice: 'oak'"),
        (main, ["--optimizers", "novograd, decay"], "invalid choice: 'novograd, decay'"),
        (main, ["--output", "no/such/place"], "argument --output: no folder"),
        (growth, ["--axes", "depth"], "invalid choice: 'depth'"),
        (growth, ["--rounds", "0"], "argument --rounds: must be at least 1, got 0"),
        (growth, ["--output", "no/such/place"], "argument --output: no folder"),
        (accelerator, ["--scale", "huge"], "invalid choice: 'huge'"),
        (accelerator, ["--batch", "0"], "argument --batch: must be at least 1, got 0"),
        (accelerator, ["--output", "no/such/place"], "argument --output: no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_command_is_refused_before_anything_is_measured(
    program, arguments, message, capsys
):
    with pytest.raises(SystemExit, match="2"):
        program.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", [*step.PAIRS])
def test_a_name_is_one_word_of_the_command_line(name):
    assert re.fullmatch("[a-z-]+", name)


@pytest.mark.slow
def test_rounding_is_measured(tmp_path, capsys, monkeypatch):
    # The mean of these still has less than a tenth of the error that is allowed below.
    monkeypatch.setattr(rounding, "ELEMENTS", 5_000)
    for name, training in rounding.TRAININGS.items():
        monkeypatch.setitem(rounding.TRAININGS, name, training._replace(marks=(2, 4)))
    monkeypatch.setattr(rounding, "SHAPES", {"kernel": (8, 8)})
    # The network is compiled for each way of keeping less, all of which tests/wrappers has.
    ways = ("float32", "both in bfloat16, stochastic")
    monkeypatch.setattr(rounding, "WAYS", {way: rounding.WAYS[way] for way in ways})
    rounding.main(["--rounds", "1", "--seeds", "2", "--output", str(tmp_path / "found")])
    markdown = (tmp_path / "found.md").read_text()
    assert markdown in capsys.readouterr().out
    assert_tables_are_whole(markdown, 2)
    assert float(re.findall(r"random bits: (\S+)\.", markdown)[0]) < 3e-3
    assert all(float(x) < 4 for x in re.findall(r"draws: (\S+) standard", markdown))
    falls = [float(x) for x in re.findall(r"stochastic: (\S+) of float32", markdown)]
    assert len(falls) == 2
    assert all(abs(x - 1) < 0.02 for x in falls)


def test_rounding_is_tried_on_one_problem(capsys, monkeypatch):
    monkeypatch.setattr(rounding, "way_lines", lambda training, seeds: [f"{training}", f"{seeds}"])
    # The devices are there already, and some versions of JAX let nobody ask for them again.
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    rounding.main(["--problem", "char-lm", "--seeds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [f"{rounding.TRAININGS['char-lm']}", "2"]
    assert "standard library of Python" in lines[-1]


def test_rounding_is_compiled_for_a_device(monkeypatch):
    monkeypatch.setattr(rounding, "SHAPES", {"kernel": (256, 256)})
    table = [line for line in rounding.pass_lines("cpu") if line.startswith("|")]
    rows = [line.split("|")[1:-1] for line in table[2:]]
    # Of the rows of bfloat16, as many passes whichever the rounding.
    assert rows[1][1].strip() == rows[2][1].strip()


def test_problems_are_trained_with_the_usual_optimizers_for_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(problems, "TRAINED", ("noisy-quadratic",))
    asked = []

    def train_all(problem, experiment, names):
        asked.extend(names)
        return [outcome("sgd"), outcome("msvag", losses=[[np.nan], [1.0]], rates=[0.1])]

    monkeypatch.setattr(problems, "train_all", train_all)
    path = tmp_path / "found.md"
    problems.main(["--output", str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert path.read_text().splitlines() == lines
    assert lines[0] == "| optimizer | noisy-quadratic: expected loss |"
    assert lines[2:4] == ["| msvag | diverged |", "| sgd | 0.150 ± 0.0500 (0.1) |"]
    assert {"msvag", "adam"} <= set(asked)
    assert "2000 steps, 5 seeds, 10 rates." in lines[-1]
