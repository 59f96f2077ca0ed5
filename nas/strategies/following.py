"""The way that a search took through its trials, gone again to see where it is."""

from collections.abc import Iterator, Sequence
from typing import Any

from nas.strategies.exploration import Trial
from nas.strategies.outcomes import Quality


class Following(Iterator[Trial]):
    """Trials one after another; those already met are `known`, by spec."""

    def __init__(self, trials: Sequence[Trial]):
        self._left = iter(trials)
        self.known: dict[Any, Trial] = {}

    def __next__(self) -> Trial:
        trial = next(self._left)
        self.known[trial.spec] = trial
        return trial

    def missing(self, specs: Sequence[Any]) -> Any | None:
        """The first of `specs` that is not known once as many trials as it takes are met.

        The trials that come next must be those of the specs not known yet, in order.
        """
        for spec in specs:
            if spec not in self.known and next(self, None) is None:
                return spec
        return None

    def done(self, specs: Sequence[Any]) -> bool:
        """Whether all of these known specs are evaluated, or failed."""
        return all(self.known[spec].done for spec in specs)

    def quality(self, spec: Any) -> Quality | None:
        """The quality of a spec that is done; none if it failed."""
        return self.known[spec].quality


def worth(quality: Quality | None) -> float:
    """What is compared: a failure is worse than everything."""
    return float("-inf") if quality is None else quality.mean
