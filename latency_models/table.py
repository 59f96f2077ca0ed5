"""Latency as a sum over a table of measured calls."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from latency_models.latency import Latency, LatencyModel, UnknownCall, total
from latency_models.measure import measure_subjects
from search_spaces.ops import Call


@dataclasses.dataclass(frozen=True)
class Table(LatencyModel):
    """Prices calls by their rows. The errors of different rows are independent."""

    rows: Mapping[Call, Latency]

    def predict(self, calls: Iterable[Call]) -> Latency:
        counts = collections.Counter(calls)
        missing = [call for call in counts if call not in self.rows]
        if missing:
            raise UnknownCall(
                f"{len(missing)} of {len(counts)} distinct calls are not in the table, "
                f"e.g. {missing[0]}; measure them with `profile(calls, table)`"
            )
        # A call made twice is wrong by the same amount twice.
        return total(
            Latency(count * self.rows[call].ms, count * self.rows[call].std)
            for call, count in counts.items()
        )


EMPTY = Table({})


def profile(
    calls: Iterable[Call],
    known: Table = EMPTY,
    *,
    measure: Callable[[Sequence[Call]], Sequence[Latency]] = measure_subjects,
) -> Table:
    """Returns `known` with a row for each of `calls`; only what it lacks is measured, each once.

    `measure` is the device: the local one unless told otherwise.
    """
    missing = [call for call in dict.fromkeys(calls) if call not in known.rows]
    measured = zip(missing, measure(missing) if missing else (), strict=True)
    return Table({**known.rows, **dict(measured)})
