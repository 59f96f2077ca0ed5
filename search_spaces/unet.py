"""Diffusion U-Nets as values: stages, layers and blocks, and their lowering to a program.

A layer is a list of blocks. A layer of the down path pushes one skip, the value after its last
block; a layer of the up path pops one, which its first ResNet reads. Removing blocks keeps the
layers: an empty layer of the down path pushes what reached it, so its skip is an alias of the one
before, and a layer of the up path whose reading ResNet is gone drops its skip. So skips always
balance, and removing a block computes exactly what bypassing it does.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import jax

from search_spaces.blocks import (
    Conv,
    NormSiLU,
    TextTimeEmbedding,
    TimeEmbedding,
)
from search_spaces.ops import Op, Shape
from search_spaces.program import Program, Step

SIZES = 6  # Numbers about a picture that SDXL reads: original size, crop, target size.


@dataclasses.dataclass(frozen=True)
class Block:
    """An op in place. `name` is the path of its weights: it follows the block through edits and is
    not part of the architecture, so specs that differ only in names are equal."""

    op: Op
    name: str = dataclasses.field(compare=False)
    reads_skip: bool = False


@dataclasses.dataclass(frozen=True)
class Layer:
    blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a block is: numbers of a stage among a spec's `stages`, of a layer in it, and of the
    block in the layer."""

    stage: int
    layer: int
    position: int


@dataclasses.dataclass(frozen=True)
class Stage:
    """Layers at one resolution, then the change of resolution, if any.

    `name` is diffusers', the path of the resampling's weights; as a block's, it is not part of the
    architecture.
    """

    name: str = dataclasses.field(compare=False)
    layers: tuple[Layer, ...]
    resample: Op | None = None

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for layer in self.layers for block in layer.blocks)


@dataclasses.dataclass(frozen=True)
class UNetSpec:
    """A conditional U-Net: `down` from high to low resolution, `middle`, `up` back again.

    The middle has no skips, so what it holds is one layer, however it was given.
    """

    stem: Conv
    time: TimeEmbedding
    down: tuple[Stage, ...]
    middle: Stage
    up: tuple[Stage, ...]
    norm: NormSiLU
    head: Conv
    added: TextTimeEmbedding | None = None  # SDXL's second conditioning.

    def __post_init__(self) -> None:
        middle = dataclasses.replace(self.middle, layers=(Layer(self.middle.blocks),))
        object.__setattr__(self, "middle", middle)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (*self.down, self.middle, *self.up)

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for stage in self.stages for block in stage.blocks)

    def place(self, name: str) -> Place:
        """Where the block of that name is. Raises `ValueError` with the blocks there are."""
        for number, stage in enumerate(self.stages):
            for index, layer in enumerate(stage.layers):
                for position, block in enumerate(layer.blocks):
                    if block.name == name:
                        return Place(number, index, position)
        raise ValueError(f"no block {name}; this spec has {[b.name for b in self.blocks]}")

    def block(self, name: str) -> Block:
        """The block of that name. Raises `ValueError` with the blocks there are."""
        place = self.place(name)
        return self.stages[place.stage].layers[place.layer].blocks[place.position]

    def with_stages(self, changed: Mapping[int, Stage]) -> "UNetSpec":
        """This spec with other stages, given by their numbers in `stages`."""
        stages = tuple(changed.get(number, stage) for number, stage in enumerate(self.stages))
        count = len(self.down)
        return dataclasses.replace(
            self, down=stages[:count], middle=stages[count], up=stages[count + 1 :]
        )

    def with_blocks(self, place: Place, blocks: tuple[Block, ...]) -> "UNetSpec":
        """This spec with the layer at `place` holding `blocks`."""
        stage = self.stages[place.stage]
        layers = list(stage.layers)
        layers[place.layer] = Layer(blocks)
        return self.with_stages({place.stage: dataclasses.replace(stage, layers=tuple(layers))})


def stage_names(spec: UNetSpec) -> tuple[str, ...]:
    """Names of the stages as in the paper, from the first down to the last up."""
    down = (f"Down-{number}" for number in range(1, len(spec.down) + 1))
    return (*down, "Mid", *(f"Up-{number}" for number in range(1, len(spec.up) + 1)))


def stage_of_steps(spec: UNetSpec) -> Iterator[tuple[str, str]]:
    """Yields the name of a step and of the stage that it is part of."""
    for name, stage in zip(stage_names(spec), spec.stages, strict=True):
        yield from ((block.name, name) for block in stage.blocks)
        yield from ((f"{stage.name}.{end}.0", name) for end in ("downsamplers", "upsamplers"))


def lower(spec: UNetSpec) -> Program:
    """The U-Net as a program over `sample`, `timestep` and `context`; and, with SDXL's second
    conditioning, over `pooled` and `sizes`.

    Raises `ValueError` where the skips do not balance.
    """
    program = [Step("time_embedding", spec.time, ("timestep",))]
    if spec.added is not None:
        reads = ("time_embedding", "pooled", "sizes")
        program.append(Step("add_embedding", spec.added, reads))
    time = program[-1].name
    program.append(Step("conv_in", spec.stem, ("sample",)))
    skips = ["conv_in"]
    for stage in spec.down:
        for layer in stage.layers:
            program += _steps(layer, program[-1].name, time)
            skips.append(program[-1].name)
        if stage.resample is not None:
            program.append(_resample(stage, "downsamplers", program[-1].name))
            skips.append(program[-1].name)
    (middle,) = spec.middle.layers
    program += _steps(middle, program[-1].name, time)
    pops = sum(len(stage.layers) for stage in spec.up)
    if pops != len(skips):
        raise ValueError(f"the down path pushes {len(skips)} skips, the up path pops {pops}")
    for stage in spec.up:
        for layer in stage.layers:
            program += _steps(layer, program[-1].name, time, skips.pop())
        if stage.resample is not None:
            program.append(_resample(stage, "upsamplers", program[-1].name))
    program.append(Step("conv_norm_out", spec.norm, (program[-1].name,)))
    program.append(Step("conv_out", spec.head, ("conv_norm_out",)))
    return tuple(program)


def _steps(layer: Layer, x: str, time: str, skip: str | None = None) -> Iterator[Step]:
    sources = {"time": time, "context": "context"}
    for block in layer.blocks:
        if block.reads_skip and skip is None:
            raise ValueError(f"{block.name} reads a skip, but only the up path has them")
        unknown = [name for name in block.op.conditions if name not in sources]
        if unknown:
            raise ValueError(f"{block.name} reads {unknown}; a U-Net has {list(sources)}")
        skips = (skip,) if block.reads_skip and skip is not None else ()
        conditions = (sources[name] for name in block.op.conditions)
        yield Step(block.name, block.op, (x, *skips, *conditions))
        x = block.name


def _resample(stage: Stage, kind: str, x: str) -> Step:
    assert stage.resample is not None
    return Step(f"{stage.name}.{kind}.0", stage.resample, (x,))


def inputs(
    batch: int,
    size: int,
    channels: int,
    tokens: int,
    context: int,
    dtype: str = "float32",
    *,
    pooled: int | None = None,
) -> dict[str, Shape]:
    """Shapes of what a U-Net reads: latents of `size` squared, timesteps, encoded prompts and,
    where it has SDXL's second conditioning, `pooled` channels of text and six sizes."""
    found = {
        "sample": jax.ShapeDtypeStruct((batch, size, size, channels), dtype),
        "timestep": jax.ShapeDtypeStruct((batch,), "float32"),
        "context": jax.ShapeDtypeStruct((batch, tokens, context), dtype),
    }
    if pooled is not None:
        found["pooled"] = jax.ShapeDtypeStruct((batch, pooled), dtype)
        found["sizes"] = jax.ShapeDtypeStruct((batch, SIZES), "float32")
    return found
