"""The search loop: ask what to do, do it, write it down."""

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from nas.journal import Entry, Journal, Outcome
from nas.places import Place

State = TypeVar("State")
Task = TypeVar("Task")


class Strategy(Protocol[State, Task]):
    """Says what to do next. Pure: the state is a fold of `tell` over the journal."""

    def init(self) -> State: ...

    def ask(self, state: State) -> tuple[Task, ...]:
        """The tasks that can run now, independent of each other; none when the search is over.

        A task is asked for until it is told. The states after telling two tasks of one asking are
        equal whichever was told first.
        """
        ...

    def tell(self, state: State, task: Task, outcome: Outcome) -> State:
        """The state after `task` ended with `outcome`."""
        ...


Perform = Callable[[Any, Any, Any], Outcome]
"""Does a task, given the strategy, the state and the task."""


class Crew(Protocol):
    """Performs several tasks at once."""

    def start(self, strategy: Any, state: Any, task: Any) -> Future[Outcome]:
        """Has `task` performed; the future is of its outcome."""
        ...

    def wait(self) -> None:
        """Returns when something that it does is done, if only a part of a task."""
        ...


class InTurn:
    """A crew that performs what was started first when it is waited for."""

    def __init__(self, perform: Perform):
        self._perform = perform
        self._started: deque[tuple[Future[Outcome], tuple[Any, Any, Any]]] = deque()

    def start(self, strategy: Any, state: Any, task: Any) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        self._started.append((future, (strategy, state, task)))
        return future

    def wait(self) -> None:
        future, what = self._started.popleft()
        if not future.cancelled():
            future.set_result(self._perform(*what))


class Done(NamedTuple, Generic[State, Task]):
    """A finished task, and what the search knows after it."""

    task: Task
    outcome: Outcome
    state: State


def states(
    strategy: Strategy[State, Any], path: Place, entries: Iterable[Entry]
) -> Iterator[State]:
    """Yields the state after each entry of the journal at `path`.

    Raises `ValueError` naming the line that does not follow from those before it.
    """
    state = strategy.init()
    for number, (task, outcome) in enumerate(entries, 2):
        try:
            state = strategy.tell(state, task, outcome)
        except (AttributeError, AssertionError, LookupError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} does not follow from those before it "
                f"({type(error).__name__}: {error}); it is damaged or another version's"
            ) from error
        yield state


def replay(strategy: Strategy[State, Any], journal: Journal) -> State:
    """The state that the journal's entries lead to."""
    found = states(strategy, journal.path, journal)
    return functools.reduce(lambda _, state: state, found, strategy.init())


def search(
    strategy: Strategy[State, Task], perform: Perform, journal: Journal
) -> Iterator[Done[State, Task]]:
    """Performs one task after another until the strategy asks for none.

    It is `search_abreast`, which says more, with a crew of one.
    """
    yield from search_abreast(strategy, InTurn(perform), journal)


def search_abreast(
    strategy: Strategy[State, Task], crew: Crew, journal: Journal
) -> Iterator[Done[State, Task]]:
    """Starts every task that the strategy asks for, until it asks for none, yielding after each is
    in the journal.

    Tasks are journalled as they end, by this process alone. A task that is no longer asked for is
    cancelled, and not journalled if it has begun. If a task raises, those that ended with it are
    journalled first. Call it again on the same journal to go on where it stopped.
    """
    state = replay(strategy, journal)
    running: dict[Task, _Begun[Task]] = {}
    numbers = itertools.count()
    # By the futures, in whatever thread, as there may be many that are not done.
    told: deque[_Begun[Task]] = deque()

    def over() -> list[_Begun[Task]]:
        """What is done since the last time, in the order in which it was begun, errors last."""
        found = [told.popleft() for _ in range(len(told))]
        kept = [begun for begun in found if running.get(begun.task) is begun]
        return sorted(kept, key=lambda b: (b.future.exception() is not None, b.number))

    try:
        while tasks := strategy.ask(state):
            for task in running.keys() - set(tasks):
                running.pop(task).future.cancel()
            for task in tasks:
                if task not in running:
                    begun = _Begun(next(numbers), task, crew.start(strategy, state, task))
                    running[task] = begun
                    begun.future.add_done_callback(functools.partial(begun.tell, told))
            wrong = None
            while not (done := over()) and not wrong:
                try:
                    crew.wait()
                except ValueError as error:
                    wrong = error  # What has ended is journalled first.
            for begun in done:
                outcome = running.pop(begun.task).future.result()
                journal.append(begun.task, outcome)
                state = strategy.tell(state, begun.task, outcome)
                yield Done(begun.task, outcome, state)
            if wrong:
                raise wrong
    finally:
        for begun in running.values():
            begun.future.cancel()


@dataclasses.dataclass(frozen=True, eq=False)
class _Begun(Generic[Task]):
    number: int
    task: Task
    future: Future[Outcome]

    def tell(self, told: "deque[_Begun[Task]]", _: Future[Outcome]) -> None:
        told.append(self)
