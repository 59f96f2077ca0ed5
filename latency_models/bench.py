"""Where latencies come from: this machine, measured, or a model that stands in for a device."""

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from latency_models import store
from latency_models.latency import Latency, LatencyModel, UnknownCall, Whole
from latency_models.measure import Plan, Progress, Target, TooNoisy, measure_subjects
from latency_models.provenance import Method, Provenance
from latency_models.runtimes import CACHE, Runtime
from latency_models.runtimes.xla import XLA
from latency_models.table import EMPTY, Table, profile
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

    def refusal(self, wanted: Iterable[Call]) -> str | None:
        """Why there is a call among `wanted` that has no price here, or none if all have one."""
        return None


# Rounds tell a slow minute from a slow op: see `Plan`.
CALLS = Plan(seconds=12.0, rounds=4, repeats=1)
NETWORKS = Plan(seconds=8.0, rounds=4, repeats=2)
# What is kept and compared for long: it is sure, or it is an error.
CAREFUL = Plan(seconds=40.0, rounds=10, repeats=1, target=Target())


@dataclasses.dataclass(frozen=True)
class LocalBench(Bench):
    """This machine, by wall clock. Calls measured once are kept in a file under `cache`, one for
    each provenance. Raises `TooNoisy` where a plan has a target that is missed; what is sure by
    then is kept."""

    cache: Path = CACHE
    call_plan: Plan = CALLS
    network_plan: Plan = NETWORKS
    runtime: Runtime = XLA()

    @property
    def provenance(self) -> Provenance:
        return self.runtime.provenance

    def table(self, wanted: Iterable[Call], progress: Progress | None = None) -> Table:
        wanted, provenance = tuple(dict.fromkeys(wanted)), self.provenance
        path = store.file(self.cache, provenance)
        known = store.read(path, provenance).table

        def measured(missing: Sequence[Call]) -> list[Latency]:
            try:
                return measure_subjects(missing, self.call_plan, progress, self.runtime)
            except TooNoisy as noisy:
                pairs = zip(missing, noisy.latencies, strict=True)
                sure = Table({call: latency for call, latency in pairs if latency is not None})
                if sure != EMPTY:
                    store.write(path, provenance, sure)
                raise

        found = profile(wanted, known, measure=measured)
        if found.rows != known.rows:
            store.write(path, provenance, found)
        return Table({call: found.rows[call] for call in wanted})

    def networks(self, wanted: Sequence[Whole], progress: Progress | None = None) -> list[Latency]:
        return measure_subjects(wanted, self.network_plan, progress, self.runtime)


@dataclasses.dataclass(frozen=True)
class ModelBench(Bench):
    """A latency model in place of a device: nothing is measured and nothing varies.

    `of` is what the model stands in for, and how it is known; without it the device has no name.
    Raises `UnknownCall` on what the model has no basis to price.
    """

    model: LatencyModel
    of: Provenance | None = None

    @property
    def provenance(self) -> Provenance:
        if self.of is not None:
            return dataclasses.replace(self.of, method=Method.PREDICTED)
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
        # What a network costs as a whole is no call's.
        return Table({call: self._predicted(self.model.parts, [call]) for call in wanted})

    def networks(self, wanted: Sequence[Whole], progress: Progress | None = None) -> list[Latency]:
        return [self._predicted(self.model, calls(w.program, w.inputs).values()) for w in wanted]

    def refusal(self, wanted: Iterable[Call]) -> str | None:
        try:
            self.model.predict(wanted)
        except UnknownCall as error:
            return str(error)
        return None

    def _predicted(self, model: LatencyModel, wanted: Iterable[Call]) -> Latency:
        try:
            return model.predict(wanted)
        except UnknownCall as error:
            raise UnknownCall(f"the model of {self.provenance.device}: {error}") from None
