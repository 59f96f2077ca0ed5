"""Published U-Nets as values, each with the shapes of its inputs at a 64x64 latent.

Counts follow from the tables; where two sources disagree, both are here under names of their own.
Nothing is allocated.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from search_spaces.blocks import (
    Additive,
    Conv,
    Convolution,
    Downsample,
    Full,
    Modulation,
    NormSiLU,
    ResNet,
    ScaleShift,
    Separable,
    Swish,
    TextTimeEmbedding,
    TimeEmbedding,
    Transformer,
    Upsample,
)
from search_spaces.layers import ReluByLength
from search_spaces.ops import Shape
from search_spaces.unet import Block, Layer, Stage, UNetSpec, inputs

GROUPS, EPSILON = 32, 1e-5
HEADS = 8  # Of SD-1.x, at every width.
HEAD = 64  # Channels of a head in SD-2.x, SDXL and what is made from it.


class Preset(NamedTuple):
    """An architecture and what it reads."""

    spec: UNetSpec
    inputs: Mapping[str, Shape]


@dataclasses.dataclass(frozen=True)
class Level:
    """A stage of the down or the up path: its width, ResNets, and transformers.

    With more transformers than ResNets the rest stand behind the last one's.
    """

    width: int
    resnets: int
    transformers: int = 0
    transformer: Transformer | None = None
    convolution: Convolution = Full()


def unet(
    down: Sequence[Level],
    middle: tuple[int, int],
    up: Sequence[Level],
    *,
    bottom: Transformer | None = None,
    channels: int = 4,
    added: TextTimeEmbedding | None = None,
    modulation: Modulation = Additive(),
) -> UNetSpec:
    """A U-Net of these stages, `up` from the lowest resolution to the highest.

    `middle` is its numbers of ResNets and of transformers, which are `bottom`. Names are
    diffusers'.
    """
    first, last = down[0], down[-1]

    def stage(name: str, level: Level, resample: Downsample | Upsample | None, skip: bool) -> Stage:
        resnet = ResNet(level.width, GROUPS, EPSILON, level.convolution, modulation)
        blocks = [[Block(resnet, f"{name}.resnets.{i}", skip)] for i in range(level.resnets)]
        for i in range(level.transformers):
            assert level.transformer is not None
            attention = Block(level.transformer, f"{name}.attentions.{i}")
            blocks[min(i, level.resnets - 1)].append(attention)
        return Stage(name, tuple(Layer(tuple(layer)) for layer in blocks), resample)

    resnet = ResNet(last.width, GROUPS, EPSILON, last.convolution, modulation)
    between = []
    for i in range(middle[0]):
        layer = [Block(resnet, f"mid_block.resnets.{i}")]
        if i < middle[1]:
            assert bottom is not None
            layer.append(Block(bottom, f"mid_block.attentions.{i}"))
        between.append(Layer(tuple(layer)))
    downs = [
        stage(f"down_blocks.{i}", level, Downsample() if level is not last else None, False)
        for i, level in enumerate(down)
    ]
    ups = [
        stage(f"up_blocks.{i}", level, Upsample() if i < len(up) - 1 else None, True)
        for i, level in enumerate(up)
    ]
    return UNetSpec(
        stem=Conv(first.width),
        time=TimeEmbedding(first.width, 4 * first.width),
        down=tuple(downs),
        middle=Stage("mid_block", tuple(between)),
        up=tuple(ups),
        norm=NormSiLU(GROUPS, EPSILON),
        head=Conv(channels),
        added=added,
    )


def _sd1(
    resnets: Sequence[int],
    transformers: Sequence[int],
    middle: tuple[int, int],
    up_resnets: Sequence[int],
    up_transformers: Sequence[int],
    widths: Sequence[int] = (320, 640, 1280, 1280),
) -> Preset:
    """A member of the SD-1.x family; `up_*` from the lowest resolution to the highest."""

    def attend(width: int) -> Transformer:
        return Transformer(HEADS, width // HEADS, GROUPS)

    def levels(widths: Sequence[int], *counts: Sequence[int]) -> list[Level]:
        return [Level(w, r, t, attend(w)) for w, r, t in zip(widths, *counts, strict=True)]

    down, up = (
        levels(widths, resnets, transformers),
        levels(widths[::-1], up_resnets, up_transformers),
    )
    spec = unet(down, middle, up, bottom=attend(widths[-1]))
    return Preset(spec, inputs(1, 64, 4, 77, 768))


def sd15() -> Preset:
    """Stable Diffusion 1.4 and 1.5 (Rombach et al., 2022)."""
    return _sd1((2, 2, 2, 2), (2, 2, 2, 0), (2, 1), (3, 3, 3, 3), (0, 3, 3, 3))


def bk_base() -> Preset:
    """BK-SDM-Base (Kim et al., ECCV 2024): one ResNet and transformer fewer in every stage."""
    return _sd1((1, 1, 1, 1), (1, 1, 1, 0), (2, 1), (2, 2, 2, 2), (0, 2, 2, 2))


def bk_small() -> Preset:
    """BK-SDM-Small: Base without its middle."""
    return _sd1((1, 1, 1, 1), (1, 1, 1, 0), (0, 0), (2, 2, 2, 2), (0, 2, 2, 2))


def bk_tiny() -> Preset:
    """BK-SDM-Tiny: Small without its innermost stage."""
    return _sd1((1, 1, 1), (1, 1, 1), (0, 0), (2, 2, 2), (2, 2, 2), (320, 640, 1280))


def snapfusion_v3() -> Preset:
    """SnapFusion by Table 3 of arXiv 2306.00980v3, whose Up-1 has six transformers.

    The table's stage in the middle, of four ResNets, is one of the last down stage, one of the
    middle and two of the first up stage: the only way for skips to balance. The paper's 848 M
    parameters follow from neither reading of its table.
    """
    return _sd1((2, 2, 1, 1), (0, 2, 2, 0), (1, 1), (2, 2, 3, 3), (0, 6, 3, 0))


def snapfusion_deck() -> Preset:
    """SnapFusion by its authors' talk of February 2024, whose Up-2 has the six transformers."""
    return _sd1((2, 2, 1, 1), (0, 2, 2, 0), (1, 1), (2, 2, 3, 3), (0, 3, 6, 0))


def _xl(
    resnets: int,
    transformers: int,
    middle: tuple[int, int],
    depths: tuple[int, int],
    bottom: int,
) -> Preset:
    """A member of the SDXL family: `depths` are layers of a transformer at the second and third
    stage, `bottom` in the middle."""

    def level(width: int, count: int, attending: int, depth: int) -> Level:
        op = Transformer(width // HEAD, HEAD, GROUPS, depth, linear=True)
        return Level(width, count, attending, op)

    two, three = depths
    down = [
        level(320, resnets, 0, 1),
        level(640, resnets, transformers, two),
        level(1280, resnets, transformers, three),
    ]
    up = [
        level(1280, resnets + 1, transformers + 1, three),
        level(640, resnets + 1, transformers + 1, two),
        level(320, resnets + 1, 0, 1),
    ]
    attend = Transformer(1280 // HEAD, HEAD, GROUPS, bottom, linear=True)
    spec = unet(down, middle, up, bottom=attend, added=TextTimeEmbedding(256))
    return Preset(spec, inputs(1, 64, 4, 77, 2048, pooled=1280))


def sdxl() -> Preset:
    """Stable Diffusion XL base (Podell et al., 2023). Its own latent is 128x128."""
    return _xl(2, 2, (2, 1), (2, 10), 10)


def koala_1b() -> Preset:
    """KOALA-1B (Lee et al., NeurIPS 2024): SDXL by BK-SDM's rule, with shallower transformers."""
    return _xl(1, 1, (2, 1), (2, 6), 6)


def koala_700m() -> Preset:
    """KOALA-700M: shallower still, without a middle."""
    return _xl(1, 1, (0, 0), (2, 5), 5)


def _mobile(width: int, up_depth: int, *, shared: bool, modulation: Modulation) -> Preset:
    """MobileDiffusion: the lowest stage is 16x16 and `width` wide, without a middle of its own."""

    def attend(width: int, depth: int, *, alone: bool) -> Transformer:
        return Transformer(
            width // HEAD,
            HEAD,
            GROUPS,
            depth,
            self_attention=not alone,
            mixing=ReluByLength(),
            shared=shared,
            ffn=6,
            gate=Swish(),
        )

    outer, across = attend(640, 1, alone=True), attend(width, 3, alone=False)
    back = attend(width, up_depth, alone=False)
    down = [Level(320, 1), Level(640, 1, 1, outer), Level(width, 2, 2, across, Separable())]
    up = [Level(width, 3, 3, back, Separable()), Level(640, 2, 2, outer), Level(320, 2)]
    spec = unet(down, (0, 0), up, channels=8, modulation=modulation)
    return Preset(spec, inputs(1, 64, 8, 77, 768))


def mobile_diffusion() -> Preset:
    """MobileDiffusion (Zhao et al., 2023), read so as to fit its published size and GFLOPs.

    What its paper leaves open is chosen by those figures, which both of its models then meet within
    1 %: separate keys and values, a scale-shift time embedding. Its text differs; see
    `mobile_diffusion_text`.
    """
    return _mobile(1024, 3, shared=False, modulation=ScaleShift())


def mobile_diffusion_text() -> Preset:
    """MobileDiffusion by the letter of its text, which shares keys with values in all blocks; it is
    a tenth smaller than the published figure."""
    return _mobile(1024, 3, shared=True, modulation=Additive())


def mobile_diffusion_lite() -> Preset:
    """MobileDiffusion-Lite, by the row of the architecture table that is public."""
    return _mobile(896, 2, shared=False, modulation=ScaleShift())


PRESETS: Mapping[str, Callable[[], Preset]] = {
    maker.__name__.replace("_", "-"): maker
    for maker in (
        sd15,
        bk_base,
        bk_small,
        bk_tiny,
        snapfusion_v3,
        snapfusion_deck,
        sdxl,
        koala_1b,
        koala_700m,
        mobile_diffusion,
        mobile_diffusion_text,
        mobile_diffusion_lite,
    )
}
