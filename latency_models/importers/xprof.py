"""JAX's and XProf's traces: `.xplane.pb` and `.trace.json.gz`, as `jax.profiler.trace` writes them.

A network is a compiled module (`jit_f`). On TPUs and GPUs its time is that of the enclosing event
on the device; on CPUs there is none, and it is the span from its first op to the end of its last.
Either way it is the device's time, without the host's dispatch.
"""

import bisect
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax

from latency_models.importers.imported import Imported, Kind, Malformed, of_samples
from latency_models.importers.parsing import field, load_json, number

_MODULES, _OPS = "XLA Modules", "XLA Ops"


def looks_like_xplane(data: bytes) -> bool:
    return data[:1] == b"\n" and (b"/host:" in data or b"/device:" in data)


def looks_like_trace(data: bytes) -> bool:
    return data[:2] == b"\x1f\x8b" or (data.lstrip()[:1] == b"{" and b'"traceEvents"' in data)


class _Event(NamedTuple):
    """An event on a device's line, times in nanoseconds."""

    device: str
    line: str
    name: str
    start: float
    duration: float
    stats: dict[str, str]


def read_xplane(data: bytes, place: str) -> list[Imported]:
    try:
        profile = jax.profiler.ProfileData.from_serialized_xspace(data)
        events = [
            _Event(
                plane.name,
                line.name or "",
                event.name or "",
                event.start_ns,
                event.duration_ns,
                {str(name): str(value) for name, value in event.stats},
            )
            for plane in profile.planes
            for line in plane.lines
            for event in line.events
        ]
    except (RuntimeError, ValueError) as error:
        raise Malformed(place, "an XSpace (.xplane.pb)", error) from None
    if not _ends_whole(data):
        raise Malformed(place, "the name of the host at the end; is the file cut off?")
    return _rows(events, place)


_HOSTNAMES = 4  # The last field of an XSpace, after all planes.


def _ends_whole(data: bytes) -> bool:
    """Whether the last field of a message that can be parsed is the host's name: between two fields
    it can be parsed as well where it is cut off."""
    at, last = 0, 0
    while at < len(data):
        key, at = _varint(data, at)
        size, at = _varint(data, at)  # All fields of an XSpace say their size.
        at, last = at + size, key >> 3
    return last == _HOSTNAMES


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, seven bits a byte, and where what follows begins."""
    found = shift = 0
    while True:
        found |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return found, at


def read_trace(data: bytes, place: str) -> list[Imported]:
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise Malformed(place, "a whole gzip file", error) from None
    content = load_json(data, place)
    return _rows(list(_traced(field(content, "traceEvents", list, place), place)), place)


def _traced(events: list[Any], place: str) -> Iterator[_Event]:
    """Events of a Chrome trace, whose lines are named by events of their own."""
    names: dict[tuple[str, Any, Any], str] = {}
    for event in events:
        if isinstance(event, dict) and event.get("ph") == "M" and "name" in event.get("args", {}):
            kind, thread = str(event.get("name")), event.get("tid")
            thread = thread if kind == "thread_name" else None
            names[kind, event.get("pid"), thread] = str(event["args"]["name"])
    for i, event in enumerate(events):
        if not isinstance(event, dict):
            raise Malformed(f"{place}, traceEvents[{i}]", "an object", event)
        if event.get("ph") != "X":
            continue
        here = f"{place}, traceEvents[{i}]"
        stats = {name: str(value) for name, value in event.get("args", {}).items()}
        if "device_duration_ps" in stats:
            duration = number(stats["device_duration_ps"], f"{here}.args.device_duration_ps") / 1e3
        else:
            duration = 1e3 * number(field(event, "dur", (int, float), here), f"{here}.dur")
        yield _Event(
            names.get(("process_name", event.get("pid"), None), ""),
            names.get(("thread_name", event.get("pid"), event.get("tid")), ""),
            field(event, "name", str, here),
            1e3 * number(field(event, "ts", (int, float), here), f"{here}.ts"),
            duration,
            stats,
        )


class _Program(NamedTuple):
    """A compiled module. Different ones may have one name; `id` tells them apart."""

    name: str
    id: str


def _rows(events: list[_Event], place: str) -> list[Imported]:
    """Networks and ops of every device in the trace; devices that ran the same are told apart."""
    rows = []
    for device in dict.fromkeys(event.device for event in events):
        here = f"{place}, {device}"
        mine = [event for event in events if event.device == device]
        if modules := [event for event in mine if event.line == _MODULES]:
            runs = [(_named(event.name), event.duration) for event in modules]
            ops = list(_enclosed((event for event in mine if event.line == _OPS), modules))
        else:
            runs, ops = _on_host((e for e in mine if "hlo_module" in e.stats), here)
        rows.extend(_device(runs, ops, device, here))
    if not rows:
        raise Malformed(
            place,
            f"a line {_MODULES!r} of a device, or ops with `hlo_module`; was anything run inside "
            "`jax.profiler.trace`, and waited for by `jax.block_until_ready`?",
        )
    return rows


def _named(event: str) -> _Program:
    """`jit_f` and 1234 of `jit_f(1234)`."""
    name, _, rest = event.partition("(")
    return _Program(name, rest.rstrip(")"))


def _enclosed(ops: Iterable[_Event], modules: list[_Event]) -> Iterator[tuple[_Program, _Event]]:
    """Ops and the module whose event they lie in; on one device those do not overlap."""
    ordered = sorted(modules, key=lambda event: event.start)
    starts = [event.start for event in ordered]
    for op in ops:
        middle = op.start + op.duration / 2
        at = bisect.bisect_right(starts, middle) - 1
        if at >= 0 and middle <= ordered[at].start + ordered[at].duration:
            yield _named(ordered[at].name), op


def _on_host(
    ops: Iterable[_Event], place: str
) -> tuple[list[tuple[_Program, float]], list[tuple[_Program, _Event]]]:
    """Runs of modules on a CPU, each from the start of its first op to the end of its last.

    Traces that do not number programs tell those of one name apart by the ops they have.
    """
    grouped: dict[tuple[str, str], list[_Event]] = {}
    for event in ops:
        if "run_id" not in event.stats:
            raise Malformed(f"{place}, {event.name}", "a `run_id`, to tell runs apart", event.stats)
        key = event.stats["hlo_module"], event.stats["run_id"]
        grouped.setdefault(key, []).append(event)
    runs, owned = [], []
    for (module, _), events in grouped.items():
        ids = {event.stats.get("program_id") or event.stats.get("hlo_op", "") for event in events}
        program = _Program(module, " ".join(sorted(ids)))
        ends = (event.start + event.duration for event in events)
        runs.append((program, max(ends) - min(event.start for event in events)))
        owned.extend((program, event) for event in events)
    return runs, owned


def _device(
    runs: Iterable[tuple[_Program, float]],
    ops: Iterable[tuple[_Program, _Event]],
    device: str,
    place: str,
) -> Iterator[Imported]:
    spans: dict[_Program, list[float]] = {}
    for program, ns in runs:
        spans.setdefault(program, []).append(ns / 1e6)
    names = _labels(list(spans))
    for program, times in spans.items():
        name, stated = names[program], {"plane": device}
        yield of_samples(name, Kind.NETWORK, times, stated=stated, place=f"{place}, {name}")
    parts: dict[tuple[_Program, str, str], list[float]] = {}
    for program, event in ops:
        name = event.stats.get("hlo_op") or event.name.partition(" = ")[0].removeprefix("%")
        op = event.stats.get("hlo_category") or re.sub(r"[.\d]+$", "", name)
        parts.setdefault((program, name, op), []).append(event.duration / 1e6)
    for (program, name, op), times in parts.items():
        stated = {"plane": device, "module": names[program]}
        at = f"{place}, {names[program]}, {name}"
        yield of_samples(name, Kind.OP, times, op=op, stated=stated, place=at)


def _labels(programs: list[_Program]) -> dict[_Program, str]:
    """Each program's name, and a number where it shares it."""
    labels = {}
    for program in programs:
        same = [other for other in programs if other.name == program.name]
        number = f"#{same.index(program) + 1}" if len(same) > 1 else ""
        labels[program] = program.name + number
    return labels
