"""LiteRT's (TFLite's) `benchmark_model`: what it prints, and its profile of ops as a table or CSV.

Of the sections of a profile only `Run Order` is read, since the others repeat it, and none of
those about initialisation, which is not inference. `avg_ms` is the mean time of one call of the op.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from latency_models.importers.imported import Imported, Kind, Malformed, Stat
from latency_models.importers.parsing import lines, number, whole

_SECTION = re.compile(r"^=+ (.+?) =+$")
_RUNS = re.compile(r"(?:^|\s|: )(count=\d+ (?:\w+=\S+ ?)+)$")
_INFERENCE = re.compile(r"[Ii]nference timings in us: (.*)$")
_NODES = re.compile(r"Number of nodes executed: (\d+)$")
_STATED = (
    (re.compile(r"(?:Num |# ?)threads[^:=]*[:=] ?\[?(\d+)\]?$"), "threads"),
    (re.compile(r"Graph: \[(.+)\]$"), "graph"),
    (re.compile(r"Use gpu[^:=]*[:=] ?\[?(\d)\]?$", re.IGNORECASE), "use_gpu"),
)


def looks_like(data: bytes) -> bool:
    text = data.replace(b"[", b"").replace(b"]", b"").lower()
    return b"node type" in text or b"inference timings in us:" in text


class _Runs(NamedTuple):
    """A line of statistics over runs: by name, in microseconds but for the count."""

    line: int
    stats: dict[str, float]
    of_nodes: bool  # The sum of the profiled ops, rather than the network by the clock.


def read(data: bytes, place: str) -> list[Imported]:
    """The network, where its time is printed, and each op of the profile.

    The network is the run after the warm-up, so there is none without the line `Inference timings`
    or a second line of statistics. Its number is the median where the tool prints one, and else the
    mean.
    """
    written = lines(data, place)
    runs, inference = list(_runs(written, place)), _inference(written, place)
    stated = tuple(sorted(_stated(written).items()))
    network, ops = list(_network(runs, inference, stated, place)), _ops(written, stated, place)
    if not network and not ops:
        raise Malformed(place, "timings, or a profile with a section `Run Order`")
    if not network and any("\t" in line for line in written):
        raise Malformed(
            place,
            "`Inference timings in us` beside a profile that was printed, and not written as CSV; "
            "is the file cut off?",
        )
    return [*network, *ops]


def _stated(lines: list[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        for pattern, name in _STATED:
            if match := pattern.search(line.strip()):
                found[name] = match[1]
    return found


def _runs(lines: list[str], place: str) -> Iterator[_Runs]:
    for at, line in enumerate(lines, 1):
        if line.startswith("Memory") or not (match := _RUNS.search(line.strip())):
            continue
        here = f"{place}, line {at}"
        pairs = dict(pair.split("=", 1) for pair in match[1].split())
        if missing := {"count", "min", "max", "avg", "std"} - pairs.keys():
            raise Malformed(here, f"statistics with {sorted(missing)}", line.strip())
        stats = {name: number(value, here) for name, value in pairs.items()}
        if not whole(pairs["count"], here):
            raise Malformed(here, "one run or more", line.strip())
        if not stats["min"] <= stats["avg"] <= stats["max"]:
            raise Malformed(here, "a mean between minimum and maximum", line.strip())
        yield _Runs(at, stats, "Timings" in line)


def _inference(lines: list[str], place: str) -> tuple[int, float] | None:
    """The line of the mean time of inference, and its microseconds."""
    for at, line in enumerate(lines, 1):
        if not (match := _INFERENCE.search(line)):
            continue
        here = f"{place}, line {at}"
        pairs = dict(re.findall(r"([A-Za-z ()]+): ([^,\s]+)", match[1]))
        names = [name for name in pairs if name.strip() in ("Inference", "Inference (avg)")]
        if len(names) != 1:
            raise Malformed(here, "`Inference: ..` or `Inference (avg): ..`", line.strip())
        return at, number(pairs[names[0]], here)
    return None


def _network(
    runs: list[_Runs],
    inference: tuple[int, float] | None,
    stated: tuple[tuple[str, str], ...],
    place: str,
) -> Iterator[Imported]:
    timed = [found for found in runs if not found.of_nodes]
    if inference is None and len(timed) < 2:
        if not timed:
            return
        raise Malformed(
            f"{place}, line {timed[-1].line}",
            "`Inference timings in us` or another line of statistics after this, which may be the "
            "warm-up's; is the file cut off?",
        )
    last = (timed or runs or [None])[-1]
    stats = last.stats if last else {}
    if last and timed and inference and abs(inference[1] - stats["avg"]) > 0.01 * stats["avg"] + 1:
        raise Malformed(
            f"{place}, line {inference[0]}",
            f"the mean of line {last.line}, {stats['avg']:g} us",
            f"{inference[1]:g} us",
        )
    if "median" in stats and timed:
        us, stat = stats["median"], Stat.MEDIAN
    else:
        us, stat = inference[1] if inference else stats["avg"], Stat.MEAN
    known = (("min", 0.0), ("p5", 0.05), ("median", 0.5), ("p95", 0.95), ("max", 1.0))
    yield Imported(
        dict(stated).get("graph", "network"),
        Kind.NETWORK,
        us / 1e3,
        stat,
        std_ms=stats["std"] / 1e3 if stats else None,
        quantiles_ms=tuple((p, stats[name] / 1e3) for name, p in known if name in stats),
        runs=int(stats["count"]) if stats else None,
        stated=stated,
        place=f"{place}, line {last.line if last else inference[0] if inference else 1}",
    )


def _ops(lines: list[str], stated: tuple[tuple[str, str], ...], place: str) -> list[Imported]:
    """The nodes of every section `Run Order`: as many as are said to have been executed after it.

    A log whose profile stops after initialisation is cut off.
    """
    section, columns, initialising, internal = "", list[str](), False, False
    found, run_order, before = list[Imported](), 0, 0  # Its line, and how many nodes were before.
    for at, line in enumerate(lines, 1):
        bare, here = line.strip(), f"{place}, line {at}"
        if "Profiling Info" in bare:
            section, initialising, internal = "", "Initialization" in bare, False
        internal = internal or bare.startswith("Delegate internal")
        if match := _SECTION.match(bare):
            section, columns = match[1], []
            if section == "Run Order" and not initialising:
                _counted(run_order, place)
                run_order, before = at, len(found)
        elif run_order and (match := _NODES.match(bare)):
            if int(match[1]) != len(found) - before:
                nodes = f"{len(found) - before} nodes, as the section of line {run_order} has"
                raise Malformed(here, nodes, match[1])
            section, run_order = "", 0
        elif not bare:
            section = ""
        elif section != "Run Order" or initialising:
            continue
        elif bare.lstrip("[").startswith("node type"):
            columns = [
                name.strip().strip("[]").lower().replace(" ms", "_ms") for name in _cells(line)
            ]
            if missing := {"avg_ms", "name"} - set(columns):
                raise Malformed(here, f"columns {sorted(missing)}", columns)
        elif columns:
            told = (*stated, *_INTERNAL[internal])
            found.append(_op(_cells(line, len(columns)), columns, told, here))
        else:
            raise Malformed(here, "the header of a profile (`node type, first, avg_ms, ...`)", bare)
    _counted(run_order, place)
    if not found and any("Profiling Info" in line for line in lines):
        raise Malformed(place, "a profile of the runs with `Run Order`; is the file cut off?")
    return found


def _counted(run_order: int, place: str) -> None:
    """Raises where a section `Run Order`, at this line, has not been followed by its count."""
    if run_order:
        raise Malformed(
            f"{place}, line {run_order}",
            "`Number of nodes executed: ...` after this section; is the file cut off?",
        )


_INTERNAL = {True: (("level", "inside a delegate"),), False: ()}


def _cells(line: str, width: int = -1) -> list[str]:
    """A line of the table, tabs between, or of the CSV, whose last column may hold commas."""
    table = "\t" in line.strip()
    cells = line.strip().split("\t") if table else line.split(",", width - 1 if width > 0 else -1)
    return [cell.strip() for cell in cells]


def _op(
    cells: list[str], columns: list[str], stated: tuple[tuple[str, str], ...], here: str
) -> Imported:
    if len(cells) != len(columns):
        raise Malformed(here, f"{len(columns)} columns", cells)
    row = dict(zip(columns, cells, strict=True))
    runs = whole(row["times called"], here) if "times called" in row else 0
    return Imported(
        row["name"],
        Kind.OP,
        number(row["avg_ms"], here),
        Stat.MEAN,
        op=row["node type"],
        runs=runs or None,  # Older versions print a zero for all ops.
        stated=tuple(sorted(stated)),
        place=here,
    )
