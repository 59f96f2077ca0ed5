"""Tables on disk: a JSON file per provenance, with a header that says what the rows hold for.

A file names its ops by import path and reading imports nothing, so import the modules that define
them first (`search_spaces.blocks`, and those of plug-ins). Rows whose op is not known here are not
read, but kept when the file is written again.
"""

import contextlib
import datetime
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from latency_models.latency import Latency, Spread
from latency_models.measure import PROBABILITIES
from latency_models.provenance import Provenance
from latency_models.table import EMPTY, Table
from search_spaces.ops import Call, Op
from search_spaces.values import decode, encode

SCHEMA = 2


def file(folder: Path, provenance: Provenance) -> Path:
    """Path of the table of `provenance`: another device, or another version, has another."""
    runtime = "".join(c if c.isalnum() else "-" for c in provenance.runtime.lower())
    return folder / f"latency-{runtime}-{provenance.key}.json"


def read(path: Path, provenance: Provenance) -> Table:
    """Returns the table at `path`, empty if there is none.

    Raises `ValueError` if the file is damaged or holds for another provenance.
    """
    return _read(path, provenance)[0]


def write(path: Path, table: Table, provenance: Provenance) -> None:
    """Adds the rows of `table` to the file at `path`, replacing those of equal calls.

    The file is replaced as a whole or not at all. Two processes that write at once keep the rows
    of one of them. Raises `ValueError` if the file is damaged or holds for another provenance.
    """
    old, unknown = _read(path, provenance)
    rows = [encode_row(call, row) for call, row in {**old.rows, **table.rows}.items()]
    header = {
        "schema": SCHEMA,
        "provenance": provenance.to_json(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "probabilities": PROBABILITIES,
    }
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in [*rows, *unknown])
    _replace(path, f'{json.dumps(header)[:-1]}, "rows": [\n{lines}\n]}}\n')


def _read(path: Path, provenance: Provenance) -> tuple[Table, list[dict[str, Any]]]:
    """The table at `path`, and its rows, still encoded, whose op is not known here."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return EMPTY, []
    with _damage(path):
        content = json.loads(text)
        schema = content["schema"]
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has schema {schema!r}, this version reads {SCHEMA}; "
            "delete the file and measure again"
        )
    with _damage(path):
        differences = provenance.differences(Provenance.from_json(content["provenance"]))
    if differences:
        raise ValueError(
            f"{path} holds for another device or software ({'; '.join(differences)}); "
            "use the file of this one, or delete it and measure again"
        )
    with _damage(path):
        return _decode_rows(content)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}); "
            "delete the file and measure again"
        ) from error


def _decode_rows(content: Mapping[str, Any]) -> tuple[Table, list[dict[str, Any]]]:
    if tuple(content["probabilities"]) != PROBABILITIES:
        raise ValueError(f"quantiles at {content['probabilities']}, not at {PROBABILITIES}")
    rows, unknown = {}, []
    for row in content["rows"]:
        if _decode_op(row["op"]) is None:
            unknown.append(row)
        else:
            call, latency = decode_row(row)
            rows[call] = latency
    return Table(rows), unknown


def decode_row(row: Mapping[str, Any]) -> tuple[Call, Latency]:
    """Inverse of `encode_row`. Raises `ValueError` on an op that is not known here."""
    inputs, latency, op = _decode_inputs(row["inputs"]), _decode_latency(row), _decode_op(row["op"])
    if op is None:
        raise ValueError(f"unknown op {row['op']}; import the module that defines it first")
    return Call(op, inputs), latency


def _decode_op(data: Any) -> Op | None:
    """The op, or none if its class is not known here or has other fields."""
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise ValueError(f"not an op: {data!r}")
    try:
        op = decode(data)
    except ValueError:
        return None
    if not isinstance(op, Op):
        raise ValueError(f"not an op: {op!r}")
    return op


def _decode_inputs(data: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    for dims, _ in data:
        if not all(isinstance(size, int) for size in dims):
            raise ValueError(f"not a shape: {dims!r}")
    return tuple(jax.ShapeDtypeStruct(tuple(dims), dtype) for dims, dtype in data)


def _decode_latency(row: Mapping[str, Any]) -> Latency:
    ms, std, repeats = row["ms"], row["std"], row["repeats"]
    quantiles = tuple(row["quantiles_ms"])
    if not all(math.isfinite(value) for value in (ms, std, *quantiles)) or ms <= 0 or std < 0:
        raise ValueError(f"no latency: {ms!r} ± {std!r} ms, quantiles {quantiles}")
    return Latency(ms, std, Spread(repeats, quantiles) if repeats else None)


def encode_row(call: Call, latency: Latency) -> dict[str, Any]:
    """The row of `call` as JSON. Raises `ValueError` on what would not be read back equal."""
    spread = latency.spread or Spread(0, ())
    row = {
        "op": encode(call.op),
        "inputs": [[list(shape.shape), str(shape.dtype)] for shape in call.inputs],
        "ms": latency.ms,
        "std": latency.std,
        "repeats": spread.repeats,
        "quantiles_ms": list(spread.quantiles_ms),
    }
    if (_decode_op(row["op"]), _decode_inputs(row["inputs"])) != call:
        raise ValueError(
            f"cannot store {call}: it would not be read back equal; define its op in a module, "
            "as a frozen dataclass, and price it at plain shapes"
        )
    _decode_latency(row)
    return row


def _replace(path: Path, text: str) -> None:
    """Writes beside `path` and renames, so a reader finds the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
