"""A step overwrites all that it is given and keeps next to nothing beside; XLA's text is read."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest

import msvag_optax as mo
from benchmarks import hlo, passes
from benchmarks.step import bytes_in, donated_step

RATE = optax.linear_schedule(0.1, 0.0, 100)
DECAY = {"weight_decay": 1e-2, "exclude_from_weight_decay": ["bias"]}
ELEMENTWISE = {
    "msvag": lambda: mo.msvag(RATE, **DECAY),
    "svag": lambda: mo.svag(RATE, **DECAY),
    "expectigrad": lambda: mo.expectigrad(RATE, **DECAY),
    "expectigrad, dense counter": lambda: mo.expectigrad(RATE, sparse_counter=False),
    "amsgrad": lambda: mo.amsgrad(RATE, **DECAY),
    "amsgrad, maximum of corrected": lambda: mo.amsgrad(RATE, correct_before_max=True),
    "adamw": lambda: mo.adamw(RATE, **DECAY),
}
WITH_NORMS = {
    "novograd": lambda: mo.novograd(RATE, **DECAY),
    "novograd, all options": lambda: mo.novograd(
        RATE, grad_averaging=True, amsgrad=True, stacked=["kernel"], **DECAY
    ),
    "bert_adamw": lambda: mo.bert_adamw(0.1, 1_000, 100),
}
SHAPES = {"bias": (2_048,), "kernel": (64, 64)}
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
# XLA:CPU puts each temporary at a multiple of 64 bytes, and kernels share a few scalars: weights,
# rates, flags. Sixteen of them are less than any array of these shapes.
SCALARS = 16 * 64


def memory_of(tx, dtype):
    """What the compiled step needs, and the bytes of the parameters and of all that is donated."""
    params = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in SHAPES.items()}
    state = jax.eval_shape(tx.init, params)
    compiled = donated_step(tx).lower(params, state, params).compile()
    return compiled.memory_analysis(), bytes_in((params, state))


@DTYPES
@pytest.mark.parametrize("name", [*ELEMENTWISE])
def test_an_elementwise_step_needs_no_memory_of_its_own(name, dtype):
    memory, donated = memory_of(ELEMENTWISE[name](), dtype)
    assert memory.temp_size_in_bytes <= SCALARS
    assert memory.alias_size_in_bytes == donated


@DTYPES
@pytest.mark.parametrize("name", [*WITH_NORMS])
def test_a_step_with_norms_needs_no_more_than_its_gradients_in_float32(name, dtype):
    memory, donated = memory_of(WITH_NORMS[name](), dtype)
    # What is summed is float32: XLA:CPU squares short vectors before it sums them, and widens all
    # gradients of bfloat16 first. Either is as large as the gradients in float32, at most.
    gradients = sum(4 * math.prod(shape) for shape in SHAPES.values())
    assert memory.temp_size_in_bytes <= gradients + SCALARS
    assert memory.alias_size_in_bytes == donated


def test_what_is_not_donated_is_not_overwritten():
    tx = mo.msvag(0.1)
    params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
    step = jax.jit(lambda params, state: tx.update(params, state, params))
    memory = step.lower(params, tx.init(params)).compile().memory_analysis()
    assert memory.alias_size_in_bytes == 0


# What XLA writes, in small: scratchpads (S), comments in long tuples, and every way to call.
PROGRAM = """HloModule jit_step, is_scheduled=true

%square (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  ROOT %y.1 = f32[8]{0} multiply(%x.1, %x.1)
}

%cheap (a.1: f32[8]) -> f32[8] {
  %a.1 = f32[8]{0:T(128)} parameter(0)
  ROOT %b.1 = f32[8]{0:T(128)} fusion(%a.1), kind=kLoop, calls=%square
}

%costly (a.2: f32[8]) -> f32[8] {
  %a.2 = f32[8]{0:T(128)} parameter(0)
  %b.2 = f32[8]{0:T(128)} fusion(%a.2), kind=kLoop, calls=%square
  ROOT %c.2 = f32[8]{0:T(128)} copy(%b.2)
}

ENTRY %main.1 (p: f32[8], q: bf16[4,2], flag: pred[]) -> (f32[8], bf16[4,2]) {
  %p = f32[8]{0:T(128)} parameter(0), sharding={replicated}
  %q = bf16[4,2]{1,0} parameter(1)
  %flag = pred[] parameter(2)
  %fetch = (f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)}, u32[]{:S(2)}) copy-start(%p)
  %half = ((f32[8]{0:T(128)}), f32[4]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:4]}
  %fetched = f32[8]{0:T(128)S(1)} copy-done(%fetch)
  %pair = (f32[8]{0}, /*index=1*/bf16[4,2]{1,0}) fusion(%fetched, %q, %q), calls=%square
  %first = f32[8]{0} get-tuple-element(%pair), index=0
  %sum = (f32[8]{0}, f32[8]{0}) all-reduce-start(%first), to_apply=%square
  %summed = f32[8]{0} all-reduce-done(%sum)
  %chosen = f32[8]{0} conditional(%flag, %p, %p), branch_computations={%cheap, %costly}
  %called = f32[8]{0} call(%chosen), to_apply=%cheap
  ROOT %out = (f32[8]{0}, bf16[4,2]{1,0}) tuple(%called, %q)
}
"""


def test_every_instruction_is_read():
    computations = hlo.parse(PROGRAM)
    assert [*computations] == ["square", "cheap", "costly", hlo.ENTRY]
    assert len(computations[hlo.ENTRY]) == 13
    pair = computations[hlo.ENTRY][6]
    assert pair == hlo.Instruction(
        opcode="fusion",
        result="(f32[8]{0}, bf16[4,2]{1,0})",
        operands=("f32[8]{0:T(128)S(1)}", "bf16[4,2]{1,0}"),
        calls=("square",),
    )


def test_a_condition_counts_as_its_costliest_branch_and_a_fusion_as_one_kernel():
    opcodes = [instruction.opcode for instruction in hlo.executed(hlo.parse(PROGRAM))]
    assert opcodes == [
        "copy-start",
        "slice-start",
        "fusion",
        "all-reduce-start",
        "fusion",
        "copy",
        "fusion",
    ]


def test_bytes_are_those_of_main_memory():
    executed = hlo.executed(hlo.parse(PROGRAM))
    moved = [hlo.bytes_moved(instruction) for instruction in executed]
    # A fetch reads what arrives; a kernel reads each operand once, but not from a scratchpad.
    assert moved == [32, 16, 32 + 16 + 16, 64 + 32, 64, 64, 64]
    assert [hlo.is_copy(instruction) for instruction in executed].index(True) == 5
    assert hlo.count(PROGRAM) == hlo.Count(
        bytes_moved=sum(moved), kernels=3, copies=1, collectives={"all-reduce": 1}, bytes_sent=32
    )


def test_the_cost_of_a_step():
    params = {"kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
    cost = passes.cost(jax.devices("cpu"), mo.novograd(0.1), params)
    # 5 passes are parameters and momentum in and out, and the gradient, but for counts and norm.
    assert cost.least == pytest.approx(5, rel=0.01)
    assert cost.passes > 6
    assert cost.kernels > 2
    assert (cost.copies, cost.collectives) == (0, {"all-reduce": 1})
    assert cost.aliased_bytes == cost.donated_bytes


@pytest.mark.parametrize(
    ("device", "error"), [("h200", NotImplementedError), ("tpu-v5e", RuntimeError)]
)
def test_a_missing_compiler_is_named(device, error, monkeypatch):
    """As JAX reports it, where the plugin for the platform is not installed."""

    def missing(**options):
        raise error(f"topology not implemented for {options['platform']}")

    monkeypatch.setattr(passes._compat, "topology", missing)
    with pytest.raises(SystemExit, match=f"{device}.*pip install.*{passes.PACKAGES[device]}"):
        passes.devices_of(device)
