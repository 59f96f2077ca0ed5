"""What the compiler wrote down about a program: its kernels, read off the optimised HLO's text.

A kernel is an instruction of the entry computation that runs: mostly a fusion. The text carries
the compiler's estimate of its cycles; arithmetic and traffic follow from its shapes.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Kernel(NamedTuple):
    """One kernel: the compiler's cycles, the operations of its products of matrices, and the bytes
    it moves to and from HBM, tiles' padding included.

    `kind` is its opcode; of a fusion also the kind of fusion, as in "fusion kOutput", which ends in
    a product, or "fusion kLoop", which has none. Where the compiler gives no estimate, as for
    copies that run beside other kernels, `cycles` is none.
    """

    kind: str
    cycles: int | None
    flops: float
    bytes: float


class Array(NamedTuple):
    """An array of a program: `sizes` as written, and its bytes as they lie in memory."""

    sizes: tuple[int, ...]
    bytes: int
    in_hbm: bool


class Instruction(NamedTuple):
    name: str
    arrays: tuple[Array, ...]  # More than one where it returns a tuple.
    opcode: str
    operands: tuple[str, ...]
    attributes: str


_SIZES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}

# They name, view or hold what is there; nothing runs.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all"}
# How often what they call runs is not in the text.
_LOOPS = {"while", "conditional", "call"}

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.+?) ([a-z][a-z0-9\-]*)\((.*)$")
_TARGET = r'custom_call_target="([^"]*)"'
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")


def kernels(text: str) -> tuple[Kernel, ...]:
    """The kernels of the program, in the order they run.

    Raises `ValueError` on a text that is no HLO module, or whose kernels run an unknown number of
    times.
    """
    entry, computations = _computations(text)
    found = {instruction.name: instruction for instruction in entry}
    kernels = []
    for instruction in entry:
        if instruction.opcode in _FREE or 'target="ConcatBitcast"' in instruction.attributes:
            continue
        if instruction.opcode == "custom-call":
            raise ValueError(
                f"the program calls {_attribute(instruction, _TARGET)!r}, and what that computes "
                "is not known; compile programs that XLA compiles itself"
            )
        if instruction.opcode in _LOOPS:
            raise ValueError(
                f"the program has a {instruction.opcode}, and how often it runs is not known; "
                "compile straight-line code only"
            )
        kernels.append(_kernel(instruction, found, computations))
    return tuple(kernels)


def _computations(
    text: str,
) -> tuple[list[Instruction], Mapping[str, list[Instruction]]]:
    """The entry computation, and all by name."""
    found, entry, current = {}, None, []
    for line in text.splitlines():
        if heading := _COMPUTATION.match(line):
            current = found.setdefault(heading[2], [])
            entry = current if heading[1] else entry
        elif parts := _INSTRUCTION.match(line):
            current.append(_instruction(*parts.groups()))
    if not entry:
        raise ValueError(f"no HLO module with an entry computation: {text[:80]!r}")
    return entry, found


def _instruction(name: str, shape: str, opcode: str, rest: str) -> Instruction:
    operands, attributes = _split(rest)
    return Instruction(name, _arrays(shape), opcode, operands, attributes)


def _split(rest: str) -> tuple[tuple[str, ...], str]:
    """What an instruction reads, by name, and what follows the bracket that closes that."""
    depth = 1
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return tuple(re.findall(r"%([\w.\-]+)", rest[:i])), rest[i + 1 :]
    raise ValueError(f"an HLO instruction without an end: {rest[:80]!r}")


def _arrays(shape: str) -> tuple[Array, ...]:
    found = []
    for dtype, sizes, layout in _ARRAY.findall(shape):
        if dtype not in _SIZES:
            raise ValueError(f"an array of {dtype} in {shape!r}; known are {', '.join(_SIZES)}")
        dims = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        count = math.prod(_padded(dims, layout))
        found.append(Array(dims, count * _SIZES[dtype], "S(" not in layout))
    return tuple(found)


def _padded(sizes: tuple[int, ...], layout: str) -> list[int]:
    """Sizes in memory: the innermost axes are whole tiles, of 8 by 128 as a rule."""
    order, _, tiling = layout.partition(":")
    padded = list(sizes)
    tile = re.match(r"T\(([\d,]+)\)", tiling)
    if tile:
        inner = [int(axis) for axis in order.split(",") if axis]
        for axis, size in zip(inner, reversed(tile[1].split(",")), strict=False):
            padded[axis] = -(-padded[axis] // int(size)) * int(size)
    return padded


def _kernel(
    instruction: Instruction,
    found: Mapping[str, Instruction],
    computations: Mapping[str, list[Instruction]],
) -> Kernel:
    kind = instruction.opcode
    if kind == "fusion":
        kind += f" {_attribute(instruction, 'kind=(k[A-Za-z]+)')}"
    cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    if kind.endswith("-start"):
        # A copy, or a slice, on its way to or from VMEM; one of the two is an alias of what is
        # read, whole.
        ends = instruction.arrays[:2]
        moved = sum(min(end.bytes for end in ends) for end in ends if end.in_hbm)
    elif kind.endswith("-done"):
        moved = 0  # Its start has it all.
    else:
        read = (array for name in instruction.operands for array in found[name].arrays)
        moved = sum(array.bytes for array in (*instruction.arrays, *read) if array.in_hbm)
    return Kernel(
        kind,
        int(cycles[1]) if cycles else None,
        _flops([instruction], found, computations),
        moved,
    )


def _flops(
    instructions: Iterable[Instruction],
    found: Mapping[str, Instruction],
    computations: Mapping[str, list[Instruction]],
) -> float:
    """Operations, two a multiplication, of the products of matrices among the instructions."""
    total = 0.0
    for instruction in instructions:
        if instruction.opcode == "convolution":
            total += _convolution(instruction, found)
        elif instruction.opcode == "dot":
            total += _dot(instruction, found)
        elif instruction.opcode == "fusion":
            called = computations[_attribute(instruction, r"calls=%([\w.\-]+)")]
            total += _flops(called, {each.name: each for each in called}, computations)
    return total


def _convolution(instruction: Instruction, found: Mapping[str, Instruction]) -> float:
    """Multiplications by padding and by the holes of a dilation are not counted: products over a
    batch are written as convolutions most of which is holes."""
    image, kernel = (found[name].arrays[0].sizes for name in instruction.operands)
    labels = _attribute(instruction, r"dim_labels=([0-9a-z]+_[0-9a-z]+->[0-9a-z]+)")
    of_image, of_kernel, of_output = re.split(r"_|->", labels)
    (output,) = (array.sizes for array in instruction.arrays)
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    axes = sorted(filter(str.isdigit, of_output))

    def numbers(name: str) -> list[int]:
        return [int(n) for n in fields[name].split("x")] if name in fields else [1] * len(axes)

    strides, dilations, spread = numbers("stride"), numbers("lhs_dilate"), numbers("rhs_dilate")
    pads = [int(pad.split("_")[0]) for pad in fields["pad"].split("x")] if "pad" in fields else []
    pads = pads or [0] * len(axes)
    taps = 1
    for i, axis in enumerate(axes):
        places = np.arange(output[of_output.index(axis)]) * strides[i] - pads[i]
        offsets = np.arange(kernel[of_kernel.index(axis)]) * spread[i]
        read = places[:, None] + offsets
        last = (image[of_image.index(axis)] - 1) * dilations[i]
        taps *= int(((read >= 0) & (read <= last) & (read % dilations[i] == 0)).sum())
    batch, channels = output[of_output.index("b")], output[of_output.index("f")]
    return 2.0 * taps * batch * channels * kernel[of_kernel.index("i")]


def _dot(instruction: Instruction, found: Mapping[str, Instruction]) -> float:
    left = found[instruction.operands[0]].arrays[0].sizes
    axes = _attribute(instruction, r"lhs_contracting_dims=\{([\d,]*)\}")
    contracted = math.prod(left[int(axis)] for axis in axes.split(",") if axis)
    return 2.0 * contracted * math.prod(instruction.arrays[0].sizes)


def _attribute(instruction: Instruction, pattern: str) -> str:
    match = re.search(pattern, instruction.attributes)
    if match is None:
        raise ValueError(f"{instruction.opcode} {instruction.name} has no {pattern!r}")
    return match[1]


def cycles_by_kind(kernels: Iterable[Kernel]) -> dict[str, int]:
    """The compiler's cycles, summed over the kernels of a kind; kinds in alphabetical order."""
    ordered = sorted((k for k in kernels if k.cycles is not None), key=lambda k: k.kind)
    return {
        kind: sum(kernel.cycles or 0 for kernel in group)
        for kind, group in itertools.groupby(ordered, key=lambda k: k.kind)
    }
