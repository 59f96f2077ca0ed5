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
from latency_models.rows import brief
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
    under `cache`; where libtpu is not installed they are refused with `ValueError`. A call's `std`
    is the calibration's error, and part of it is common to all.
    """

    generation: str
    cache: Path

    @functools.cached_property
    def _shipped(self) -> TpuTable:
        return shipped(self.generation)

    @property
    def provenance(self) -> Provenance:
        """The table's, with the calibration: milliseconds by another are others."""
        table = self._shipped
        return dataclasses.replace(
            table.provenance,
            versions=(*table.provenance.versions, ("calibration", table.calibration)),
            source=f"{table.provenance.method}, calibrated on what was published "
            f"({table.calibrated_on}); {table.provenance.source}",
        )

    def table(self, wanted: Iterable[Call], progress: Progress | None = None) -> Table:
        wanted = tuple(dict.fromkeys(wanted))
        parts = self._priced(wanted, progress).parts
        return Table({call: parts.predict([call]) for call in wanted})

    def networks(self, wanted: Sequence[Whole], progress: Progress | None = None) -> list[Latency]:
        found = [tuple(calls(whole.program, whole.inputs).values()) for whole in wanted]
        model = self._priced([call for each in found for call in each], progress)
        return [model.predict(each) for each in found]

    def _priced(self, wanted: Iterable[Call], progress: Progress | None) -> Calibrated:
        """The calibrated model, with rows for all of `wanted`."""
        model, estimates = self._shipped.model, self._shipped.estimates
        wanted = dict.fromkeys(map(in_bfloat16, wanted))
        missing = [call for call in wanted if call not in estimates.rows]
        if not missing:
            return model
        lacking = (
            f"{len(missing)} of {len(wanted)} calls are not in the table of TPU "
            f"{self.generation}, e.g. {brief(missing[0])}"
        )
        try:
            by = dict(versions())
        except ValueError as error:
            raise ValueError(f"{lacking}; {error}, or choose another of `nas devices`") from None
        there = dict(self._shipped.provenance.versions)
        if by != there:
            raise ValueError(
                f"{lacking}, and the compiler here is not the table's: {by} here, {there} "
                "there; install the table's versions, or write a table by yours with "
                "`python -m benchmarks.tpu`"
            )
        cache = Cache(self.cache / f"tpu-{self.generation}.jsonl")
        rows = estimated(missing, estimates.generation, cache, progress)
        more: Estimates = dataclasses.replace(estimates, rows={**estimates.rows, **rows})
        return dataclasses.replace(model, model=more)
