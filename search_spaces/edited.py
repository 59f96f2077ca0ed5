"""U-Nets together with the edits that lead to them: what a search walks through whose candidates
get their weights from one network by these edits."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from search_spaces.actions import Remove
from search_spaces.space import Action
from search_spaces.unet import UNetSpec
from search_spaces.unet_space import UNetSpace
from search_spaces.values import encode

KINDS = ("Remove", "Copy", "Choose", "Move", "RemovePair", "Width", "RemoveStage")
"""Kinds of edits that a U-Net's space offers, by their class in `search_spaces.actions`."""


@dataclasses.dataclass(frozen=True, repr=False)
class Edited:
    """An architecture, and by which edits its weights come from the seed's.

    Two are equal if the architecture is and the blocks have the same names, as then it is the same
    blocks that are left.
    """

    spec: UNetSpec
    names: tuple[str, ...]
    edits: tuple[Action[UNetSpec], ...] = dataclasses.field(default=(), compare=False)

    def __repr__(self) -> str:
        # The first spec of a search is known, so the edits say all, at a hundredth of the length.
        return f"Edited({self.edits!r})"

    def leaves(self) -> Mapping[str, Any]:
        """What it is made of, by block and field: see `nas.strategies.leaves`."""
        found: dict[str, Any] = {}
        for block in self.spec.blocks:
            place = self.spec.place(block.name)
            found[block.name] = f"{place.stage}.{place.layer}"
            for field in dataclasses.fields(block.op):  # pyright: ignore[reportArgumentType]
                value = encode(getattr(block.op, field.name))
                found[f"{block.name}.{field.name}"] = (
                    str(value) if isinstance(value, dict | list) else value
                )
        return found


@dataclasses.dataclass(frozen=True)
class Step:
    """An edit of an `Edited`, whose edits start from `seed`."""

    action: Action[UNetSpec]
    seed: UNetSpec

    def apply(self, spec: Edited) -> Edited:
        after = self.action.apply(spec.spec)
        found = Edited(after, _names(after), (*spec.edits, self.action))
        return dataclasses.replace(found, edits=_shortened(self.seed, found))


@dataclasses.dataclass(frozen=True, eq=False)
class EditedSpace:
    """The edits of `space` that are of these `kinds` and lead to what is `priced`.

    Raises `ValueError` on a kind that is none of `KINDS`.
    """

    space: UNetSpace
    kinds: tuple[str, ...] = KINDS
    priced: Callable[[UNetSpec], bool] = lambda _: True

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ValueError(
                f"edits are one or more of {', '.join(KINDS)}, not {' '.join(unknown) or 'none'}"
            )

    def initial(self) -> Edited:
        return first(self.space.seed)

    def actions(self, spec: Edited) -> Iterator[Step]:
        return (Step(a, self.space.seed) for a in self._possible(spec) if self._legal(spec, a))

    def shuffled(self, spec: Edited, rng: np.random.Generator) -> Iterator[Edited]:
        """Yields what one edit makes of `spec`, in random order: see `nas.strategies.drawing`."""
        possible = self._possible(spec)
        for i in rng.permutation(len(possible)):
            if self._legal(spec, possible[i]):
                yield Step(possible[i], self.space.seed).apply(spec)

    def _possible(self, spec: Edited) -> list[Action[UNetSpec]]:
        return [a for a in self.space.candidates(spec.spec) if type(a).__name__ in self.kinds]

    def _legal(self, spec: Edited, action: Action[UNetSpec]) -> bool:
        return self.space.illegal(spec.spec, action) is None and self.priced(
            action.apply(spec.spec)
        )


def first(seed: UNetSpec) -> Edited:
    """The seed, without an edit."""
    return Edited(seed, _names(seed))


def led(seed: UNetSpec, edits: Iterable[Action[UNetSpec]]) -> UNetSpec:
    """Where `edits` lead from `seed`. Raises `ValueError` where one is not legal."""
    for edit in edits:
        seed = edit.apply(seed)
    return seed


def carrier(seed: UNetSpec, edited: Edited) -> UNetSpec:
    """A spec that runs `edited` by leaving blocks out: all its edits but the removals.

    So candidates that differ in what was removed share a compiled program. It is the architecture
    itself where the removals cannot be told from the rest.
    """
    try:
        whole = led(seed, (edit for edit in edited.edits if not isinstance(edit, Remove)))
        gone = [block.name for block in whole.blocks if block.name not in edited.names]
        if _same(led(whole, map(Remove, gone)), edited):
            return whole
    except (LookupError, ValueError):
        pass
    return edited.spec


def _shortened(seed: UNetSpec, edited: Edited) -> tuple[Action[UNetSpec], ...]:
    """The edits without one that the last makes idle: a choice made again, a copy removed.

    Weights then come by the shorter way, which loses less.
    """
    *before, last = edited.edits
    for i, edit in enumerate(before):
        if not _touched(edit) & _touched(last):
            continue
        rest = (*before[:i], *before[i + 1 :])
        for shorter in (rest, (*rest, last)):
            try:
                if _same(led(seed, shorter), edited):
                    return shorter
            except (LookupError, ValueError):
                continue
    return edited.edits


def _touched(edit: Action[UNetSpec]) -> set[Any]:
    """What an edit says it is about: blocks by name, stages by number."""
    said = {getattr(edit, field, None) for field in ("block", "name", "stage")}
    return said - {None}


def _same(spec: UNetSpec, edited: Edited) -> bool:
    return spec == edited.spec and _names(spec) == edited.names


def _names(spec: UNetSpec) -> tuple[str, ...]:
    return tuple(block.name for block in spec.blocks)
