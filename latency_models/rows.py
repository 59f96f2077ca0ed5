"""Calls, whole networks and their latencies as JSON and back.

Rows name their ops by import path and reading imports nothing, so import the modules that define
them first (`search_spaces.blocks`, and those of plug-ins).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from latency_models.latency import Latency, Spread, Whole
from search_spaces.ops import Call, Op, Shape
from search_spaces.program import Step
from search_spaces.values import decode, encode


class Network(NamedTuple):
    """A network that was measured as a whole, by a name of the user's choice."""

    name: str
    whole: Whole
    latency: Latency


def brief(call: Call) -> str:
    """The call in words: its op with what is not as by default, and the shapes it reads."""
    op = call.op
    fields = dataclasses.fields(op)  # pyright: ignore[reportArgumentType]
    told = [f"{f.name}={getattr(op, f.name)}" for f in fields if getattr(op, f.name) != f.default]
    shapes = " ".join("x".join(map(str, shape.shape)) for shape in call.inputs)
    return f"{type(op).__name__}({', '.join(told)}) {shapes}"


def encode_row(call: Call, latency: Latency) -> dict[str, Any]:
    """The row of `call` as JSON. Raises `ValueError` on what would not be read back equal."""
    return {**encode_call(call), **_encode_latency(latency)}


def decode_row(row: Mapping[str, Any]) -> tuple[Call, Latency]:
    """Inverse of `encode_row`. Raises `ValueError` on an op that is not known here."""
    return decode_call(row), _decode_latency(row)


def encode_call(call: Call) -> dict[str, Any]:
    """The call as JSON. Raises `ValueError` on what would not be read back equal."""
    row = {"op": encode(call.op), "inputs": [encode_shape(shape) for shape in call.inputs]}
    if (decode_op(row["op"]), _decode_shapes(row["inputs"])) != call:
        raise ValueError(
            f"cannot store {call}: it would not be read back equal; define its op in a module, "
            "as a frozen dataclass, and price it at plain shapes"
        )
    return row


def decode_call(row: Mapping[str, Any]) -> Call:
    """Inverse of `encode_call`. Raises `ValueError` on an op that is not known here."""
    return Call(_known_op(row["op"]), _decode_shapes(row["inputs"]))


def encode_network(network: Network) -> dict[str, Any]:
    """The row of a whole network as JSON. Raises `ValueError` as `encode_row` does."""
    name, whole, latency = network
    return {"name": name, **encode_whole(whole), **_encode_latency(latency)}


def decode_network(row: Mapping[str, Any]) -> Network:
    """Inverse of `encode_network`. Raises `ValueError` on an op that is not known here."""
    return Network(row["name"], decode_whole(row), _decode_latency(row))


def encode_whole(whole: Whole) -> dict[str, Any]:
    """The network as JSON. Raises `ValueError` on what would not be read back equal."""
    row = {
        "program": [[step.name, encode(step.op), list(step.reads)] for step in whole.program],
        "inputs": {name: encode_shape(shape) for name, shape in whole.inputs.items()},
    }
    if decode_whole(row) != whole:
        raise ValueError(
            f"cannot store a network of {len(whole.program)} steps: it would not be read back equal"
        )
    return row


def decode_whole(row: Mapping[str, Any]) -> Whole:
    """Inverse of `encode_whole`. Raises `ValueError` on an op that is not known here."""
    program = tuple(Step(name, _known_op(op), tuple(reads)) for name, op, reads in row["program"])
    inputs = dict(zip(row["inputs"], _decode_shapes(row["inputs"].values()), strict=True))
    return Whole(program, inputs)


def decode_op(data: Any) -> Op | None:
    """The op, or none if its class is not known here or has other fields."""
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise ValueError(f"not an op: {data!r}")
    try:
        op = decode(data)
    except ValueError:
        return None
    if not isinstance(op, Op):
        raise ValueError(f"not an op: {op!r}")
    return op


def _known_op(data: Any) -> Op:
    if (op := decode_op(data)) is None:
        raise ValueError(f"unknown op {data}; import the module that defines it first")
    return op


def encode_shape(shape: Shape) -> list[Any]:
    """A shape and its type as JSON."""
    return [list(shape.shape), str(shape.dtype)]


def _decode_shapes(data: Any) -> tuple[Shape, ...]:
    shapes = list(data)
    for dims, _ in shapes:
        if not all(isinstance(size, int) for size in dims):
            raise ValueError(f"not a shape: {dims!r}")
    return tuple(jax.ShapeDtypeStruct(tuple(dims), dtype) for dims, dtype in shapes)


def _encode_latency(latency: Latency) -> dict[str, Any]:
    spread = latency.spread or Spread(0, ())
    row = {
        "ms": latency.ms,
        "std": latency.std,
        "repeats": spread.repeats,
        "quantiles_ms": list(spread.quantiles_ms),
    }
    _decode_latency(row)
    return row


def _decode_latency(row: Mapping[str, Any]) -> Latency:
    ms, std, repeats = row["ms"], row["std"], row["repeats"]
    quantiles = tuple(row["quantiles_ms"])
    if not all(math.isfinite(value) for value in (ms, std, *quantiles)) or ms <= 0 or std < 0:
        raise ValueError(f"no latency: {ms!r} ± {std!r} ms, quantiles {quantiles}")
    return Latency(ms, std, Spread(repeats, quantiles) if repeats else None)
