"""Latencies that other tools measured, on devices that are not at hand.

A file is read whole or not at all: what is not as its format says raises `Malformed`, which names
the file, the line or the path in it, and what belongs there.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from latency_models.importers import (
    aihub,
    executorch,
    google_benchmark,
    litert,
    loadgen,
    ort,
    rows,
    xprof,
)
from latency_models.importers.imported import (
    Imported,
    Kind,
    Malformed,
    Stat,
    of_samples,
    provenance,
)

__all__ = [
    "FORMATS",
    "Format",
    "Imported",
    "Kind",
    "Malformed",
    "Stat",
    "of_samples",
    "provenance",
    "read",
    "sniff",
]


class Format(NamedTuple):
    """What a tool writes: how to tell it from others, and how to read it.

    `read` takes the file's bytes and what to call it in errors.
    """

    about: str
    looks_like: Callable[[bytes], bool]
    read: Callable[[bytes, str], list[Imported]]


FORMATS: Mapping[str, Format] = {
    "litert": Format(
        "LiteRT benchmark_model: what it prints, or its CSV of ops", litert.looks_like, litert.read
    ),
    "aihub-job": Format(
        "Qualcomm AI Hub, a profile job's JSON", aihub.looks_like_job, aihub.read_job
    ),
    "aihub-table": Format(
        "Qualcomm AI Hub, a model's perf.yaml", aihub.looks_like_table, aihub.read_table
    ),
    "onnxruntime": Format("ONNX Runtime's profile, JSON", ort.looks_like, ort.read),
    "benchmark-json": Format(
        "Google Benchmark or iree-benchmark-module, JSON",
        google_benchmark.looks_like_json,
        google_benchmark.read_json,
    ),
    "benchmark-table": Format(
        "Google Benchmark or iree-benchmark-module, what it prints",
        google_benchmark.looks_like_table,
        google_benchmark.read_table,
    ),
    "executorch": Format(
        "ExecuTorch's Inspector, its table or CSV", executorch.looks_like, executorch.read
    ),
    "xplane": Format("JAX or XProf, .xplane.pb", xprof.looks_like_xplane, xprof.read_xplane),
    "trace": Format("JAX or XProf, .trace.json.gz", xprof.looks_like_trace, xprof.read_trace),
    "mlperf": Format("MLPerf loadgen, mlperf_log_summary.txt", loadgen.looks_like, loadgen.read),
    "csv": Format(
        "our own CSV: name, ms, stat and more; see latency_models.importers.rows",
        rows.looks_like,
        rows.read,
    ),
}


def sniff(data: bytes, place: str) -> str:
    """The name of the one format that `data` looks like. Raises `ValueError` unless it is one."""
    found = [name for name, form in FORMATS.items() if form.looks_like(data)]
    if len(found) == 1:
        return found[0]
    known = "\n".join(f"  {name:<16} {form.about}" for name, form in FORMATS.items())
    problem = f"looks like {' and like '.join(found)}" if found else "is of no format known here"
    raise ValueError(f"{place} {problem}; say which of these it is:\n{known}")


def read(path: Path, form: str | None = None) -> list[Imported]:
    """What the file at `path` reports; its format is `form`, or told by its content.

    Raises `Malformed` on a file that is not as its format says, and `ValueError` where its format
    is none known here.
    """
    if form is not None and form not in FORMATS:
        raise ValueError(f"no format {form!r}; there are {', '.join(FORMATS)}")
    data = path.read_bytes()
    found = FORMATS[form or sniff(data, str(path))]
    try:
        return found.read(data, str(path))
    except Malformed:
        raise
    # What a reader takes for granted and a file from outside need not keep to, nested ever so deep.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise Malformed(str(path), f"what {found.about} is made of", problem) from error
