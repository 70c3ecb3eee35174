"""All checks on one optimizer, and what came of them."""

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from msvag_optax.testing import contract, house, laws, meshes, wrappers
from msvag_optax.testing.runs import CHOICES, NotRunError, Row

Check = Callable[[Row], None]


def _checks_of(module: ModuleType) -> tuple[Check, ...]:
    return tuple(check for name, check in vars(module).items() if name.startswith("check_"))


CONTRACT = tuple(
    check for module in (contract, meshes, wrappers, laws) for check in _checks_of(module)
)
HOUSE = _checks_of(house)


class Report(NamedTuple):
    """What came of the checks.

    Attributes:
      name: the optimizer.
      passed: the checks that it passed.
      failed: what the others said, by name.
      not_run: why a check was not run, by name.
    """

    name: str
    passed: tuple[str, ...]
    failed: dict[str, str]
    not_run: dict[str, str]

    def __str__(self) -> str:
        """A line for each check that failed or was not run."""
        total = len(self.passed) + len(self.failed)
        lines = [f"{self.name}: {len(self.passed)} of {total} checks passed."]
        lines += [f"  failed   {name}: {what}" for name, what in self.failed.items()]
        lines += [f"  not run  {name}: {why}" for name, why in self.not_run.items()]
        return "\n".join(lines)

    def markdown(self) -> str:
        """A table with a line for each check."""
        rows = dict.fromkeys(self.passed, ("passed", ""))
        rows |= {name: ("**failed**", what) for name, what in self.failed.items()}
        rows |= {name: ("not run", why) for name, why in self.not_run.items()}
        lines = [f"| {self.name} | | |", "| --- | --- | --- |"]
        lines += [f"| {name} | {a} | {_in_a_cell(b)} |" for name, (a, b) in rows.items()]
        return "\n".join(lines)

    def require(self) -> None:
        """Raises AssertionError, with all that failed, unless every check passed that was run."""
        if self.failed:
            raise AssertionError(str(self))


def check(
    build: Callable[..., Any], *, name: str | None = None, house: bool = False, **promises: Any
) -> Report:
    """Holds any optax optimizer to the checks that this library's own pass.

    The contract is what every user of optax may expect: the same numbers eagerly, compiled, in a
    scan, under `vmap`, on a mesh, inside of optax's wrappers and after a restart; types of the
    state that never change; leaves that are `None`; schedules and injected hyperparameters. The
    rules of the house are what this library adds: state in float32, one count, errors that name the
    parameter.

    Args:
      build: makes the optimizer. It takes a learning rate first, under the name `learning_rate`,
        and has defaults for whatever else it takes: `optax.adam`, say.
      name: what the report calls it; None is the name of `build`.
      house: whether the rules of the house are checked too.
      **promises: what the optimizer promises beyond that, as the fields of `Row`: `scale`, `reach`,
        `needs_params`, `schedules`, `clock`, `state`, `rate`, `reference`.

    Returns:
      The report; `print` shows it, and `require()` raises unless all checks passed.

    Raises:
      TypeError: if there is no such promise, or `build` is an optimizer and makes none.
      ValueError: if `scale` or `reach` has another value than those of `Row`.

    >>> import optax
    >>> from msvag_optax import testing
    >>> report = testing.check(optax.sgd)
    >>> "check_vmap" in report.passed
    True
    """
    _check_promises(build, promises)
    if isinstance(build, functools.partial):
        name = name or build.func.__name__
    promises.setdefault("reach", "tree")  # the least that can be promised
    row = Row(name or getattr(build, "__name__", repr(build)), build, **promises)
    passed, failed, not_run = [], {}, {}
    for one in (*CONTRACT, *(HOUSE if house else ())):
        try:
            one(row)
        except NotRunError as reason:
            not_run[one.__name__] = str(reason)
        except Exception as error:
            failed[one.__name__] = _in_one_line(error)
        else:
            passed.append(one.__name__)
    return Report(row.name, tuple(passed), failed, not_run)


def _check_promises(build: Any, promises: Mapping[str, Any]) -> None:
    if not callable(build):
        raise TypeError(
            "`build` must make an optimizer from a learning rate, such as `optax.adam` and not "
            f"`optax.adam(0.1)`, got {build!r}."
        )
    possible = Row._fields[2:]
    for name, value in promises.items():
        if name not in possible:
            raise TypeError(f"There is no promise `{name}`; there are {', '.join(possible)}.")
        allowed = CHOICES.get(name)
        if allowed and value not in allowed:
            raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}.")


def _in_a_cell(text: str) -> str:
    return text.replace("|", "\\|")


def _in_one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {' '.join(lines)}" if lines else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
