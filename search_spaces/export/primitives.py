"""Each of JAX's primitives as a node or two of ONNX."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from search_spaces.export.writer import (
    Order,
    Stored,
    Unsupported,
    Value,
    Write,
    Writer,
    kind,
    plain_order,
)
from search_spaces.ops import Shape


def _result(equation: Any) -> Shape:
    return equation.outvars[0].aval


def _whole(tensor: str, equation: Any) -> list[Value]:
    return [Stored(tensor, plain_order(_result(equation).ndim))]


def _common(reads: Sequence[Value], rank: int) -> Order:
    """The order of axes of the first read that has one of its own."""
    orders = (read.order for read in reads if isinstance(read, Stored) and len(read.order) == rank)
    return next((order for order in orders if order != plain_order(rank)), plain_order(rank))


def _aligned(writer: Writer, equation: Any, reads: list[Value]) -> tuple[list[str], Order]:
    """The reads as tensors, all with their axes in one order."""
    order = _common(reads, _result(equation).ndim)
    atoms = zip(reads, equation.invars, strict=True)
    return [
        writer.tensor(read, order if atom.aval.ndim else (), atom.aval.dtype)
        for read, atom in atoms
    ], order


def elementwise(operator: str) -> Write:
    def write(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
        tensors, order = _aligned(writer, equation, reads)
        return [Stored(writer.node(operator, tensors), order)]

    return write


def _same(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    return reads


def _square(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    (x,), order = _aligned(writer, equation, reads)
    return [Stored(writer.node("Mul", [x, x]), order)]


def _integer_pow(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    (x,), order = _aligned(writer, equation, reads)
    exponent = writer.constant(equation.params["y"], equation.invars[0].aval.dtype)
    return [Stored(writer.node("Pow", [x, exponent]), order)]


def _rsqrt(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    (x,), order = _aligned(writer, equation, reads)
    return [Stored(writer.node("Reciprocal", [writer.node("Sqrt", [x])]), order)]


def _erfc(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    (x,), order = _aligned(writer, equation, reads)
    one = writer.constant(1, equation.invars[0].aval.dtype)
    return [Stored(writer.node("Sub", [one, writer.node("Erf", [x])]), order)]


def _unequal(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    tensors, order = _aligned(writer, equation, reads)
    return [Stored(writer.node("Not", [writer.node("Equal", tensors)]), order)]


def _remainder(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    tensors, order = _aligned(writer, equation, reads)
    return [Stored(writer.node("Mod", tensors, fmod=1), order)]  # With the sign of the dividend.


def _select(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    if len(reads) != 3 or equation.invars[0].aval.dtype != np.bool_:
        raise Unsupported("selects by a number, and only conditions are known")
    (which, otherwise, chosen), order = _aligned(writer, equation, reads)
    return [Stored(writer.node("Where", [which, chosen, otherwise]), order)]


def _convert(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    before, after = equation.invars[0].aval.dtype, _result(equation).dtype
    if before == after:
        return reads
    (x,), order = _aligned(writer, equation, reads)
    return [Stored(writer.node("Cast", [x], to=kind(after)), order)]


def _reshape(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    shape = writer.constant(_result(equation).shape)
    return _whole(writer.node("Reshape", [writer.plain(equation, reads), shape]), equation)


def _broadcast(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    shape = _result(equation).shape
    thin = [1] * len(shape)
    for axis, size in zip(
        equation.params["broadcast_dimensions"], equation.invars[0].aval.shape, strict=True
    ):
        thin[axis] = size
    x = writer.plain(equation, reads)
    if tuple(thin) != equation.invars[0].aval.shape:
        x = writer.node("Reshape", [x, writer.constant(thin)])
    if tuple(thin) != shape:
        x = writer.node("Expand", [x, writer.constant(shape)])
    return _whole(x, equation)


def _transpose(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    (x,) = reads
    assert isinstance(x, Stored)
    return [Stored(x.tensor, tuple(x.order[axis] for axis in equation.params["permutation"]))]


def _without(order: Order, axes: Sequence[int]) -> Order:
    """The order of what is left when `axes` go."""
    kept = [place for axis, place in enumerate(order) if axis not in axes]
    return tuple(sorted(kept).index(place) for place in kept)


def _squeeze(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    (x,), order = _aligned_to_read(writer, equation, reads)
    axes = equation.params["dimensions"]
    places = writer.constant([order[axis] for axis in axes])
    return [Stored(writer.node("Squeeze", [x, places]), _without(order, axes))]


def _aligned_to_read(writer: Writer, equation: Any, reads: list[Value]) -> tuple[list[str], Order]:
    aval = equation.invars[0].aval
    order = _common(reads, aval.ndim)
    return [writer.tensor(reads[0], order, aval.dtype)], order


def reduction(operator: str) -> Write:
    def write(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
        (x,), order = _aligned_to_read(writer, equation, reads)
        axes = equation.params["axes"]
        places = writer.constant([order[axis] for axis in axes])
        return [Stored(writer.node(operator, [x, places], keepdims=0), _without(order, axes))]

    return write


def best(operator: str) -> Write:
    """`ArgMax` and its like, over one axis."""

    def write(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
        (x,), order = _aligned_to_read(writer, equation, reads)
        axes = equation.params["axes"]
        if equation.invars[0].aval.dtype == np.bool_:  # Which ONNX does not rank.
            x = writer.node("Cast", [x], to=TensorProto.INT32)
        found = writer.node(operator, [x], axis=order[axes[0]], keepdims=0)
        cast = writer.node("Cast", [found], to=kind(equation.params["index_dtype"]))
        return [Stored(cast, _without(order, axes))]

    return write


def _concatenate(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    tensors, order = _aligned(writer, equation, reads)
    place = order[equation.params["dimension"]]
    return [Stored(writer.node("Concat", tensors, axis=place), order)]


def _stack(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    axis = equation.params["axis"]
    rows = [
        writer.node("Unsqueeze", [writer.plain(equation, reads, i), writer.constant([axis])])
        for i in range(len(reads))
    ]
    return _whole(writer.node("Concat", rows, axis=axis), equation)


def _split(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    (x,), order = _aligned_to_read(writer, equation, reads)
    sizes, place = equation.params["sizes"], order[equation.params["axis"]]
    parts = writer.node("Split", [x, writer.constant(sizes)], results=len(sizes), axis=place)
    return [Stored(part, order) for part in parts]


def _slice(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    (x,), order = _aligned_to_read(writer, equation, reads)
    params, shape = equation.params, equation.invars[0].aval.shape
    steps = params["strides"] or (1,) * len(shape)
    cuts = [
        (start, stop, order[axis], step)
        for axis, (start, stop, step) in enumerate(
            zip(params["start_indices"], params["limit_indices"], steps, strict=True)
        )
        if (start, stop, step) != (0, shape[axis], 1)
    ]
    if not cuts:
        return reads
    columns = [writer.constant(column) for column in zip(*cuts, strict=True)]
    return [Stored(writer.node("Slice", [x, *columns]), order)]


def _pad(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    low, high, interior = zip(*equation.params["padding_config"], strict=True)
    if any(interior) or min(*low, *high) < 0:
        raise Unsupported("pads between elements, or by less than nothing")
    x, fill = writer.plain(equation, reads), writer.plain(equation, reads, 1)
    return _whole(writer.node("Pad", [x, writer.constant([*low, *high]), fill]), equation)


def _product(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    (left_sums, right_sums), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left, right = (atom.aval for atom in equation.invars)
    left_free, right_free = (
        [axis for axis in range(aval.ndim) if axis not in (*sums, *batch)]
        for aval, sums, batch in ((left, left_sums, left_batch), (right, right_sums, right_batch))
    )
    result = _result(equation)
    if (left.ndim, right.ndim, len(left_sums)) == (2, 2, 1):
        found = _matrices(writer, equation, reads, left_free, right_free)
    else:

        def merged(index: int, aval: Shape, *groups: Sequence[int]) -> str:
            """The read as `[*batch, rows, columns]`."""
            axes = [axis for group in groups for axis in group]
            order = tuple(axes.index(axis) for axis in range(aval.ndim))
            x = writer.tensor(reads[index], order, aval.dtype)
            batch, *matrix = groups
            shape = [aval.shape[axis] for axis in batch]
            shape += [math.prod(aval.shape[axis] for axis in group) for group in matrix]
            if shape == [aval.shape[axis] for axis in axes]:
                return x
            return writer.node("Reshape", [x, writer.constant(shape)])

        a = merged(0, left, left_batch, left_free, left_sums)
        b = merged(1, right, right_batch, right_sums, right_free)
        found = writer.node("MatMul", [a, b])
        if (len(left_free), len(right_free)) != (1, 1):
            found = writer.node("Reshape", [found, writer.constant(result.shape)])
    if result.dtype != left.dtype:
        found = writer.node("Cast", [found], to=kind(result.dtype))
    return _whole(found, equation)


def _matrices(
    writer: Writer, equation: Any, reads: list[Value], left_free: list[int], right_free: list[int]
) -> str:
    """The product of two matrices, stored either way."""
    names, turned = [], []
    for index, rows in enumerate((left_free[0], 1 - right_free[0])):
        read, aval = reads[index], equation.invars[index].aval
        order = read.order if isinstance(read, Stored) else plain_order(2)
        names.append(writer.tensor(read, order, aval.dtype))
        turned.append(int(order[rows] == 1))
    if not any(turned):
        return writer.node("MatMul", names)
    return writer.node("Gemm", names, transA=turned[0], transB=turned[1])


def _convolution(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    params = equation.params
    if params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
        raise Unsupported("is grouped over the batch, or is a transposed one")
    spec = params["dimension_numbers"]
    tensors = [
        writer.tensor(read, tuple(axes.index(a) for a in range(len(axes))), atom.aval.dtype)
        for read, axes, atom in zip(
            reads, (spec.lhs_spec, spec.rhs_spec), equation.invars, strict=True
        )
    ]
    low, high = zip(*params["padding"], strict=True)
    found = writer.node(
        "Conv",
        tensors,
        strides=params["window_strides"],
        pads=[*low, *high],
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )
    if _result(equation).dtype != equation.invars[0].aval.dtype:
        found = writer.node("Cast", [found], to=kind(_result(equation).dtype))
    return [Stored(found, tuple(spec.out_spec.index(a) for a in range(len(spec.out_spec))))]


def _gather(writer: Writer, equation: Any, reads: list[Value]) -> Sequence[Value]:
    """Rows of a table, found by one or more leading indices; or of one table for each sample."""
    numbers, (table, indices) = equation.params["dimension_numbers"], equation.invars
    batch = len(numbers.operand_batching_dims)
    looked_up = len(numbers.start_index_map)
    head, rank = batch + looked_up, table.aval.ndim
    places = indices.aval.ndim - 1
    whole_rows = (
        tuple(numbers.operand_batching_dims) == plain_order(batch)
        and tuple(numbers.start_indices_batching_dims) == plain_order(batch)
        and tuple(numbers.start_index_map) == tuple(range(batch, head))
        and tuple(numbers.collapsed_slice_dims) == tuple(range(batch, head))
        and tuple(numbers.offset_dims) == tuple(range(places, places + rank - head))
        and tuple(equation.params["slice_sizes"][head:]) == table.aval.shape[head:]
    )
    if not whole_rows:
        raise Unsupported("takes parts of rows, and only whole rows are known")
    x, at = writer.plain(equation, reads), writer.plain(equation, reads, 1)
    if (batch, looked_up) == (0, 1):
        at = writer.node("Squeeze", [at, writer.constant([places])])
        return _whole(writer.node("Gather", [x, at]), equation)
    at = writer.node("Cast", [at], to=TensorProto.INT64)
    return _whole(writer.node("GatherND", [x, at], batch_dims=batch), equation)


PRIMITIVES: Mapping[str, Write] = {
    "abs": elementwise("Abs"),
    "add": elementwise("Add"),
    "and": elementwise("And"),
    "argmax": best("ArgMax"),
    "argmin": best("ArgMin"),
    "broadcast_in_dim": _broadcast,
    "ceil": elementwise("Ceil"),
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _convert,
    "copy": _same,
    "cos": elementwise("Cos"),
    "div": elementwise("Div"),
    "dot_general": _product,
    "eq": elementwise("Equal"),
    "erf": elementwise("Erf"),
    "erfc": _erfc,
    "exp": elementwise("Exp"),
    "floor": elementwise("Floor"),
    "gather": _gather,
    "ge": elementwise("GreaterOrEqual"),
    "gt": elementwise("Greater"),
    "integer_pow": _integer_pow,
    "le": elementwise("LessOrEqual"),
    "log": elementwise("Log"),
    "logistic": elementwise("Sigmoid"),
    "lt": elementwise("Less"),
    "max": elementwise("Max"),
    "min": elementwise("Min"),
    "mul": elementwise("Mul"),
    "ne": _unequal,
    "neg": elementwise("Neg"),
    "not": elementwise("Not"),
    "or": elementwise("Or"),
    "pad": _pad,
    "pow": elementwise("Pow"),
    "reduce_max": reduction("ReduceMax"),
    "reduce_min": reduction("ReduceMin"),
    "reduce_sum": reduction("ReduceSum"),
    "rem": _remainder,
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "sign": elementwise("Sign"),
    "sin": elementwise("Sin"),
    "slice": _slice,
    "split": _split,
    "sqrt": elementwise("Sqrt"),
    "square": _square,
    "squeeze": _squeeze,
    "stack": _stack,
    "stop_gradient": _same,
    "sub": elementwise("Sub"),
    "tanh": elementwise("Tanh"),
    "transpose": _transpose,
}
