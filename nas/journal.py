"""The journal: JSON lines that are only ever appended to, and the only record of a search."""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from nas.logs import log
from nas.places import Place
from search_spaces.values import decode, encode

VERSION = 1
Outcome: TypeAlias = Mapping[str, Any]
"""What a task gave, as JSON."""
Entry: TypeAlias = tuple[Any, Outcome]
"""A finished task and its outcome."""


class Journal:
    """Finished tasks and their outcomes, in order, under a header that says what was asked for.

    One writer at a time, by a lock that outlives no process: see `nas.logs`. A last line that was
    cut short by a kill is dropped, since its task counts as not done; a damaged line before it is
    an error.
    """

    def __init__(self, path: Place, header: Mapping[str, Any]):
        """Raises `ValueError` if another process writes it, or it is another search's."""
        self.path = path
        self._log = log(path)
        asked = {"journal": VERSION, **header}
        try:
            if there := [*itertools.islice(read_lines(path), 2)]:
                _same(path, there[0], asked, len(there) > 1)  # Before anybody waits for a lock.
            self._log.take()
            self._entries = self._begin(asked)
        except BaseException:
            self._log.close()
            raise

    def _begin(self, header: Mapping[str, Any]) -> list[Entry]:
        """Writes the header of a new journal; checks it, and returns the entries, of an old one."""
        if not any(read_lines(self.path)):
            self._write(header)
        found, entries = read(self.path)
        _same(self.path, found, header, bool(entries))
        return entries

    def __iter__(self) -> Iterator[Entry]:
        """Yields `(task, outcome)` pairs, oldest first."""
        yield from self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, task: Any, outcome: Outcome) -> None:
        """Returns once the entry is stored. Raises `ValueError` if another process took over."""
        self._write({"task": encode(task), "outcome": dict(outcome)})
        self._entries.append((task, outcome))

    def check(self) -> None:
        """Raises `ValueError` if another process took over."""
        self._log.check()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        # JSON's shortest form of a float reads back as the same float.
        self._log.append(json.dumps(line, allow_nan=False).encode() + b"\n")


def read(path: Place) -> tuple[dict[str, Any], list[Entry]]:
    """The header and the entries of the journal at `path`, which may still be growing."""
    lines = list(_named_lines(path))
    if not lines:
        there = isinstance(path, Path) and path.exists()
        raise ValueError(
            f"{path} is empty: the search has not begun" if there else f"no journal {path}"
        )
    entries = []
    for name, line in lines[1:]:
        try:
            entries.append(entry(line))
        except ValueError as error:
            raise ValueError(f"{path}, {name} is no entry: {error}") from None
    return lines[0][1], entries


def read_lines(path: Place) -> Iterator[dict[str, Any]]:
    """Yields the whole lines of the journal at `path`; none if there is none.

    Raises `ValueError` naming the line that is no JSON object.
    """
    return (line for _, line in _named_lines(path))


def _named_lines(path: Place) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, line in log(path).lines():
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, {name} is damaged: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{path}, {name} is no object")
        yield name, found


def entry(line: Mapping[str, Any]) -> Entry:
    """The task and the outcome of a line."""
    if not {"task", "outcome"} <= line.keys():
        raise ValueError(f"it has {sorted(line)}, not a task and an outcome")
    return decode(line["task"]), line["outcome"]


def _same(path: Place, found: Mapping[str, Any], asked: Mapping[str, Any], begun: bool) -> None:
    """Raises `ValueError` naming the settings in which the journal's header differs, and what can
    be done about it: one with entries, that has `begun`, is nothing to be deleted."""
    there, here = dict(flat(found)), dict(flat(json.loads(json.dumps(asked))))
    differing = sorted(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))
    if differing:
        shown = "; ".join(
            f"{n}: {_told(there.get(n))} there, {_told(here.get(n))} here" for n in differing
        )
        or_else = "" if begun else ", or delete it: no task of it is finished"
        raise ValueError(
            f"{path} is the journal of another search ({shown[:600]}); "
            f"repeat its settings to go on with it, or choose another folder{or_else}"
        )


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the names and values of nested settings, the names dotted."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _told(value: Any) -> str:
    return "none" if value is None else repr(value)
