"""Weights for an edited network, taken from the network it was edited from."""

from collections.abc import Mapping
from typing import TypeVar

import jax.numpy as jnp

from search_spaces.model import Weights
from search_spaces.ops import Call, model
from search_spaces.unet import Copy, Remove, UNetSpec

Leaf = TypeVar("Leaf")


def carry(
    action: Remove | Copy, spec: UNetSpec, weights: Weights, calls: Mapping[str, Call]
) -> Weights:
    """The weights of `action.apply(spec)`: those of `spec`, to the bit, wherever both have them.

    A copy starts as the identity, so adding it does not change the function: it has its original's
    weights, except that its outlet is zero. The copy of a ResNet that reads a skip has fewer input
    channels and takes the leading ones, which are those of `x`. `calls` are the edited network's,
    by name. Raises `ValueError` if the copied block is not residual.
    """
    if isinstance(action, Remove):
        return without(weights, action.block)
    new, outlet = action.name, spec.block(action.block).op.outlet
    if outlet is None:
        raise ValueError(f"{action.block} is not residual: a copy of it cannot start as a no-op")
    copied = {
        f"{new}.{name}": jnp.zeros(shape.shape, shape.dtype)
        if name.startswith(f"{outlet}.")
        else weights[f"{action.block}.{name}"][tuple(slice(size) for size in shape.shape)]
        for name, shape in model(calls[new]).shapes.items()
    }
    return {**weights, **copied}


def without(weights: Mapping[str, Leaf], *blocks: str) -> dict[str, Leaf]:
    """`weights` less those of `blocks`."""
    prefixes = tuple(f"{block}." for block in blocks)
    return {name: weight for name, weight in weights.items() if not name.startswith(prefixes)}
