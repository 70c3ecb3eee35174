"""Reads the text of a program that XLA has compiled."""

import math
import re
from typing import NamedTuple

# How XLA writes its programs: `%name (...) -> type {` opens a computation, `%name = type
# opcode(%operand, ...), attribute=...` is an instruction of it. A space in memory other than the
# device's main one (a TPU's scratchpads, say) is told by an S in the layout, as in f32[8]{0:S(1)}.
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)")
END_OF_OPERANDS = re.compile(r"\)(?:, |$)")
NAME = re.compile(r"%([\w.-]+)")
ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\](?:\{([^}]*)\})?")
COMMENT = re.compile(r"/\*.*?\*/")

ENTRY = "ENTRY"
WITHOUT_COST = {
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "tuple",
}
CALLS = {"async-start", "call", "conditional", "while"}
KERNELS = {"fusion", "reduce"}
COLLECTIVES = {"all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"}


class Instruction(NamedTuple):
    """One instruction of a compiled program.

    Attributes:
      opcode: what it does.
      result: the type of what it gives.
      operands: the types of what it takes, each array once.
      calls: the computations that it names.
    """

    opcode: str
    result: str
    operands: tuple[str, ...]
    calls: tuple[str, ...]


class Count(NamedTuple):
    """What a program does.

    Attributes:
      bytes_moved: what its instructions read of main memory and write to it.
      kernels: fusions and reductions.
      copies: from main memory to main memory.
      collectives: how many of each kind.
      bytes_sent: what they are given.
    """

    bytes_moved: int
    kernels: int
    copies: int
    collectives: dict[str, int]
    bytes_sent: int


class Array(NamedTuple):
    """How large an array is, and whether it lies in main memory."""

    bytes: int
    in_memory: bool


def arrays(type_: str) -> list[Array]:
    """The arrays of a type.

    >>> arrays("f32[16,4]{1,0:T(8,128)}")
    [Array(bytes=256, in_memory=True)]
    >>> arrays("((bf16[8]{0:T(128)S(1)}), pred[])")
    [Array(bytes=16, in_memory=False), Array(bytes=1, in_memory=True)]
    """
    return [
        Array(
            math.prod(int(size) for size in shape.split(",") if size)
            * (int(bits) // 8 if bits else int(kind == "pred")),
            "S(" not in layout,
        )
        for kind, bits, shape, layout in ARRAY.findall(type_)
    ]


def parse(program: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation of a program; what runs is called ENTRY.

    >>> parse('''
    ... ENTRY %main (x: f32[8]) -> (f32[8], f32[8]) {
    ...   %x = f32[8]{0} parameter(0)
    ...   ROOT %both = (f32[8]{0}, f32[8]{0}) fusion(%x, %x), kind=kLoop, calls=%square
    ... }''')["ENTRY"][1]
    Instruction(opcode='fusion', result='(f32[8]{0}, f32[8]{0})', operands=('f32[8]{0}',),
                calls=('square',))
    """
    computations: dict[str, list[Instruction]] = {}
    instructions: list[Instruction] = []
    types: dict[str, str] = {}
    for line in COMMENT.sub("", program).splitlines():
        if start := COMPUTATION.match(line):
            is_entry, name = start.groups()
            instructions = computations[ENTRY if is_entry else name] = []
            types = {}
        elif found := INSTRUCTION.match(line):
            name, types[name], opcode, rest = found[1], found[2], found[3], found[4]
            operands, *attributes = END_OF_OPERANDS.split(rest, maxsplit=1)
            taken = dict.fromkeys(NAME.findall(operands))
            instructions.append(
                Instruction(
                    opcode,
                    types[name],
                    tuple(types[operand] for operand in taken if operand in types),
                    tuple(NAME.findall(" ".join(attributes))),
                )
            )
    return computations


def executed(computations: dict[str, list[Instruction]], name: str = ENTRY) -> list[Instruction]:
    """What one run of a computation does: of a condition its costliest branch, of a loop a turn."""
    found: list[Instruction] = []
    for instruction in computations[name]:
        opcode, _, _, calls = instruction
        bodies = [executed(computations, called) for called in calls if called in computations]
        if opcode == "conditional":
            found += max(bodies, key=lambda body: sum(map(bytes_moved, body)))
        elif opcode in CALLS:
            found += [inner for body in bodies for inner in body]
        elif opcode not in WITHOUT_COST and not opcode.endswith("-done"):
            found.append(instruction)
    return found


def transfer(instruction: Instruction) -> tuple[Array, Array] | None:
    """Where an instruction copies from, all or a slice, and where to; None if it copies nothing."""
    given = arrays(instruction.result)
    match instruction.opcode:
        case "copy":
            return arrays(instruction.operands[0])[0], given[0]
        case "copy-start":
            return given[1], given[0]
        case "slice-start":
            return given[0], given[1]
    return None


def bytes_moved(instruction: Instruction) -> int:
    """What an instruction reads of main memory and writes to it."""
    if ends := transfer(instruction):
        source, destination = ends
        return destination.bytes * (source.in_memory + destination.in_memory)
    return sum(
        array.bytes
        for type_ in (instruction.result, *instruction.operands)
        for array in arrays(type_)
        if array.in_memory
    )


def is_copy(instruction: Instruction) -> bool:
    """Whether an instruction copies from main memory to main memory.

    A TPU fetches into its scratchpad what a kernel will read; that is no copy.
    """
    ends = transfer(instruction)
    return ends is not None and all(array.in_memory for array in ends)


def in_words(collectives: dict[str, int]) -> str:
    """Collectives for a table.

    >>> in_words({"all-gather": 1, "all-reduce": 2})
    '1 all-gather, 2 all-reduce'
    """
    return ", ".join(f"{count} {kind}" for kind, count in collectives.items()) or "none"


def count(program: str) -> Count:
    """Reads off the text of a compiled program what it does."""
    instructions = executed(parse(program))
    opcodes = [instruction.opcode for instruction in instructions]
    sending = [i for i in instructions if i.opcode.removesuffix("-start") in COLLECTIVES]
    kinds = [instruction.opcode.removesuffix("-start") for instruction in sending]
    return Count(
        bytes_moved=sum(map(bytes_moved, instructions)),
        kernels=sum(opcode in KERNELS for opcode in opcodes),
        copies=sum(map(is_copy, instructions)),
        collectives={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        bytes_sent=sum(a.bytes for i in sending for type_ in i.operands for a in arrays(type_)),
    )
