"""What any spec is made of: the leaves of its JSON, each under its path."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from search_spaces.values import encode


@functools.lru_cache(maxsize=100_000)
def leaves(spec: Any) -> Mapping[str, Any]:
    """Scalars of `spec` by path, `blocks.3.op.width` say, and the types of what holds them.

    A spec whose parts have names, which stay when others go, says so by a method `leaves`.
    """
    own = getattr(spec, "leaves", None)
    return dict(_walk("", encode(spec))) if own is None else own()


def apart(one: Any, other: Any) -> int:
    """In how many leaves two specs differ."""
    mine, theirs = leaves(one), leaves(other)
    missing = object()
    return sum(
        mine.get(path, missing) != theirs.get(path, missing) for path in mine.keys() | theirs.keys()
    )


def indicators(spec: Any) -> Mapping[str, float]:
    """A 1 for every leaf and its value: what a model learns from where a space says no more."""
    return {f"{path} {value}": 1.0 for path, value in leaves(spec).items()}


def _walk(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    items = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if items is None:
        yield path, value
        return
    for key, item in items:
        yield from _walk(f"{path}.{key}" if path else str(key), item)
