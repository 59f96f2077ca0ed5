"""The op vocabulary: layers as data.

An op is a frozen dataclass. Its fields are hyper-parameters; `Op.module` is its one
definition. Output shape, FLOPs, bytes and parameters are derived from that definition,
so what is counted, what is measured and what is trained cannot drift apart.
"""

import abc
import functools
from typing import ClassVar, NamedTuple, TypeAlias

import jax
from flax import nnx

from search_spaces.model import Model

Shape: TypeAlias = jax.ShapeDtypeStruct


class Op(abc.ABC):
    """One layer, as data. Subclasses are frozen dataclasses and are never subclassed.

    `outlet` names the sub-layer that a residual op adds to its first input last: with its weights
    at zero the op is the identity on that input. Ops that are not residual have none.
    """

    outlet: ClassVar[str | None] = None

    @abc.abstractmethod
    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the layer for inputs of these shapes, each `[batch, ...]`."""


class Call(NamedTuple):
    """An op applied to inputs of known shape: the unit we price, measure and cache."""

    op: Op
    inputs: tuple[Shape, ...]


class Cost(NamedTuple):
    flops: float
    bytes: float  # Moved to and from memory, before fusion.
    params: int


@functools.cache
def model(call: Call) -> Model:
    """The op of `call` as a function of weights and inputs. Raises if it rejects the inputs."""
    return Model(lambda rngs: call.op.module(call.inputs, rngs=rngs))


@functools.cache
def output(call: Call) -> Shape:
    """Shape of `call`'s output. Raises if the op rejects these inputs."""
    built = model(call)
    return jax.eval_shape(built, built.shapes, *call.inputs)


@functools.cache
def cost(call: Call) -> Cost:
    """Price of one forward pass, read off XLA's own analysis of the lowered op."""
    built = model(call)
    analysis = jax.jit(built).lower(built.shapes, *call.inputs).cost_analysis()
    if analysis is None:
        raise RuntimeError(
            f"{jax.default_backend()} gives no cost analysis; price calls on the CPU backend"
        )
    return Cost(analysis.get("flops", 0.0), analysis.get("bytes accessed", 0.0), built.size)
