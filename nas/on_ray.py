"""Workers in processes of Ray, on this machine or on a cluster. The only module that knows of Ray.

A worker is an actor that Ray does not restart: `nas.dispatch` replaces it.
"""

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from nas.dispatch import Died, Dispatcher, Lost, Report, Worker
from nas.executors import LOADING, TRIES, UNOBSERVED, Call, Observer, Pool, Shared

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


class _Actors:
    """Workers that are actors. What becomes of them is put into a queue as it happens.

    Ray's dashboard and its lists of actors and tasks show their names and their calls' labels.
    """

    def __init__(self, make: bytes):
        self._make = make
        self._host: Any = ray.remote(Host)
        self._ended: queue.SimpleQueue[tuple[Worker, Call | None, Future[Any]]]
        self._ended = queue.SimpleQueue()

    def now(self) -> float:
        return time.monotonic()

    def share(self, value: Any) -> Shared[Any]:
        return Shared(ray.put(value))

    def start(self, worker: Worker) -> None:
        options, environment = _options(worker.pool), _environment(worker.pool)
        name = f"nas {worker.name}, start {worker.turn}"  # No two may have one name.
        worker.handle = self._host.options(name=name, **options).remote(environment, self._make)
        started = worker.handle.start.options(name=str(LOADING)).remote()
        self._follow(worker, None, started.future())

    def call(self, worker: Worker, call: Call) -> None:
        named = worker.handle.call.options(name=str(call.label))
        begun = named.remote(call.function, call.arguments)
        self._follow(worker, call, begun.future())

    def _follow(self, worker: Worker, call: Call | None, doing: Future[Any]) -> None:
        doing.add_done_callback(lambda done: self._ended.put((worker, call, done)))

    def end(self, worker: Worker) -> None:
        with contextlib.suppress(Exception):  # It may be gone already.
            ray.kill(worker.handle)

    def wait(self, seconds: float) -> list[Report]:
        found: list[Report] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._report(*self._ended.get(timeout=seconds)))
            while True:
                found.append(self._report(*self._ended.get_nowait()))
        return found

    def nodes(self) -> Mapping[str, Mapping[str, float]]:
        return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}

    def close(self) -> None:
        ray.shutdown()

    def _report(self, worker: Worker, call: Call | None, done: Future[Any]) -> Report:
        error = done.exception()
        if error is None:
            return Report(worker, call, done.result())
        if isinstance(error, RayTaskError):
            return Report(worker, call, error=_cause(error))
        # Those that ended here were given up, and nobody asks why.
        lost = not worker.gone and self._blameless(worker, error)
        return Report(worker, call, error=Lost() if lost else Died())

    def _blameless(self, worker: Worker, error: BaseException) -> bool:
        """Whether it was lost with its node, or out of reach, and not for what it was doing."""
        if not isinstance(error, ActorDiedError) or error.preempted:
            return True
        return worker.node not in self.nodes()


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


def _cause(error: BaseException) -> BaseException:
    """What a call raised, out of what Ray wraps it in."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error
