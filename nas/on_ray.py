"""Workers in processes of Ray, on this machine or on a cluster. The only module that knows of Ray.

A worker is an actor that Ray does not restart: `nas.dispatch` replaces it. One that spans hosts is
an actor on each, joined by `jax.distributed`: all make every call, and what the first returns
counts. They end together, since none can go on without the others.
"""

import contextlib
import dataclasses
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from latency_models.provenance import cores
from nas.dispatch import Died, Dispatcher, Lost, Report, Worker, asked_of
from nas.executors import LOADING, TRIES, UNOBSERVED, Call, Observer, Pool, Shared

try:
    import ray
    from ray import cloudpickle
    from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
    from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
except ModuleNotFoundError as error:
    raise ValueError(
        f"running on Ray needs the package {error.name}; install it with pip install 'nas[ray]'"
    ) from None

W = TypeVar("W")
R = TypeVar("R")

AFTERMATH = 30.0  # Seconds in which it shows why one of the processes of a worker failed.


class Host(Generic[W]):
    """The actor: a process that makes a worker and calls functions of it."""

    def __init__(self, environment: Mapping[str, str], make: bytes):
        os.environ.update(environment)  # Before what `make` needs is imported, JAX above all.
        self._make = make
        self._kept: tuple[Any, Any] = (None, None)  # Which shared value is the newest, and it.

    def meeting(self) -> str:
        """An address on this host that is free, where processes can meet."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def start(self, meeting: str | None = None, hosts: int = 1, number: int = 0) -> str:
        """Makes the worker; returns the node it is on. This is one of the processes that meet.

        What makes it came from the process that runs the search, as every call does, and never
        from a file.
        """
        if meeting is not None:
            import jax  # Not in the process of the search, and not before the environment is set.

            jax.distributed.initialize(meeting, hosts, number)
        self._worker: W = cloudpickle.loads(self._make)()
        return ray.get_runtime_context().get_node_id()

    def call(self, function: Callable[..., R], arguments: tuple[Any, ...]) -> R:
        given = [self._held(x.held) if isinstance(x, Shared) else x for x in arguments]
        return function(self._worker, *given)

    def _held(self, reference: Any) -> Any:
        if self._kept[0] != reference:
            self._kept = (None, None)  # Frees the older one first.
            self._kept = (reference, ray.get(reference))
        return self._kept[1]


class OnRay(Dispatcher[W]):
    """Workers made by `make()` in other processes, as many as a call's pool says.

    `address` is that of a cluster; without one, a cluster of `cpus` cores is started on this
    machine and ends with this process, however that ends.
    """

    def __init__(
        self,
        make: Callable[[], W],
        *,
        address: str | None = None,
        cpus: int | None = None,
        tries: int = TRIES,
        observer: Observer = UNOBSERVED,
    ):
        pickled = cloudpickle.dumps(make)  # pyright: ignore[reportPrivateImportUsage]
        _connect(address, cpus)
        super().__init__(_Actors(pickled), tries=tries, observer=observer)


@dataclasses.dataclass(eq=False)
class _Members:
    """The actors of a worker, one on every host that it spans."""

    actors: list[Any]
    placement: PlacementGroup | None
    nodes: list[frozenset[str]]  # Where each may be: known, once it has started.
    broken: bool = False  # One of them may wait for ever for another.


@dataclasses.dataclass(eq=False)
class _Doing:
    """What a worker is doing, as a future of every member."""

    worker: Worker
    call: Call | None
    members: list[Future[Any]]
    reported: bool = False
    failed: float | None = None  # When the first of them failed.

    @property
    def over(self) -> bool:
        return all(member.done() for member in self.members)


class _Actors:
    """Workers that are actors. What becomes of them is put into a queue as it happens.

    Ray's dashboard and its lists of actors and tasks show their names and their calls' labels.
    """

    def __init__(self, make: bytes):
        self._make = make
        self._host: Any = ray.remote(Host)
        self._ended: queue.SimpleQueue[_Doing] = queue.SimpleQueue()
        self._failing: list[_Doing] = []  # A member failed, and others have not ended.

    def now(self) -> float:
        return time.monotonic()

    def share(self, value: Any) -> Shared[Any]:
        return Shared(ray.put(value))

    def start(self, worker: Worker) -> None:
        pool, environment = worker.pool, _environment(worker.pool)
        name = f"nas {worker.name}, start {worker.turn}"  # No two may have one name.
        anywhere = frozenset(self.nodes())
        placement, places = None, [{"name": name}]
        if pool.hosts > 1:
            placement = placement_group(pool.hosts * [asked_of(pool)], strategy="STRICT_SPREAD")
            places = [
                {
                    "name": f"{name}, host {number}",
                    "scheduling_strategy": PlacementGroupSchedulingStrategy(placement, number),
                }
                for number in range(pool.hosts)
            ]
        actors = [
            self._host.options(**_options(pool), **place).remote(environment, self._make)
            for place in places
        ]
        worker.handle = _Members(actors, placement, pool.hosts * [anywhere])
        meeting = actors[0].meeting.remote() if placement else None
        begun = [
            actor.start.options(name=str(LOADING)).remote(meeting, pool.hosts, number)
            for number, actor in enumerate(actors)
        ]
        self._follow(worker, None, [reference.future() for reference in begun])

    def call(self, worker: Worker, call: Call) -> None:
        members: _Members = worker.handle
        if members.broken:
            gone: Future[Any] = Future()
            gone.set_exception(Lost())
            self._follow(worker, call, [gone])
            return
        begun = [
            actor.call.options(name=str(call.label)).remote(call.function, call.arguments)
            for actor in members.actors
        ]
        self._follow(worker, call, [reference.future() for reference in begun])

    def _follow(self, worker: Worker, call: Call | None, members: list[Future[Any]]) -> None:
        doing = _Doing(worker, call, members)
        for member in members:
            member.add_done_callback(lambda _: self._ended.put(doing))

    def end(self, worker: Worker) -> None:
        members: _Members = worker.handle
        for actor in members.actors:
            with contextlib.suppress(Exception):  # It may be gone already.
                ray.kill(actor)
        if members.placement:
            with contextlib.suppress(Exception):
                remove_placement_group(members.placement)

    def wait(self, seconds: float) -> list[Report]:
        ended = []
        with contextlib.suppress(queue.Empty):
            ended.append(self._ended.get(timeout=seconds))
            while True:
                ended.append(self._ended.get_nowait())
        return [
            self._report(doing)
            for doing in dict.fromkeys(ended + self._failing)
            if self._known(doing)
        ]

    def nodes(self) -> Mapping[str, Mapping[str, float]]:
        return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}

    def close(self) -> None:
        ray.shutdown()

    def _known(self, doing: _Doing) -> bool:
        """Whether it is known what became of it, and not reported.

        A member that dies makes the others fail, now or never, so they are given some time.
        """
        failed = any(member.done() and member.exception() for member in doing.members)
        if failed and doing.failed is None:
            doing.failed = self.now()
            self._failing.append(doing)
        late = doing.failed is not None and self.now() > doing.failed + AFTERMATH
        return not doing.reported and (doing.over or late or (failed and doing.worker.gone))

    def _report(self, doing: _Doing) -> Report:
        doing.reported = True
        self._failing = [other for other in self._failing if other is not doing]
        worker, members = doing.worker, doing.worker.handle
        errors = [
            self._why(worker, error, nodes)
            for member, nodes in zip(doing.members, members.nodes, strict=False)
            if member.done() and (error := member.exception())
        ]
        if not errors:
            values = [member.result() for member in doing.members]
            if doing.call is None:
                members.nodes = [frozenset({node}) for node in values]
            return Report(worker, doing.call, values[0])
        # Members may raise because one died, and die because a node was lost.
        kinds = (Lost, Died, ValueError, BaseException)
        error = min(
            errors, key=lambda error: [isinstance(error, kind) for kind in kinds].index(True)
        )
        members.broken = len(members.actors) > 1 and not (
            doing.over and isinstance(error, ValueError)
        )
        return Report(worker, doing.call, error=error)

    def _why(self, worker: Worker, error: BaseException, nodes: frozenset[str]) -> BaseException:
        """What a member raised, or how it ended."""
        if isinstance(error, RayTaskError):
            return _cause(error)
        # Those that ended here were given up, and nobody asks why.
        lost = not worker.gone and self._blameless(error, nodes)
        return Lost() if lost else Died()

    def _blameless(self, error: BaseException, nodes: frozenset[str]) -> bool:
        """Whether it was lost with its node, or out of reach, and not for what it was doing."""
        if isinstance(error, OutOfMemoryError):
            return False
        if not isinstance(error, ActorDiedError) or error.preempted:
            return True
        return not nodes <= self.nodes().keys()


def _connect(address: str | None, cpus: int | None) -> None:
    """Joins a cluster, or starts one on this machine."""
    quiet = {"log_to_driver": False, "logging_level": "error"}
    with _own_handler():
        if address is not None:
            ray.init(address=address, **quiet)  # pyright: ignore[reportArgumentType]
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # By default workers yield to all else on the machine, which a latency would show.
        os.environ.setdefault("RAY_worker_niceness", "0")
        room = max(len(cores()), cpus or 1)
        ray.init("local", num_cpus=room, include_dashboard=False, **quiet)  # pyright: ignore


@contextlib.contextmanager
def _own_handler() -> Iterator[None]:
    """Keeps the handler of SIGTERM, which `ray.init` replaces by one that exits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _options(pool: Pool) -> dict[str, Any]:
    return {
        "num_cpus": pool.cpus,
        "num_gpus": pool.gpus,
        "resources": dict(pool.resources),
        "max_restarts": 0,
        "max_task_retries": 0,
    }


def _environment(pool: Pool) -> dict[str, str]:
    """What a worker's JAX and XLA read when they start: as here, but for the platform.

    XLA compiles a program in other ways for other numbers of threads, with other last bits. So all
    workers have as many as this process, on whatever host they are.
    """
    ours = {name: x for name, x in os.environ.items() if name.startswith(("JAX_", "XLA_"))}
    threads = os.environ.get("NPROC") or str(len(cores()))
    return {**ours, "JAX_PLATFORMS": pool.platform, "NPROC": threads}


def _cause(error: BaseException) -> BaseException:
    """What a call raised, out of what Ray wraps it in."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error
