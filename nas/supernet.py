"""One compiled network that runs every architecture got from it by removing blocks."""

import functools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from search_spaces.actions import Remove
from search_spaces.model import Model, Weights
from search_spaces.ops import Shape
from search_spaces.program import network
from search_spaces.surgery import Leaf, without
from search_spaces.unet import UNetSpec, lower
from search_spaces.unet_space import removable


class Supernet:
    """A spec whose removable blocks are switched at run time.

    `model(weights, values, keep)` runs it; a block that is not kept costs no compute, and the
    output is that of the architecture without it, so scoring all removals compiles once.
    """

    def __init__(self, spec: UNetSpec, inputs: Mapping[str, Shape]):
        self.spec = spec
        self.gates = removable(spec, inputs)
        self.program = lower(spec)
        self.model: Model = network(self.program, inputs)

    def keep(self, spec: UNetSpec) -> dict[str, np.ndarray]:
        """Which blocks `spec` has, by name. Raises `ValueError` if it is no sub-network."""
        ours = {block.name: block for block in self.spec.blocks}
        names = {block.name for block in spec.blocks}
        gone = ours.keys() - names
        foreign = sorted(block.name for block in spec.blocks if ours.get(block.name) != block)
        stuck = sorted(gone - set(self.gates))
        if foreign or stuck:
            raise ValueError(
                f"this supernet cannot run that spec: it lacks blocks {foreign[:3]} "
                f"and cannot bypass {stuck[:3]}"
            )
        return {name: np.array(name in names) for name in self.gates}

    def holds(self, spec: UNetSpec) -> bool:
        """Whether `spec` is this network without some of its blocks."""
        names, left = {block.name for block in spec.blocks}, self.spec
        for block in self.spec.blocks:
            if block.name not in names:
                left = Remove(block.name).apply(left)
        return left == spec and len(left.blocks) == len(names)

    def lift(self, weights: Weights) -> Weights:
        """`weights` of a sub-network with zeros for the blocks it lacks, which never run."""
        return {
            name: weights[name] if name in weights else jnp.zeros(shape.shape, shape.dtype)
            for name, shape in self.model.shapes.items()
        }

    def restrict(self, weights: Mapping[str, Leaf], spec: UNetSpec) -> dict[str, Leaf]:
        """The part of `weights`, or of their shapes, that `spec` has."""
        gone = {block.name for block in self.spec.blocks} - {block.name for block in spec.blocks}
        return without(weights, *gone)

    @functools.cached_property
    def ends(self) -> Mapping[str, str]:
        """The last block of every stage that has any, by stage: where features are compared."""
        return {stage.name: stage.blocks[-1].name for stage in self.spec.stages if stage.blocks}
