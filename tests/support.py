"""What several test files share."""

from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.experimental


def float64() -> AbstractContextManager[None]:
    """Double precision inside a `with` block.

    Returns:
      A context manager under which JAX keeps float64, int64 and complex128.
    """
    # JAX 0.7 has it in `jax.experimental`, JAX 0.10 no longer there.
    home: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    return home.enable_x64(True)
