"""A network as straight-line code: the one form every search space lowers to."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
from flax import nnx

from search_spaces.model import Model
from search_spaces.ops import Call, Op, Shape, output


class Step(NamedTuple):
    """`name = op(*reads)`. A read is an earlier step's name, or an input's."""

    name: str
    op: Op
    reads: tuple[str, ...]


Program: TypeAlias = tuple[Step, ...]


def until(program: Program, *names: str) -> Program:
    """The program up to the last of the steps called `names`."""
    return program[: 1 + max(i for i, step in enumerate(program) if step.name in names)]


def calls(program: Program, inputs: Mapping[str, Shape]) -> dict[str, Call]:
    """Pairs every step with the shapes it will see, e.g. to price or measure it."""
    shapes, found = dict(inputs), {}
    for name, op, reads in program:
        found[name] = Call(op, tuple(shapes[read] for read in reads))
        shapes[name] = output(found[name])
    return found


class Network(nnx.Module):
    """Runs a program. The weights of step `s` live under `steps.s`."""

    def __init__(self, program: Program, inputs: Mapping[str, Shape], *, rngs: nnx.Rngs):
        self.program = nnx.static(program)
        self.steps = nnx.Dict(
            {
                name: op.module(shapes, rngs=rngs)
                for name, (op, shapes) in calls(program, inputs).items()
            }
        )

    def __call__(
        self,
        values: Mapping[str, jax.Array],
        keep: Mapping[str, jax.Array] | None = None,
        *,
        also: tuple[str, ...] = (),
    ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the last step's value; with `also`, the values of those steps too.

        `keep` maps steps to boolean scalars. A step that is not kept passes its first read on,
        and costs no compute: which steps run is decided at run time, without recompiling.
        """
        values, keep = dict(values), keep or {}
        for name, _, reads in self.program:
            step, read = self.steps[name], tuple(values[r] for r in reads)
            if name in keep:
                values[name] = jax.lax.cond(keep[name], step, lambda first, *_: first, *read)
            else:
                values[name] = step(*read)
        result = values[self.program[-1].name]
        return (result, {name: values[name] for name in also}) if also else result


def network(program: Program, inputs: Mapping[str, Shape]) -> Model:
    """The program as a function of weights, which are named `step.layer.leaf`."""
    return Model(lambda rngs: Network(program, inputs, rngs=rngs), root=("steps",))
