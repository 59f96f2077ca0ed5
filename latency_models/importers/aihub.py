"""Qualcomm AI Hub: a profile job's JSON (`job.download_profile()`), and the tables it publishes.

The tables (`perf.yaml` of qualcomm/ai-hub-models) give, by users' reports, the minimum of the runs.
The summary of a job has all runs; what is read is their median and not its
`estimated_inference_time`.
"""

import math
from collections.abc import Iterator
from typing import Any

import yaml

from latency_models.importers.imported import VERSION, Imported, Kind, Malformed, Stat, of_samples
from latency_models.importers.parsing import field, lines, load_json, number


def looks_like_job(data: bytes) -> bool:
    return data.lstrip()[:1] == b"{" and b'"execution_summary"' in data


def read_job(data: bytes, place: str) -> list[Imported]:
    """The network, and its ops. Ops with cycles and no time share the network's time by them."""
    content = load_json(data, place)
    summary = field(content, "execution_summary", dict, place)
    here = f"{place}, execution_summary"
    times = field(summary, "all_inference_times", list, here)
    path = f"{here}.all_inference_times"
    samples = [number(time, f"{path}[{i}]") / 1e3 for i, time in enumerate(times)]
    if not samples or not all(samples):
        raise Malformed(path, "the microseconds of every run", times)
    # What our own script adds: on what device, by what runtime.
    stated = field({"stated": {}, **content}, "stated", dict, place)
    said = {str(name): str(value) for name, value in stated.items()}
    network = of_samples("network", Kind.NETWORK, samples, stated=said, place=path)
    details = content.get("execution_detail", [])
    if not isinstance(details, list):
        raise Malformed(f"{place}, execution_detail", "a list", details)
    return [network, *_ops(details, network.ms, place)]


def _ops(details: list[Any], network_ms: float, place: str) -> Iterator[Imported]:
    read = []
    for i, detail in enumerate(details):
        here = f"{place}, execution_detail[{i}]"
        name, op = (field(detail, key, str, here) for key in ("name", "type"))
        us = number(field(detail, "execution_time", (int, float), here), f"{here}.execution_time")
        cycles = number(detail.get("execution_cycles", 0), f"{here}.execution_cycles")
        read.append((name, op, us, cycles, str(detail.get("compute_unit", "")), here))
    timed, total = any(us for _, _, us, *_ in read), math.fsum(row[3] for row in read)
    if read and not timed and not total:
        raise Malformed(f"{place}, execution_detail", "the time or the cycles of the ops")
    for name, op, us, cycles, unit, here in read:
        ms, stat = (us / 1e3, Stat.SINGLE) if timed else (network_ms * cycles / total, Stat.SHARE)
        yield Imported(name, Kind.OP, ms, stat, op=op, stated=(("unit", unit),), place=here)


def looks_like_table(data: bytes) -> bool:
    return data.lstrip()[:1] != b"{" and b"performance_metrics:" in data


def read_table(data: bytes, place: str) -> list[Imported]:
    """Each component of the model on each device, by each runtime, in each precision.

    Jobs that failed have no number and give no row. Nothing in the file says how many jobs there
    are, but each ends with the versions of its tools.
    """
    try:
        content = yaml.safe_load("\n".join(lines(data, place)))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise Malformed(f"{place}{line}", "YAML", getattr(error, "problem", error)) from None
    rows = []
    for precision, inside in _items(content, "precisions", place):
        here = f"{place}, precisions.{precision}"
        for component, parts in _items(inside, "components", here):
            path = f"{here}.components.{component}"
            for device, runtimes in _items(parts, "performance_metrics", path):
                for runtime, job in _items({"": runtimes}, "", f"{path}.{device}"):
                    at = f"{path}.performance_metrics.{device}.{runtime}"
                    rows.extend(_job(job, component, device, runtime, precision, at))
    if not rows:
        raise Malformed(place, "at least one job that passed")
    return rows


def _items(data: Any, key: str, place: str) -> list[tuple[str, Any]]:
    return [(str(name), value) for name, value in field(data, key, dict, place).items()]


def _job(
    job: Any, component: str, device: str, runtime: str, precision: str, place: str
) -> Iterator[Imported]:
    status = field(job, "job_status", str, place)
    if status != "Passed":
        return
    ms = number(field(job, "inference_time_milliseconds", (int, float), place), place)
    versions = field(job, "tool_versions", dict, place)
    stated = {
        "device": device,
        "runtime": runtime,
        "precision": precision,
        "job": str(job.get("job_id", "")),
        "unit": str(job.get("primary_compute_unit", "")),
        **{f"{VERSION}{name}": str(version) for name, version in versions.items()},
    }
    yield Imported(
        component,
        Kind.NETWORK,
        ms,
        Stat.MINIMUM,
        stated=tuple(sorted(stated.items())),
        place=place,
    )
