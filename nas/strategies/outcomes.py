"""What an evaluation gives: quality, more being better, or the reason why there is none."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nas.journal import Outcome


class Quality(NamedTuple):
    """A mean and its standard error. `scores` are what it is the mean of, in a fixed order."""

    mean: float
    error: float
    scores: tuple[float, ...]


def scored(scores: Iterable[float]) -> Outcome:
    """The outcome of an evaluation that gave these scores, one for each prompt, or a single one.

    A score that is not finite makes it a failed one.
    """
    scores = [float(score) for score in scores]
    if all(map(math.isfinite, scores)) and scores:
        return {"scores": scores}
    return failed(f"scores that are no numbers: {scores[:8]}")


def failed(reason: str) -> Outcome:
    """The outcome of an evaluation that could not be done; its candidate is out."""
    return {"failed": reason}


def check(outcome: Outcome) -> None:
    """Raises `ValueError` on what is neither scores nor a failure."""
    scores = outcome.get("scores")
    numbers = isinstance(scores, list | tuple) and all(
        isinstance(score, int | float) and math.isfinite(score) for score in scores
    )
    if not (numbers and scores) and "failed" not in outcome:
        raise ValueError(
            f"an outcome has a list of finite 'scores', or says why it 'failed'; this has {outcome}"
        )


def combined(outcomes: Sequence[Outcome]) -> Quality | None:
    """The quality of all scores, in the order of `outcomes`; none if any failed."""
    if any("failed" in outcome for outcome in outcomes):
        return None
    scores = tuple(float(score) for outcome in outcomes for score in outcome["scores"])
    return Quality(mean(scores), error(scores), scores)


def mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores)


def error(scores: Sequence[float]) -> float:
    """Standard error of the mean; 0 of a single score, which says nothing of its spread."""
    if len(scores) < 2:
        return 0.0
    middle = mean(scores)
    squares = math.fsum((score - middle) ** 2 for score in scores)
    return math.sqrt(squares / (len(scores) - 1) / len(scores))


def lost(before: Quality, after: Quality) -> Quality:
    """By how much `after` is worse, paired score by score where both have the same number."""
    if len(before.scores) == len(after.scores):
        apart = tuple(b - a for b, a in zip(before.scores, after.scores, strict=True))
        return Quality(mean(apart), error(apart), apart)
    apart = before.mean - after.mean
    return Quality(apart, math.hypot(before.error, after.error), (apart,))
