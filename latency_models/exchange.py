"""Measuring on devices that are not at hand: models go out in a folder, and what tools say of them
comes back.

The folder holds `manifest.json`, a model for every subject in each format that can be written here,
a script for every tool, and `results/`, where the scripts put what they measure as
`SUBJECT.TOOL.EXTENSION`, beside the hash of the model that was measured.
"""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.export

from latency_models import importers
from latency_models.exchange_subject import digest, together
from latency_models.exchange_tools import SUBJECT, TOOLS, readme
from latency_models.importers import Imported, Kind, Malformed
from latency_models.importers.parsing import field, load_json
from latency_models.latency import Latency, Whole
from latency_models.provenance import AS_WRITTEN, Provenance
from latency_models.rows import (
    Network,
    decode_call,
    decode_whole,
    encode_call,
    encode_shape,
    encode_whole,
)
from latency_models.runtimes import Subject, drawn
from latency_models.table import Table
from search_spaces.export.part import Dtype, Part
from search_spaces.ops import Call

Writer: TypeAlias = Callable[[Part, Path], Path]
"""Writes a network with its weights to an empty folder; returns its main file, which is in it."""

MANIFEST, RESULTS = "manifest.json", "results"
SCHEMA = 1
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
_RESULT = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_-]*)\.([a-z]+)(-ops)?\.(txt|json|csv)$")


def onnx(part: Part, folder: Path) -> Path:
    """A `Writer`. Raises `ValueError` without the package."""
    if not importlib.util.find_spec("onnx"):
        raise ValueError("ONNX takes a package that is not here; install the extra `export`")
    from search_spaces.export import onnx as form

    form.write(part, folder)
    return folder / form.MODEL


def stablehlo(part: Part, folder: Path) -> Path:
    """A `Writer` of portable artifacts, weights inside; they read inputs by their sorted names."""
    exported = jax.export.export(
        jax.jit(lambda values: part(part.weights, values)), platforms=["cpu"]
    )(dict(part.inputs))
    path = folder / "model.mlirbc"
    path.write_bytes(exported.mlir_module_serialized)
    return path


def litert(cache: Path) -> Writer:
    """A `Writer`, by a converter in an environment of its own under `cache`."""

    def write(part: Part, folder: Path) -> Path:
        return Path(shutil.copy(form.model(part, cache), folder / "model.tflite"))

    from search_spaces.export import litert as form

    return write


def write(
    folder: Path,
    subjects: Mapping[str, Subject],
    writers: Mapping[str, Writer],
    *,
    precision: Dtype | None = None,
    attention: str = AS_WRITTEN,
) -> dict[str, Any]:
    """Writes `subjects` to `folder`, which appears when it is whole; returns the manifest.

    `writers` are by format: `onnx`, `stablehlo`, `litert`. Formats without one are in the manifest
    with what to run instead. Weights are drawn; they and the inputs are in `precision`, which is
    that of the subject's inputs unless given. Raises `ValueError` on a name that no file can have,
    on a format no tool reads, and where `folder` is there already.
    """
    known = {tool.form for tool in TOOLS.values()}
    if bad := [name for name in subjects if not _NAME.match(name)]:
        raise ValueError(f"{bad} name no files; use letters, digits, _ and -")
    if unknown := sorted(writers.keys() - known):
        raise ValueError(f"no tool reads {unknown}; formats are {sorted(known)}")
    if not subjects or not writers:
        raise ValueError("nothing to write; give at least one subject and one writer")
    if folder.exists():
        raise ValueError(f"{folder} is there already; remove it, or choose another")
    making = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        (making / RESULTS).mkdir(parents=True)
        entries = {
            name: _entry(making, name, subject, drawn(subject, precision), writers)
            for name, subject in subjects.items()
        }
        manifest = {
            "schema": SCHEMA,
            "attention": attention,
            "subjects": entries,
            "not written here": {
                tool.form: tool.instead for tool in TOOLS.values() if tool.form not in writers
            },
        }
        (making / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for tool in TOOLS.values():
            path = making / tool.script
            path.write_text(tool.text(tuple(subjects), tuple(writers)))
            path.chmod(0o755)
        (making / "subject.py").write_text(SUBJECT)
        (making / "README.md").write_text(readme(tuple(subjects), tuple(writers)))
        os.replace(making, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return manifest


def _entry(
    making: Path, name: str, subject: Subject, part: Part, writers: Mapping[str, Writer]
) -> dict[str, Any]:
    return {
        **_encode(subject),
        "batch": _batch(subject),
        "precision": part.dtype,
        "arguments": {key: encode_shape(part.inputs[key]) for key in sorted(part.inputs)},
        "files": {form: _file(making, name, form, part, write) for form, write in writers.items()},
    }


def _file(making: Path, name: str, form: str, part: Part, writer: Writer) -> dict[str, Any]:
    """A model as it is written. Its hash is that of all its files: weights may be beside it."""
    place = making / "models" / name / form
    place.mkdir(parents=True)
    file = writer(part, place)
    if not file.is_relative_to(place) or not file.exists():
        raise ValueError(f"the writer of {form} returned {file}, which is no file in {place}")
    there = sorted(path for path in place.rglob("*") if path.is_file())
    parts = {path.relative_to(making).as_posix(): digest(path) for path in there}
    return {
        "file": file.relative_to(making).as_posix(),
        "sha256": together(parts),
        "parts": parts,
    }


def _encode(subject: Subject) -> dict[str, Any]:
    return encode_call(subject) if isinstance(subject, Call) else encode_whole(subject)


def _decode(data: Mapping[str, Any], place: str) -> Subject:
    try:
        return decode_call(data) if "op" in data else decode_whole(data)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _batch(subject: Subject) -> int | None:
    inputs = subject.inputs if isinstance(subject, Call) else subject.inputs.values()
    sizes = {shape.shape[0] for shape in inputs if shape.shape}
    return sizes.pop() if len(sizes) == 1 else None


class Row(NamedTuple):
    """A subject as a tool measured it. `ops` are those of the tool's profile, if it has one."""

    name: str
    subject: Subject
    tool: str
    latency: Latency
    provenance: Provenance
    ops: tuple[Imported, ...]


class Returned(NamedTuple):
    """What came back, and the subjects that each tool with any result lacks."""

    rows: tuple[Row, ...]
    missing: Mapping[str, tuple[str, ...]]


def read(
    folder: Path,
    results: Path | None = None,
    *,
    given: Mapping[str, str],
    assumed: float | None = None,
) -> Returned:
    """What is in `results` (the folder's own unless given), for exactly what was measured.

    `given` is what the tools do not say: `device`, versions as `version:NAME`; see
    `importers.provenance`. The precision is what the result says, else what the tool computes in,
    else that of the model. `assumed` is the relative error of numbers without spread. Raises
    `ValueError` on results of what is not in the manifest or of another model than was written, on
    two of one subject by one tool, and `Malformed` on a file that is not as its tool writes it.
    Then nothing is read.
    """
    place = str(folder / MANIFEST)
    manifest = load_json((folder / MANIFEST).read_bytes(), place)
    if field(manifest, "schema", int, place) != SCHEMA:
        raise ValueError(f"{place} has schema {manifest['schema']}, this version reads {SCHEMA}")
    entries = field(manifest, "subjects", dict, place)
    attention = field(manifest, "attention", str, place)
    source, files, ops = results or folder / RESULTS, {}, {}
    for path in sorted(source.iterdir()):
        if path.suffix == ".sha256" or path.name.startswith("."):
            continue
        match = _RESULT.match(path.name)
        if not match or match[1] not in entries or match[2] not in TOOLS:
            raise ValueError(
                f"{path} is no result of a subject in {place}: files are SUBJECT.TOOL.EXTENSION, "
                f"with subjects {', '.join(entries)} and tools {', '.join(TOOLS)}"
            )
        kept, key = ops if match[3] else files, (match[1], match[2])
        if key in kept:
            raise ValueError(
                f"{kept[key]} and {path} are two results of one subject by one tool; "
                "remove the one that does not hold"
            )
        kept[key] = path
    if alone := sorted(ops.keys() - files.keys()):
        raise ValueError(f"{ops[alone[0]]} is a profile without the time of the whole beside it")
    rows = []
    for (name, tool), path in files.items():
        _check_hash(path.with_name(f"{name}.{tool}.sha256"), folder, entries[name], tool)
        whole, inside = _one(path, TOOLS[tool].imported)
        if (name, tool) in ops:
            profile = importers.read(ops[name, tool], TOOLS[tool].imported)
            inside = tuple(row for row in profile if row.kind != Kind.NETWORK)
        computed = dict(whole.stated).get("precision") or TOOLS[tool].precision
        known = {"precision": computed or entries[name]["precision"], "attention": attention}
        for key in known.keys() & given.keys():
            if given[key] != known[key]:
                raise ValueError(f"{key} is {known[key]!r} of {path}, you say {given[key]!r}")
        said = {"runtime": _runtime(whole, inside, tool), **known, **given}
        provenance = importers.provenance(_without(whole), said, str(path))
        subject = _decode(entries[name], f"{place}, subjects.{name}")
        rows.append(Row(name, subject, tool, whole.latency(assumed=assumed), provenance, inside))
    found = {tool: {name for name, t in files if t == tool} for _, tool in files}
    missing = {tool: tuple(n for n in entries if n not in names) for tool, names in found.items()}
    return Returned(tuple(rows), missing)


def _runtime(whole: Imported, inside: Iterable[Imported], tool: str) -> str:
    """The runtime that ran it, as the file says: another provider or target is another."""
    if runtime := dict(whole.stated).get("runtime"):
        return runtime
    providers = sorted({dict(row.stated).get("provider", "") for row in inside} - {""})
    return ", ".join([TOOLS[tool].runtime, *providers])


def _without(row: Imported) -> Imported:
    """`row` without what is said for it."""
    kept = tuple((n, value) for n, value in row.stated if n not in ("runtime", "precision"))
    return dataclasses.replace(row, stated=kept)


def _one(path: Path, form: str) -> tuple[Imported, tuple[Imported, ...]]:
    """The one network that a file reports, and what is inside it."""
    rows = importers.read(path, form)
    networks = [row for row in rows if row.kind == Kind.NETWORK]
    if len(networks) != 1:
        raise Malformed(str(path), "the time of one network", [row.name for row in networks])
    return networks[0], tuple(row for row in rows if row.kind != Kind.NETWORK)


def _check_hash(path: Path, folder: Path, entry: Mapping[str, Any], tool: str) -> None:
    """Raises unless the model that was measured is the one that was written."""
    form = TOOLS[tool].measured(entry["files"])
    if form is None:
        raise ValueError(f"{path}: the folder has no model that {tool} can have measured")
    written = entry["files"][form]
    if not path.exists():
        raise ValueError(
            f"{path} is missing, the hash of the model that was measured: the script writes it; "
            f"of {written['file']} it is {written['sha256']}"
        )
    found = path.read_text().split()[0] if path.read_text().split() else ""
    if found != written["sha256"]:
        raise ValueError(
            f"{path} is of another model than {folder / written['file']}: {found} is not "
            f"{written['sha256']}; measure the one in the folder"
        )


def tables(returned: Returned) -> dict[Provenance, tuple[Table, tuple[Network, ...]]]:
    """Calls and networks by provenance: numbers of different ones do not mix.

    Raises `ValueError` where two subjects of one provenance are the same call.
    """
    grouped: dict[Provenance, tuple[dict[Call, Latency], list[Network]]] = {}
    for row in returned.rows:
        calls, networks = grouped.setdefault(row.provenance, ({}, []))
        if isinstance(row.subject, Whole):
            networks.append(Network(row.name, row.subject, row.latency))
        elif row.subject in calls:
            raise ValueError(f"{row.name} is a call that another subject is, too: {row.subject}")
        else:
            calls[row.subject] = row.latency
    return {p: (Table(calls), tuple(networks)) for p, (calls, networks) in grouped.items()}
