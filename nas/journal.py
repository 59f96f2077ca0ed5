"""The journal: an append-only file of JSON lines, and the only record of a search."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from search_spaces.values import decode, encode

VERSION = 1
Outcome: TypeAlias = Mapping[str, Any]
"""What a task gave, as JSON."""
Entry: TypeAlias = tuple[Any, Outcome]
"""A finished task and its outcome."""


class Journal:
    """Finished tasks and their outcomes, in order, under a header that says what was asked for.

    One writer at a time: opening takes a lock that the system frees when the process dies. A last
    line that was cut short by a kill is dropped, since its task counts as not done; a damaged line
    before it is an error.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a+b")
        try:
            self._lock()
            self._cut_torn_line()
            self._entries = self._begin({"journal": VERSION, **header})
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"another process is writing {self.path}; wait for it or stop it"
            ) from None

    def _begin(self, header: Mapping[str, Any]) -> list[Entry]:
        """Writes the header of a new journal; checks it, and returns the entries, of an old one."""
        if not any(read_lines(self.path)):
            self._write(header)
        found, entries = read(self.path)
        _same(self.path, found, header)
        return entries

    def __iter__(self) -> Iterator[Entry]:
        """Yields `(task, outcome)` pairs, oldest first."""
        yield from self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, task: Any, outcome: Outcome) -> None:
        """Returns once the entry is on disk."""
        self._write({"task": encode(task), "outcome": dict(outcome)})
        self._entries.append((task, outcome))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        # JSON's shortest form of a float reads back as the same float.
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _cut_torn_line(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)


def read(path: Path) -> tuple[dict[str, Any], list[Entry]]:
    """The header and the entries of the journal at `path`, which may still be growing."""
    lines = list(read_lines(path))
    if not lines:
        raise ValueError(f"{path} is empty: the search has not begun")
    entries = []
    for number, line in enumerate(lines[1:], 2):
        try:
            entries.append(entry(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no entry: {error}") from None
    return lines[0], entries


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the whole lines of the journal at `path`.

    Raises `ValueError` naming the line that is no JSON object.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"no journal {path}") from None
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{path}, line {number} is no object")
        yield found


def entry(line: Mapping[str, Any]) -> Entry:
    """The task and the outcome of a line."""
    if not {"task", "outcome"} <= line.keys():
        raise ValueError(f"it has {sorted(line)}, not a task and an outcome")
    return decode(line["task"]), line["outcome"]


def _same(path: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises `ValueError` naming the settings in which the journal's header differs."""
    there, here = dict(flat(found)), dict(flat(json.loads(json.dumps(asked))))
    differing = sorted(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))
    if differing:
        shown = "; ".join(
            f"{n}: {_told(there.get(n))} there, {_told(here.get(n))} here" for n in differing
        )
        raise ValueError(
            f"{path} is the journal of another search ({shown[:600]}); "
            "repeat its settings to go on with it, or choose another folder"
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
