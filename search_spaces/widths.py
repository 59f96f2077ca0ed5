"""Weights of a network of which one stage has another width: every coupled tensor is sliced alike.

Which axis of which weight holds which channels is not written down anywhere: it is read off the
shapes that an op's definition gives for other numbers of channels.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from search_spaces.model import Weights
from search_spaces.ops import Call, Shape, model, output
from search_spaces.program import Program, calls
from search_spaces.surgery import Carried, draw, part

_NEW = -1  # Stands for a channel that the old network does not have.
_SHORTCUT = "conv_shortcut.kernel"


def resized(
    before: Program, after: Program, weights: Weights, inputs: Mapping[str, Shape]
) -> Carried:
    """The weights of `after`: the same steps as `before`, some of them of another, common width.

    Channels are kept by the absolute sum of all weights coupled to them, as many of every group of
    the normalisation. A shortcut that is new passes the channels on that both its sides have; one
    that is gone is lost. New channels are drawn where they are made and silent where they are read.
    """
    old, new = calls(before, inputs), calls(after, inputs)
    changed = {name for name in old if _width(output(old[name])) != _width(output(new[name]))}
    kept = _kept(before, old, new, changed, weights)
    made, fresh, lost = dict(weights), [], []
    for name, _, reads in before:
        if name not in changed and not changed.intersection(reads):
            continue
        sources = [
            kept if r in changed else np.arange(_width(s))
            for r, s in zip(reads, old[name].inputs, strict=True)
        ]
        target = kept if name in changed else np.arange(_width(output(old[name])))
        own = _resliced(old[name], new[name], part(weights, name), sources, target)
        for each in part(weights, name):
            del made[f"{name}.{each}"]
        made |= {f"{name}.{each}": weight for each, weight in own.weights.items()}
        fresh += [f"{name}.{each}" for each in own.fresh]
        lost += [f"{name}.{each}" for each in own.lost]
    return Carried(made, tuple(fresh), tuple(lost))


def _width(shape: Shape) -> int:
    return shape.shape[-1]


class _Axis(NamedTuple):
    """An axis of a weight that holds channels: those of `reads`, one after another, or those of
    the output if there are none. It has `times` numbers for every channel."""

    name: str
    axis: int
    reads: tuple[int, ...]
    times: int

    def spread(self, channels: np.ndarray, total: int, rank: int) -> np.ndarray:
        """Positions on the axis of these channels of `total`.

        A convolution keeps the filters of a channel together, everything else has its numbers in
        blocks of all channels.
        """
        parts = np.arange(self.times)
        if rank == 4:
            found = channels[:, None] * self.times + parts
        else:
            found = channels + parts[:, None] * total
        known = channels[:, None] >= 0 if rank == 4 else np.broadcast_to(channels >= 0, found.shape)
        return np.where(known, found, _NEW).ravel()


def _axes(call: Call) -> Iterator[_Axis]:
    """All axes of a call's weights that hold channels."""
    found: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for read, shape in enumerate(call.inputs):
        if len(shape.shape) == 4:
            for name, axis, times in _growing(call, read):
                found.setdefault((name, axis), []).append((read, times))
    for (name, axis), parts in found.items():
        reads, times = zip(*parts, strict=True)
        yield _Axis(name, axis, reads, times[0])
    if hasattr(call.op, "width"):
        yield from (_Axis(name, axis, (), times) for name, axis, times in _growing(call, None))


def _growing(call: Call, read: int | None) -> Iterator[tuple[str, int, int]]:
    """Weights and axes that grow with the channels of a read, or with the op's width, and by how
    many numbers a channel."""
    base = model(call).shapes
    for factor in (2, 3, 5):  # With some a shortcut would not be there.
        probe = _probe(call, read, factor)
        shapes = model(probe).shapes
        if base.keys() <= shapes.keys():
            break
    else:
        raise ValueError(f"{call.op} has other weights for other widths")
    channels = call.op.width if read is None else _width(call.inputs[read])  # pyright: ignore
    for name, shape in base.items():
        for axis, (small, large) in enumerate(zip(shape.shape, shapes[name].shape, strict=True)):
            if small != large:
                times, rest = divmod(large - small, (factor - 1) * channels)
                if rest:
                    raise ValueError(
                        f"{name} of {call.op} grows by {large - small} for "
                        f"{(factor - 1) * channels} channels: it cannot be sliced by channel"
                    )
                yield name, axis, times


def _probe(call: Call, read: int | None, factor: int) -> Call:
    if read is None:
        width = factor * call.op.width  # pyright: ignore[reportAttributeAccessIssue]
        return Call(dataclasses.replace(call.op, width=width), call.inputs)  # pyright: ignore
    inputs = list(call.inputs)
    shape = inputs[read].shape
    wider = (*shape[:-1], factor * shape[-1])
    inputs[read] = jax.ShapeDtypeStruct(wider, inputs[read].dtype)
    return Call(call.op, tuple(inputs))


def _kept(
    program: Program,
    old: Mapping[str, Call],
    new: Mapping[str, Call],
    changed: set[str],
    weights: Weights,
) -> np.ndarray:
    """Which old channel each new one is, or that it is new."""
    (width,) = {_width(output(old[name])) for name in changed}
    (count,) = {_width(output(new[name])) for name in changed}
    sums, groups = np.zeros(width), 1
    for name, op, reads in program:
        if name in changed:
            groups = max(groups, getattr(op, "groups", 1))
        if name not in changed and not changed.intersection(reads):
            continue
        for axis in _axes(old[name]):
            weight = np.abs(np.asarray(weights[f"{name}.{axis.name}"]))
            each = weight.sum(tuple(a for a in range(weight.ndim) if a != axis.axis))
            begin = 0
            total = sum(_width(old[name].inputs[read]) for read in axis.reads) or width
            for read in axis.reads:
                channels = begin + np.arange(_width(old[name].inputs[read]))
                begin += len(channels)
                if reads[read] in changed:
                    at = axis.spread(channels, total, weight.ndim)
                    sums += _by_channel(each[at], axis, weight.ndim)
            if not axis.reads and name in changed:
                at = axis.spread(np.arange(width), width, weight.ndim)
                sums += _by_channel(each[at], axis, weight.ndim)
    return _best(sums, count, groups)


def _by_channel(numbers: np.ndarray, axis: _Axis, rank: int) -> np.ndarray:
    if rank == 4:
        return numbers.reshape(-1, axis.times).sum(1)
    return numbers.reshape(axis.times, -1).sum(0)


def _best(sums: np.ndarray, count: int, groups: int) -> np.ndarray:
    """The `count` channels with the largest sums, as many of each group, in order; if that is more
    than there are, every group is filled up with new ones."""
    by_group, each = sums.reshape(groups, -1), count // groups
    size = by_group.shape[1]
    if each >= size:
        old = np.arange(len(sums)).reshape(groups, size)
        return np.pad(old, ((0, 0), (0, each - size)), constant_values=_NEW).ravel()
    best = np.sort(np.argsort(-by_group, axis=1, kind="stable")[:, :each], axis=1)
    return (best + size * np.arange(groups)[:, None]).ravel()


def _resliced(
    old: Call, new: Call, weights: Weights, sources: list[np.ndarray], target: np.ndarray
) -> Carried:
    shapes = model(new).shapes
    indices: dict[str, dict[int, np.ndarray]] = {name: {} for name in weights}
    silent: dict[str, set[int]] = {name: set() for name in weights}
    for axis in _axes(old):
        rank = len(model(old).shapes[axis.name].shape)
        channels, total = target, _width(output(old))
        if axis.reads:
            channels, total = _joined(old, sources, axis.reads)
            # A kernel is silent to new channels; a normalisation just has more of them.
            if rank > 1 and axis.axis == rank - 2:
                silent[axis.name].add(axis.axis)
        indices[axis.name][axis.axis] = axis.spread(channels, total, rank)
    drawn = draw(new, shapes)
    made, fresh = {}, []
    for name in shapes:
        if name in weights:
            made[name] = _gathered(weights[name], drawn[name], indices[name], silent[name])
            if any((at == _NEW).any() for at in indices[name].values()):
                fresh.append(name)
        elif name == _SHORTCUT:
            images = tuple(r for r, s in enumerate(old.inputs) if len(s.shape) == 4)
            channels, _ = _joined(old, sources, images)
            same = (channels[:, None] == target) & (target >= 0)
            made[name] = jnp.asarray(same[None, None], drawn[name].dtype)
        else:
            made[name] = drawn[name]
            if name != _SHORTCUT.replace("kernel", "bias"):
                fresh.append(name)
    return Carried(made, tuple(fresh), tuple(name for name in weights if name not in shapes))


def _joined(
    call: Call, sources: list[np.ndarray], reads: tuple[int, ...]
) -> tuple[np.ndarray, int]:
    """Old channels of several reads one after another, and how many there were."""
    begin, parts = 0, []
    for read in reads:
        parts.append(np.where(sources[read] >= 0, begin + sources[read], _NEW))
        begin += _width(call.inputs[read])
    return np.concatenate(parts), begin


def _gathered(
    weight: jax.Array, drawn: jax.Array, indices: dict[int, np.ndarray], silent: set[int]
) -> jax.Array:
    every = [indices.get(axis, np.arange(size)) for axis, size in enumerate(weight.shape)]
    found = np.array(np.asarray(weight)[np.ix_(*(np.maximum(at, 0) for at in every))])
    for axis in sorted(indices, key=lambda axis: axis in silent):
        at = [slice(None)] * found.ndim
        at[axis] = indices[axis] == _NEW  # pyright: ignore[reportArgumentType, reportCallIssue]
        found[tuple(at)] = 0.0 if axis in silent else np.asarray(drawn)[tuple(at)]
    return jnp.asarray(found)
