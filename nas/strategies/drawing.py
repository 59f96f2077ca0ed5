"""Candidates drawn at random, within the limits: latencies are known, so none is wasted."""

from collections.abc import Container
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
            spec = _one(problem.neighbours(spec), rng) or spec
        spec = within(problem, spec, rng)
        if spec is not None and spec not in taken:
            return spec
    return None


def within(problem: Problem[Any], spec: Any, rng: np.random.Generator) -> Any | None:
    """A spec that keeps to all limits, reached from `spec` by edits that each bring it nearer.

    None where the edits lead no nearer.
    """
    while (excess := problem.excess(spec)) > 0:
        nearer = [n for n in problem.neighbours(spec) if problem.excess(n) < excess]
        if not nearer:
            return None
        spec = _one(nearer, rng)
    return spec


def mutant(
    problem: Problem[Any], parent: Any, rng: np.random.Generator, taken: Container[Any]
) -> Any | None:
    """An edit of `parent` at random; where none is left, an edit of an edit, and so on."""
    spec = parent
    for _ in range(TRIES):
        near = problem.neighbours(spec)
        new = [n for n in near if n not in taken and problem.fits(n)]
        if new:
            return _one(new, rng)
        spec = _one(near, rng) or parent
    return draw(problem, rng, taken)


def _one(things: Any, rng: np.random.Generator) -> Any | None:
    return things[rng.integers(len(things))] if len(things) else None
