"""Weights for an edited network, taken from the network it was edited from."""

from collections.abc import Mapping

import jax.numpy as jnp

from search_spaces.model import Model, Weights
from search_spaces.unet import Copy, Remove, UNetSpec


def inherit(
    child: Model, parent: Weights, *, copies: Mapping[str, tuple[str, str]] = {}
) -> Weights:
    """Returns weights for `child`: `parent`'s, to the bit, wherever the names agree.

    `copies` maps a new block to the block it copies and that block's outlet. Its weights are the
    original's, except that the outlet is zero, so that the copy is the identity and adding it does
    not change the function. The copy of a ResNet that reads a skip has fewer input channels and
    takes the leading ones, which are those of `x`. Raises `ValueError` for a weight that neither
    the parent nor a copy gives.
    """
    weights: Weights = {}
    for name, shape in child.shapes.items():
        block = next((new for new in copies if name.startswith(f"{new}.")), None)
        if block is not None:
            source, outlet = copies[block]
            inner = name.removeprefix(f"{block}.")
            original = parent[f"{source}.{inner}"]
            if inner.startswith(f"{outlet}."):
                weights[name] = jnp.zeros(shape.shape, shape.dtype)
            else:
                weights[name] = original[tuple(slice(size) for size in shape.shape)]
        elif name in parent:
            weights[name] = parent[name]
        else:
            raise ValueError(f"no weights for {name}: not in the parent, and not a copy")
    return weights


def outlet_of(spec: UNetSpec, name: str) -> str:
    """The sub-layer whose zero makes block `name` the identity."""
    outlet = spec.block(name).op.outlet
    if outlet is None:
        raise ValueError(f"{name} is not residual, so a copy of it cannot start as a no-op")
    return outlet


def carry(action: Remove | Copy, spec: UNetSpec, child: Model, parent: Weights) -> Weights:
    """The weights of `action.apply(spec)`, whose model is `child`."""
    if isinstance(action, Copy):
        copied = {action.name(spec): (action.block, outlet_of(spec, action.block))}
        return inherit(child, parent, copies=copied)
    return inherit(child, parent)
