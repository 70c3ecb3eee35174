"""What every test and every doctest runs on: the CPU, split into eight devices."""

import gc
import os
import sys
from pathlib import Path

CACHES = Path(__file__).parent / ".cache"

# Some environments forbid Python to keep what it compiles. The tests, and each program that one of
# them starts, would then compile JAX's sources anew, which takes longer than most programs run.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(CACHES / "python")

# Only now, since it is their bytecode that is to be kept.
import jax  # noqa: E402
import matplotlib as mpl  # noqa: E402

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

# JAX remembers much and drops little, so that looking for garbage as often as Python does takes a
# noticeable part of the time.
gc.set_threshold(100_000)


def pytest_configure(config):
    """The fast tests, and the programs that they start, do without LLVM's expensive passes.

    They compile far more than they run. The slow tests run what users run, and so do the fast ones
    with `JAX_DISABLE_MOST_OPTIMIZATIONS=0`.
    """
    name = "JAX_DISABLE_MOST_OPTIMIZATIONS"
    if config.option.markexpr == "not slow" and name not in os.environ:  # else JAX has read it
        os.environ[name] = "1"
        jax.config.update(name.lower(), True)
