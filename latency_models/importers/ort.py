"""ONNX Runtime's profile: `SessionOptions.enable_profiling`, or `onnxruntime_perf_test -p`.

A list of events as Chrome traces have them, durations in microseconds.
"""

from typing import Any

from latency_models.importers.imported import Imported, Kind, Malformed, of_samples
from latency_models.importers.parsing import field, load_json, number

_RUN, _KERNEL = "model_run", "_kernel_time"


def looks_like(data: bytes) -> bool:
    return data.lstrip()[:1] == b"[" and b"session_initialization" in data


def read(data: bytes, place: str) -> list[Imported]:
    """The network (`model_run`) and each node, over all runs; the first is not left out.

    Nodes are medians over runs, so they need not sum up to the network.
    """
    events = load_json(data, place)
    if not isinstance(events, list):
        raise Malformed(place, "a list of events", type(events).__name__)
    runs: list[float] = []
    nodes: dict[tuple[str, str, str], list[float]] = {}
    for i, event in enumerate(events):
        here = f"{place}, [{i}]"
        name, category = field(event, "name", str, here), field(event, "cat", str, here)
        if category == "Session" and name == _RUN:
            runs.append(_ms(event, here))
        elif category == "Node" and name.endswith(_KERNEL):
            said = field(event, "args", dict, here)
            op, provider = (
                field(said, key, str, f"{here}.args") for key in ("op_name", "provider")
            )
            nodes.setdefault((name.removesuffix(_KERNEL), op, provider), []).append(
                _ms(event, here)
            )
    if not runs:
        raise Malformed(place, f"an event {_RUN!r}; was the session run, and its profiling ended?")
    network = of_samples("network", Kind.NETWORK, runs, place=place)
    return [network, *(_node(*key, samples, place) for key, samples in nodes.items())]


def _node(name: str, op: str, provider: str, samples: list[float], place: str) -> Imported:
    stated = {"provider": provider}
    return of_samples(name, Kind.OP, samples, op=op, stated=stated, place=f"{place}, node {name}")


def _ms(event: dict[str, Any], place: str) -> float:
    return number(field(event, "dur", (int, float), place), f"{place}.dur") / 1e3
