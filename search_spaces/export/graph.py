"""Programs as ONNX graphs: step by step, a node or two for each of JAX's primitives."""

from collections.abc import Mapping

import jax
import numpy as np
from onnx import GraphProto, ValueInfoProto, helper

from search_spaces.export.primitives import PRIMITIVES
from search_spaces.export.writer import Stored, Value, Writer, kind, plain_order
from search_spaces.model import from_torch, torch_name
from search_spaces.ops import Call, Shape, model
from search_spaces.program import Program


def graph(
    program: Program,
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, str],
    weights: Mapping[str, Shape],
) -> GraphProto:
    """The program as a graph without weights: tensors named as in PyTorch stand for them.

    `weights` are those of the program, in our order of axes; the graph reads them in PyTorch's.
    Raises `Unsupported` naming the step and the primitive that ONNX has no counterpart for.
    """
    writer, values, seen = Writer(PRIMITIVES), dict[str, Value](), dict[str, Shape]()
    for name, shape in inputs.items():
        values[name], seen[name] = Stored(name, plain_order(shape.ndim)), shape
    for name, op, reads in program:
        call = Call(op, tuple(seen[read] for read in reads))
        built = model(call)
        own = {weight: weights[f"{name}.{weight}"] for weight in built.shapes}
        jaxpr, seen[name] = jax.make_jaxpr(built, return_shape=True)(own, *call.inputs)
        read = [_weight(f"{name}.{weight}", own[weight].ndim) for weight in sorted(own)]
        writer.scope = name
        (values[name],) = writer.run(jaxpr, [*read, *(values[r] for r in reads)])
    made = []
    for name, step in outputs.items():
        writer.scope = name
        tensor = writer.tensor(values[step], plain_order(seen[step].ndim), seen[step].dtype)
        writer.nodes.append(helper.make_node("Identity", [tensor], [name], name=name))
        made.append(_declared(name, seen[step]))
    return helper.make_graph(
        writer.nodes,
        "nas",
        [_declared(name, shape) for name, shape in inputs.items()],
        made,
        writer.constants,
    )


def _declared(name: str, shape: Shape) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind(shape.dtype), shape.shape)


def _weight(name: str, rank: int) -> Stored:
    # An array whose sides all differ tells where `from_torch` puts each axis.
    told = from_torch(name, np.empty(range(rank), bool))
    return Stored(torch_name(name), told.shape)
