"""Bayesian optimisation: a model of quality says what is worth evaluating (Jones et al., 1998).

Latency is no part of the model: it is known, so only what keeps to the limits is thought of.
"""

import dataclasses
import functools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy.special import ndtr

from nas import plugins
from nas.strategies import process
from nas.strategies.drawing import draw
from nas.strategies.exploration import Proposal, Trial, full, seen, settled
from nas.strategies.leaves import indicators
from nas.strategies.numbers import whole
from nas.strategies.problem import Problem

Describe: TypeAlias = Callable[[Any], Mapping[str, float]]
"""What of a spec may matter, as named numbers of the order of one; 0 where a name is absent."""

LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Over which quality varies, in distances between two specs at random."""


@dataclasses.dataclass(frozen=True)
class Surrogate:
    """After `first` specs, the one from which a model expects most improvement.

    Each of the first is the one, of `choices` at random, that takes most of what the limits allow:
    what may take longer tends to be better.

    The model is a Gaussian process of what `describe` says of specs, by default their leaves. A
    space that knows what its specs have in common should say so: it is what decides how many
    evaluations are needed. Qualities far below the median are all bad alike, so that the model need
    not learn how bad. Of candidates, the `shortlist` with the highest means are looked at closely.
    Where the space is not listed they are the neighbours of the `best` evaluated ones and as many
    drawn at random, but no more than `drawn`. A proposal waits for all but the last `ahead - 1`, of
    which the model's own prediction is believed meanwhile (Ginsbourger et al., 2010). The
    import path of `describe`, `package.module:function`, will do as well.
    """

    describe: Describe = indicators
    first: int = 10
    choices: int = 8
    ahead: int = 1
    shortlist: int = 256
    best: int = 5
    drawn: int = 64

    def __post_init__(self) -> None:
        whole(self, first=2, choices=1, ahead=1, shortlist=1, best=1, drawn=1)
        given: Any = self.describe
        if isinstance(given, str):
            object.__setattr__(self, "describe", plugins.at(given))
        if not callable(self.describe):
            raise ValueError(f"describe={given} is no function of a spec")

    def propose(
        self, problem: Problem[Any], trials: Sequence[Trial], rng: np.random.Generator
    ) -> Proposal | None:
        taken = seen(trials)
        if len(trials) < self.first:
            return full(problem, self._begun(problem, rng, taken))
        known = max(len(trials) - self.ahead + 1, self.first)
        if not settled(trials, known):
            return None
        told = [trial for trial in trials[:known] if trial.quality is not None]
        if len(told) < 2:
            return full(problem, draw(problem, rng, taken))
        rows = [trial.spec for trial in told]
        values = levelled(np.array([t.quality.mean for t in told]))  # pyright: ignore
        if problem.specs:
            view = described(problem, self.describe)
        else:
            near = [rows[i] for i in np.argsort(-values, kind="stable")[: self.best]]
            pool = dict.fromkeys([*seen(trials), *self._pool(problem, near, rng)])
            view = Described(tuple(pool), self.describe)
        free = view.free(taken)
        if not free.any():
            return full(problem, draw(problem, rng, taken))
        model = view.model(rows, values)
        waiting = [trial.spec for trial in trials[known:]]
        if waiting:
            believed = model.mean(view.covariances(rows, model.length, at=waiting))
            rows, values = [*rows, *waiting], np.concatenate([values, believed])
            model = view.model(rows, values)
        covariances = view.covariances(rows, model.length)
        means = np.where(free, model.mean(covariances), -np.inf)
        short = np.argsort(-means, kind="stable")[: min(self.shortlist, int(free.sum()))]
        deviations = model.deviation(covariances[:, short])
        best = np.argmax(improvement(means[short], deviations, values.max()))
        return full(problem, view.specs[short[best]])

    def _begun(
        self, problem: Problem[Any], rng: np.random.Generator, taken: Container[Any]
    ) -> Any | None:
        """The one of some at random that takes most of its limits."""
        drawn = [draw(problem, rng, taken) for _ in range(self.choices)]
        return max((s for s in drawn if s is not None), key=problem.used, default=None)

    def _pool(
        self, problem: Problem[Any], near: Sequence[Any], rng: np.random.Generator
    ) -> Iterator[Any]:
        """Neighbours of these specs, and others at random; all keep to the limits."""
        count = 0
        for spec in near:
            for neighbour in problem.neighbours(spec):
                if problem.fits(neighbour):
                    count += 1
                    yield neighbour
        for _ in range(min(max(count, 1), self.drawn)):
            spec = draw(problem, rng, ())
            if spec is not None:
                yield spec


class Described:
    """Specs as numbers, and how alike they are."""

    def __init__(self, specs: Sequence[Any], describe: Describe):
        self.specs = tuple(specs)
        self._places = {spec: place for place, spec in enumerate(self.specs)}
        said = [describe(spec) for spec in self.specs]
        names = dict.fromkeys(name for numbers in said for name in numbers)
        columns = {name: column for column, name in enumerate(names)}
        self._values = np.zeros((len(said), len(columns)), np.float32)  # [specs, names]
        for row, numbers in zip(self._values, said, strict=True):
            for name, number in numbers.items():
                row[columns[name]] = number
        self._squares = (self._values**2).sum(1)
        spread = float(np.sqrt(2 * self._values.var(0).sum()))  # How far apart two are, usually.
        self._lengths = tuple(length * (spread or 1.0) for length in LENGTHS)
        # Remembered for a while, as a search asks for nearly the same again at every step.
        self._covariance = functools.lru_cache(maxsize=1024)(self._row)
        self._distance = functools.lru_cache(maxsize=1024)(self._apart)

    def model(self, specs: Sequence[Any], values: np.ndarray) -> process.Process:
        """The process that gives these values at these of its specs."""
        found = {length: self.covariances(specs, length, at=specs) for length in self._lengths}
        return process.fit(found, values)

    def covariances(
        self, specs: Sequence[Any], length: float, *, at: Sequence[Any] | None = None
    ) -> np.ndarray:
        """Covariances of some of its specs with all, `[some, all]`, or with others of them."""
        rows = (self._covariance(spec, length) for spec in specs)
        if at is None:
            return np.stack(list(rows))
        places = [self._places[spec] for spec in at]
        return np.stack([row[places] for row in rows]).astype(float)

    def _row(self, spec: Any, length: float) -> np.ndarray:
        return process.matern(self._distance(spec), length)

    def _apart(self, spec: Any) -> np.ndarray:
        one = self._values[self._places[spec]]
        squares = self._squares + one @ one - 2 * self._values @ one
        return np.sqrt(np.maximum(squares, 0.0))

    def free(self, taken: Iterable[Any]) -> np.ndarray:
        """Which of its own specs are not taken."""
        found = np.ones(len(self.specs), bool)
        found[[self._places[spec] for spec in taken if spec in self._places]] = False
        return found


@functools.lru_cache(maxsize=4)
def described(problem: Problem[Any], describe: Describe) -> Described:
    """All specs of a listed space that keep to the limits."""
    return Described(problem.fitting, describe)


def improvement(mean: np.ndarray, deviation: np.ndarray, top: float) -> np.ndarray:
    """The expected improvement over `top` of what is normally distributed."""
    above = (mean - top) / deviation
    density = np.exp(-0.5 * above**2) / np.sqrt(2 * np.pi)
    return deviation * (above * ndtr(above) + density)


def levelled(values: np.ndarray) -> np.ndarray:
    """Values of mean 0 and deviation 1, those as far below the median as the best is above it, or
    further, being equal."""
    middle, top = np.median(values), values.max()
    clipped = np.maximum(values, middle - (top - middle))
    return (clipped - clipped.mean()) / (clipped.std() or 1.0)
