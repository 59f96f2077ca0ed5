"""The op vocabulary: layers as data.

An op is a frozen dataclass. Its fields are hyper-parameters; `Op.module` is its one
definition. Output shape, FLOPs, bytes and parameters are derived from that definition,
so what is counted, what is measured and what is trained cannot drift apart.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
from flax import nnx

from search_spaces.model import Model

Shape: TypeAlias = jax.ShapeDtypeStruct


class Op(abc.ABC):
    """One layer, as data. Subclasses are frozen dataclasses and are never subclassed.

    A subclass declares what may be searched about it on its fields, by `choice`. As a block of a
    U-Net it reads images and, after them, these `conditions`: "time", "context".
    """

    conditions: ClassVar[tuple[str, ...]] = ()

    @property
    def outlet(self) -> str | None:
        """The sub-layer that a residual op adds to its first input last: with its weights at zero
        the op is the identity on that input. Ops that are not residual have none."""
        return None

    @abc.abstractmethod
    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the layer for inputs of these shapes, each `[batch, ...]`."""


class Choice(NamedTuple):
    """What is searched about a field of an op."""

    options: tuple[Any, ...]
    among: Callable[[Any], Iterable[Any]]  # Options that depend on the op.
    carry: Callable[[Any], Any] | None  # How weights follow; see `search_spaces.surgery`.


def choice(
    *options: Any,
    among: Callable[[Any], Iterable[Any]] = lambda op: (),
    carry: Callable[[Any], Any] | None = None,
) -> Any:
    """Declares a field of an op as searchable; the first option is the default.

    `among` gives options that depend on the op; with it alone the field has no default. `carry`
    makes the weights of the changed op out of those it had (`surgery.Carry`); without it weights
    of the same name and shape are kept.
    """
    default = options[0] if options else dataclasses.MISSING
    declared = Choice(options, among, carry)
    return dataclasses.field(default=default, metadata={Choice: declared})


def choices(op: Op) -> dict[str, Choice]:
    """The searchable fields of `op`, as they were declared."""
    return {
        field.name: field.metadata[Choice]
        for field in dataclasses.fields(op)  # pyright: ignore[reportArgumentType]
        if Choice in field.metadata
    }


def options(op: Op) -> dict[str, tuple[Any, ...]]:
    """What each searchable field of `op` may be, the value it has first."""
    return {
        name: tuple(dict.fromkeys((getattr(op, name), *declared.options, *declared.among(op))))
        for name, declared in choices(op).items()
    }


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


class Traced(NamedTuple):
    """A call's computation: its program over weights and inputs, and the shape that comes out."""

    jaxpr: Any
    output: Shape


@functools.cache
def traced(call: Call) -> Traced:
    """What `call` computes. Raises if the op rejects these inputs."""
    built = model(call)
    jaxpr, shape = jax.make_jaxpr(built, return_shape=True)(built.shapes, *call.inputs)
    return Traced(jaxpr, shape)


def output(call: Call) -> Shape:
    """Shape of `call`'s output. Raises if the op rejects these inputs."""
    return traced(call).output


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
