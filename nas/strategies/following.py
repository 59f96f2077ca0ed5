"""The way that a search took through its trials, gone again to see where it is."""

from collections.abc import Iterator, Sequence
from typing import Any

from nas.strategies.exploration import Trial, seen
from nas.strategies.outcomes import Quality
from nas.strategies.versions import Places


class Following(Iterator[Trial]):
    """Trials one after another, from number `start` on; those before `at` are met, by spec.

    No spec has two trials.
    """

    def __init__(self, trials: Sequence[Trial], start: int = 0):
        self._trials = trials
        places = seen(trials)
        if not isinstance(places, Places):
            places = {spec: place for place, spec in enumerate(places)}
        self._places = places
        self.at = start

    def __next__(self) -> Trial:
        if self.at >= len(self._trials):
            raise StopIteration
        self.at += 1
        return self._trials[self.at - 1]

    def missing(self, specs: Sequence[Any]) -> Any | None:
        """The first of `specs` that is not met once as many trials as it takes are met.

        The trials that come next must be those of the specs not met yet, in order.
        """
        for spec in specs:
            if self.trial(spec) is None and next(self, None) is None:
                return spec
        return None

    def trial(self, spec: Any) -> Trial | None:
        """The trial of a spec that was met."""
        place = self._places.get(spec)
        return None if place is None or place >= self.at else self._trials[place]

    def done(self, specs: Sequence[Any]) -> bool:
        """Whether all of these specs, which were met, are evaluated, or failed."""
        return all(self._met(spec).done for spec in specs)

    def quality(self, spec: Any) -> Quality | None:
        """The quality of a spec that is done; none if it failed."""
        return self._met(spec).quality

    def _met(self, spec: Any) -> Trial:
        found = self.trial(spec)
        assert found is not None, f"{spec} was not met"
        return found


def worth(quality: Quality | None) -> float:
    """What is compared: a failure is worse than everything."""
    return float("-inf") if quality is None else quality.mean
