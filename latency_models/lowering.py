"""A call as a phone's GPU runs it: its trace, cut into kernels as mobile delegates cut it.

Convolutions, products and concatenations become kernels that were measured. A product of a matrix
by weights is a convolution over one pixel, and so is a product of two activations, all heads
together. Element-wise operations are linked into the convolution or product that they follow alone;
what else there is (reductions, transposes, chains of element-wise operations after anything else)
has no counterpart among measured kernels and is `unlisted`: it is counted, and so are the elements
it reads and writes. Reshapes and casts are free, and so is all that is done to weights alone.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, Literal

from latency_models.kernels import Graph, Kernel, Kind
from latency_models.latency import UnknownCall
from search_spaces.counting import nested
from search_spaces.ops import Call, traced

_SAME = {"reshape", "squeeze", "expand_dims", "convert_element_type", "stop_gradient", "copy"}
_MOVING = {
    *("transpose", "pad", "slice", "dynamic_slice", "dynamic_update_slice", "gather", "rev"),
    *("split", "scatter", "scatter-add", "sort"),
}
_LINKS = {
    **dict.fromkeys(("add", "sub", "add_any"), "add"),
    **dict.fromkeys(("mul", "div", "neg", "integer_pow", "square"), "mul"),
    **dict.fromkeys(("logistic", "tanh", "exp", "erf", "log", "sqrt", "rsqrt"), "sigmoid"),
    "max": "relu",
    "min": "minimum",
}


class _Node(NamedTuple):
    """An equation, programs inside it resolved. Values are numbers; `reads` are those that depend
    on the call's inputs."""

    name: str
    reads: tuple[int, ...]
    makes: int
    equation: Any


@functools.cache
def graph(call: Call) -> Graph:
    """`call` as kernels. Raises `UnknownCall` on what cannot be told before it runs."""
    jaxpr = traced(call).jaxpr.jaxpr
    weights = len(jaxpr.invars) - len(call.inputs)
    trace = _Trace()
    inputs = [None] * weights + [trace.value(v) for v in jaxpr.invars[weights:]]
    results = trace.run(jaxpr, inputs, call)
    return _cut(trace, [result for result in results if result is not None])


class _Trace:
    """Nodes in their order, and how many elements each value has."""

    def __init__(self) -> None:
        self.nodes: list[_Node] = []
        self.sizes: list[int] = []

    def value(self, v: Any) -> int:
        self.sizes.append(math.prod(v.aval.shape))
        return len(self.sizes) - 1

    def run(self, jaxpr: Jaxpr, inputs: Sequence[int | None], call: Call) -> list[int | None]:
        """Adds the equations of `jaxpr`; returns its results. None is what weights alone decide."""
        known: dict[Any, int | None] = dict(zip(jaxpr.invars, inputs, strict=True))

        def of(v: Any) -> int | None:
            return None if isinstance(v, Literal) else known.get(v)

        for equation in jaxpr.eqns:
            found = [of(v) for v in equation.invars]
            reads = tuple(read for read in found if read is not None)
            name = equation.primitive.name
            parts = list(nested(equation.params))
            if not reads:
                made: list[int | None] = [None] * len(equation.outvars)
            elif name == "while" or (name == "cond" and len(parts) != 1):
                raise UnknownCall(f"{call} runs a {name}, so what it costs depends on its values")
            elif name == "scan":
                made = self._scan(equation, parts[0], found, call)
            elif parts:
                made = self.run(parts[0], found[len(found) - len(parts[0].invars) :], call)
            elif name in _SAME:
                made = [reads[0]]
            else:
                made = [self.value(v) for v in equation.outvars]
                self.nodes.append(_Node(name, reads, made[0] or 0, equation))
            known.update(zip(equation.outvars, made, strict=True))
        return [of(v) for v in jaxpr.outvars]

    def _scan(
        self, equation: Any, body: Jaxpr, found: list[int | None], call: Call
    ) -> list[int | None]:
        """A loop of known length, one turn after another."""
        params = equation.params
        fixed, carried = params["num_consts"], params["num_carry"]
        carry = found[fixed : fixed + carried]
        rows = body.invars[fixed + carried :]
        stacked = found[fixed + carried :]
        for _ in range(params["length"]):
            slices = [
                None if whole is None else self.value(v)
                for whole, v in zip(stacked, rows, strict=True)
            ]
            carry = self.run(body, [*found[:fixed], *carry, *slices], call)[:carried]
        return [*carry, *(self.value(v) for v in equation.outvars[carried:])]


def _cut(trace: _Trace, results: Sequence[int]) -> Graph:
    nodes, sizes = trace.nodes, trace.sizes
    readers: dict[int, set[int]] = {result: {len(nodes)} for result in results}
    for at, node in enumerate(nodes):
        for read in node.reads:
            readers.setdefault(read, set()).add(at)
    kernels = {at: k for at, node in enumerate(nodes) if (k := _kernel(node)) is not None}
    unlisted, elements = 0, 0
    for at, node in enumerate(nodes):
        if at not in kernels and not _element_wise(node):
            unlisted += 1
            elements += sum(sizes[read] for read in set(node.reads)) + sizes[node.makes]
    for chain in _chains(nodes, readers):
        made = {nodes[at].makes for at in chain}
        outside = {read for at in chain for read in nodes[at].reads} - made
        leaving = {value for value in made if not readers.get(value, set()) <= chain}
        host = max(
            (
                at
                for at in kernels
                if nodes[at].makes in outside
                and readers[nodes[at].makes] <= chain
                and [sizes[value] for value in leaving] == [sizes[nodes[at].makes]]
            ),
            default=None,
        )
        if host is None:
            unlisted += 1
            elements += sum(sizes[value] for value in outside | leaving)
        else:
            links = [link for at in sorted(chain) if (link := _link(nodes[at]))]
            kernel = kernels[host]
            kernels[host] = dataclasses.replace(kernel, links=(*kernel.links, *links))
    return Graph(tuple(kernels[at] for at in sorted(kernels)), unlisted, float(elements))


def _element_wise(node: _Node) -> bool:
    moving = node.name in _MOVING or node.name == "concatenate"
    heavy = node.name in ("conv_general_dilated", "dot_general")
    return not (moving or heavy or node.name.startswith(("reduce_", "arg", "cum")))


def _chains(nodes: Sequence[_Node], readers: Mapping[int, set[int]]) -> list[set[int]]:
    """Element-wise nodes that run as one: each value within is read by one node of the chain."""
    chain_of: dict[int, set[int]] = {}
    for at, node in enumerate(nodes):
        if not _element_wise(node):
            continue
        chain = chain_of[at] = {at}
        for read in set(node.reads):
            for maker, other in list(chain_of.items()):
                if nodes[maker].makes == read and readers[read] <= {at} | other | chain:
                    chain |= other
        chain_of.update(dict.fromkeys(chain, chain))
    return list({id(chain): chain for chain in chain_of.values()}.values())


def _link(node: _Node) -> str | None:
    """What a node adds to the kernel it is linked into: nothing if it is a bias. What the measured
    networks do not have counts as a multiplication."""
    link = _LINKS.get(node.name, "mul")
    bias = link == "add" and len(set(node.reads)) == 1
    return None if bias or node.name == "broadcast_in_dim" else link


def _kernel(node: _Node) -> Kernel | None:
    if node.name == "conv_general_dilated":
        return _convolution(node)
    if node.name == "dot_general":
        return _product(node)
    if node.name == "concatenate":
        return _joined(node)
    return None


def _convolution(node: _Node) -> Kernel:
    equation, params = node.equation, node.equation.params
    numbers = params["dimension_numbers"]
    image, kernel = (v.aval.shape for v in equation.invars)
    made = equation.outvars[0].aval.shape
    sides = [kernel[axis] for axis in numbers.rhs_spec[2:]]
    plain = set(params["lhs_dilation"]) == set(params["rhs_dilation"]) == {1}
    if len(sides) != 2 or sides[0] != sides[1] or not plain or len(node.reads) != 1:
        raise UnknownCall(
            f"a convolution of kernel {sides}, dilated {params['lhs_dilation']} and "
            f"{params['rhs_dilation']}; measured were square ones of images, not dilated, "
            "with fixed kernels"
        )
    batch, channels, *space = (image[axis] for axis in numbers.lhs_spec)
    padded = [size + sum(pad) for size, pad in zip(space, params["padding"], strict=True)]
    out_batch, width, *out = (made[axis] for axis in numbers.out_spec)
    groups = params["feature_group_count"]
    kind = Kind.CONV if groups == 1 else Kind.DEPTHWISE if groups == channels else Kind.GROUPED
    return Kernel(
        kind,
        batch * math.prod(padded),
        out_batch * math.prod(out),
        channels,
        width,
        window=sides[0],
        stride=max(params["window_strides"]),
        groups=groups if kind is Kind.GROUPED else 1,
    )


def _product(node: _Node) -> Kernel:
    (contracted, _), (batch, _) = node.equation.params["dimension_numbers"]
    left, right = (v.aval.shape for v in node.equation.invars)
    inner = math.prod(left[axis] for axis in contracted)
    heads = math.prod(left[axis] for axis in batch)
    rows = math.prod(left) // (inner * heads)
    columns = math.prod(right) // (inner * heads)
    kind = Kind.DENSE if rows * heads == 1 else Kind.CONV
    return Kernel(kind, rows * heads, rows * heads, inner, columns)


def _joined(node: _Node) -> Kernel | None:
    made, axis = node.equation.outvars[0].aval.shape, node.equation.params["dimension"]
    pixels = math.prod(made[:-1])
    if axis != len(made) - 1 or pixels == 0:
        return None  # Of pixels: moved, like any other copy.
    first, joined = node.equation.invars[0].aval.shape[-1], len(node.equation.invars)
    return Kernel(Kind.CONCAT, pixels, pixels, first, made[-1], inputs=joined)
