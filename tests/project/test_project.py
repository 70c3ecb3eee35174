"""The shell of the project: what is installed, from where, and what is shipped."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONSTRAINTS = ["constraints.txt", "constraints-lowest.txt"]


def requirements(*extras: str) -> list[Requirement]:
    """The dependencies of the project itself and of some extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [r for r in map(Requirement, lines) if r.name != PROJECT["name"]]


def versions(file: str) -> dict[str, list[str]]:
    """The versions of each package in a file of constraints; markers may choose between several."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / file).read_text().splitlines():
        name, version = line.partition(" ;")[0].split("==")
        found.setdefault(name, []).append(version.strip())
    return found


@pytest.mark.parametrize("file", CONSTRAINTS)
def test_constraints_hold_names_and_versions_only(file):
    line = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [a-z_]+ [a-z0-9_.<>=!'* ]+)?")
    text = (ROOT / file).read_text()
    assert [x for x in text.splitlines() if not line.fullmatch(x)] == []
    for place in ("://", " @ ", "/", "\\", "--"):
        assert place not in text


@pytest.mark.parametrize("file", ["Makefile", ".ci/run"])
def test_packages_come_from_wherever_pip_is_set_to_fetch_them(file):
    text = (ROOT / file).read_text()
    for word in ("://", "--index-url", "--extra-index-url", "--find-links", "--trusted-host"):
        assert word not in text


def test_constraints_cover_every_requirement():
    pinned = versions("constraints.txt")
    for requirement in requirements(*EXTRAS):
        for version in pinned[canonicalize_name(requirement.name)]:
            assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_lowest_constraints_are_the_lower_bounds():
    pinned = versions("constraints-lowest.txt")
    for requirement in requirements("demo", "test"):
        (version,) = pinned[canonicalize_name(requirement.name)]
        (bound,) = requirement.specifier
        assert Requirement(f"x=={bound.version}").specifier.contains(version)
        assert bound.operator == ">="


def test_linter_and_type_checker_are_pinned():
    pinned = {r.name: str(r.specifier) for r in requirements("dev")}
    assert pinned["ruff"].startswith("==")
    assert pinned["pyrefly"].startswith("==")


def test_dev_includes_the_other_extras():
    (own,) = (r for r in map(Requirement, EXTRAS["dev"]) if r.name == PROJECT["name"])
    assert own.extras == set(EXTRAS) - {"dev"}


def test_changelog_describes_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.findall(r"^## \[(\d[^]]*)\]", changelog, re.MULTILINE)[0]
    assert newest == PROJECT["version"]


def test_types_are_shipped():
    assert (ROOT / "msvag_optax/py.typed").is_file()


def test_import_needs_the_runtime_dependencies_only():
    allowed = {"msvag_optax", *(canonicalize_name(r.name) for r in requirements())}
    extras = {r.name.replace("-", "_") for r in requirements(*EXTRAS)} - allowed
    extras |= {"haiku", "orbax", "sklearn", "mpl_toolkits"}
    extras -= {"flatbuffers"}  # jax imports it where it is installed, and goes without.
    script = "import msvag_optax, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) & extras == set()


def test_every_make_target_says_what_it_does():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)) - {"new-venv"}
    described = set(re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE))
    assert targets == described


def test_no_file_names_a_place_on_somebodys_machine():
    folders = ["msvag_optax", "tests", "docs", "benchmarks", "examples", "notebooks", ".ci"]
    files = [p for p in ROOT.iterdir() if p.is_file()]
    files += [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    texts = {".css", ".ini", ".ipynb", ".json", ".md", ".py", ".rst", ".toml", ".txt", ".yaml", ""}
    home = re.compile(r"(^|[^\w./-])/(home|root|Users)/", re.MULTILINE)
    assert [
        str(p.relative_to(ROOT))
        for p in files
        if p.suffix in texts
        and "_build" not in p.parts
        and home.search(p.read_text(errors="ignore"))
    ] == []
