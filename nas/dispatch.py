"""Gives calls to workers that may die, hang or be lost: who does what, and what becomes of it.

Knows nothing of where workers are: `Hosts` start and end them, and tell the time. `nas.on_ray` has
workers in processes of Ray, `nas.simulation` on a virtual clock; what is decided is the same.

A worker has one call at a time, so when it dies or overruns, it is known which call is to blame.
One that dies is replaced here, where it is known what it was doing. Every step costs as much as
what happened in it, whatever the number of workers and of calls that wait.
"""

import dataclasses
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Concatenate, Generic, NamedTuple, Protocol, Self, TypeVar

from nas.executors import (
    LOADING,
    NOTHING,
    TRIES,
    UNNAMED,
    UNOBSERVED,
    Call,
    End,
    Label,
    Observer,
    Pool,
    Shared,
)

W = TypeVar("W")
R = TypeVar("R")
T = TypeVar("T")

LOSSES = 20  # How often a call may lose its worker together with its node, and as many starts.
LOOK = 1.0  # Seconds between looks at how much room there is.
START = 900.0  # Seconds that a worker may take to be placed and to be ready.


class Died(Exception):
    """A worker ended while it was doing something, and what it was doing may be why."""


class Lost(Exception):
    """A worker ended for a reason that has nothing to do with what it was doing."""


@dataclasses.dataclass(eq=False)
class Worker:
    """A worker as seen from here. It is idle, or it starts or is busy with a call."""

    pool: Pool
    since: float  # When it began what it is doing, by the hosts' clock.
    number: int = 0  # The least that no other has.
    handle: Any = None  # What the hosts know it by.
    node: str | None = None  # Where it is, or its first process, once it has started.
    call: Call | None = None
    turn: int = 0  # A number for every thing that any worker began.
    gone: bool = False

    @property
    def name(self) -> str:
        return f"worker {self.number}"

    @property
    def limit(self) -> float:
        """Seconds it may take for what it is doing."""
        return self.pool.deadline if self.call else START


class Report(NamedTuple):
    """What became of what a worker was doing.

    `value` is the node it is on if it was starting, else what its call returned. An `error` that is
    neither `Died` nor `Lost` is what the function raised, or what made the worker.
    """

    worker: Worker
    call: Call | None
    value: Any = None
    error: BaseException | None = None


class Hosts(Protocol):
    """Where workers are."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def share(self, value: Any) -> Shared[Any]:
        """Takes a value that workers will be given."""
        ...

    def start(self, worker: Worker) -> None:
        """Begins to start a worker; it is reported on once."""
        ...

    def call(self, worker: Worker, call: Call) -> None:
        """Has an idle worker begin a call; it is reported on once."""
        ...

    def end(self, worker: Worker) -> None:
        """Ends a worker at once, whatever it is doing. It may be gone already."""
        ...

    def wait(self, seconds: float) -> list[Report]:
        """What happened since the last time; waits so long at most until something has."""
        ...

    def nodes(self) -> Mapping[str, Mapping[str, float]]:
        """What every node that lives has for workers, whether they hold it or not."""
        ...

    def close(self) -> None:
        """Lets go of everything."""
        ...


class _Line:
    """The calls that wait for workers of one pool, and those workers."""

    def __init__(self, pool: Pool):
        self.pool = pool
        self.queue: deque[Call] = deque()
        self.idle: deque[Worker] = deque()
        self.workers = 0  # Those that start are among them.
        self.starting = 0
        self.room = 0  # For so many in all, when it was last looked.
        self.looked = -math.inf

    def waiting(self, most: int) -> int:
        """How many calls wait, as far as `most`."""
        while self.queue and not self.queue[0].wanted:
            self.queue.popleft()
        wanted = (call for call in self.queue if call.wanted)
        return sum(1 for _ in itertools.islice(wanted, most))


class Dispatcher(Generic[W]):
    """An executor whose workers are on `hosts`, as many as a call's pool says.

    A worker that dies or overruns is replaced, and its call is given to the next that is free; what
    others do is not touched.
    """

    def __init__(self, hosts: Hosts, *, tries: int = TRIES, observer: Observer = UNOBSERVED):
        self._hosts, self._tries, self._observer = hosts, tries, observer
        self._free_numbers: list[int] = []  # Of workers that are gone; a heap.
        self._lines: list[_Line] = []
        self._workers: dict[Worker, None] = {}  # In the order in which they came.
        self._busy = 0  # Those that start or have a call.
        # When which turn of which worker is overdue; most are over by then.
        self._due: list[tuple[float, int, Worker]] = []
        self._turns = itertools.count(1)
        self._false_starts: list[str] = []  # Why workers did not start, since the last that did.
        self._lost_starts = 0  # Starting workers that were lost since then.

    def share(self, value: T) -> Shared[T]:
        return self._hosts.share(value)

    def submit(
        self,
        pool: Pool,
        function: Callable[Concatenate[W, ...], R],
        /,
        *arguments: Any,
        label: Label = UNNAMED,
    ) -> Future[R]:
        call = Call(pool, function, arguments, label)
        self._line(pool).queue.append(call)
        return call.future

    def wait(self) -> None:
        while not self.step():
            pass

    def step(self) -> bool:
        """Gives out calls, and waits a second at most; whether the future of another is done."""
        self._assign()
        if not self._busy:
            raise ValueError(NOTHING)
        left = self._due[0][0] - self._hosts.now() if self._due else LOOK
        reports = self._hosts.wait(min(max(left, 0.0), LOOK))
        wrong: list[ValueError] = []

        def noted(note: Callable[[T], bool], what: T) -> bool:
            try:
                return note(what)
            except ValueError as error:
                wrong.append(error)
                return False

        ended = [noted(self._note, report) for report in reports]
        ended += [noted(self._overran, worker) for worker in self._overdue()]
        if wrong:  # What ended beside it has been taken note of.
            raise wrong[0]
        return any(ended)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines:
            for call in line.queue:
                call.future.cancel()
        for worker in tuple(self._workers):
            self._remove(worker)
        self._hosts.close()

    # Who does what.

    def _line(self, pool: Pool) -> _Line:
        found = next((line for line in self._lines if line.pool == pool), None)
        if found is None:
            found = _Line(pool)
            self._lines.append(found)
        return found

    def _assign(self) -> None:
        """Gives the oldest calls to idle workers, and has workers started for the others."""
        for line in self._lines:
            while line.queue and line.idle:
                call = line.queue.popleft()
                if call.wanted:
                    self._give(line.idle.popleft(), call)
        for line in self._lines:
            if line.queue:
                self._staff(line)
            if line.starting:
                self._dismiss_idle(line.pool)

    def _give(self, worker: Worker, call: Call) -> None:
        worker.call = call
        self._begin(worker)
        self._hosts.call(worker, call)

    def _begin(self, worker: Worker) -> None:
        """Notes that it begins what it is to do."""
        self._busy += 1
        worker.since, worker.turn = self._hosts.now(), next(self._turns)
        heapq.heappush(self._due, (worker.since + worker.limit, worker.turn, worker))
        label = worker.call.label if worker.call else LOADING
        self._observer.begin(worker.name, label, worker.node or "")

    def _staff(self, line: _Line) -> None:
        """Starts workers for the calls of a pool that wait."""
        missing = self._room(line) - line.workers
        if missing <= 0:
            return
        count = min(missing, line.waiting(missing + line.starting) - line.starting)
        for _ in range(count):
            worker = Worker(line.pool, self._hosts.now(), self._number())
            self._workers[worker] = None
            line.workers += 1
            line.starting += 1
            self._begin(worker)
            self._hosts.start(worker)

    def _number(self) -> int:
        return heapq.heappop(self._free_numbers) if self._free_numbers else len(self._workers) + 1

    def _room(self, line: _Line) -> int:
        """How many workers a pool may have: at least one, as more room may come."""
        if line.pool.workers is not None:
            return line.pool.workers
        if self._hosts.now() >= line.looked + LOOK:
            asked, nodes = asked_of(line.pool), self._hosts.nodes().values()
            rooms = [
                min((has.get(n, 0.0) // x for n, x in asked.items()), default=1.0) for has in nodes
            ]
            line.room = max(1, int(sum(rooms)) // line.pool.hosts)
            line.looked = self._hosts.now()
        return line.room

    def _dismiss_idle(self, pool: Pool) -> None:
        """Ends workers that nothing waits for, where they hold what a worker of `pool` lacks."""
        asked = asked_of(pool)
        idle = [
            worker
            for line in self._lines
            if line.pool != pool and asked.keys() & asked_of(line.pool) and not line.waiting(1)
            for worker in line.idle
        ]
        if idle and sum(_fits(asked, free) for free in self._free()) < pool.hosts:
            for worker in idle:
                self._remove(worker)

    def _free(self) -> Iterable[Mapping[str, float]]:
        """What our workers leave of every node's resources; what others hold is not known."""
        found = {name: dict(has) for name, has in self._hosts.nodes().items()}
        for worker in self._workers:
            free = found.get(worker.node or "")
            if free is not None:
                for name, amount in asked_of(worker.pool).items():
                    free[name] = free.get(name, 0.0) - amount
        return found.values()

    def _remove(self, worker: Worker) -> None:
        line = self._line(worker.pool)
        line.workers -= 1
        if worker.node is None:
            line.starting -= 1
        if worker.node is None or worker.call:
            self._busy -= 1
        else:
            line.idle.remove(worker)
        worker.gone = True
        del self._workers[worker]
        heapq.heappush(self._free_numbers, worker.number)
        self._observer.leave(worker.name)
        self._hosts.end(worker)

    # What became of it.

    def _note(self, report: Report) -> bool:
        """Takes note of what became of what a worker was doing; whether a call ended for good."""
        worker, call, value, error = report
        if worker.gone or call is not worker.call:
            return False  # It was given up before.
        if isinstance(error, Died | Lost):
            return self._died(worker, error)
        if call is None:
            return self._started(worker, value, error)
        last = call.raised(error, self._tries) if error else call.end(value)
        self._rest(worker, "failed" if error else "done")
        if error is not None and not last:
            self._again(call)
        return last

    def _rest(self, worker: Worker, how: End) -> None:
        self._observer.end(worker.name, how)
        worker.call = None
        self._busy -= 1
        self._line(worker.pool).idle.append(worker)

    def _started(self, worker: Worker, node: str, error: BaseException | None) -> bool:
        if error is None:
            worker.node = node
            self._line(worker.pool).starting -= 1
            self._rest(worker, "done")
            self._false_starts, self._lost_starts = [], 0
            return False
        self._remove(worker)
        if isinstance(error, ValueError):
            raise error
        return self._false_start(f"{type(error).__name__}: {error}")

    def _died(self, worker: Worker, error: Died | Lost) -> bool:
        call = worker.call
        self._remove(worker)
        if call is None:
            if isinstance(error, Lost):
                self._lost_starts += 1
                if self._lost_starts < LOSSES:
                    return False
            return self._false_start("its process died")
        if isinstance(error, Lost):
            return call.lost(LOSSES) or self._again(call)
        return call.failed("its worker's process died", self._tries) or self._again(call)

    def _overdue(self) -> list[Worker]:
        """Workers that have been longer than they may at what they are doing."""
        found, now = [], self._hosts.now()
        while self._due and self._due[0][0] <= now:
            _, turn, worker = heapq.heappop(self._due)
            idle = worker.node is not None and worker.call is None
            if worker.turn == turn and not worker.gone and not idle:
                found.append(worker)
        return found

    def _overran(self, worker: Worker) -> bool:
        call, limit, pool = worker.call, worker.limit, worker.pool
        self._remove(worker)
        if call is None:
            if self._holding(pool):
                return False  # There is less room than it seemed, until they are idle.
            has = _summed(self._hosts.nodes().values())
            return self._false_start(
                f"it was not ready after {limit:g} s; it asks for {asked_of(pool)}, "
                f"and the cluster has {has}"
            )
        why = f"it had not ended after the {limit:g} s that a call may take"
        return call.failed(why, self._tries) or self._again(call)

    def _holding(self, pool: Pool) -> bool:
        """Whether workers that have started hold what one of `pool` asks for."""
        asked = asked_of(pool).keys()
        started = (worker.pool for worker in self._workers if worker.node is not None)
        return any(other == pool or asked & asked_of(other).keys() for other in started)

    def _again(self, call: Call) -> bool:
        self._line(call.pool).queue.appendleft(call)
        return False

    def _false_start(self, why: str) -> bool:
        self._false_starts.append(why)
        if len(self._false_starts) >= self._tries:
            reasons = "; ".join(dict.fromkeys(self._false_starts))
            raise ValueError(f"no worker could be started: {reasons}")
        return False


def asked_of(pool: Pool) -> dict[str, float]:
    """What is set aside for a worker."""
    asked = {"CPU": pool.cpus, "GPU": pool.gpus, **pool.resources}
    return {name: amount for name, amount in asked.items() if amount}


def _fits(asked: Mapping[str, float], free: Mapping[str, float]) -> bool:
    return all(free.get(name, 0.0) >= amount for name, amount in asked.items())


def _summed(nodes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for has in nodes:
        for name, amount in has.items():
            found[name] = found.get(name, 0.0) + amount
    return found
