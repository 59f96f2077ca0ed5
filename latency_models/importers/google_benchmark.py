"""Google Benchmark's JSON and its table: what `iree-benchmark-module` prints.

The number is the time by the wall clock, over a batch of iterations each time.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from latency_models.importers.imported import Imported, Kind, Malformed, Stat, of_samples
from latency_models.importers.parsing import field, lines, load_json, number, scale, whole


def looks_like_json(data: bytes) -> bool:
    return data.lstrip()[:1] == b"{" and b'"benchmarks"' in data and b'"real_time"' in data


def looks_like_table(data: bytes) -> bool:
    return re.search(rb"^Benchmark +Time +CPU +Iterations", data, re.MULTILINE) is not None


class _Row(NamedTuple):
    name: str
    ms: float
    iterations: int
    aggregate: str  # "mean", "median", "stddev", "cv" over repetitions, or nothing.
    place: str


def read_json(data: bytes, place: str) -> list[Imported]:
    content = load_json(data, place)
    context, rows = field(content, "context", dict, place), []
    for i, run in enumerate(field(content, "benchmarks", list, place)):
        here = f"{place}, benchmarks[{i}]"
        name = field(run, "name", str, here)
        if run.get("error_occurred"):
            raise Malformed(here, f"a run of {name} that works", run.get("error_message"))
        aggregate = ""
        if run.get("run_type") == "aggregate":
            aggregate = field(run, "aggregate_name", str, here)
        if aggregate == "cv":  # A share, and not a time.
            continue
        time = number(field(run, "real_time", (int, float), here), f"{here}.real_time")
        ms = time * scale(field(run, "time_unit", str, here), f"{here}.time_unit")
        iterations = whole(field(run, "iterations", int, here), f"{here}.iterations")
        name = str(run.get("run_name", name)) if aggregate else name
        rows.append(_Row(name, ms, iterations, aggregate, here))
    return _summed_up(rows, _stated(context), place)


def _stated(context: dict[str, Any]) -> dict[str, str]:
    known = {"host_name": "host", "date": "date", "library_version": "version:benchmark"}
    known["runtime"] = "runtime"  # Said by --benchmark_context.
    return {known[key]: str(value) for key, value in context.items() if key in known}


_LINE = re.compile(r"^(\S+)\s+(\S+) (\S+)\s+(\S+) (\S+)\s+(\d+)(?:\s.*)?$")
_AGGREGATE = re.compile(r"_(mean|median|stddev|cv)$")


def read_table(data: bytes, place: str) -> list[Imported]:
    """Benchmarks, each a line or as many as there are repetitions and what sums them up.

    Nothing in the table says how many benchmarks there are.
    """
    rows, inside = list[_Row](), False
    for at, line in enumerate(lines(data, place), 1):
        here = f"{place}, line {at}"
        if line.startswith("Benchmark "):
            inside = True
        elif inside and line.strip() and not line.startswith("---"):
            if not (match := _LINE.match(line)):
                raise Malformed(here, "`name time unit cpu unit iterations`", line)
            name, time, unit, *_, iterations = match.groups()
            found = _AGGREGATE.search(name)
            aggregate = found[1] if found else ""
            if aggregate == "cv":
                continue
            ms = number(time, here) * scale(unit, here)
            rows.append(_Row(_AGGREGATE.sub("", name), ms, int(iterations), aggregate, here))
    for name in {row.name for row in rows}:
        found = [row.aggregate for row in rows if row.name == name]
        if len(found) > 1 and (missing := {"mean", "median", "stddev"} - set(found)):
            raise Malformed(
                f"{place}, {name}",
                f"the {' and the '.join(sorted(missing))} of its repetitions; is the file cut off?",
            )
    return _summed_up(rows, {}, place)


def _summed_up(rows: Iterable[_Row], stated: dict[str, str], place: str) -> list[Imported]:
    """A row a benchmark: the median of its repetitions, or what the file says it is."""
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.name, []).append(row)
    if not groups:
        raise Malformed(place, "at least one benchmark")
    return [_benchmark(name, group, stated) for name, group in groups.items()]


def _benchmark(name: str, rows: list[_Row], stated: dict[str, str]) -> Imported:
    kind = Kind.OP if "_dispatch_" in name else Kind.NETWORK
    short, place = _short(name), rows[0].place
    stated = {**stated, "iterations": str(rows[0].iterations)}
    samples = [row.ms for row in rows if not row.aggregate]
    if len(samples) > 1:
        return of_samples(short, kind, samples, stated=stated, place=place)
    found = {row.aggregate: row for row in rows}
    if not samples and not found.keys() & {"median", "mean"}:
        raise Malformed(place, f"a median or a mean of {name}", sorted(found))
    best = "median" if "median" in found else "mean" if "mean" in found else ""
    return Imported(
        short,
        kind,
        found[best].ms,
        Stat(best) if best else Stat.MEAN,  # Of its iterations.
        std_ms=found["stddev"].ms if "stddev" in found else None,
        runs=found[best].iterations,
        stated=tuple(sorted(stated.items())),
        place=place,
    )


def _short(name: str) -> str:
    """The function's name, without what IREE and the library put around it."""
    return name.split("/")[0].removeprefix("BM_").removesuffix("_benchmark")
