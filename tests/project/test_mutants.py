"""Functions broken on purpose: the tests have to notice each (see `tests/mutants.py`)."""

import inspect
import json
import subprocess
import sys

import pytest

from tests import mutants

MUTANTS = mutants.MUTANTS


@pytest.mark.parametrize("name", MUTANTS)
def test_what_a_mutant_names_is_there(name):
    """A function that is renamed, moved or given other arguments takes its twin along."""
    mutant = MUTANTS[name]
    _, original = mutants.owner_and_original(mutant)
    first, *given = inspect.signature(mutant.twin).parameters.values()
    assert first.name == "original"
    if given[0].kind is not given[0].VAR_POSITIONAL:
        assert [p.name for p in given] == [*inspect.signature(original).parameters]
    file, test = mutant.where()
    assert f"def {test}" in (mutants.ROOT / file).read_text()


@pytest.fixture(scope="module")
def server():
    """The process that breaks and tests a mutant, asked by its name."""
    command = [sys.executable, "-m", "tests.mutants"]
    with subprocess.Popen(
        command, cwd=mutants.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(server, name):
    print(name, file=server.stdin, flush=True)
    outcome = json.loads(server.stdout.readline())
    assert "died" not in outcome, "the process of the mutant died"
    assert outcome["calls"], "the twin was never called"
    assert not outcome["broke"], "an error that is no broken promise:\n" + outcome["output"]
    if MUTANTS[name].is_caught:
        assert outcome["exit_code"] == 1, outcome["output"]
        assert outcome["noticed"]
    else:
        assert outcome["exit_code"] == 0, outcome["output"]
        assert outcome["passed"]
        assert not outcome["noticed"]
