"""What every test and every doctest runs on: the CPU, split into eight devices."""

import os
from pathlib import Path

import jax
import matplotlib as mpl

# Both must be said before JAX looks for its devices. `JAX_PLATFORMS=cuda make test` is heard too.
if not os.environ.get("JAX_PLATFORMS"):
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Most of the time goes into compiling; what one run has compiled, the next one finds.
CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".cache" / "jax"))
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

mpl.use("agg")  # No test opens a window.
