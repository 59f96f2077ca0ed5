"""Values in a graph of ONNX, and how JAX's programs are written as nodes that make them.

Transpositions wait until an operator needs its axes in an order of its own. So convolutions, which
ONNX has in PyTorch's order of axes, read weights as PyTorch stores them, and what lies between
two convolutions is not transposed back and forth.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jax.extend.core import ClosedJaxpr, Literal
from onnx import NodeProto, TensorProto, helper, numpy_helper

from search_spaces.export.equations import called, default_spelling

Order: TypeAlias = tuple[int, ...]


class Stored(NamedTuple):
    """A value that a tensor of the graph holds with its axes in another order: axis `a` of the
    value is axis `order[a]` of the tensor."""

    tensor: str
    order: Order


Value: TypeAlias = Stored | np.ndarray
"""What a variable of a program is: in the graph, or known already."""


class Unsupported(ValueError):
    """A computation has no counterpart in ONNX that is known here."""


Write: TypeAlias = Callable[["Writer", Any, list[Value]], Sequence[Value]]
"""Writes one equation of a program, given what it reads; returns its results."""


def kind(dtype: Any) -> int:
    """ONNX's number of a NumPy type."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def plain_order(rank: int) -> Order:
    return tuple(range(rank))


@dataclasses.dataclass
class Writer:
    """Nodes and constants of a graph in the making.

    `primitives` are those of JAX that can be written; `scope` is the step that is being written.
    """

    primitives: Mapping[str, Write]
    scope: str = ""
    nodes: list[NodeProto] = dataclasses.field(default_factory=list)
    constants: list[TensorProto] = dataclasses.field(default_factory=list)
    _known: dict[Any, str] = dataclasses.field(default_factory=dict)

    def run(self, program: ClosedJaxpr, reads: Sequence[Value]) -> list[Value]:
        """Writes what a program computes of `reads`; returns its results."""
        jaxpr: Any = program.jaxpr
        found: dict[Any, Value] = dict(zip(jaxpr.invars, reads, strict=True))
        found.update(zip(jaxpr.constvars, map(np.asarray, program.consts), strict=True))

        def value(atom: Any) -> Value:
            if isinstance(atom, Literal):
                aval: Any = atom.aval
                return np.asarray(atom.val, aval.dtype)
            return found[atom]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [value(atom) for atom in equation.invars])
            found.update(zip(equation.outvars, results, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, reads: list[Value]) -> Sequence[Value]:
        name, params = equation.primitive.name, equation.params
        if inner := called(equation):
            return self.run(inner, reads)
        if name == "platform_index":  # Its number does not matter: one spelling is written.
            return [np.array(0, np.int32)]
        if inner := default_spelling(equation):
            return self.run(inner, reads[1:])
        known = [read for read in reads if isinstance(read, np.ndarray)]
        if len(known) == len(reads):  # Computed here and now, by JAX itself.
            result = equation.primitive.bind(*known, **params)
            return [
                np.asarray(r) for r in (result if equation.primitive.multiple_results else [result])
            ]
        if name not in self.primitives:
            raise Unsupported(
                f"step {self.scope} computes {name}, which cannot be written as ONNX here: known "
                f"are {', '.join(sorted(self.primitives))}. "
                "StableHLO takes everything: nas export --to stablehlo"
            )
        try:
            return self.primitives[name](self, equation, reads)
        except Unsupported as error:
            raise Unsupported(
                f"step {self.scope} cannot be written as ONNX: {name} {error}. "
                "StableHLO takes everything: nas export --to stablehlo"
            ) from None

    def node(self, operator: str, reads: Sequence[str], results: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its result, or a list of them."""
        name = f"{self.scope}/{operator}_{len(self.nodes)}"
        made = [name] if results == 1 else [f"{name}.{i}" for i in range(results)]
        self.nodes.append(helper.make_node(operator, reads, made, name=name, **attributes))
        return name if results == 1 else made

    def constant(self, array: Any, dtype: Any = np.int64) -> str:
        """The name of a tensor that holds `array`."""
        array = np.ascontiguousarray(np.asarray(array, dtype))
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def tensor(self, value: Value, order: Order, dtype: Any) -> str:
        """The name of a tensor that holds `value` with its axes in `order`."""
        if isinstance(value, np.ndarray):
            # A scalar has no axes to be put in order.
            array = value.transpose(np.argsort(order)) if value.ndim else value
            return self.constant(array, dtype)
        if value.order == order:
            return value.tensor
        key = (value.tensor, value.order, order)
        if key not in self._known:
            axis_of = {place: axis for axis, place in enumerate(order)}
            permutation = [value.order[axis_of[place]] for place in range(len(order))]
            self._known[key] = self.node("Transpose", [value.tensor], perm=permutation)
        return self._known[key]

    def plain(self, equation: Any, reads: Sequence[Value], index: int = 0) -> str:
        """The name of a tensor that holds a read of `equation` with its axes as they are."""
        aval = equation.invars[index].aval
        return self.tensor(reads[index], plain_order(aval.ndim), aval.dtype)
