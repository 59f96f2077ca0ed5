"""Architectures in the words of diffusers' `UNet2DConditionModel`, and what it has no words for.

The class builds stages of equal layers, a ResNet and perhaps a transformer each; an up stage has
one layer more than the down stage of its resolution. Widths and numbers of heads are a
resolution's; normalisation and modulation are the network's; only transformers' depths are free.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from search_spaces.blocks import Additive, Modulation, ResNet, ScaleShift, Transformer
from search_spaces.ops import Op
from search_spaces.unet import Block, Stage, UNetSpec

MODULATIONS: dict[str, Modulation] = {"default": Additive(), "scale_shift": ScaleShift()}
# What the middle may be: for every layer, whether a transformer follows its ResNet.
MIDDLES: dict[str | None, tuple[bool, ...]] = {
    "UNetMidBlock2DCrossAttn": (True, False),
    "UNetMidBlock2D": (False,),
    None: (),
}
_HEADS = 8  # Where nothing attends; diffusers' default.
# What diffusers sets once for several blocks.
_TOGETHER = {
    "width": "one width at a resolution",
    "heads": "one number of heads at a resolution",
    "depth": "the depth of the last down stage's first transformer",
    "groups": "one number of groups in the network",
    "epsilon": "one epsilon in the network",
    "modulation": "one modulation in the network",
    "linear": "one kind of projection in the network",
}

Kind = TypeVar("Kind", bound=Op)
Value = TypeVar("Value")


def settings(spec: UNetSpec) -> dict[str, Any]:
    """The settings that make diffusers' class most like `spec`, which has as many down as up
    stages; `differences` says what is still unlike."""
    levels = list(zip(spec.down, reversed(spec.up), strict=True))
    resnets = list(_ops(ResNet, spec.stages))
    transformers = list(_ops(Transformer, spec.stages))
    groups, epsilon, modulation = _most(
        ((op.groups, op.epsilon, op.modulation) for op in resnets),
        (spec.norm.groups, spec.norm.epsilon, Additive()),
    )
    widths, heads = [], []
    for level in levels:
        # Without a ResNet a down stage stays as wide as what comes in.
        before = widths[-1] if widths else spec.stem.width
        widths.append(_most((op.width for op in _ops(ResNet, level[:1])), before))
        attending = level if level is not levels[-1] else (*level, spec.middle)
        fitting = (op.heads for op in _ops(Transformer, attending) if widths[-1] % op.heads == 0)
        heads.append(_most(fitting, _HEADS if widths[-1] % _HEADS == 0 else 1))
    forward, backward = _depths(spec)
    symmetric = forward == backward[::-1] and all(isinstance(depth, int) for depth in forward)
    time = spec.time.width if spec.time.width != 4 * widths[0] else None
    return {
        "block_out_channels": widths,
        "layers_per_block": _short([len(stage.layers) for stage in spec.down]),
        "down_block_types": [_type(stage, "Down") for stage in spec.down],
        "mid_block_type": _middle_type(spec.middle),
        "up_block_types": [_type(stage, "Up") for stage in spec.up],
        "attention_head_dim": _short(heads),  # Which is what diffusers calls their number.
        "num_attention_heads": None,
        "transformer_layers_per_block": _short(forward) if symmetric else forward,
        "reverse_transformer_layers_per_block": None if symmetric else backward,
        "use_linear_projection": _most((op.linear for op in transformers), False),
        "norm_num_groups": groups,
        "norm_eps": epsilon,
        "resnet_time_scale_shift": next(
            (name for name, known in MODULATIONS.items() if known == modulation), "default"
        ),
        "only_cross_attention": False,
        "conv_in_kernel": spec.stem.kernel,
        "conv_out_kernel": spec.head.kernel,
        "out_channels": spec.head.width,
        "time_embedding_dim": time,
        "addition_embed_type": "text_time" if spec.added else None,
        "addition_time_embed_dim": spec.added.features if spec.added else None,
    }


def _depths(spec: UNetSpec) -> tuple[list[Any], list[Any]]:
    """Depths of the transformers of the down and of the up stages: a number, or one for a layer."""

    def of(stage: Stage) -> Any:
        if not any(_ops(Transformer, (stage,))):
            return None
        found = (_ops(Transformer, (Stage("", (layer,)),)) for layer in stage.layers)
        return _short([next((op.depth for op in ops), 1) for ops in found])

    forward, backward = [of(stage) for stage in spec.down], [of(stage) for stage in spec.up]
    # The entry of a stage without transformers is free, but the middle reads the last one.
    middle = next((op.depth for op in _ops(Transformer, (spec.middle,))), None)
    for level, depth in enumerate(forward):
        if depth is None:
            other = backward[-1 - level]
            free = middle if level == len(forward) - 1 and middle is not None else other
            forward[level] = free if isinstance(free, int) else 1
    for index, depth in enumerate(backward):
        if depth is None:
            other = forward[-1 - index]
            backward[index] = other if isinstance(other, int) else 1
    return forward, backward


def _type(stage: Stage, way: str) -> str:
    attends = any(_ops(Transformer, (stage,)))
    return f"{'CrossAttn' if attends else ''}{way}Block2D"


def _middle_type(stage: Stage) -> str | None:
    kinds = [type(block.op) for block in stage.blocks]
    if not kinds:
        return None
    return "UNetMidBlock2D" if kinds == [ResNet] else "UNetMidBlock2DCrossAttn"


def _ops(kind: type[Kind], stages: Iterable[Stage]) -> Iterator[Kind]:
    return (b.op for stage in stages for b in stage.blocks if isinstance(b.op, kind))


def _most(values: Iterable[Value], default: Value) -> Value:
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else default


def _short(values: list[Any]) -> Any:
    """`values`, or the one number that all of them are."""
    same = bool(values) and isinstance(values[0], int) and values.count(values[0]) == len(values)
    return values[0] if same else values


def differences(spec: UNetSpec, built: UNetSpec) -> Iterator[str]:
    """Yields in words how `spec` is unlike `built`, which diffusers builds; nothing if they compute
    the same."""
    for name, one, other in (
        ("conv_in", spec.stem, built.stem),
        ("time_embedding", spec.time, built.time),
        ("add_embedding", spec.added, built.added),
    ):
        yield from _unlike(name, one, other)
    for stage, other in zip(spec.down, built.down, strict=True):
        yield from _stage(stage, other)
    yield from _middle(spec.middle, built.middle)
    for index, (stage, other) in enumerate(zip(spec.up, built.up, strict=True)):
        if len(stage.layers) != len(other.layers):
            yield (
                f"{stage.name} has {_count(len(stage.layers), 'layer')}; diffusers builds "
                f"{len(other.layers)}, one more than in {spec.down[-1 - index].name}"
            )
        yield from _stage(stage, other)
    yield from _unlike("conv_norm_out", spec.norm, built.norm)
    yield from _unlike("conv_out", spec.head, built.head)


def _stage(stage: Stage, built: Stage) -> Iterator[str]:
    attend = [any(_ops(Transformer, (Stage("", (layer,)),))) for layer in stage.layers]
    for index, attends in enumerate(attend):
        if attends != attend[0]:
            yield (
                f"{stage.name} has {'a' if attend[0] else 'no'} transformer in layer 0 but "
                f"{'one' if attends else 'none'} in layer {index}; diffusers builds equal layers"
            )
            break
    for index, (layer, other) in enumerate(zip(stage.layers, built.layers, strict=False)):
        # Whether there are transformers has been said.
        expected = [b for b in other.blocks if attend[index] or not isinstance(b.op, Transformer)]
        if _kinds(layer.blocks) != _kinds(expected):
            yield (
                f"{stage.name} has {_words(layer.blocks)} in layer {index}; "
                f"diffusers builds {_words(other.blocks)}"
            )
        yield from _paired(layer.blocks, expected)
    if stage.resample is None or built.resample is None:
        if stage.resample is not built.resample:
            change = "does not change" if stage.resample is None else "changes"
            yield f"{stage.name} {change} the resolution at its end; diffusers' is otherwise"
    else:
        yield from _unlike(f"the end of {stage.name}", stage.resample, built.resample)


def _middle(stage: Stage, built: Stage) -> Iterator[str]:
    # Layers of the middle push and pop nothing, so how its blocks are spread over them is nothing.
    if _kinds(stage.blocks) != _kinds(built.blocks):
        yield (
            f"{stage.name} has {_words(stage.blocks)}; diffusers builds a ResNet, a transformer "
            "and a ResNet, or a ResNet alone, or no middle"
        )
    yield from _paired(stage.blocks, built.blocks)


def _paired(blocks: Sequence[Block], built: Sequence[Block]) -> Iterator[str]:
    """Compares ResNets with ResNets, and so on, where they stand in order of their kind."""
    for kind in dict.fromkeys(type(block.op) for block in built):
        ours, theirs = ([b for b in many if type(b.op) is kind] for many in (blocks, built))
        for one, other in zip(ours, theirs, strict=False):
            yield from _unlike(one.name, one.op, other.op)


def _kinds(blocks: Sequence[Block]) -> list[tuple[type[Op], bool]]:
    return [(type(block.op), block.reads_skip) for block in blocks]


def _words(blocks: Sequence[Block]) -> str:
    """E.g. "a ResNet that reads the skip, then 2 transformers"."""
    names = [
        ("transformer" if isinstance(block.op, Transformer) else type(block.op).__name__)
        + (" that reads the skip" if block.reads_skip else "")
        for block in blocks
    ]
    runs = ((name, len(list(run))) for name, run in itertools.groupby(names))
    counted = (f"a {name}" if count == 1 else _count(count, name) for name, count in runs)
    return ", then ".join(counted) or "nothing"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _unlike(name: str, op: Op | None, built: Op | None) -> Iterator[str]:
    """Yields how an op is unlike the one that diffusers builds in its place."""
    if type(op) is not type(built) or op is None:
        if op is not built:
            yield f"{name} is {op!r}; diffusers builds {built!r}"
        return
    passed: tuple[str, ...] = ()
    if isinstance(op, Transformer) and isinstance(built, Transformer):
        channels = built.heads * built.size
        if op.heads * op.size != channels:
            passed = ("heads", "size")
            yield (
                f"{name} has {_count(op.heads, 'head')} of {op.size} channels; "
                f"diffusers' heads share out all {channels}"
            )
        elif op.heads != built.heads:
            passed = ("size",)
    for field in dataclasses.fields(op):  # pyright: ignore[reportArgumentType]
        ours, theirs = getattr(op, field.name), getattr(built, field.name)
        if ours != theirs and field.name not in passed:
            why = f", {_TOGETHER[field.name]}" if field.name in _TOGETHER else ""
            yield f"{name} has {field.name}={ours!r}; diffusers builds {theirs!r}{why}"
