"""A block of one's own: ConvNeXt (Liu et al., CVPR 2022), with two micro-choices."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from search_spaces.carrying import Coupled, resized
from search_spaces.layers import Linear, convolve_depthwise
from search_spaces.ops import Op, Shape, choice
from search_spaces.surgery import Carried, Change


def trimmed(change: Change) -> Carried:
    """Keeps the hidden channels that matter most, and refits what reads them."""
    units = Coupled("expand.kernel", axis=1), Coupled("expand.bias", axis=0)
    return resized(change, {"contract": units}, size=1)


def cropped(change: Change) -> Carried:
    """Keeps the middle of the filters, or puts zeros around them; refits what reads them."""
    old, size = change.weights["filters"], change.new.op.kernel  # pyright: ignore
    cut, pad = max(0, len(old) - size) // 2, max(0, size - len(old)) // 2
    middle = old[cut : len(old) - cut, cut : len(old) - cut]
    made = {"filters": jnp.pad(middle, ((pad, pad), (pad, pad), (0, 0), (0, 0)))}
    return change.carried(change.refitted(made, "expand"))


@dataclasses.dataclass(frozen=True)
class ConvNeXt(Op):
    """A depthwise convolution, then a pointwise FFN, added to what is read."""

    kernel: int = choice(7, 5, 3, carry=cropped)
    expansion: int = choice(4, 3, 2, carry=trimmed)

    @property
    def outlet(self) -> str:
        return "contract"

    def module(self, inputs: tuple[Shape, ...], *, rngs: nnx.Rngs) -> nnx.Module:
        return _ConvNeXt(self, inputs[0].shape[-1], rngs)


class _ConvNeXt(nnx.Module):
    def __init__(self, op: ConvNeXt, width: int, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        self.filters = nnx.Param(init(rngs.params(), (op.kernel, op.kernel, 1, width)))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.expand = Linear(width, op.expansion * width, rngs=rngs)
        self.contract = Linear(op.expansion * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.norm(convolve_depthwise(x, self.filters[...].astype(x.dtype)))
        return x + self.contract(jax.nn.gelu(self.expand(h)))
