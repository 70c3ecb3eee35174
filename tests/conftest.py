"""Fixtures, and how long hypothesis may look for a counterexample."""

from collections.abc import Iterator

import hypothesis
import pytest

from tests import support

# The same examples in every run: a failure on one machine is a failure on all of them. JAX
# compiles inside an example, so that no single one can be held to a deadline.
_everywhere = hypothesis.settings(
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("fast", _everywhere, max_examples=25)
hypothesis.settings.register_profile("slow", _everywhere, max_examples=200)
hypothesis.settings.load_profile("fast")  # `pytest --hypothesis-profile=slow` looks longer.


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision for the whole test."""
    with support.float64():
        yield
