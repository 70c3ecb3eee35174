"""The corners of JAX that differ by version: in one module, and right in each."""

import ast
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import msvag_optax as mo
from msvag_optax import _compat
from tests.meshes import KINDS, entered, mesh_of

ROOT = Path(__file__).parents[2]
FOLDERS = ("msvag_optax", "examples", "notebooks", "benchmarks", "docs")
PRIVATE = re.compile(r"jax\.(core|_src|experimental|interpreters|extend)\b")
RENAMED = {"enable_x64", "manual_axis_type", "shard_alike", "vma"}


def corners(source: str) -> set[str]:
    """What a program uses of JAX that is private, provisional, or has changed its name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            case ast.Attribute():
                names = [ast.unparse(node)]
                if node.attr in RENAMED and not names[0].startswith("_compat."):
                    found.add(node.attr)
            case ast.Constant(value=str(text)) if text in RENAMED:
                found.add(text)
        found.update(name for name in names if PRIVATE.match(name))
    return found


def test_one_module_leans_on_the_corners_of_jax():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    used = {str(path.relative_to(ROOT)): corners(path.read_text()) for path in files}
    assert {file for file, names in used.items() if names} == {"msvag_optax/_compat.py"}


@pytest.mark.parametrize(
    "line",
    [
        "import jax.experimental.shard_alike",
        "from jax import core",
        "from jax.experimental import mesh_utils",
        "jax.core.Tracer",
        "from jax._src.core import Trace",
        "jax.typeof(x).vma",
        "getattr(jax.typeof(x), 'manual_axis_type', None)",
        "jax.enable_x64(True)",
    ],
)
def test_a_corner_is_seen(line):
    assert corners(line)


@pytest.mark.parametrize(
    ("python", "jax_version", "message"),
    [
        ((3, 10, 9), (0, 7, 2), "needs Python 3.11 or newer, and this is 3.10.9"),
        ((3, 11, 0), (0, 6, 2), "needs jax 0.7.2 or newer, and this is 0.6.2"),
    ],
)
def test_old_versions_are_refused_in_a_sentence(python, jax_version, message):
    with pytest.raises(ImportError, match=re.escape(message)):
        _compat._check_versions(python, jax_version)


def test_the_oldest_versions_are_those_that_are_installed():
    text = (ROOT / "pyproject.toml").read_text()
    jax_version, python = (
        ".".join(map(str, version)) for version in (_compat._OLDEST_JAX, _compat._OLDEST_PYTHON)
    )
    assert f'"jax>={jax_version}"' in text
    assert f'requires-python = ">={python}"' in text


DTYPES = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.float32),
    "complex": (jnp.complex64, jnp.complex64),
    "square of complex": (jnp.complex64, jnp.float32),
    "integer": (jnp.int32, jnp.float32),
    "counts": (jnp.float32, jnp.int32),
}


def zeros(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    return _compat.shard_alike(jnp.zeros_like(x, dtype=dtype), x)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("dtype", "kept"), DTYPES.values(), ids=DTYPES)
def test_zeros_are_sharded_alike(dtype, kept, kind):
    """Of parameters that are not finite, too; and without memory for anything but the result."""
    worst = 7 if dtype == jnp.int32 else jnp.nan
    mesh = mesh_of({"devices": 8}, kind)
    x = jax.device_put(jnp.full((16, 4), worst, dtype), NamedSharding(mesh, P("devices")))
    compiled = jax.jit(zeros, static_argnums=1).lower(x, kept).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes == 0
    made = compiled(x)
    assert made.sharding.is_equivalent_to(x.sharding, 2)
    assert made.dtype == kept
    assert not made.any()


@pytest.mark.parametrize("manual", [{"rows"}, {"rows", "columns"}], ids=str)
def test_zeros_are_sharded_alike_inside_of_shard_map(manual):
    """Also along the axis that is left to the compiler."""
    mesh = mesh_of({"rows": 4, "columns": 2}, AxisType.Auto)
    x = jax.device_put(jnp.ones((16, 4)), NamedSharding(mesh, P("rows", "columns")))
    spec = P("rows", "columns" if "columns" in manual else None)

    @jax.jit
    def init(x):
        inside = jax.shard_map(
            lambda x: zeros(x, x.dtype), mesh=mesh, in_specs=spec, out_specs=spec, axis_names=manual
        )
        return inside(x)

    made = init(x)
    assert made.sharding.is_equivalent_to(x.sharding, 2)
    assert not made.any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_zeros_of_parameters_on_the_host_lie_on_the_devices(kind):
    mesh = mesh_of({"devices": 8}, kind)
    sharding = NamedSharding(mesh, P("devices"))
    on_host = jax.device_put(jnp.ones((16, 4)), sharding.with_memory_kind("pinned_host"))
    with entered(mesh):
        made = jax.jit(zeros, static_argnums=1)(on_host, jnp.float32)
    assert made.sharding.is_equivalent_to(sharding, 2)
    assert made.sharding.memory_kind == "device"


@pytest.mark.parametrize("shape", [(), (0, 3), (5, 3)])
def test_zeros_of_any_shape(shape):
    def init(x):
        return zeros(x, x.dtype)

    x = jnp.full(shape, jnp.inf)
    with jax.debug_nans(True), jax.debug_infs(True):
        made = jax.jit(init, donate_argnums=0)(jnp.ones(shape))
    assert made.shape == shape
    assert not jax.jit(jax.vmap(init))(x[None]).any()
    assert not jax.jacfwd(jax.jit(init))(x).any()
    assert not jax.grad(lambda x: init(x).sum())(x).any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("build", [mo.msvag, mo.expectigrad, mo.novograd])
def test_a_compiled_init_is_sharded_and_needs_no_memory_of_its_own(build, kind):
    """From types alone, and with donated parameters."""
    mesh = mesh_of({"devices": 8}, kind)
    sharding = NamedSharding(mesh, P(None, "devices"))
    shape = jax.ShapeDtypeStruct((256, 128), jnp.float32, sharding=sharding)
    tx = build(0.1)
    with entered(mesh):
        jitted = jax.jit(lambda p: (tx.init(p), p), donate_argnums=0)
        compiled = jitted.lower({"w": shape}).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 1024
    for kept in jax.tree.leaves(compiled.output_shardings):
        assert kept.is_equivalent_to(sharding, 2) or kept.is_fully_replicated
    states, shardings = (
        jax.tree.leaves(tree)
        for tree in (jax.eval_shape(tx.init, {"w": shape}), compiled.output_shardings[0])
    )
    for kept, found in itertools.zip_longest(states, shardings):
        assert found.is_equivalent_to(sharding, 2) == (kept.shape == shape.shape)
