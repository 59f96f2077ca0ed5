"""A small space with nothing of networks: strings of beads of three colours."""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator

from latency_models.latency import Latency
from nas.executors import Pool
from nas.strategies.exploration import Evaluate
from nas.strategies.problem import Device, Problem
from nas.study import Study

COLOURS = 3
TORN = (1, 0, 1)


@dataclasses.dataclass(frozen=True)
class Beads:
    colours: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Paint:
    place: int
    colour: int

    def apply(self, spec: Beads) -> Beads:
        if spec.colours[self.place] == self.colour:
            raise ValueError(f"bead {self.place} has colour {self.colour} already")
        painted = list(spec.colours)
        painted[self.place] = self.colour
        return Beads(tuple(painted))


@dataclasses.dataclass(frozen=True)
class String:
    """Strings of `length` beads. The first has the colour that costs most everywhere."""

    length: int

    def initial(self) -> Beads:
        return Beads((COLOURS - 1,) * self.length)

    def actions(self, spec: Beads) -> Iterator[Paint]:
        for place, now in enumerate(spec.colours):
            yield from (Paint(place, c) for c in range(COLOURS) if c != now)

    def everything(self) -> tuple[Beads, ...]:
        return tuple(map(Beads, itertools.product(range(COLOURS), repeat=self.length)))


def additive(spec: Beads) -> float:
    """Worth of beads, each on its own."""
    return math.fsum((1 + place) ** 0.5 * colour for place, colour in enumerate(spec.colours))


def entangled(spec: Beads) -> float:
    """Worth of beads that mind their neighbours."""
    pairs = itertools.pairwise(spec.colours)
    return additive(spec) - 1.5 * sum(a == b for a, b in pairs)


def evaluated(task: Evaluate) -> list[float]:
    return worth(task.spec, task.shard)


def worth(spec: Beads, shard: int) -> list[float]:
    """Two scores of a shard, whose spread is the same for all specs."""
    return [entangled(spec) + 0.1 * math.sin(7 * shard + n) for n in range(2)]


def linear(spec: Beads) -> Latency:
    return Latency(1.0 + sum(spec.colours), 0.1)


def late(spec: Beads) -> Latency:
    """Later beads take longer."""
    return Latency(math.fsum(place * colour for place, colour in enumerate(spec.colours)) + 1, 0.0)


def problem(length: int = 4, *, listed: bool = True, shards: int = 1, **limits: float) -> Problem:
    limits = limits or {"linear": 0.75 * (1 + 2 * length), "late": 0.6 * length * (length - 1) + 1}
    devices = {
        name: Device({"linear": linear, "late": late}[name], ms) for name, ms in limits.items()
    }
    space = String(length)
    return Problem(space, devices, shards, 1.0, space.everything() if listed else ())


def study() -> Study[Beads]:
    """The same for the command, but that one string breaks whatever evaluates it."""

    def evaluate(spec: Beads, shard: int) -> list[float]:
        if spec.colours == TORN:
            raise (RuntimeError if shard else ValueError)("the string is torn")
        return worth(spec, shard)

    space = String(3)
    return Study(space, {"linear": linear, "late": late}, evaluate, 2, space.everything())


def slow_study() -> Study[Beads]:
    """The same, and evaluating takes long for what it is."""

    def evaluate(spec: Beads, shard: int) -> list[float]:
        time.sleep(0.6)
        return worth(spec, shard)

    return dataclasses.replace(study(), evaluate=evaluate, shards=1)


def study_of_gpus() -> Study[Beads]:
    """The same, of workers that are given a GPU and a minute."""
    pool = Pool(workers=3, gpus=1.0, resources={"string": 1.0}, platform="cuda", deadline=60.0)
    return dataclasses.replace(study(), pool=pool)
