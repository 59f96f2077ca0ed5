"""Candidates drawn at random, within the limits: latencies are known, so none is wasted."""

from collections.abc import Callable, Container
from typing import Any

import numpy as np

from nas.strategies.problem import Problem

TRIES = 200
"""Draws before a space is taken to hold nothing new."""
WALK = 24
"""Edits of a random walk, at most."""


def draw(problem: Problem[Any], rng: np.random.Generator, taken: Container[Any]) -> Any | None:
    """A spec that keeps to all limits and is not taken; none if none was found.

    Every such spec is as likely as any other where the space is listed. Elsewhere a walk of random
    length goes from the first spec, and from where it ends towards the limits.
    """
    if problem.specs:
        for _ in range(TRIES):
            spec = _one(problem.fitting, rng)
            if spec is not None and spec not in taken:
                return spec
        return _one(tuple(spec for spec in problem.fitting if spec not in taken), rng)
    for _ in range(TRIES):
        spec = problem.space.initial()
        for _ in range(rng.integers(WALK + 1)):
            spec = _near(problem, spec, rng) or spec
        spec = within(problem, spec, rng)
        if spec is not None and spec not in taken:
            return spec
    return None


def within(problem: Problem[Any], spec: Any, rng: np.random.Generator) -> Any | None:
    """A spec that keeps to all limits, reached from `spec` by edits that each bring it nearer.

    None where the edits lead no nearer.
    """
    while (excess := problem.excess(spec)) > 0:
        spec = _near(problem, spec, rng, lambda n, most=excess: problem.excess(n) < most)
        if spec is None:
            return None
    return spec


def mutant(
    problem: Problem[Any], parent: Any, rng: np.random.Generator, taken: Container[Any]
) -> Any | None:
    """An edit of `parent` at random; where none is left, an edit of an edit, and so on."""
    spec = parent
    for _ in range(TRIES):
        new = _near(problem, spec, rng, lambda n: n not in taken and problem.fits(n))
        if new is not None:
            return new
        spec = _near(problem, spec, rng) or parent
    return draw(problem, rng, taken)


def _near(
    problem: Problem[Any],
    spec: Any,
    rng: np.random.Generator,
    wanted: Callable[[Any], bool] = lambda _: True,
) -> Any | None:
    """A neighbour that is wanted, each as likely as any other; none if none is.

    Where it takes long to list neighbours, a space has a method `shuffled(spec, rng)` that yields
    them in random order, and only as many are made as are looked at.
    """
    shuffled = getattr(problem.space, "shuffled", None)
    if shuffled is None:
        return _one([n for n in problem.neighbours(spec) if wanted(n)], rng)
    return next((n for n in shuffled(spec, rng) if wanted(n)), None)


def _one(things: Any, rng: np.random.Generator) -> Any | None:
    return things[rng.integers(len(things))] if len(things) else None
