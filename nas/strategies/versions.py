"""Sequences as values: a changed one is new, and shares with the old what they have in common.

Changing one item, or adding one, costs as much whatever their number, near enough.
"""

import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

BITS = 5
WIDTH = 1 << BITS


class Vector(Sequence[T]):
    """Items in order. A tree of tuples of at most `WIDTH`, with all items as deep."""

    __slots__ = ("_depth", "_length", "_root")

    def __init__(self, length: int = 0, depth: int = 0, root: tuple[Any, ...] = ()):
        self._length, self._depth, self._root = length, depth, root

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._length)
            if step != 1:
                return tuple(self[i] for i in range(start, stop, step))
            found = _leaves(self._root, self._depth, start)
            return tuple(itertools.islice(found, max(0, stop - start)))
        if not -self._length <= index < self._length:
            raise IndexError(f"no item {index} of {self._length}")
        index %= self._length
        node = self._root
        for level in range(self._depth, 0, -1):
            node = node[(index >> (BITS * level)) % WIDTH]
        return node[index % WIDTH]

    def __iter__(self) -> Iterator[T]:
        return _leaves(self._root, self._depth)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vector):
            return NotImplemented
        return self._root is other._root or tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def set(self, index: int, item: T) -> "Vector[T]":
        """With another item in place of number `index`, which is there."""
        if not 0 <= index < self._length:
            raise IndexError(f"no item {index} of {self._length}")
        return Vector(self._length, self._depth, _with(self._root, self._depth, index, item))

    def add(self, item: T) -> "Vector[T]":
        """With one more item."""
        depth, root = self._depth, self._root
        if self._length == WIDTH ** (depth + 1):
            depth, root = depth + 1, (root,)
        return Vector(self._length + 1, depth, _with(root, depth, self._length, item))


def _with(node: tuple[Any, ...], depth: int, index: int, item: Any) -> tuple[Any, ...]:
    place = (index >> (BITS * depth)) % WIDTH
    if depth:
        item = _with(node[place] if place < len(node) else (), depth - 1, index, item)
    return (*node[:place], item, *node[place + 1 :])


def _leaves(node: tuple[Any, ...], depth: int, start: int = 0) -> Iterator[Any]:
    """Items from number `start` on."""
    place, within = divmod(start, WIDTH**depth)
    if not depth:
        yield from node[place:]
        return
    for child in node[place:]:
        yield from _leaves(child, depth - 1, within)
        within = 0


class Places(Generic[K]):
    """Where in a growing sequence a key came first. All versions share one table of the longest,
    and look no further than they reach; one that grows in another way has a table of its own."""

    __slots__ = ("_length", "_longest", "_table")

    def __init__(self) -> None:
        self._length = 0
        self._longest = [0]  # Of all that share the table.
        self._table: dict[K, int] = {}

    def add(self, key: K) -> "Places[K]":
        """With one more key at the end."""
        found: Places[K] = Places()
        found._longest, found._table = self._longest, self._table
        if self._longest[0] != self._length:
            found._longest = [self._length]
            found._table = {k: at for k, at in self._table.items() if at < self._length}
        found._table.setdefault(key, self._length)
        found._length = found._longest[0] = self._length + 1
        return found

    def get(self, key: K) -> int | None:
        """The place of `key`, or none if it is not there."""
        at = self._table.get(key)
        return at if at is not None and at < self._length else None

    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None  # pyright: ignore[reportArgumentType]

    def __iter__(self) -> Iterator[K]:
        """Every key once, in order."""
        return (key for key, at in tuple(self._table.items()) if at < self._length)
