"""Where a search's work is done: an executor gives calls to workers and keeps what they return.

A worker is an object that is costly to make and worth keeping: it holds networks and compiled
programs. A call is a function of a worker and of arguments. `Here` has one worker, in this process;
`nas.on_ray` has many, in processes on one machine or on a cluster's, and `nas.simulation` as many
as one likes, on a virtual clock. Nothing else knows which.

Futures are those of `concurrent.futures`. An executor works, notices what ended and replaces what
broke only inside `wait`, in the thread that calls it: there is no thread of its own that could be
in the middle of something when the search is interrupted.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
)

W = TypeVar("W")  # The worker.
W_co = TypeVar("W_co", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

TRIES = 3
NOTHING = "there is no call to wait for"


@dataclasses.dataclass(frozen=True)
class Pool:
    """Workers of one kind: how many, what each is given, how long it may take for a call.

    In this process only `workers` counts: calls of a pool of one run alone.
    """

    workers: int | None = 1
    """Their number; by default one, and with `None` as many as there is room for."""
    cpus: float = 0.0
    """Cores that Ray sets aside for a worker."""
    gpus: float = 0.0
    """GPUs that Ray sets aside for a worker, which sees no others."""
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What else a worker's host must have, by the names Ray was given: `{"TPU": 4}`,
    `{"phone": 1}`."""
    platform: str = "cpu"
    """The platform that a worker's JAX runs on: "cpu", "cuda" or "tpu"."""
    hosts: int = 1
    """Hosts that a worker spans, with a process on each, for which all of the above is set aside.
    Its JAX sees the devices of all."""
    deadline: float = 6 * 3600.0
    """Seconds after which a worker that has not ended a call is given up."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}; it must be one or more")
        if self.deadline <= 0:
            raise ValueError(f"deadline is {self.deadline}; it must be positive")
        if self.hosts < 1:
            raise ValueError(f"hosts is {self.hosts}; it must be one or more")
        if self.hosts > 1 and not (self.cpus or self.gpus or self.resources):
            raise ValueError(
                f"hosts is {self.hosts}, and nothing is asked of them; "
                "a worker of several hosts must ask for cpus, gpus or resources on each"
            )


class Label(NamedTuple):
    """What a call is for, in words: of what phase of a search, about what, which part of it."""

    phase: str
    subject: str = ""
    shard: int | None = None

    def __str__(self) -> str:
        part = "" if self.shard is None else f", shard {self.shard}"
        return f"{self.phase} {self.subject}".rstrip() + part


UNNAMED = Label("work")
LOADING = Label("loading")  # What a worker does from its start until it is ready.

End: TypeAlias = Literal["done", "failed", "lost"]
"""How a call's try ended: it returned, it raised, or its worker was lost or ended."""


class Observer:
    """Is told what workers do as the executor notices it, in the thread that waits. This one takes
    no note of it."""

    def begin(self, worker: str, label: Label, node: str = "") -> None:
        """`worker` begins a call, or to load. Only one that is idle or new does."""

    def end(self, worker: str, how: End) -> None:
        """What it began has ended. The future of a call that is done is done before."""

    def leave(self, worker: str) -> None:
        """It is gone, and what it did is lost. Another may take its name."""


UNOBSERVED = Observer()


class Failed(Exception):
    """A call was tried as often as is allowed, to no avail; says what became of every try."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shared(Generic[T]):
    """A value that was given to an executor once, to be an argument of many calls."""

    held: Any
    """The value, or where it lies."""


class Executor(Protocol[W_co]):
    """Gives calls to workers."""

    def share(self, value: T) -> Shared[T]:
        """Takes `value` for calls to come. As an argument of a call it stands for `value`, which
        reaches a worker once, with the first call that has it, and stays until another does."""
        ...

    def submit(
        self,
        pool: Pool,
        function: Callable[Concatenate[W_co, ...], R],
        /,
        *arguments: Any,
        label: Label = UNNAMED,
    ) -> Future[R]:
        """Has `function(worker, *arguments)` called on a worker of `pool`, at most once at a time.

        The future's exception is the function's own if that is a `ValueError`, since no other try
        mends what is wrong with the input. A call that ends in any other way than by returning
        (another exception, the death of its worker, a deadline) is tried again, and is `Failed`
        after so many tries. A future may be cancelled at any time: its call is not made any more,
        or what it returns is dropped.
        """
        ...

    def wait(self) -> None:
        """Returns when the future of another call is done. Raises `ValueError` if none is left."""
        ...


@dataclasses.dataclass(eq=False)
class Call:
    """A call that was submitted, and what became of its tries."""

    pool: Pool
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    label: Label = UNNAMED
    future: Future[Any] = dataclasses.field(default_factory=Future)
    failures: list[str] = dataclasses.field(default_factory=list)
    losses: int = 0  # Tries that ended for no reason of the call's.

    @property
    def wanted(self) -> bool:
        """Whether its future was not cancelled, which it may be at any time."""
        return not self.future.cancelled()

    def end(self, value: Any) -> bool:
        """Notes that it returned `value`; whether anybody wanted to know."""
        if self.wanted:
            self.future.set_result(value)
        return self.wanted

    def raised(self, error: BaseException, tries: int) -> bool:
        """Notes that a try ended with `error`; whether it was the last."""
        if not isinstance(error, ValueError):
            return self.failed(f"{type(error).__name__}: {error}", tries)
        if self.wanted:
            self.future.set_exception(error)
        return True

    def failed(self, why: str, tries: int) -> bool:
        """Notes that a try failed; whether it was the last."""
        self.failures.append(why)
        if len(self.failures) >= tries and self.wanted:
            reasons = "; ".join(dict.fromkeys(self.failures))
            self.future.set_exception(Failed(f"tried {tries} times: {reasons}"))
        return self.future.done()

    def lost(self, limit: int) -> bool:
        """Notes that a try ended through no fault of its own; whether it was the last."""
        self.losses += 1
        if self.losses >= limit and self.wanted:
            self.future.set_exception(Failed(f"lost {limit} times with the node it was on"))
        return self.future.done()


class Here(Generic[W]):
    """One worker, in this process, with up to `threads` calls at once where the pool allows it.

    A call that must be alone is made in the thread that waits, so that it can be interrupted.
    Deadlines are not kept: a thread cannot be stopped.
    """

    def __init__(
        self,
        worker: W,
        *,
        threads: int = 1,
        tries: int = TRIES,
        observer: Observer = UNOBSERVED,
    ):
        self._worker, self._threads, self._tries = worker, threads, tries
        self._observer = observer
        self._queue: deque[Call] = deque()
        self._running: dict[Future[Any], tuple[Call, str]] = {}
        self._idle = [f"thread {number}" for number in range(threads, 0, -1)]
        self._pool = ThreadPoolExecutor(threads)

    def share(self, value: T) -> Shared[T]:
        return Shared(value)

    def submit(
        self,
        pool: Pool,
        function: Callable[Concatenate[W, ...], R],
        /,
        *arguments: Any,
        label: Label = UNNAMED,
    ) -> Future[R]:
        self._queue.append(Call(pool, function, arguments, label))
        return self._queue[-1].future

    def wait(self) -> None:
        ended = False
        while not ended:
            ended = self._advance()

    def _advance(self) -> bool:
        """Begins what can begin; whether a call ended, or will never."""
        while self._queue and len(self._running) < self._threads:
            call = self._queue[0]
            alone = call.pool.workers == 1
            if alone and self._running:
                break
            self._queue.popleft()
            if not call.wanted:
                continue
            if alone:
                return self._alone(call)
            name = self._begin(call)
            self._running[self._pool.submit(self._made, call)] = call, name
        if not self._running:
            raise ValueError(NOTHING)
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        # All of what is done, in the order in which it was begun.
        ours = [future for future in self._running if future in done]
        return any([self._settle(*self._running.pop(future), future) for future in ours])

    def _begin(self, call: Call) -> str:
        """The name of the thread that is to make the call."""
        name = self._idle.pop()
        self._observer.begin(name, call.label)
        return name

    def _alone(self, call: Call) -> bool:
        future: Future[Any] = Future()
        name = self._begin(call)
        try:
            future.set_result(self._made(call))
        except Exception as error:
            future.set_exception(error)
        return self._settle(call, name, future)

    def _made(self, call: Call) -> Any:
        given = [x.held if isinstance(x, Shared) else x for x in call.arguments]
        return call.function(self._worker, *given)

    def _settle(self, call: Call, name: str, future: Future[Any]) -> bool:
        error = future.exception()
        last = call.raised(error, self._tries) if error else call.end(future.result())
        self._observer.end(name, "failed" if error else "done")
        self._idle.append(name)
        if error and not last:
            self._queue.appendleft(call)
        return last

    def __enter__(self) -> "Here[W]":
        return self

    def __exit__(self, *_: object) -> None:
        for call in self._queue:
            call.future.cancel()
        self._pool.shutdown(cancel_futures=True)


def together(parts: list[Future[Any]], combine: Callable[[list[Any]], R]) -> Future[R]:
    """A future of what `combine` makes of the parts' results, in the order of the parts.

    It has the first exception that a part has, and the parts that have not begun are cancelled.
    Cancelling it cancels the parts.
    """
    whole: Future[R] = Future()
    missing = len(parts)

    def note(part: Future[Any]) -> None:
        nonlocal missing
        missing -= 1
        if whole.done():
            return
        if part.cancelled():
            whole.cancel()
        elif part.exception():
            whole.set_exception(part.exception())
        elif not missing:
            try:
                whole.set_result(combine([part.result() for part in parts]))
            except Exception as error:
                whole.set_exception(error)

    def stop(_: Future[R]) -> None:
        for part in parts:
            part.cancel()

    whole.add_done_callback(stop)
    for part in parts:
        part.add_done_callback(note)
    return whole


def finish(executor: Executor[Any], futures: Sequence[Future[R]]) -> list[R]:
    """The results of all of the futures, of calls of this executor, in order."""
    for future in futures:
        while not future.done():
            executor.wait()
    return [future.result() for future in futures]


def ended(value: R) -> Future[R]:
    """A future that is done."""
    future: Future[R] = Future()
    future.set_result(value)
    return future
