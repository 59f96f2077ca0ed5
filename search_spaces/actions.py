"""The edits of diffusion U-Nets, as data: blocks, micro-choices within them, whole stages.

Every edit says whether it needs calibration samples, how to undo it, and how weights follow.
Blocks keep their names, so edits compose.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from search_spaces.blocks import Transformer
from search_spaces.model import Weights
from search_spaces.ops import Call, Op, choices, model, options
from search_spaces.program import calls
from search_spaces.surgery import Calibration, Carried, Change, draw, part, put, without
from search_spaces.unet import Block, Layer, Place, Stage, UNetSpec, lower
from search_spaces.widths import resized


class _Uncalibrated:
    """An edit that fits nothing to calibration samples."""

    calibrated: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class Remove(_Uncalibrated):
    """Removes one block; what followed it reads what it read. The rest is kept to the bit.

    Needs a block whose output has the shape of its input.
    """

    block: str

    def apply(self, spec: UNetSpec) -> UNetSpec:
        place = spec.place(self.block)
        blocks = _layer(spec, place).blocks
        return spec.with_blocks(place, tuple(b for b in blocks if b.name != self.block))

    def inverse(self, spec: UNetSpec) -> "Insert":
        return Insert(spec.block(self.block), spec.place(self.block))

    def carry(self, spec: UNetSpec, weights: Weights, calibration: Calibration) -> Carried:
        return _shared(self.apply(spec), weights, calibration)


@dataclasses.dataclass(frozen=True)
class Insert(_Uncalibrated):
    """Puts a block in place. Its weights are drawn; a residual block starts as a no-op.

    Needs a free name and an op that keeps the shape of its input.
    """

    block: Block
    place: Place

    def apply(self, spec: UNetSpec) -> UNetSpec:
        _check_free(spec, self.block.name)
        blocks = list(_layer(spec, self.place).blocks)
        if not 0 <= self.place.position <= len(blocks):
            raise ValueError(f"a layer of {len(blocks)} blocks has no room at {self.place}")
        blocks.insert(self.place.position, self.block)
        return spec.with_blocks(self.place, tuple(blocks))

    def inverse(self, spec: UNetSpec) -> Remove:
        return Remove(self.block.name)

    def carry(self, spec: UNetSpec, weights: Weights, calibration: Calibration) -> Carried:
        return _shared(self.apply(spec), weights, calibration)


@dataclasses.dataclass(frozen=True)
class Copy(_Uncalibrated):
    """Puts a copy of a block, called `name`, behind it. It starts as a no-op: it has its original's
    weights, but its outlet is zero.

    The copy of a ResNet that reads a skip reads none, and takes the leading channels, which are
    those of `x`. Needs a residual op that keeps the shape of its input, and a free name.
    """

    block: str
    name: str

    def apply(self, spec: UNetSpec) -> UNetSpec:
        _check_free(spec, self.name)
        place, op = spec.place(self.block), spec.block(self.block).op
        if op.outlet is None:
            raise ValueError(f"{op} is not residual: a copy of it cannot start as a no-op")
        new = dataclasses.replace(spec.block(self.block), name=self.name, reads_skip=False)
        blocks, at = _layer(spec, place).blocks, place.position + 1
        return spec.with_blocks(place, (*blocks[:at], new, *blocks[at:]))

    def inverse(self, spec: UNetSpec) -> Remove:
        return Remove(self.name)

    def carry(self, spec: UNetSpec, weights: Weights, calibration: Calibration) -> Carried:
        call = calls(lower(self.apply(spec)), calibration.inputs)[self.name]
        return Carried(put(weights, self.name, _silenced(call, part(weights, self.block))))


@dataclasses.dataclass(frozen=True)
class Choose:
    """Makes one micro-choice of a block: gives a field of its op another value.

    Needs a field that the op declares as a choice, a value of a kind it declares, and calibration
    samples. The field declares how weights follow.
    """

    block: str
    field: str
    value: Any
    calibrated: ClassVar[bool] = True

    def apply(self, spec: UNetSpec) -> UNetSpec:
        place = spec.place(self.block)
        blocks = list(_layer(spec, place).blocks)
        old = blocks[place.position]
        blocks[place.position] = dataclasses.replace(old, op=self.chosen(old.op))
        return spec.with_blocks(place, tuple(blocks))

    def chosen(self, op: Op) -> Op:
        """`op` with this choice made."""
        found = options(op)
        if self.field not in found:
            raise ValueError(
                f"{self.block} is a {type(op).__name__}, which has no choice {self.field!r}; "
                f"it has {list(found)}"
            )
        if type(self.value) not in {type(option) for option in found[self.field]}:
            raise ValueError(
                f"{self.field} of {self.block} cannot be {self.value!r}; "
                f"it may be {', '.join(map(repr, found[self.field]))}"
            )
        return dataclasses.replace(op, **{self.field: self.value})  # pyright: ignore

    def inverse(self, spec: UNetSpec) -> "Choose":
        return Choose(self.block, self.field, getattr(spec.block(self.block).op, self.field))

    def change(self, spec: UNetSpec, weights: Weights, calibration: Calibration) -> Change:
        """The block before and after, with what it sees on calibration samples.

        Raises `ValueError` if there are none.
        """
        if calibration.samples is None:
            raise ValueError(f"{self} fits weights to calibration samples, and none were given")
        program = lower(spec)
        old = calls(program, calibration.inputs)[self.block]
        return Change(
            old,
            Call(self.chosen(old.op), old.inputs),
            part(weights, self.block),
            calibration.samples(program, weights, self.block),
            calibration.criterion,
        )

    def carry(self, spec: UNetSpec, weights: Weights, calibration: Calibration) -> Carried:
        change = self.change(spec, weights, calibration)
        carry = choices(change.old.op)[self.field].carry
        own = change.carried() if carry is None else carry(change)
        fresh, lost = (
            tuple(f"{self.block}.{name}" for name in names) for names in (own.fresh, own.lost)
        )
        return Carried(put(weights, self.block, own.weights), fresh, lost)


@dataclasses.dataclass(frozen=True)
class RemoveStage(_Uncalibrated):
    """Removes the innermost stage: the last of the down path, the first of the up path, and the
    changes of resolution between them and their neighbours. BK-SDM-Tiny is Small without it.

    Needs a second stage, as many skips popped as pushed, and stages of one width, so that what is
    left reads as many channels as before.
    """

    def apply(self, spec: UNetSpec) -> UNetSpec:
        if len(spec.down) < 2:
            raise ValueError("this spec has one stage: it cannot be removed")
        if spec.up[0].resample is None or spec.down[-2].resample is None:
            raise ValueError("the innermost stage has the resolution of the one before it")
        pushed, popped = len(spec.down[-1].layers) + 1, len(spec.up[0].layers)
        if pushed != popped:
            raise ValueError(
                f"the innermost stage pushes {pushed} skips and pops {popped}: without it the "
                "skips of the rest would not balance"
            )
        outer = dataclasses.replace(spec.down[-2], resample=None)
        return dataclasses.replace(spec, down=(*spec.down[:-2], outer), up=spec.up[1:])

    def inverse(self, spec: UNetSpec) -> "RestoreStage":
        assert spec.down[-2].resample is not None
        return RestoreStage(spec.down[-2].resample, spec.down[-1], spec.up[0])

    def carry(self, spec: UNetSpec, weights: Weights, calibration: Calibration) -> Carried:
        return _shared(self.apply(spec), weights, calibration)


@dataclasses.dataclass(frozen=True)
class RestoreStage(_Uncalibrated):
    """Puts a stage inside the innermost one: `downsample`, `down`, and `up` behind the middle.

    Its weights are drawn. Needs names that are free, and as many skips popped as pushed.
    """

    downsample: Op
    down: Stage
    up: Stage

    def apply(self, spec: UNetSpec) -> UNetSpec:
        for block in (*self.down.blocks, *self.up.blocks):
            _check_free(spec, block.name)
        if self.down.resample is not None or self.up.resample is None:
            raise ValueError("the innermost stage ends in no resampling, and its way up in one")
        outer = dataclasses.replace(spec.down[-1], resample=self.downsample)
        return dataclasses.replace(
            spec, down=(*spec.down[:-1], outer, self.down), up=(self.up, *spec.up)
        )

    def inverse(self, spec: UNetSpec) -> RemoveStage:
        return RemoveStage()

    def carry(self, spec: UNetSpec, weights: Weights, calibration: Calibration) -> Carried:
        return _shared(self.apply(spec), weights, calibration)


@dataclasses.dataclass(frozen=True)
class RemovePair(_Uncalibrated):
    """Removes a layer of the down path and one of the up path at the same resolution, and with
    them a skip: what BK-SDM does in every stage. `stage` counts from the highest resolution.

    Skips stay a stack, so those of the stage are paired anew. Needs two layers that keep the shape
    of their input, and skips of one width.
    """

    stage: int
    down: int
    up: int

    def apply(self, spec: UNetSpec) -> UNetSpec:
        down, up = self.numbers(spec)
        layers = {down: self.down, up: self.up}
        return spec.with_stages({n: _less(spec.stages[n], layers[n]) for n in layers})

    def numbers(self, spec: UNetSpec) -> tuple[int, int]:
        """Numbers of the two stages among all."""
        if not 0 <= self.stage < len(spec.down):
            raise ValueError(f"no stage {self.stage}: the down path has {len(spec.down)}")
        return self.stage, len(spec.stages) - 1 - self.stage

    def inverse(self, spec: UNetSpec) -> "InsertPair":
        down, up = (spec.stages[n] for n in self.numbers(spec))
        return InsertPair(self, down.layers[self.down], up.layers[self.up])

    def carry(self, spec: UNetSpec, weights: Weights, calibration: Calibration) -> Carried:
        return _shared(self.apply(spec), weights, calibration)


@dataclasses.dataclass(frozen=True)
class InsertPair(_Uncalibrated):
    """Puts a layer into the down path and one into the up path, which share a skip: the inverse of
    `removal`. Their weights are drawn; residual blocks start as no-ops."""

    removal: RemovePair
    down: Layer
    up: Layer

    def apply(self, spec: UNetSpec) -> UNetSpec:
        for block in (*self.down.blocks, *self.up.blocks):
            _check_free(spec, block.name)
        down, up = self.removal.numbers(spec)
        stages = {
            down: _more(spec.stages[down], self.removal.down, self.down),
            up: _more(spec.stages[up], self.removal.up, self.up),
        }
        return spec.with_stages(stages)

    def inverse(self, spec: UNetSpec) -> RemovePair:
        return self.removal

    def carry(self, spec: UNetSpec, weights: Weights, calibration: Calibration) -> Carried:
        return _shared(self.apply(spec), weights, calibration)


@dataclasses.dataclass(frozen=True)
class Move(_Uncalibrated):
    """Moves a block to another place, as `op`: a transformer towards the middle, where it costs
    less (MobileDiffusion). `place` is counted with the block gone.

    Where op and width stay the same its weights go along to the bit. Otherwise they cannot: the
    block then starts as a no-op, with the weights of a block of its new stage that is alike or,
    failing that, drawn. Needs a block that keeps the shape of its input at both places.
    """

    block: str
    place: Place
    op: Op

    def apply(self, spec: UNetSpec) -> UNetSpec:
        moved = dataclasses.replace(spec.block(self.block), op=self.op)
        if moved.reads_skip:
            raise ValueError(f"{self.block} reads a skip, which it would not find elsewhere")
        return Insert(moved, self.place).apply(Remove(self.block).apply(spec))

    def inverse(self, spec: UNetSpec) -> "Move":
        return Move(self.block, spec.place(self.block), spec.block(self.block).op)

    def carry(self, spec: UNetSpec, weights: Weights, calibration: Calibration) -> Carried:
        edited = self.apply(spec)
        call = calls(lower(edited), calibration.inputs)[self.block]
        shapes = model(call).shapes
        for other in (self.block, *(b.name for b in spec.stages[self.place.stage].blocks)):
            found = part(weights, other)
            op = spec.block(other).op
            fits = {n: w.shape for n, w in found.items()} == {n: s.shape for n, s in shapes.items()}
            if fits and op == self.op:
                own = found if other == self.block else _silenced(call, found)
                lost = () if other == self.block else _names(weights, self.block)
                return Carried(put(weights, self.block, own), (), lost)
        drawn = {f"{self.block}.{n}": w for n, w in draw(call, shapes).items()}
        lost = _names(weights, self.block)
        return Carried(without(weights, self.block) | drawn, tuple(drawn), lost)


@dataclasses.dataclass(frozen=True)
class Width(_Uncalibrated):
    """Gives the blocks of a stage another width, and with them all that passes through it.

    `stage` counts all stages, down, middle and up. The stem goes along with the first. Channels
    are kept by the absolute sum of all weights that are coupled to them, as many of every group of
    the normalisation. Transformers keep their heads and size. Needs a width of whole groups.
    """

    stage: int
    width: int

    def apply(self, spec: UNetSpec) -> UNetSpec:
        old = stage_width(spec, self.stage)
        stage = spec.stages[self.stage]
        widths = {getattr(block.op, "width", old) for block in stage.blocks}
        if self.width < 1 or len(widths) > 1:
            raise ValueError(
                f"{stage.name} of widths {sorted(widths)} cannot be {self.width} wide: "
                "a stage has one width, of one channel or more"
            )

        def narrower(block: Block) -> Block:
            if not hasattr(block.op, "width"):
                return block
            op = dataclasses.replace(block.op, width=self.width)  # pyright: ignore
            return dataclasses.replace(block, op=op)

        layers = tuple(Layer(tuple(map(narrower, layer.blocks))) for layer in stage.layers)
        edited = spec.with_stages({self.stage: dataclasses.replace(stage, layers=layers)})
        if self.stage == 0 and spec.stem.width == old:
            stem = dataclasses.replace(spec.stem, width=self.width)
            edited = dataclasses.replace(edited, stem=stem)
        return edited

    def inverse(self, spec: UNetSpec) -> "Width | None":
        old = stage_width(spec, self.stage)
        back = Width(self.stage, old)
        return back if back.apply(self.apply(spec)) == spec else None

    def carry(self, spec: UNetSpec, weights: Weights, calibration: Calibration) -> Carried:
        edited = self.apply(spec)
        before, after = (lower(s) for s in (spec, edited))
        return resized(before, after, weights, calibration.inputs)


def stage_width(spec: UNetSpec, number: int) -> int:
    """The width of a stage's blocks, the last one's. Raises `ValueError` if none has its own."""
    if not 0 <= number < len(spec.stages):
        raise ValueError(f"no stage {number}: this spec has {len(spec.stages)}")
    found = [getattr(b.op, "width", None) for b in spec.stages[number].blocks]
    widths = [width for width in found if width is not None]
    if not widths:
        raise ValueError(f"{spec.stages[number].name} has no ResNet, and so no width of its own")
    return widths[-1]


def moved_inwards(spec: UNetSpec, name: str) -> Move:
    """The move of a transformer to the next stage towards the middle.

    Between equal widths it stays as it is. Otherwise it becomes like the last transformer of that
    stage; without any it keeps its choices, with heads of its own number. Raises `ValueError` for
    what is no transformer or is in the middle.
    """
    place, op = spec.place(name), spec.block(name).op
    middle = len(spec.down)
    if not isinstance(op, Transformer) or place.stage == middle:
        raise ValueError(f"{name} is no transformer outside the middle")
    number = place.stage + 1 if place.stage < middle else place.stage - 1
    stage = spec.stages[number]
    layer = 0 if place.stage < middle else len(stage.layers) - 1
    if not stage.layers:
        raise ValueError(f"{stage.name} has no layer to move {name} to")
    others = [block.op for block in stage.blocks if isinstance(block.op, Transformer)]
    width = stage_width(spec, number)
    if width == stage_width(spec, place.stage):
        others = [op]
    if not others and width % op.heads:
        raise ValueError(f"{width} channels do not divide into {op.heads} heads")
    new = others[-1] if others else dataclasses.replace(op, size=width // op.heads)
    return Move(name, Place(number, layer, len(stage.layers[layer].blocks)), new)


def _layer(spec: UNetSpec, place: Place) -> Layer:
    if not 0 <= place.stage < len(spec.stages):
        raise ValueError(f"no stage {place.stage}: this spec has {len(spec.stages)}")
    return _layer_of(spec.stages[place.stage], place.layer)


def _layer_of(stage: Stage, number: int) -> Layer:
    if not 0 <= number < len(stage.layers):
        raise ValueError(f"{stage.name} has {len(stage.layers)} layers, and no layer {number}")
    return stage.layers[number]


def _less(stage: Stage, number: int) -> Stage:
    _layer_of(stage, number)
    layers = (*stage.layers[:number], *stage.layers[number + 1 :])
    return dataclasses.replace(stage, layers=layers)


def _more(stage: Stage, number: int, layer: Layer) -> Stage:
    if not 0 <= number <= len(stage.layers):
        raise ValueError(f"{stage.name} of {len(stage.layers)} layers has no room at {number}")
    layers = (*stage.layers[:number], layer, *stage.layers[number:])
    return dataclasses.replace(stage, layers=layers)


def _check_free(spec: UNetSpec, name: str) -> None:
    for step in lower(spec):
        if f"{step.name}.".startswith(f"{name}.") or name.startswith(f"{step.name}."):
            raise ValueError(
                f"this spec has {step.name} already, beside which the weights of {name} cannot be "
                "told apart; give the new one another name"
            )


def _silenced(call: Call, weights: Weights) -> Weights:
    """The leading part of `weights` that `call` has, with its outlet at zero."""
    outlet = call.op.outlet
    if outlet is None:
        raise ValueError(f"{call.op} is not residual: it cannot start as a no-op")
    return {
        name: jnp.zeros(shape.shape, shape.dtype)
        if name.startswith(f"{outlet}.")
        else weights[name][tuple(slice(size) for size in shape.shape)]
        for name, shape in model(call).shapes.items()
    }


def _shared(edited: UNetSpec, weights: Weights, calibration: Calibration) -> Carried:
    """What the networks before and after an edit have in common, to the bit; the rest is drawn,
    blocks of it starting as no-ops where they are residual."""
    kept, fresh = {}, {}
    for step, call in calls(lower(edited), calibration.inputs).items():
        own = part(weights, step)
        shapes = {name: shape.shape for name, shape in model(call).shapes.items()}
        if {name: weight.shape for name, weight in own.items()} == shapes:
            kept |= {f"{step}.{name}": weight for name, weight in own.items()}
        else:
            fresh |= {f"{step}.{n}": w for n, w in draw(call, shapes).items()}
    lost = tuple(name for name in weights if name not in kept)
    return Carried({**kept, **fresh}, tuple(fresh), lost)


def _names(weights: Weights, block: str) -> tuple[str, ...]:
    return tuple(f"{block}.{name}" for name in part(weights, block))
