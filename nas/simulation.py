"""Workers on a virtual clock: the real engine, with calls that take as long as they are said to.

    hosts = VirtualHosts(make, seconds, Conditions(lifetime=3600.0))
    with Dispatcher(hosts) as executor:
        ...  # Anything that takes an executor, `nas.conduct.Conductor` say.
    hosts.clock, hosts.spent

Functions of workers are called, in this process, when the clock is at the end of their calls, so
what they return is real; only time is not. The same seed gives the same course of events.
"""

import dataclasses
import heapq
import itertools
import math
import random
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

from nas.dispatch import Died, Lost, Report, Worker, asked_of
from nas.executors import Call, Pool, Shared

W = TypeVar("W")

Seconds: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...]], float]
"""How long a worker takes for a function of these arguments, where nothing is out of the way."""


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What workers and the process of the search are up against. By default nothing."""

    start: float = 0.0
    """Seconds that a worker needs to be placed and ready, whenever one starts."""
    receive: float = 0.0
    """Seconds that a shared value needs to reach a worker."""
    spread: float = 0.0
    """Standard deviation of the logarithm of calls' times, which leaves their mean as it is."""
    stragglers: float = 0.0
    """Share of calls that take `slower` times as long."""
    slower: float = 4.0
    """How many times as long; infinite for calls that hang."""
    lifetime: float = math.inf
    """Seconds until a worker is preempted, on average. Each is as likely at any moment."""
    engine: float = 0.0
    """Seconds that the process of the search is busy with a call, one after another."""

    def __post_init__(self) -> None:
        given = dataclasses.asdict(self)
        wrong = {name: x for name, x in given.items() if not x >= 0}
        if wrong or self.lifetime == 0 or self.stragglers > 1 or self.slower < 1:
            raise ValueError(
                f"{self}: none may be negative, a lifetime is positive, "
                "stragglers are a share up to 1 and take at least as long as others"
            )


STEADY = Conditions()

_Happens: TypeAlias = Callable[[Worker, Call | None], Report | None]


@dataclasses.dataclass
class Spent:
    """Seconds of workers, summed over all, and what happened to them."""

    held: float = 0.0
    """From the start of workers to their end: what is paid for."""
    starting: float = 0.0
    useful: float = 0.0
    """On calls that ended."""
    lost: float = 0.0
    """On calls that did not, and were made again or given up."""
    calls: int = 0
    """That ended."""
    preempted: int = 0
    ended: int = 0
    """Workers that were ended while they had a call: they overran their deadline."""

    @property
    def utilisation(self) -> float:
        """Share of what is paid for that was useful."""
        return self.useful / self.held if self.held else 0.0

    def on(self, hosts: int) -> "Spent":
        """The same in seconds of hosts, of which each worker holds so many."""
        seconds = {n: hosts * getattr(self, n) for n in ("held", "starting", "useful", "lost")}
        return dataclasses.replace(self, **seconds)


@dataclasses.dataclass(eq=False)
class _Place(Generic[W]):
    """Where a worker is."""

    since: float  # It is held since then.
    host: W | None = None  # Once it has started.
    nodes: tuple[str, ...] = ()  # Once they have room for it.
    dead: bool = False
    kept: Shared[Any] | None = None
    doing: Call | None = None
    begun: float = 0.0


class VirtualHosts(Generic[W]):
    """Hosts whose time passes only when it is waited for, or `Conditions.engine` is spent.

    `nodes` are what they have, by name, as Ray has it: a worker waits until what it asks for is
    free. Without them there is room for all.
    """

    def __init__(
        self,
        make: Callable[[], W],
        seconds: Seconds,
        conditions: Conditions = STEADY,
        *,
        nodes: Mapping[str, Mapping[str, float]] | None = None,
        seed: int = 0,
    ):
        self._make, self._seconds, self._conditions = make, seconds, conditions
        self._nodes, self._limited = nodes or {"virtual": {}}, nodes is not None
        self._unplaced: list[Worker] = []
        self._random = random.Random(seed)
        self._places: dict[Worker, _Place[W]] = {}
        self._numbers = itertools.count()
        # When what happens to which worker, and with which call.
        self._events: list[tuple[float, int, _Happens, Worker, Call | None]] = []
        self.clock = 0.0
        """Seconds since the beginning."""
        self._spent: list[tuple[Pool, Spent]] = []

    @property
    def spent(self) -> Spent:
        """What all workers spent, up to the end of those that have ended."""
        found = Spent()
        for _, spent in self._spent:
            for field in dataclasses.fields(Spent):
                value = getattr(found, field.name) + getattr(spent, field.name)
                setattr(found, field.name, value)
        return found

    def spent_by(self, pool: Pool) -> Spent:
        """The same of the workers of one pool."""
        found = next((spent for known, spent in self._spent if known == pool), None)
        if found is None:
            found = Spent()
            self._spent.append((pool, found))
        return found

    def now(self) -> float:
        return self.clock

    def share(self, value: Any) -> Shared[Any]:
        return Shared(value)

    def start(self, worker: Worker) -> None:
        self._places[worker] = _Place(self.clock)
        self._unplaced.append(worker)
        self._place()

    def call(self, worker: Worker, call: Call) -> None:
        self.clock += self._conditions.engine
        place = self._places[worker]
        place.doing, place.begun = call, self.clock
        if place.dead:
            self._at(self.clock, self._preempted, worker, call)
            return
        received = [x for x in call.arguments if isinstance(x, Shared) and x is not place.kept]
        place.kept = received[-1] if received else place.kept
        takes = self._seconds(call.function, call.arguments) * self._luck()
        takes += self._conditions.receive * len(received)
        if takes < math.inf:
            self._at(self.clock + takes, self._returned, worker, call)

    def _place(self) -> None:
        """Has workers begin to start that there is room for, the first come first."""
        for worker in tuple(self._unplaced):
            place, hosts = self._places[worker], worker.pool.hosts
            fitting = [
                name for name in self._nodes if not self._limited or self._fits(worker, name)
            ]
            if len(fitting) < hosts and self._limited:
                continue
            self._unplaced.remove(worker)
            place.since, place.nodes = self.clock, tuple(fitting[:hosts])
            self._at(self.clock + self._conditions.start, self._ready, worker)

    def _fits(self, worker: Worker, node: str) -> bool:
        held = [asked_of(other.pool) for other, at in self._places.items() if node in at.nodes]
        has = self._nodes[node]
        return all(
            amount + sum(other.get(name, 0.0) for other in held) <= has.get(name, 0.0)
            for name, amount in asked_of(worker.pool).items()
        )

    def end(self, worker: Worker) -> None:
        place = self._places.pop(worker)
        if worker in self._unplaced:
            self._unplaced.remove(worker)
            return
        self._place()
        if not place.dead:
            self.spent_by(worker.pool).held += self.clock - place.since
        if place.doing and not place.dead:
            self.spent_by(worker.pool).lost += self.clock - place.begun
            self.spent_by(worker.pool).ended += 1

    def wait(self, seconds: float) -> list[Report]:
        until, found = self.clock + seconds, list[Report]()
        while self._events and self._events[0][0] <= (self.clock if found else until):
            when, _, happens, worker, call = heapq.heappop(self._events)
            self.clock = max(self.clock, when)
            report = happens(worker, call)
            if report is not None:
                found.append(report)
        if not found:
            self.clock = max(self.clock, until)
        return found

    def nodes(self) -> Mapping[str, Mapping[str, float]]:
        return self._nodes

    def close(self) -> None:
        pass

    # What happens.

    def _at(self, when: float, happens: _Happens, worker: Worker, call: Call | None = None) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happens, worker, call))

    def _luck(self) -> float:
        """By what a call's time is multiplied."""
        given, found = self._conditions, 1.0
        if given.spread:
            found = self._random.lognormvariate(-(given.spread**2) / 2, given.spread)
        if given.stragglers and self._random.random() < given.stragglers:
            found *= given.slower
        return found

    def _ready(self, worker: Worker, _: Call | None) -> Report | None:
        place = self._places.get(worker)
        if place is None:
            return None
        self.spent_by(worker.pool).starting += self.clock - place.since
        try:
            place.host = self._make()
        except Exception as error:
            return Report(worker, None, error=error)
        if self._conditions.lifetime < math.inf:
            lives = self._random.expovariate(1 / self._conditions.lifetime)
            self._at(self.clock + lives, self._preempted, worker)
        return Report(worker, None, place.nodes[0])

    def _preempted(self, worker: Worker, call: Call | None) -> Report | None:
        """A worker is taken away; nobody knows until it has, or is given, a call."""
        place = self._places.get(worker)
        if place is None:
            return None
        if not place.dead:
            place.dead = True
            self.spent_by(worker.pool).held += self.clock - place.since
            self.spent_by(worker.pool).preempted += 1
            if place.doing:
                self.spent_by(worker.pool).lost += self.clock - place.begun
        return Report(worker, place.doing, error=Lost()) if place.doing else None

    def _returned(self, worker: Worker, call: Call | None) -> Report | None:
        place = self._places.get(worker)
        if place is None or place.dead or place.doing is not call or call is None:
            return None
        place.doing = None
        self.spent_by(worker.pool).useful += self.clock - place.begun
        self.spent_by(worker.pool).calls += 1
        given = [x.held if isinstance(x, Shared) else x for x in call.arguments]
        try:
            return Report(worker, call, call.function(place.host, *given))
        except Died:
            place.dead = True
            self.spent_by(worker.pool).held += self.clock - place.since
            return Report(worker, call, error=Died())
        except Exception as error:
            return Report(worker, call, error=error)
