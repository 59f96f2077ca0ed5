"""What all readers of reports share: text, JSON and numbers that say where they went wrong."""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from latency_models.importers.imported import Malformed


def text(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"{place}, byte {error.start}", "text in UTF-8") from None


def lines(data: bytes, place: str) -> list[str]:
    """The lines of a text. Raises `Malformed` where the last has no end: it may be half a line."""
    content = text(data, place)
    found = content.splitlines()
    if content and not content.endswith(("\n", "\r")):
        raise Malformed(
            f"{place}, line {len(found)}",
            "a line end; is the file cut off? If the last line is whole, end it",
            found[-1],
        )
    return found


def records(numbered: Iterable[tuple[int, str]], place: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV, each with the number of the line it ends on."""
    at = 0

    def told() -> Iterator[str]:
        nonlocal at
        for number, line in numbered:
            at = number
            yield line

    reader = csv.reader(told(), strict=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # A cell that is too long, too.
            raise Malformed(f"{place}, line {at}", f"CSV ({error})") from None
        yield at, row


def load_json(data: bytes, place: str) -> Any:
    content = text(data, place)
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise Malformed(
            f"{place}, line {error.lineno}", f"JSON ({error.msg}); is the file cut off?"
        ) from None


def field(data: Any, key: str, kind: type | tuple[type, ...], place: str) -> Any:
    """`data[key]`, which must be there and of this kind. `place` is the path to `data`."""
    if not isinstance(data, dict):
        raise Malformed(place, "an object", data)
    if key not in data:
        raise Malformed(place, f"a field {key!r}", sorted(data))
    value = data[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        names = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(name.__name__ for name in names)
        raise Malformed(f"{place}.{key}", expected, value)
    return value


def number(value: Any, place: str) -> float:
    """A finite number that is not negative."""
    try:
        # Python's own numbers may have underscores, which no tool writes.
        wrong = isinstance(value, bool) or "_" in str(value)
        found = math.nan if wrong else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or found < 0:
        raise Malformed(place, "a number that is not negative", value)
    return found


def whole(value: Any, place: str) -> int:
    found = number(value, place)
    if found != int(found):
        raise Malformed(place, "a whole number", value)
    return int(found)


SCALES = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
"""Milliseconds of a unit of time."""


def scale(unit: Any, place: str) -> float:
    if unit not in SCALES:
        raise Malformed(place, f"a unit of time ({', '.join(SCALES)})", unit)
    return SCALES[unit]
