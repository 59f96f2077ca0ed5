"""Where latencies come from: this machine, measured, or a model that stands in for a device."""

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from latency_models import store
from latency_models.latency import Latency, LatencyModel, Whole
from latency_models.measure import Plan, Progress, measure_all, measure_calls, prepare_network
from latency_models.provenance import Method, Provenance, local
from latency_models.table import Table, profile
from search_spaces.ops import Call
from search_spaces.program import calls


class Bench(abc.ABC):
    """A device on which calls and whole networks are priced."""

    @property
    @abc.abstractmethod
    def provenance(self) -> Provenance:
        """What the numbers hold for, and how they are come by."""

    @abc.abstractmethod
    def table(self, wanted: Iterable[Call], progress: Progress | None = None) -> Table:
        """Returns a row for each of `wanted`, and for no other call."""

    @abc.abstractmethod
    def networks(self, wanted: Sequence[Whole], progress: Progress | None = None) -> list[Latency]:
        """Latencies of whole networks, in their order, measured in turns."""


CACHE = Path.home() / ".cache" / "nas"
"""Where this machine's latencies are kept, unless asked otherwise."""

# Rounds tell a slow minute from a slow op: see `Plan`.
CALLS = Plan(seconds=12.0, rounds=4, repeats=5)
NETWORKS = Plan(seconds=8.0, rounds=4, repeats=5)


@dataclasses.dataclass(frozen=True)
class LocalBench(Bench):
    """This machine, by wall clock. Calls measured once are kept in a file under `cache`."""

    cache: Path
    call_plan: Plan = CALLS
    network_plan: Plan = NETWORKS

    @property
    def provenance(self) -> Provenance:
        return local()

    def table(self, wanted: Iterable[Call], progress: Progress | None = None) -> Table:
        wanted, provenance = tuple(dict.fromkeys(wanted)), self.provenance
        path = store.file(self.cache, provenance)
        known = store.read(path, provenance).table
        found = profile(
            wanted, known, measure=lambda missing: measure_calls(missing, self.call_plan, progress)
        )
        if found.rows != known.rows:
            store.write(path, provenance, found)
        return Table({call: found.rows[call] for call in wanted})

    def networks(self, wanted: Sequence[Whole], progress: Progress | None = None) -> list[Latency]:
        runs = []
        for whole in wanted:
            runs.append(prepare_network(whole.program, whole.inputs))
            if progress:
                progress("compile", len(runs) / len(wanted))
        return measure_all(runs, self.network_plan, progress)


@dataclasses.dataclass(frozen=True)
class ModelBench(Bench):
    """A latency model in place of a device: nothing is measured and nothing varies."""

    model: LatencyModel

    @property
    def provenance(self) -> Provenance:
        return Provenance(
            device="a model of a device",
            runtime=repr(self.model),
            versions=(),
            precision="as modelled",
            attention="as modelled",
            threads=None,
            method=Method.PREDICTED,
        )

    def table(self, wanted: Iterable[Call], progress: Progress | None = None) -> Table:
        return Table({call: self.model.predict([call]) for call in wanted})

    def networks(self, wanted: Sequence[Whole], progress: Progress | None = None) -> list[Latency]:
        return [self.model.predict(calls(w.program, w.inputs).values()) for w in wanted]
