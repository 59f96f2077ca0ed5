"""What every step of a program sees on given inputs, and how the loss depends on its weights.

Steps run one by one, each distinct call compiled once: an edit of one block compiles one block.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from search_spaces.model import Weights
from search_spaces.ops import Call, Shape, model
from search_spaces.program import Program, calls
from search_spaces.surgery import Samples, part


class Recorder:
    """Gives the samples of any step of any program over the same inputs: see
    `surgery.Calibration`.

    `values` are what the network reads, `[rows, ...]` each; `target` is what it should give for
    them, by mean squared error, which is what gradients are of. `inputs` are the shapes that
    programs are built for. The values of one network are kept, so that several of its blocks may
    be looked at.
    """

    def __init__(self, inputs: Mapping[str, Shape], values: Mapping[str, Any], target: jax.Array):
        self.inputs, self.target = inputs, jnp.asarray(target)
        self.given = {name: jnp.asarray(value) for name, value in values.items()}
        self._kept: tuple[Program, Weights, dict[str, jax.Array]] | None = None

    def __call__(self, program: Program, weights: Weights, step: str) -> Samples:
        values = self.values(program, weights)
        reads = next(s.reads for s in program if s.name == step)
        return Samples(
            tuple(values[read] for read in reads),
            lambda: self._gradient(program, weights, step),
        )

    def values(self, program: Program, weights: Weights) -> dict[str, jax.Array]:
        """What is given and what every step makes of it, by name."""
        if self._kept is None or self._kept[0] != program or self._kept[1] is not weights:
            values, found = dict(self.given), calls(program, self.inputs)
            for name, _, reads in program:
                own = part(weights, name)
                values[name] = compiled(found[name])(own, *(values[read] for read in reads))
            self._kept = program, weights, values
        return self._kept[2]

    def loss(self, program: Program, weights: Weights) -> float:
        """Mean squared error of what the network gives."""
        found = self.values(program, weights)[program[-1].name]
        return float(jnp.square(found - self.target).mean())

    def _gradient(self, program: Program, weights: Weights, step: str) -> Weights:
        values, found = self.values(program, weights), calls(program, self.inputs)
        last = values[program[-1].name]
        pulls = {program[-1].name: 2 * (last - self.target) / last.size}
        for name, _, reads in reversed(program):
            if name not in pulls:
                continue
            given = part(weights, name), tuple(values[read] for read in reads)
            own, onto = _pull(found[name])(*given, pulls.pop(name))
            if name == step:
                return own
            for read, pull in zip(reads, onto, strict=True):
                if jnp.issubdtype(values[read].dtype, jnp.floating):
                    pulls[read] = pulls[read] + pull if read in pulls else pull
        raise ValueError(f"the network's output does not depend on {step}")


@functools.cache
def compiled(call: Call) -> Callable[..., jax.Array]:
    """The op of `call` as a compiled function of weights and reads."""
    return jax.jit(model(call))


@functools.cache
def _pull(call: Call) -> Callable[..., tuple[Weights, tuple[jax.Array, ...]]]:
    """Gradients by weights and reads of what a gradient by the output pulls back to."""

    @jax.jit
    def pulled(weights: Weights, reads: tuple[jax.Array, ...], pull: jax.Array) -> Any:
        _, back = jax.vjp(lambda w, r: model(call)(w, *r), weights, reads)
        return back(pull)

    return pulled
