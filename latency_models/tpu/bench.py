"""A TPU that is not here, as a bench: the compiler's estimates, calibrated, in place of a clock."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from latency_models.bench import Bench
from latency_models.calibrate import Calibrated
from latency_models.latency import Latency, Whole
from latency_models.measure import Progress
from latency_models.provenance import Provenance
from latency_models.table import Table
from latency_models.tpu.compiler import Cache, versions
from latency_models.tpu.estimates import Estimates
from latency_models.tpu.lowering import in_bfloat16
from latency_models.tpu.tables import TpuTable, estimated, shipped
from search_spaces.ops import Call
from search_spaces.program import calls


@dataclasses.dataclass(frozen=True)
class TpuBench(Bench):
    """The TPU `generation`, by the table that ships.

    Calls that it lacks are compiled by libtpu, the one that made the table, and kept in a file
    under `cache`. A call's `std` is the calibration's error, and part of it is common to all.
    """

    generation: str
    cache: Path

    @functools.cached_property
    def _shipped(self) -> TpuTable:
        return shipped(self.generation)

    @property
    def provenance(self) -> Provenance:
        return self._shipped.provenance

    def table(self, wanted: Iterable[Call], progress: Progress | None = None) -> Table:
        wanted = tuple(dict.fromkeys(wanted))
        model = self._priced(wanted, progress)
        # A network's fixed cost is no call's.
        alone = dataclasses.replace(model, fixed_ms=0.0)
        return Table({call: alone.predict([call]) for call in wanted})

    def networks(self, wanted: Sequence[Whole], progress: Progress | None = None) -> list[Latency]:
        found = [tuple(calls(whole.program, whole.inputs).values()) for whole in wanted]
        model = self._priced([call for each in found for call in each], progress)
        return [model.predict(each) for each in found]

    def _priced(self, wanted: Iterable[Call], progress: Progress | None) -> Calibrated:
        """The calibrated model, with rows for all of `wanted`."""
        model, estimates = self._shipped.model, self._shipped.estimates
        missing = [call for call in wanted if in_bfloat16(call) not in estimates.rows]
        if not missing:
            return model
        by = dict(versions())
        there = dict(self.provenance.versions)
        if by != there:
            raise RuntimeError(
                f"{len(missing)} calls are not in the table of TPU {self.generation}, e.g. "
                f"{missing[0]}, and the compiler here is not the table's: {by} here, {there} "
                "there; install the table's versions, or write a table by yours with "
                "`python -m benchmarks.tpu`"
            )
        cache = Cache(self.cache / f"tpu-{self.generation}.jsonl")
        rows = estimated(missing, estimates.generation, cache, progress)
        more: Estimates = dataclasses.replace(estimates, rows={**estimates.rows, **rows})
        return dataclasses.replace(model, model=more)
