"""MLPerf's `mlperf_log_summary.txt`: the latency of a query over a run of minutes."""

import re

from latency_models.importers.imported import Imported, Kind, Malformed, Stat
from latency_models.importers.parsing import lines, number

_LINE = re.compile(r"^([A-Za-z0-9. /]+?)(?: \(ns\))?\s*: (.+)$")
_PERCENTILE = re.compile(r"^(\d+\.\d+) percentile latency$")

_END = re.compile(r"^\w+ errors? encountered", re.IGNORECASE)


def looks_like(data: bytes) -> bool:
    return b"MLPerf Results Summary" in data


def read(data: bytes, place: str) -> list[Imported]:
    """The system under test, at the median query.

    Whether the result is `VALID` is among what it states. Raises `Malformed` on the scenarios
    Server and Offline, whose latencies are those of a queue.
    """
    said: dict[str, tuple[int, str]] = {}
    written = lines(data, place)
    for at, line in enumerate(written, 1):
        if match := _LINE.match(line.strip()):
            said.setdefault(match[1].strip(), (at, match[2].strip()))
    scenario = _get(said, "Scenario", place)[1]
    if scenario not in ("SingleStream", "MultiStream"):
        at = f"{place}, line {said['Scenario'][0]}"
        raise Malformed(at, "scenario SingleStream or MultiStream", scenario)
    quantiles = {0.0: _ms(said, "Min latency", place), 1.0: _ms(said, "Max latency", place)}
    for name in said:
        if match := _PERCENTILE.match(name):
            quantiles[float(match[1]) / 100] = _ms(said, name, place)
    if 0.5 not in quantiles:
        raise Malformed(place, "a line `50.00 percentile latency (ns)`")
    ordered = sorted(quantiles.items())
    if [q for _, q in ordered] != sorted(quantiles.values()):
        raise Malformed(place, "percentiles that grow", ordered)
    queries = re.search(r"Processed at least \d+ queries \((\d+)\)", "\n".join(written))
    if not any(_END.match(line) for line in written):
        raise Malformed(place, "a last line `No errors encountered`; is the file cut off?")
    name, result = (_get(said, key, place)[1] for key in ("SUT name", "Result is"))
    stated = {"scenario": scenario, "result": result, "sut": name}
    return [
        Imported(
            name,
            Kind.NETWORK,
            quantiles[0.5],
            Stat.MEDIAN,
            quantiles_ms=tuple(ordered),
            runs=int(queries[1]) if queries else None,
            stated=tuple(sorted(stated.items())),
            place=place,
        )
    ]


def _get(said: dict[str, tuple[int, str]], name: str, place: str) -> tuple[int, str]:
    if name not in said:
        raise Malformed(place, f"a line `{name} : ...`; is the file cut off?")
    return said[name]


def _ms(said: dict[str, tuple[int, str]], name: str, place: str) -> float:
    at, value = _get(said, name, place)
    return number(value, f"{place}, line {at}") / 1e6
