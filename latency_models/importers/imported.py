"""What measuring tools report, in one shape."""

import dataclasses
import enum
import math
import statistics
from collections.abc import Iterable, Mapping

import numpy as np

from latency_models.latency import Latency
from latency_models.measure import standard_error
from latency_models.provenance import Method, Provenance


class Kind(enum.StrEnum):
    """What was run."""

    NETWORK = "network"
    BLOCK = "block"  # A part of a network that has parts of its own.
    OP = "op"


class Stat(enum.StrEnum):
    """What of several runs a number is."""

    MEDIAN = "median"
    MEAN = "mean"
    MINIMUM = "minimum"
    SINGLE = "single"  # One run, or the tool does not say.
    SHARE = "share"  # The network's median, shared out by the cycles each op took.


class Malformed(ValueError):
    """A file that is not what its format says: where it goes wrong, and what belongs there."""

    def __init__(self, place: str, expected: str, found: object = None):
        text = "" if found is None else f", found {str(found)[:200]!r}"
        super().__init__(f"{place}: expected {expected}{text}")


@dataclasses.dataclass(frozen=True)
class Imported:
    """One line of a tool's report.

    `ms` is the `stat` of `runs` runs, and `std_ms` their standard deviation. `quantiles_ms` are
    pairs of a probability and its milliseconds, least first. `stated` is what the file says about
    how it was measured, by name, the names of `Provenance`'s fields where they fit. `place` is the
    file, and the line or path in it.
    """

    name: str
    kind: Kind
    ms: float
    stat: Stat
    op: str = ""
    std_ms: float | None = None
    quantiles_ms: tuple[tuple[float, float], ...] = ()
    samples_ms: tuple[float, ...] = ()
    runs: int | None = None
    stated: tuple[tuple[str, str], ...] = ()
    place: str = ""

    def __post_init__(self) -> None:
        numbers = (
            self.ms,
            self.std_ms or 0.0,
            *self.samples_ms,
            *(q for _, q in self.quantiles_ms),
        )
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise Malformed(self.place, "milliseconds, finite and not negative", numbers)
        if self.kind is Kind.NETWORK and not self.ms:
            raise Malformed(self.place, f"more than no time for the network {self.name}", self.ms)

    def latency(self, *, assumed: float | None = None) -> Latency:
        """The estimate and its standard error.

        The error comes of the samples, or of their deviation and number. Where the tool gives
        neither it is the share `assumed` of the latency; without that, `ValueError`.
        """
        if self.ms <= 0:
            raise ValueError(f"{self.place}: {self.name} took no time; it is no latency")
        if (error := self._error()) is None:
            if assumed is None:
                raise ValueError(
                    f"{self.place}: {self.name} is a {self.stat} without spread; "
                    "say which relative error to assume"
                )
            error = assumed * self.ms
        return Latency(self.ms, error)

    def _error(self) -> float | None:
        if len(self.samples_ms) > 1 and self.stat is Stat.MEDIAN:
            return standard_error(np.array(self.samples_ms))
        if self.std_ms is None or not self.runs or self.runs < 2:
            return None
        # The median of normal runs errs sqrt(pi / 2) times as much as their mean.
        factor = math.sqrt(math.pi / 2) if self.stat is Stat.MEDIAN else 1.0
        return factor * self.std_ms / math.sqrt(self.runs)


def of_samples(
    name: str,
    kind: Kind,
    samples_ms: Iterable[float],
    *,
    op: str = "",
    stated: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    place: str = "",
) -> Imported:
    """A row of runs that are all there: their median."""
    samples = tuple(samples_ms)
    return Imported(
        name,
        kind,
        statistics.median(samples),
        Stat.MEDIAN if len(samples) > 1 else Stat.SINGLE,
        op=op,
        std_ms=statistics.stdev(samples) if len(samples) > 1 else None,
        samples_ms=samples,
        runs=len(samples),
        stated=tuple(sorted(dict(stated).items())),
        place=place,
    )


VERSION = "version:"  # What the names of versions among `stated` begin with.

_FIELDS = ("device", "runtime", "precision", "attention", "threads", "affinity")


def provenance(row: Imported, given: Mapping[str, str], source: str) -> Provenance:
    """That of `row`: what the file states, and what it does not say as `given`.

    Both are by the names of `Provenance`'s fields; names that begin with `version:` are versions.
    The statistic is one of the versions, since a minimum and a median do not compare. Raises
    `ValueError` where the two disagree and where neither says.
    """
    stated = {
        name: value for name, value in row.stated if name in _FIELDS or name.startswith(VERSION)
    }
    clash = [name for name in stated.keys() & given.keys() if stated[name] != given[name]]
    if clash:
        raise ValueError(
            f"{row.place}: the file says {[f'{n}={stated[n]}' for n in sorted(clash)]}, "
            f"you say {[f'{n}={given[n]}' for n in sorted(clash)]}; leave out yours"
        )
    known = {**stated, **given}
    if unknown := [n for n in known if n not in _FIELDS and not n.startswith(VERSION)]:
        raise ValueError(f"{unknown}: what can be said is {', '.join(_FIELDS)} and {VERSION}NAME")
    missing = [n for n in ("device", "runtime", "precision", "attention") if not known.get(n)]
    if missing:
        raise ValueError(
            f"{row.place} does not say the {' nor the '.join(missing)}; say so yourself, "
            "since latencies differ by a factor of nine with the attention alone"
        )
    threads = known.get("threads")
    if threads and not threads.isdecimal():
        raise ValueError(f"{row.place}: threads={threads!r} is no number of threads")
    versions = {n.removeprefix(VERSION): v for n, v in known.items() if n.startswith(VERSION)}
    return Provenance(
        device=known["device"],
        runtime=known["runtime"],
        versions=tuple({**versions, "statistic": str(row.stat)}.items()),
        precision=known["precision"],
        attention=known["attention"],
        threads=int(threads) if threads else None,
        method=Method.MEASURED,
        affinity=known.get("affinity", ""),
        source=source,
    )
