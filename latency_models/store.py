"""Measurements on disk: a JSON file of one provenance, with rows of calls and of whole networks.

Rows whose op is not known here are not read, but kept when the file is written again.
"""

import contextlib
import datetime
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from latency_models.measure import PROBABILITIES
from latency_models.provenance import Provenance
from latency_models.rows import (
    Network,
    decode_network,
    decode_op,
    decode_row,
    encode_network,
    encode_row,
)
from latency_models.table import EMPTY, Table

SCHEMA = 2


class Measurements(NamedTuple):
    """Rows of calls and of whole networks, all of one provenance.

    `yardsticks` tell at which pace the machine ran: what some calls take in a loop,
    which does not depend on what runs beside them.
    """

    provenance: Provenance
    table: Table
    networks: tuple[Network, ...]
    yardsticks: Table = EMPTY


class _Content(NamedTuple):
    """A file: what it holds, and its rows as they are written, each with its date."""

    read: Measurements
    rows: list[dict[str, Any]]
    networks: list[dict[str, Any]]
    yardsticks: list[dict[str, Any]]


def file(folder: Path, provenance: Provenance) -> Path:
    """Path of the table of `provenance`: another device, or another version, has another."""
    runtime = "".join(c if c.isalnum() else "-" for c in provenance.runtime.lower())
    return folder / f"latency-{runtime}-{provenance.key}.json"


def load(path: Path) -> Measurements:
    """What the file at `path` holds. Raises `ValueError` if there is none, or it is damaged."""
    content = _read(path)
    if content is None:
        raise ValueError(f"no measurements at {path}; `nas profile` writes such a file")
    return content.read


def read(path: Path, provenance: Provenance) -> Measurements:
    """What the file at `path` holds, nothing if there is none.

    Raises `ValueError` if the file is damaged or holds for another provenance.
    """
    return _of(path, provenance).read


def write(
    path: Path,
    provenance: Provenance,
    table: Table | None = None,
    networks: Iterable[Network] = (),
    yardsticks: Table | None = None,
) -> None:
    """Adds rows to the file at `path`, replacing those of equal calls and of equal names;
    `yardsticks`, where given, replace all that it has.

    The file is replaced as a whole or not at all. Two processes that write at once keep the rows
    of one of them. Raises `ValueError` if the file is damaged or holds for another provenance.
    """
    old = _of(path, provenance)
    date = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    rows = {json.dumps([row["op"], row["inputs"]]): row for row in old.rows}
    for call, latency in (table.rows if table else {}).items():
        row = encode_row(call, latency)
        key = json.dumps([row["op"], row["inputs"]])
        if key not in rows or rows[key] != {**row, "date": rows[key].get("date")}:
            rows[key] = row | date
    named = {row["name"]: row for row in old.networks}
    named |= {network.name: encode_network(network) | date for network in networks}
    pace = [encode_row(*row) | date for row in yardsticks.rows.items()] if yardsticks else None
    header = {
        "schema": SCHEMA,
        "provenance": provenance.to_json(),
        "probabilities": PROBABILITIES,
    }
    text = (
        f'{json.dumps(header)[:-1]},\n "rows": {lines(rows.values())},\n'
        f' "networks": {lines(named.values())},\n'
        f' "yardsticks": {lines(old.yardsticks if pace is None else pace)}}}\n'
    )
    replace(path, text.encode())


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """A list of rows as JSON, a line each."""
    return "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]"


def _of(path: Path, provenance: Provenance) -> _Content:
    """The content of the file, which must be of `provenance`."""
    content = _read(path) or _Content(Measurements(provenance, EMPTY, ()), [], [], [])
    if differences := provenance.differences(content.read.provenance):
        raise ValueError(
            f"{path} holds for another device or software ({'; '.join(differences)}); "
            "use the file of this one, or delete it and measure again"
        )
    return content


def _read(path: Path) -> _Content | None:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    with damage(path, _REMEDY):
        content = json.loads(text)
        schema = content["schema"]
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema!r}, this version reads {SCHEMA}; {_REMEDY}")
    with damage(path, _REMEDY):
        if tuple(content["probabilities"]) != PROBABILITIES:
            raise ValueError(f"quantiles at {content['probabilities']}, not at {PROBABILITIES}")
        pace = content.setdefault("yardsticks", [])  # Files of before have none.
        return _Content(_decoded(content), content["rows"], content["networks"], pace)


_REMEDY = "delete the file and measure again"


@contextlib.contextmanager
def damage(path: Path, remedy: str) -> Iterator[None]:
    """Says of what goes wrong in reading a file which it is, and what to do."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}); {remedy}"
        ) from error


def _decoded(content: Mapping[str, Any]) -> Measurements:
    calls, pace = (
        dict(decode_row(row) for row in content[name] if decode_op(row["op"]))
        for name in ("rows", "yardsticks")
    )
    networks = tuple(
        decode_network(row)
        for row in content["networks"]
        if all(decode_op(op) for _, op, _ in row["program"])
    )
    provenance = Provenance.from_json(content["provenance"])
    return Measurements(provenance, Table(calls), networks, Table(pace))


def replace(path: Path, content: bytes) -> None:
    """Writes beside `path` and renames, so a reader finds the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
