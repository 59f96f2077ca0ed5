"""What is compiled for a TPU: a network, or a single call, in bfloat16."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from latency_models.latency import Whole
from search_spaces.ops import Call, Shape
from search_spaces.program import Step, network

PRECISION = "bfloat16"


def alone(call: Call) -> Whole:
    """The call as a network of one step."""
    reads = tuple(f"input_{i}" for i in range(len(call.inputs)))
    return Whole((Step("call", call.op, reads),), dict(zip(reads, call.inputs, strict=True)))


def narrowed(shape: Shape) -> Shape:
    """The input as it is compiled: floats are bfloat16.

    Except for one number per sample, `[batch]`: bfloat16 cannot tell timestep 998 from 999.
    """
    wide = jnp.issubdtype(shape.dtype, jnp.floating) and len(shape.shape) > 1
    return jax.ShapeDtypeStruct(shape.shape, jnp.bfloat16 if wide else shape.dtype)


def in_bfloat16(call: Call) -> Call:
    """The call with its inputs as they are compiled."""
    return Call(call.op, tuple(map(narrowed, call.inputs)))


def lower(whole: Whole, sharding: jax.sharding.Sharding | None = None) -> jax.stages.Lowered:
    """The network, lowered for TPUs, of bfloat16 weights and inputs; on `sharding`'s device."""
    program, inputs = whole
    model = network(program, {name: narrowed(shape) for name, shape in inputs.items()})

    def forward(weights: Any, read: Any) -> Any:
        return model(weights, read)

    def placed(shape: Shape) -> Shape:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    weights = {
        name: placed(jax.ShapeDtypeStruct(shape.shape, jnp.bfloat16))
        for name, shape in model.shapes.items()
    }
    arguments = {name: placed(narrowed(shape)) for name, shape in inputs.items()}
    jitted = jax.jit(forward) if sharding is None else jax.jit(forward, out_shardings=sharding)
    return jitted.trace(weights, arguments).lower(lowering_platforms=("tpu",))


def digest(whole: Whole) -> str:
    """Names what is compiled: a hash of its StableHLO, 32 hexadecimal digits.

    Calls that differ in name only, or in fields that change nothing, have the same.
    """
    return hashlib.sha256(lower(whole).as_text().encode()).hexdigest()[:32]


def modules(wholes: Iterable[Whole]) -> list[str]:
    """The modules that define the ops of these networks, and the values in their fields."""

    def of(value: Any) -> Iterator[str]:
        if isinstance(value, tuple):
            yield from (name for item in value for name in of(item))
        elif dataclasses.is_dataclass(value):
            yield type(value).__module__
            for field in dataclasses.fields(value):
                yield from of(getattr(value, field.name))

    return sorted({name for whole in wholes for step in whole.program for name in of(step.op)})
