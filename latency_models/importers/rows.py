"""Our own CSV: for tools that have no format, and for numbers noted down by hand.

The first line names the columns. `name`, `ms` and `stat` (median, mean, minimum, single) have to be
there. `kind` (network, block, op), `op`, `std_ms`, `runs`, `samples_ms` (blanks between) and
quantiles (`p50_ms`) may be. All others are about how it was measured: `device`, `runtime`,
`precision`, `attention`, `threads`, `affinity`, `date`, `note`, and versions as `version:NAME`.
Lines that begin with `#` are comments.
"""

import enum
import math
import re
import statistics
from collections.abc import Callable, Mapping
from typing import TypeVar

from latency_models.importers.imported import VERSION, Imported, Kind, Malformed, Stat
from latency_models.importers.parsing import lines, number, records, whole

REQUIRED = ("name", "ms", "stat")
NUMBERS = ("kind", "op", "std_ms", "runs", "samples_ms")
STATED = (
    "device",
    "runtime",
    "precision",
    "attention",
    "threads",
    "affinity",
    "date",
    "note",
)
_Word = TypeVar("_Word", bound=enum.StrEnum)
_OF: Mapping[str, Callable[[tuple[float, ...]], float]] = {
    Stat.MEDIAN: statistics.median,
    Stat.MEAN: statistics.mean,
    Stat.MINIMUM: min,
}
_ROUNDED = 0.01  # What is noted down by hand is rounded.
_QUANTILE = re.compile(r"^p(\d{1,2}(?:\.\d+)?|100)_ms$")


def looks_like(data: bytes) -> bool:
    lines = [line for line in data.splitlines() if line.strip() and not line.startswith(b"#")]
    head = set(lines[0].decode("utf-8-sig", "replace").split(",")) if lines else set()
    return {name.strip() for name in head}.issuperset(REQUIRED)


def read(data: bytes, place: str) -> list[Imported]:
    """A row a line. Nothing in the file says how many there are."""
    numbered = enumerate(lines(data, place), 1)
    kept = [(i, s) for i, s in numbered if s.strip() and not s.startswith("#")]
    if not kept:
        raise Malformed(place, f"a line with the columns {', '.join(REQUIRED)}")
    (first, header), *body = records(kept, place)
    header = [name.strip() for name in header]
    _check(header, f"{place}, line {first}")
    if not body:
        raise Malformed(place, "at least one row after the line with the columns")
    return [
        _row(header, [value.strip() for value in values], f"{place}, line {at}")
        for at, values in body
    ]


def _check(header: list[str], place: str) -> None:
    if missing := set(REQUIRED) - set(header):
        raise Malformed(place, f"columns {sorted(missing)}", header)
    if len(set(header)) != len(header):
        raise Malformed(place, "every column once", header)
    for name in header:
        known = name in (*REQUIRED, *NUMBERS, *STATED) or name.startswith(VERSION)
        if not known and not _QUANTILE.match(name):
            columns = ", ".join((*REQUIRED, *NUMBERS, *STATED, f"{VERSION}NAME", "p50_ms"))
            raise Malformed(place, f"columns among {columns}", name)


def _row(header: list[str], values: list[str], place: str) -> Imported:
    if len(values) != len(header):
        raise Malformed(place, f"{len(header)} columns", values)
    row = {name: value for name, value in zip(header, values, strict=True) if value}
    if missing := set(REQUIRED) - row.keys():
        raise Malformed(place, f"a value for {sorted(missing)}", values)
    quantiles = sorted(
        (float(match[1]) / 100, number(value, f"{place}, column {name}"))
        for name, value in row.items()
        if (match := _QUANTILE.match(name))
    )
    cells = row.get("samples_ms", "").split()
    samples = tuple(number(value, f"{place}, column samples_ms") for value in cells)
    runs = whole(row["runs"], f"{place}, column runs") if "runs" in row else None
    ms, stat = number(row["ms"], f"{place}, column ms"), row["stat"]
    if samples and runs not in (None, len(samples)):
        raise Malformed(f"{place}, column runs", f"{len(samples)}, as samples_ms has", runs)
    if samples and stat in _OF and not math.isclose(ms, _OF[stat](samples), rel_tol=_ROUNDED):
        expected = f"the {stat} of samples_ms, {_OF[stat](samples):g}"
        raise Malformed(f"{place}, column ms", expected, row["ms"])
    return Imported(
        row["name"],
        _one_of(Kind, row.get("kind", Kind.NETWORK), f"{place}, column kind"),
        ms,
        _one_of(Stat, stat, f"{place}, column stat"),
        op=row.get("op", ""),
        std_ms=number(row["std_ms"], f"{place}, column std_ms") if "std_ms" in row else None,
        quantiles_ms=tuple(quantiles),
        samples_ms=samples,
        runs=runs,
        stated=tuple(
            sorted((n, v) for n, v in row.items() if n in STATED or n.startswith(VERSION))
        ),
        place=place,
    )


def _one_of(kind: type[_Word], value: str, place: str) -> _Word:
    if value not in list(kind):
        raise Malformed(place, f"one of {', '.join(kind)}", value)
    return kind(value)
