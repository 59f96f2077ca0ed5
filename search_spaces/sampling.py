"""U-Nets drawn at random from the whole space, to learn and to judge latency models on."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from search_spaces.blocks import Transformer
from search_spaces.counting import macs
from search_spaces.ops import Shape
from search_spaces.presets import GROUPS, Level, Preset, unet
from search_spaces.program import calls
from search_spaces.unet import UNetSpec, inputs, lower
from search_spaces.unet_space import UNetSpace

_EDITS = 6  # At most, after the stages are drawn.
_TRIES = 30
_TOKENS, _CONTEXT = 77, (128, 768, 1024)
_GROWTH = ((1, 2, 4, 4), (1, 2, 4), (1, 2, 3), (1, 1.5, 3), (1, 2, 2))  # Widths of stages.
_HEADS = (16, 32, 64)  # Channels of a head.


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bounds of what is drawn: multiply-accumulates, sides of the latent, and the first stage's
    width, which is in steps of 32 channels."""

    least: float = 9e7
    most: float = 1e11
    latents: tuple[int, ...] = (8, 16, 32, 64)
    widest: int = 256


DEFAULT = Sizes()
"""From the embedded default, 0.09 G multiply-accumulates, to a quarter of SD-1.5's 402 G."""


def draw(rng: np.random.Generator, sizes: Sizes = DEFAULT) -> Preset:
    """A U-Net and its inputs at a batch of one.

    Multiply-accumulates are spread evenly over their orders of magnitude. Stages, depths and
    blocks are drawn, the width follows from the size that was drawn, and then some legal edits are
    made, micro-choices among them. Raises `ValueError` if nothing of that size turns up.
    """
    wanted = math.exp(rng.uniform(math.log(sizes.least), math.log(sizes.most)))
    for _ in range(_TRIES):
        shape = int(rng.integers(2**32))
        latent, context = int(rng.choice(sizes.latents)), int(rng.choice(_CONTEXT))
        given = inputs(1, latent, 4, _TOKENS, context)
        middling = 4 * GROUPS
        count = _macs(_stages(np.random.default_rng(shape), middling), given)
        width = GROUPS * round(middling * math.sqrt(wanted / count) / GROUPS)
        if GROUPS <= width <= sizes.widest:
            spec = _stages(np.random.default_rng(shape), width)
            if 0.7 < _macs(spec, given) / wanted < 1.4:
                return edited(rng, Preset(spec, given))
    raise ValueError(f"no U-Net of {wanted:.3g} multiply-accumulates in {_TRIES} draws of {sizes}")


def _macs(spec: UNetSpec, given: Mapping[str, Shape]) -> int:
    return sum(macs(call).total for call in calls(lower(spec), given).values())


def _stages(rng: np.random.Generator, width: int) -> UNetSpec:
    """Drawn stages, the first of them of this width."""
    growth = _GROWTH[int(rng.integers(len(_GROWTH)))]
    widths = [GROUPS * max(1, round(width * factor / GROUPS)) for factor in growth]
    head, ffn = int(rng.choice(_HEADS)), int(rng.choice((4, 6, 8)))

    def level(width: int, resnets: int) -> Level:
        transformers = int(rng.integers(resnets + 1))
        size = min(head, width)
        op = Transformer(
            max(1, width // size),
            size,
            GROUPS,
            depth=int(rng.choice((1, 1, 1, 2))),
            ffn=ffn,
            self_attention=bool(rng.integers(4)),
        )
        return Level(width, resnets, transformers, op)

    downs = [level(w, int(rng.integers(1, 4))) for w in widths]
    ups = [level(down.width, down.resnets + 1) for down in downs[::-1]]
    bottom = level(widths[-1], 1).transformer
    middle = int(rng.integers(3))
    return unet(downs, (middle, min(middle, int(rng.integers(2)))), ups, bottom=bottom)


def edited(rng: np.random.Generator, preset: Preset, *, most: int = _EDITS) -> Preset:
    """The U-Net after none to `most` random legal edits, micro-choices among them."""
    spec, given = preset
    space = UNetSpace(spec, given)
    for _ in range(int(rng.integers(most + 1))):
        candidates = list(space.candidates(spec))
        action = candidates[int(rng.integers(len(candidates)))]
        if space.illegal(spec, action) is None:
            spec = action.apply(spec)
    return Preset(spec, given)
