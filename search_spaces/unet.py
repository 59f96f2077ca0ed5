"""Diffusion U-Nets as values: stages, layers and blocks, and the edits SnapFusion searches over.

A layer is a list of blocks. A layer of the down path pushes one skip, the value after its last
block; a layer of the up path pops one, which its first ResNet reads. Removing blocks keeps the
layers: an empty layer of the down path pushes what reached it, so its skip is an alias of the one
before, and a layer of the up path whose reading ResNet is gone drops its skip. So skips always
balance, and removing a block computes exactly what bypassing it does.
"""

import dataclasses
import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping

import jax

from search_spaces.blocks import (
    Conv,
    NormSiLU,
    TextTimeEmbedding,
    TimeEmbedding,
    Transformer,
)
from search_spaces.ops import Op, Shape, output
from search_spaces.program import Program, Step, calls
from search_spaces.space import Action, SearchSpace

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
class Stage:
    """Layers at one resolution, then the change of resolution, if any. `name` is diffusers'."""

    name: str
    layers: tuple[Layer, ...]
    resample: Op | None = None

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for layer in self.layers for block in layer.blocks)


@dataclasses.dataclass(frozen=True)
class UNetSpec:
    """A conditional U-Net: `down` from high to low resolution, `middle`, `up` back again."""

    stem: Conv
    time: TimeEmbedding
    down: tuple[Stage, ...]
    middle: Stage
    up: tuple[Stage, ...]
    norm: NormSiLU
    head: Conv
    added: TextTimeEmbedding | None = None  # SDXL's second conditioning.

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (*self.down, self.middle, *self.up)

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for stage in self.stages for block in stage.blocks)

    def block(self, name: str) -> Block:
        for block in self.blocks:
            if block.name == name:
                return block
        raise ValueError(f"no block {name}; this spec has {[b.name for b in self.blocks]}")


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
    for layer in spec.middle.layers:
        program += _steps(layer, program[-1].name, time)
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
    for block in layer.blocks:
        if isinstance(block.op, Transformer):
            reads = (x, "context")
        elif not block.reads_skip:
            reads = (x, time)
        elif skip is not None:
            reads = (x, skip, time)
        else:
            raise ValueError(f"{block.name} reads a skip, but only the up path has them")
        yield Step(block.name, block.op, reads)
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


@dataclasses.dataclass(frozen=True)
class Remove:
    """Removes one block. What followed it reads what it read; see the module's docstring."""

    block: str

    def apply(self, spec: UNetSpec) -> UNetSpec:
        spec.block(self.block)
        return _edit(spec, self.block, lambda block: ())


@dataclasses.dataclass(frozen=True)
class Copy:
    """Puts a copy of a block, called `name`, behind it. The copy of a ResNet that reads a skip
    reads none."""

    block: str
    name: str

    def apply(self, spec: UNetSpec) -> UNetSpec:
        if any(block.name == self.name for block in spec.blocks):
            raise ValueError(f"this spec has a block {self.name} already; give the copy a new name")
        new = dataclasses.replace(spec.block(self.block), name=self.name, reads_skip=False)
        return _edit(spec, self.block, lambda block: (block, new))


def _edit(spec: UNetSpec, name: str, change: Callable[[Block], tuple[Block, ...]]) -> UNetSpec:
    def layer(old: Layer) -> Layer:
        if all(block.name != name for block in old.blocks):
            return old
        return Layer(
            tuple(
                new for old in old.blocks for new in (change(old) if old.name == name else (old,))
            )
        )

    def stage(old: Stage) -> Stage:
        return dataclasses.replace(old, layers=tuple(map(layer, old.layers)))

    return dataclasses.replace(
        spec,
        down=tuple(map(stage, spec.down)),
        middle=stage(spec.middle),
        up=tuple(map(stage, spec.up)),
    )


def removable(spec: UNetSpec, inputs: Mapping[str, Shape]) -> tuple[str, ...]:
    """Names of the blocks that may be removed: those whose output has the shape of their input.

    In SD-1.5 these are all 16 transformers and 18 of 22 ResNets.
    """
    found = calls(lower(spec), inputs)
    return tuple(
        block.name
        for block in spec.blocks
        if output(found[block.name]) == found[block.name].inputs[0]
    )


@dataclasses.dataclass(frozen=True)
class UNetSpace(SearchSpace[UNetSpec]):
    """SnapFusion's actions on a seed: remove any block that may be, copy any that may be removed.

    `inputs` are the shapes at which the network is deployed. A layer holds at most `depth`
    blocks of a kind, so the space is finite.
    """

    seed: UNetSpec
    inputs: Mapping[str, Shape]
    depth: int = 4

    def initial(self) -> UNetSpec:
        return self.seed

    def actions(self, spec: UNetSpec) -> Iterator[Action[UNetSpec]]:
        yield from self.removals(spec)
        yield from self.copies(spec)

    def removals(self, spec: UNetSpec) -> Iterator[Remove]:
        yield from map(Remove, removable(spec, self.inputs))

    def copies(self, spec: UNetSpec, *, taken: Iterable[str] = ()) -> Iterator[Copy]:
        """Copies that are legal on `spec`, called by the original's name and the first free number.

        Names in `taken` are not free: those of blocks that `spec` had once.
        """
        legal = set(removable(spec, self.inputs))
        taken = {*taken, *(block.name for block in spec.blocks)}
        for stage in spec.stages:
            for layer in stage.layers:
                for block in layer.blocks:
                    kind = [b for b in layer.blocks if type(b.op) is type(block.op)]
                    if block.name in legal and len(kind) < self.depth:
                        yield Copy(block.name, _free(block.name, taken))

    def lower(self, spec: UNetSpec) -> Program:
        return lower(spec)


def _free(name: str, taken: Container[str]) -> str:
    stem = name.partition("+")[0]
    return next(free for n in itertools.count(1) if (free := f"{stem}+{n}") not in taken)
