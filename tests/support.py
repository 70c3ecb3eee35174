"""What several test files share."""

from collections.abc import Container, Mapping
from contextlib import AbstractContextManager
from typing import Any

import pytest

from msvag_optax import _compat


def by_speed(cases: Mapping[str, Any], fast: Container[str]) -> list[Any]:
    """Cases for `pytest.mark.parametrize`, most of which are left to the slow tests.

    Args:
      cases: the cases under their names, which become the ids of the tests.
      fast: the names of those that are among the fast tests.

    Returns:
      A parameter for each case.
    """
    slow = pytest.mark.slow
    return [
        pytest.param(case, id=name, marks=[] if name in fast else [slow])
        for name, case in cases.items()
    ]


def float64() -> AbstractContextManager[None]:
    """Double precision inside a `with` block.

    Returns:
      A context manager under which JAX keeps float64, int64 and complex128.
    """
    return _compat.enable_x64()
