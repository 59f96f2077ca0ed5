"""Multiply-accumulates and memory of a call, counted on its trace: nothing is run or allocated.

A multiply-accumulate is one multiplication of a matrix product or a convolution, padded taps
included: the convention of papers and of most counters. XLA's own count (`ops.cost`) leaves padded
taps out, counts additions apart and adds the elementwise operations.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from search_spaces.ops import Call, Shape, output, traced
from search_spaces.program import Program, calls


class Macs(NamedTuple):
    """Multiply-accumulates. `mixing` are those of values with values, as in attention; counters
    that hook layers leave them out."""

    layers: int
    mixing: int

    @property
    def total(self) -> int:
        return self.layers + self.mixing

    def __add__(self, other: "Macs") -> "Macs":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Macs(self.layers + other.layers, self.mixing + other.mixing)


NONE = Macs(0, 0)


@functools.cache
def macs(call: Call) -> Macs:
    """Multiply-accumulates of one forward pass of `call`."""
    return _macs(traced(call).jaxpr.jaxpr)


def _macs(jaxpr: Jaxpr) -> Macs:
    found = NONE
    for equation in jaxpr.eqns:
        kind, parts = equation.primitive.name, list(nested(equation.params))
        if kind in ("conv_general_dilated", "dot_general"):
            found += macs_of(equation)
        elif kind == "while":
            raise ValueError(
                "a loop of unknown length cannot be counted; write it as `jax.lax.scan`"
            )
        elif kind == "cond":
            found += max(map(_macs, parts))
        else:
            times = equation.params["length"] if kind == "scan" else 1
            for part in parts:
                inner = _macs(part)
                found += Macs(times * inner.layers, times * inner.mixing)
    return found


def macs_of(equation: Any) -> Macs:
    """Multiply-accumulates of one convolution or product."""
    if equation.primitive.name == "conv_general_dilated":
        return Macs(_convolution(equation), 0)
    return _product(equation)


def nested(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Programs inside an equation, such as those of a jitted function or of a custom gradient.

    Of several spellings for several platforms it is the one for all others that is counted.
    """
    if "branches_platforms" in params and params["branches_platforms"] is not None:
        yield params["branches"][params["branches_platforms"].index(None)].jaxpr
        return
    for name, value in params.items():
        if name in ("fwd_jaxpr_thunk", "bwd", "jvp_jaxpr_fun"):
            continue
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def _convolution(equation: Any) -> int:
    kernel, result = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    out_axis = equation.params["dimension_numbers"].rhs_spec[0]
    # A kernel has a value for every tap and input channel of a group, times output channels.
    taps = math.prod(kernel) // kernel[out_axis]
    return math.prod(result) * taps


def _product(equation: Any) -> Macs:
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    shape, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    count = math.prod(result) * math.prod(shape[axis] for axis in contracted)
    # A kernel is shared by the whole batch, so a product by one has no batch axes.
    return Macs(0, count) if batch else Macs(count, 0)


@functools.cache
def working_bytes(call: Call) -> int:
    """Memory for values while `call` runs, at the worst moment: what it reads, what it makes and
    all that lies between, with no two operations fused. An upper bound; weights are not in it."""
    jaxpr = traced(call).jaxpr.jaxpr
    weights = len(jaxpr.invars) - len(call.inputs)
    return _peak(jaxpr, frozenset(jaxpr.invars[:weights]))


def _peak(jaxpr: Jaxpr, free: frozenset[Any]) -> int:
    last: dict[Any, int] = {v: len(jaxpr.eqns) for v in jaxpr.outvars if isinstance(v, Var)}
    for index, equation in enumerate(jaxpr.eqns):
        for v in equation.invars:
            if isinstance(v, Var):
                last[v] = max(index, last.get(v, index))
    alive = {v: nbytes(v) for v in jaxpr.invars if v not in free}
    peak = sum(alive.values())
    unpriced = set(free)
    for index, equation in enumerate(jaxpr.eqns):
        made = {v: nbytes(v) for v in equation.outvars if v in last}
        if all(isinstance(v, Literal) or v in unpriced for v in equation.invars):
            unpriced |= made.keys()  # Weights in another shape or precision.
            made = {}
        inner = [
            _peak(
                part,
                frozenset(
                    p
                    for p, v in zip(part.invars, _last(equation, part), strict=True)
                    if isinstance(v, Literal) or v in unpriced
                ),
            )
            for part in nested(equation.params)
        ]
        here = sum(size for v, size in alive.items() if v not in equation.invars)
        outer = sum(alive.values()) + sum(made.values())
        peak = max(peak, outer, *(here + size for size in inner))
        alive |= made
        alive = {v: size for v, size in alive.items() if last.get(v, -1) > index}
    return peak


def _last(equation: Any, part: Jaxpr) -> list[Any]:
    """What an equation passes to a program inside it: its last arguments."""
    return list(equation.invars)[len(equation.invars) - len(part.invars) :]


def nbytes(v: Any) -> int:
    """Bytes of a variable of a program."""
    return math.prod(v.aval.shape) * v.aval.dtype.itemsize


def activation_bytes(program: Program, inputs: Mapping[str, Shape]) -> dict[str, int]:
    """For every step, memory for values while it runs: its own at their worst moment, and what
    later steps will read, such as skips."""
    found = calls(program, inputs)
    sizes = {name: _size(shape) for name, shape in inputs.items()}
    sizes |= {name: _size(output(call)) for name, call in found.items()}
    last = {read: index for index, step in enumerate(program) for read in step.reads}
    alive, held = set(inputs) & last.keys(), {}
    for index, step in enumerate(program):
        waiting = sum(sizes[name] for name in alive if name not in step.reads)
        held[step.name] = waiting + working_bytes(found[step.name])
        alive = {name for name in (*alive, step.name) if last.get(name, -1) > index}
    return held


def _size(shape: Shape) -> int:
    return shape.size * shape.dtype.itemsize
