"""What a call asks of a device, as numbers: counted on its trace, like everything else of an op.

The same walk serves every op, a plug-in's included: what is counted are JAX's own primitives.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from search_spaces.counting import macs_of, nbytes, nested, working_bytes
from search_spaces.ops import Call, traced

WORK = (
    "convolution",  # Multiply-accumulates of convolutions over more than one pixel.
    "grouped convolution",  # Of those where a group has few channels, such as depthwise ones.
    "product",  # Of products of a matrix by weights.
    "mixing",  # Of products of values with values, as in attention.
    "transcendental",  # Elements of exponentials, roots and the like.
    "elementwise",  # Elements of all other operations one by one.
    "reduced",  # Elements that are summed, or searched for their greatest.
    "moved",  # Bytes copied from place to place: transposed, padded, joined, gathered.
    "activations",  # Bytes of what the call reads and makes.
    "weights",  # Bytes of its weights.
    "calls",  # One, always: what starting it costs.
)
"""What takes time, in amounts that add up."""

SHAPE = ("working", "pixels", "channels in", "channels out", "primitives")
"""What says how efficiently: memory at the worst moment in bytes, positions and channels of the
first input and of the output, and the number of operations."""

_TRANSCENDENTAL = {
    *("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc", "erf_inv"),
    *("sin", "cos", "tan", "sqrt", "rsqrt", "cbrt", "pow", "integer_pow", "div"),
}
_MOVING = {
    *("transpose", "concatenate", "pad", "broadcast_in_dim", "rev", "copy", "copy_p", "sort"),
    *("gather", "scatter", "scatter-add", "slice", "dynamic_slice", "dynamic_update_slice"),
}
_FREE = {"reshape", "squeeze", "stop_gradient", "convert_element_type", "iota"}


@functools.cache
def work(call: Call) -> np.ndarray:
    """Amounts of `WORK` in one forward pass of `call`, `[len(WORK)]`."""
    jaxpr = traced(call).jaxpr.jaxpr
    amounts = Counter({"calls": 1})
    _add(jaxpr, amounts, 1)
    given = len(jaxpr.invars) - len(call.inputs)
    amounts["weights"] = sum(map(nbytes, jaxpr.invars[:given]))
    amounts["activations"] = sum(map(nbytes, [*jaxpr.invars[given:], *jaxpr.outvars]))
    return np.array([amounts[name] for name in WORK], float)


def _add(jaxpr: Any, amounts: Counter[str], times: int) -> None:
    for equation in jaxpr.eqns:
        name, parts = equation.primitive.name, list(nested(equation.params))
        if name == "while":
            raise ValueError("a loop of unknown length has no cost; write it as `jax.lax.scan`")
        if name == "cond":  # Of branches one runs: the one with most to do, kind by kind.
            most: Counter[str] = Counter()
            for part in parts:
                branch: Counter[str] = Counter()
                _add(part, branch, times)
                most |= branch
            amounts.update(most)
        elif parts:
            for part in parts:
                _add(part, amounts, times * equation.params.get("length", 1))
        elif name not in _FREE:
            kind, amount = _priced(equation)
            amounts[kind] += times * amount
            amounts["primitives"] += times


def _priced(equation: Any) -> tuple[str, int]:
    """The kind of work of one primitive, and how much of it."""
    name, made = equation.primitive.name, equation.outvars[0].aval
    if name in ("conv_general_dilated", "dot_general"):
        counted = macs_of(equation)
        if name == "dot_general":
            return ("mixing", counted.mixing) if counted.mixing else ("product", counted.layers)
        grouped = equation.params["feature_group_count"] > 1
        return ("grouped convolution" if grouped else "convolution"), counted.layers
    if name.startswith(("reduce_", "arg", "cum")):
        return "reduced", math.prod(equation.invars[0].aval.shape)
    if name in _MOVING:
        return "moved", nbytes(equation.outvars[0])
    size = math.prod(made.shape)
    return ("transcendental" if name in _TRANSCENDENTAL else "elementwise"), size


@functools.cache
def shape(call: Call) -> np.ndarray:
    """`SHAPE` of `call`, `[len(SHAPE)]`."""
    made, first = traced(call).output, call.inputs[0]
    counted: Counter[str] = Counter()
    _add(traced(call).jaxpr.jaxpr, counted, 1)
    return np.array(
        [
            working_bytes(call),
            math.prod(first.shape[:-1]),
            first.shape[-1] if first.ndim > 1 else 1,
            made.shape[-1],
            counted["primitives"],
        ],
        float,
    )


def features(calls: Iterable[Call]) -> np.ndarray:
    """Logarithms of `WORK` but for what is always one, and of `SHAPE`: `[calls, features]`."""
    rows = [np.concatenate([work(call)[:-1], shape(call)]) for call in calls]
    return np.log1p(np.array(rows).reshape(len(rows), len(WORK) - 1 + len(SHAPE)))


def kind(call: Call) -> str:
    """The kind of op: models learn kinds, and refuse those they have not seen."""
    return f"{type(call.op).__module__}:{type(call.op).__qualname__}"
