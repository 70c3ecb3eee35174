"""What every test and every doctest runs on: the CPU, split into eight devices."""

import os
from pathlib import Path

import jax
import matplotlib as mpl

CACHES = Path(__file__).parent / ".cache"

# Some environments forbid Python to keep what it compiles. Each program that a test starts would
# then compile JAX's sources anew, which takes longer than most of these programs run.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    os.environ["PYTHONPYCACHEPREFIX"] = str(CACHES / "python")

# Both must be said before JAX looks for its devices. `JAX_PLATFORMS=cuda make test` is heard too.
if not os.environ.get("JAX_PLATFORMS"):
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Most of the time goes into compiling; what one run has compiled, the next one finds.
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHES / "jax"))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

mpl.use("agg")  # No test opens a window.
