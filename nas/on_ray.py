"""Workers in processes of Ray, on this machine or on a cluster. The only module that knows of Ray.

A worker is an actor that Ray does not restart: it is replaced here, where it is known what it was
doing. It has one call at a time, so when it dies or overruns, it is known which call is to blame.
"""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Concatenate, Generic, TypeVar

from nas.executors import NOTHING, TRIES, Call, Pool, Shared

try:
    import ray
    from ray import cloudpickle
    from ray.exceptions import ActorDiedError, RayTaskError
except ModuleNotFoundError as error:
    raise ValueError(
        f"running on Ray needs the package {error.name}; install it with pip install 'nas[ray]'"
    ) from None

W = TypeVar("W")
R = TypeVar("R")
T = TypeVar("T")

LOSSES = 20  # How often a call may lose its worker together with the node it is on.
LOOK = 1.0  # Seconds between looks at the deadlines.
START = 900.0  # Seconds that a worker may take to be placed and to be ready.


class Host(Generic[W]):
    """The actor: a process that makes a worker and calls functions of it."""

    def __init__(self, environment: Mapping[str, str], make: bytes):
        os.environ.update(environment)  # Before what `make` needs is imported, JAX above all.
        self._make = make
        self._kept: tuple[Any, Any] = (None, None)  # Which shared value is the newest, and it.

    def start(self) -> str:
        """Makes the worker; returns the node it is on.

        What makes it came from the process that runs the search, as every call does, and never
        from a file.
        """
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


@dataclasses.dataclass(eq=False)
class _Worker:
    """A worker as seen from here. It is idle, or it starts or is busy with a call."""

    pool: Pool
    actor: Any
    doing: Future[Any] | None
    since: float  # On the monotonic clock.
    node: str | None = None  # Where it is, once it has started.
    call: Call | None = None

    @property
    def limit(self) -> float:
        """Seconds it may take for what it is doing."""
        return self.pool.deadline if self.call else START

    @property
    def overdue(self) -> bool:
        return self.doing is not None and time.monotonic() > self.since + self.limit


class OnRay(Generic[W]):
    """Workers made by `make()` in other processes, as many as a call's pool says.

    `address` is that of a cluster; without one, a cluster of `cpus` cores is started on this
    machine and ends with this process, however that ends. A worker that dies or overruns is
    replaced, and its call is given to the next that is free; what others do is not touched.
    """

    def __init__(
        self,
        make: Callable[[], W],
        *,
        address: str | None = None,
        cpus: int | None = None,
        tries: int = TRIES,
    ):
        self._make = cloudpickle.dumps(make)  # pyright: ignore[reportPrivateImportUsage]
        self._tries = tries
        self._queue: deque[Call] = deque()
        self._workers: list[_Worker] = []
        self._false_starts: list[str] = []  # Why workers did not start, since the last that did.
        _connect(address, cpus)

    def share(self, value: T) -> Shared[T]:
        return Shared(ray.put(value))

    def submit(
        self, pool: Pool, function: Callable[Concatenate[W, ...], R], /, *arguments: Any
    ) -> Future[R]:
        self._queue.append(Call(pool, function, arguments))
        return self._queue[-1].future

    def wait(self) -> None:
        while not self.step():
            pass

    def step(self) -> bool:
        """Gives out calls, and waits a second at most; whether the future of another is done."""
        self._assign()
        doing = [worker.doing for worker in self._workers if worker.doing]
        if not doing:
            raise ValueError(NOTHING)
        wait(doing, timeout=LOOK, return_when=FIRST_COMPLETED)
        # A list, so that all that happened is taken note of.
        return any([self._note(worker) for worker in tuple(self._workers)])

    def __enter__(self) -> "OnRay[W]":
        return self

    def __exit__(self, *_: object) -> None:
        for call in self._queue:
            call.future.cancel()
        for worker in tuple(self._workers):
            self._remove(worker)
        ray.shutdown()

    # Who does what.

    def _assign(self) -> None:
        """Gives the oldest calls to idle workers, and has workers started for the others."""
        waiting: deque[Call] = deque()
        for call in self._queue:
            if not call.wanted:
                continue
            idle = next((w for w in self._workers if not w.doing and w.pool == call.pool), None)
            if idle is None:
                waiting.append(call)
            else:
                idle.call, idle.since = call, time.monotonic()
                idle.doing = idle.actor.call.remote(call.function, call.arguments).future()
        self._queue = waiting
        for pool in _distinct(call.pool for call in waiting):
            self._staff(pool, sum(call.pool == pool for call in waiting))

    def _staff(self, pool: Pool, calls: int) -> None:
        """Starts workers of `pool` for so many calls that wait."""
        ours = [worker for worker in self._workers if worker.pool == pool]
        calls -= sum(worker.node is None for worker in ours)
        wanted = _room(pool) if pool.workers is None else pool.workers
        host: Any = ray.remote(Host)
        for _ in range(min(wanted - len(ours), calls)):
            self._dismiss_idle(pool)
            actor = host.options(**_options(pool)).remote(_environment(pool), self._make)
            started = actor.start.remote().future()
            self._workers.append(_Worker(pool, actor, started, time.monotonic()))

    def _dismiss_idle(self, pool: Pool) -> None:
        """Ends workers that nothing waits for, where they hold what a worker of `pool` lacks."""
        asked = _asked(pool)
        if any(_fits(asked, free) for free in self._free()):
            return
        needed = [pool, *(call.pool for call in self._queue)]
        for worker in tuple(self._workers):
            if (
                not worker.doing
                and worker.pool not in needed
                and asked.keys() & _asked(worker.pool)
            ):
                self._remove(worker)

    def _free(self) -> list[dict[str, float]]:
        """What our workers leave of every node's resources; what others hold is not known."""
        found = []
        for node in ray.nodes():
            free = dict(node["Resources"]) if node["Alive"] else {}
            for worker in self._workers:
                if worker.node == node["NodeID"]:
                    for name, amount in _asked(worker.pool).items():
                        free[name] = free.get(name, 0.0) - amount
            found.append(free)
        return found

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        with contextlib.suppress(Exception):  # It may be gone already.
            ray.kill(worker.actor)

    # What became of it.

    def _note(self, worker: _Worker) -> bool:
        """Takes note of what became of what `worker` was doing; whether a call ended for good."""
        if worker.overdue and not (worker.doing and worker.doing.done()):
            return self._overran(worker)
        if worker.doing is None or not worker.doing.done():
            return False
        error, call = worker.doing.exception(), worker.call
        if error is not None and not isinstance(error, RayTaskError):
            return self._died(worker, error)
        if call is None:
            return self._started(worker, error)
        value = None if error else worker.doing.result()
        worker.doing = worker.call = None
        if error is None:
            return call.end(value)
        return call.raised(_cause(error), self._tries) or self._again(call)

    def _started(self, worker: _Worker, error: RayTaskError | None) -> bool:
        if error is None:
            assert worker.doing is not None
            worker.node, worker.doing = worker.doing.result(), None
            self._false_starts = []
            return False
        self._remove(worker)
        cause = _cause(error)
        if isinstance(cause, ValueError):
            raise cause
        return self._false_start(f"{type(cause).__name__}: {cause}")

    def _died(self, worker: _Worker, error: BaseException) -> bool:
        self._remove(worker)
        call = worker.call
        if call is None:
            return self._false_start("its process died")
        if _blameless(worker, error):
            return call.lost(LOSSES) or self._again(call)
        return call.failed("its worker's process died", self._tries) or self._again(call)

    def _overran(self, worker: _Worker) -> bool:
        self._remove(worker)
        call = worker.call
        if call is None:
            if any(w.node and w.pool == worker.pool for w in self._workers):
                return False  # There is less room than it seemed.
            return self._false_start(
                f"it was not ready after {START:g} s; it asks for {_asked(worker.pool)}, "
                f"and the cluster has {ray.cluster_resources()}"
            )
        why = f"it had not ended after the {worker.limit:g} s that a call may take"
        return call.failed(why, self._tries) or self._again(call)

    def _again(self, call: Call) -> bool:
        self._queue.appendleft(call)
        return False

    def _false_start(self, why: str) -> bool:
        self._false_starts.append(why)
        if len(self._false_starts) >= self._tries:
            reasons = "; ".join(dict.fromkeys(self._false_starts))
            raise ValueError(f"no worker could be started on Ray: {reasons}")
        return False


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
        cores = max(os.cpu_count() or 1, cpus or 1)
        ray.init("local", num_cpus=cores, include_dashboard=False, **quiet)  # pyright: ignore


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


def _asked(pool: Pool) -> dict[str, float]:
    """What Ray sets aside for a worker."""
    asked = {"CPU": pool.cpus, "GPU": pool.gpus, **pool.resources}
    return {name: amount for name, amount in asked.items() if amount}


def _fits(asked: Mapping[str, float], free: Mapping[str, float]) -> bool:
    return all(free.get(name, 0.0) >= amount for name, amount in asked.items())


def _room(pool: Pool) -> int:
    """How many workers of `pool` the nodes have room for; at least one, as more may come."""
    asked = _asked(pool)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    rooms = [min((has.get(n, 0.0) // x for n, x in asked.items()), default=1.0) for has in nodes]
    return max(1, int(sum(rooms)))


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
    threads = os.environ.get("NPROC") or str(len(os.sched_getaffinity(0)))
    return {**ours, "JAX_PLATFORMS": pool.platform, "NPROC": threads}


def _distinct(pools: Iterable[Pool]) -> list[Pool]:
    found: list[Pool] = []
    for pool in pools:
        if pool not in found:
            found.append(pool)
    return found


def _cause(error: BaseException) -> BaseException:
    """What a call raised, out of what Ray wraps it in."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def _blameless(worker: _Worker, error: BaseException) -> bool:
    """Whether a worker was lost with its node, or out of reach, and not for what it was doing."""
    if not isinstance(error, ActorDiedError) or error.preempted:
        return True
    return not any(node["NodeID"] == worker.node and node["Alive"] for node in ray.nodes())
