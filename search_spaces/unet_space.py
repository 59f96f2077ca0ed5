"""The space of diffusion U-Nets: every edit that is legal on a spec."""

import dataclasses
import functools
import itertools
from collections.abc import Container, Iterable, Iterator, Mapping

from search_spaces.actions import (
    Choose,
    Copy,
    Move,
    Remove,
    RemovePair,
    RemoveStage,
    Width,
    moved_inwards,
    stage_width,
)
from search_spaces.ops import Call, Shape, model, options, output, traced
from search_spaces.program import Program, calls
from search_spaces.space import Action, SearchSpace
from search_spaces.unet import UNetSpec, lower


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
    """All edits of a seed. SnapFusion's own are `removals` and `copies`.

    `inputs` are the shapes at which the network is deployed. A layer holds at most `depth` blocks
    of a kind, and widths only shrink, to `shares` of what they are, in whole groups.
    """

    seed: UNetSpec
    inputs: Mapping[str, Shape]
    depth: int = 4
    shares: tuple[float, ...] = (0.8, 0.6)

    def initial(self) -> UNetSpec:
        return self.seed

    def candidates(self, spec: UNetSpec) -> Iterator[Action[UNetSpec]]:
        yield from self.removals(spec)
        yield from self.copies(spec)
        yield from self.choices(spec)
        yield from self.moves(spec)
        yield from self.pairs(spec)
        yield from self.widths(spec)
        yield RemoveStage()

    def removals(self, spec: UNetSpec) -> Iterator[Remove]:
        yield from map(Remove, removable(spec, self.inputs))

    def copies(self, spec: UNetSpec, *, taken: Iterable[str] = ()) -> Iterator[Copy]:
        """Copies that are legal on `spec`, called by the original's name and the first free number.

        Names in `taken` are not free: those of blocks that `spec` had once.
        """
        legal = {
            name for name in removable(spec, self.inputs) if spec.block(name).op.outlet is not None
        }
        taken = {*taken, *(block.name for block in spec.blocks)}
        for stage in spec.stages:
            for layer in stage.layers:
                for block in layer.blocks:
                    kind = [b for b in layer.blocks if type(b.op) is type(block.op)]
                    if block.name in legal and len(kind) < self.depth:
                        yield Copy(block.name, _free(block.name, taken))

    def choices(self, spec: UNetSpec) -> Iterator[Choose]:
        """Every micro-choice that a block declares and has not made."""
        for block in spec.blocks:
            for field, (_, *others) in options(block.op).items():
                yield from (Choose(block.name, field, value) for value in others)

    def moves(self, spec: UNetSpec) -> Iterator[Move]:
        """Moves of transformers to the next stage towards the middle."""
        for block in spec.blocks:
            try:
                yield moved_inwards(spec, block.name)
            except ValueError:
                continue

    def pairs(self, spec: UNetSpec) -> Iterator[RemovePair]:
        """Removals of a layer down and of a layer up at the same resolution."""
        for stage, (down, up) in enumerate(zip(spec.down, reversed(spec.up), strict=False)):
            layers = itertools.product(range(len(down.layers)), range(len(up.layers)))
            yield from (RemovePair(stage, *pair) for pair in layers)

    def widths(self, spec: UNetSpec) -> Iterator[Width]:
        """Other widths of stages."""
        for number in range(len(spec.stages)):
            try:
                now = stage_width(spec, number)
            except ValueError:
                continue
            groups = max(getattr(block.op, "groups", 1) for block in spec.stages[number].blocks)
            for width in dict.fromkeys(
                groups * max(1, round(share * now / groups)) for share in self.shares
            ):
                yield Width(number, width)

    def unfit(
        self, action: Action[UNetSpec], before: Mapping[str, Call], after: Mapping[str, Call]
    ) -> str | None:
        # Weights go along, so what an edit leaves alone must keep its weights' shapes.
        if isinstance(action, Width):
            return None
        if isinstance(action, Choose) and _text(before[action.block]) == _text(after[action.block]):
            return f"{action} changes nothing that {action.block} computes as it is"
        mine = getattr(action, "block", None)
        for name, new in after.items():
            old = before.get(name, new)
            if name != mine and old != new and model(old).shapes != model(new).shapes:
                reads = [shape.shape for shape in new.inputs]
                return f"{name} would read {reads}, for which its weights do not fit"
        return None

    def lower(self, spec: UNetSpec) -> Program:
        return lower(spec)


@functools.cache
def _text(call: Call) -> str:
    """What a call computes, in words: of two that are alike one is enough."""
    return str(traced(call).jaxpr)


def _free(name: str, taken: Container[str]) -> str:
    stem = name.partition("+")[0]
    return next(free for n in itertools.count(1) if (free := f"{stem}+{n}") not in taken)
