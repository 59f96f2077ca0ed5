"""XLA's TPU compiler on any host: what it says of networks, compiled once and kept.

libtpu holds the compiler; no TPU is needed. Compiling takes seconds to minutes, so every answer is
appended to a file as soon as it is there: a run that was killed goes on where it stopped.
"""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from latency_models.latency import Whole
from latency_models.measure import Progress
from latency_models.rows import encode_whole
from latency_models.tpu import lowering
from latency_models.tpu.generations import Generation
from latency_models.tpu.hlo import Kernel

Versions = tuple[tuple[str, str], ...]

WORKER = (sys.executable, "-m", "latency_models.tpu.worker")
# They would change what is compiled, and nothing that names it says so.
UNHEARD = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


class Key(NamedTuple):
    """What was compiled, for what, by what."""

    generation: str
    digest: str
    versions: Versions


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler of `versions` says of one program, named by its `digest`.

    `flops`, `transcendentals` (operations) and `bytes` (to and from memory, after fusion) are
    XLA's cost analysis, as is `optimal_seconds`: see `estimates.optimum`.
    """

    generation: str
    versions: Versions
    digest: str
    flops: float
    transcendentals: float
    bytes: float
    optimal_seconds: float
    kernels: tuple[Kernel, ...]
    compile_s: float

    @property
    def key(self) -> Key:
        return Key(self.generation, self.digest, self.versions)


def versions() -> Versions:
    """Those that an answer depends on. Raises `ValueError` where libtpu is not installed."""
    try:
        return tuple((name, metadata.version(name)) for name in ("jax", "jaxlib", "libtpu"))
    except metadata.PackageNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed, and compiling for a TPU needs it; "
            "install the extra `tpu`: pip install 'nas[tpu]'"
        ) from None


class Cache:
    """Answers in a file, a line of JSON each, found by what was compiled, for what, by what.

    A last line that was cut off is compiled again. One process writes at a time.
    """

    def __init__(self, path: Path):
        self.path = path
        self._found = {answer.key: answer for answer in _read(path)}

    def __contains__(self, key: Key) -> bool:
        return key in self._found

    def __getitem__(self, key: Key) -> Compiled:
        return self._found[key]

    def add(self, answer: Compiled) -> None:
        """Keeps the answer, on disk once this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(dataclasses.asdict(answer), allow_nan=False) + "\n"
        with self.path.open("ab+") as stream:
            stream.truncate(_whole(stream))
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())
        self._found[answer.key] = answer


def _whole(stream: BinaryIO) -> int:
    """Bytes of the lines that are whole."""
    stream.seek(0)
    return stream.read().rfind(b"\n") + 1


def _read(path: Path) -> Iterator[Compiled]:
    if not path.exists():
        return
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            yield _answer(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {number} is damaged ({type(error).__name__}: {error}); "
                "delete the line, and what it held is compiled again"
            ) from error


def _answer(data: Mapping[str, Any]) -> Compiled:
    return Compiled(
        **{
            **data,
            "versions": tuple(map(tuple, data["versions"])),
            "kernels": tuple(Kernel(*kernel) for kernel in data["kernels"]),
        }
    )


def compile_all(
    wholes: Sequence[Whole],
    generation: Generation,
    cache: Cache,
    progress: Progress | None = None,
) -> list[Compiled]:
    """What the compiler says of the networks, in their order; what `cache` lacks is compiled.

    Raises `ValueError` where libtpu is missing, or where compiling fails: the message names what.
    """
    by = versions()
    keys = [Key(generation.name, lowering.digest(whole), by) for whole in wholes]
    missing = {
        key.digest: whole for key, whole in zip(keys, wholes, strict=True) if key not in cache
    }
    for done, answer in enumerate(_compiled(missing, generation.name), 1):
        cache.add(_answer({**answer, "generation": generation.name, "versions": by}))
        if progress:
            progress("compile", done / len(missing))
    return [cache[key] for key in keys]


def _compiled(missing: Mapping[str, Whole], generation: str) -> Iterator[dict[str, Any]]:
    """The answers of one worker, in turn."""
    if not missing:
        return
    command = [*WORKER, generation, *lowering.modules(missing.values())]
    settings = {name: value for name, value in os.environ.items() if name not in UNHEARD}
    with tempfile.TemporaryFile() as said:
        worker = subprocess.Popen(
            command,
            bufsize=0,
            env=settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
        )
        assert worker.stdin is not None and worker.stdout is not None
        answers = io.BufferedReader(worker.stdout)  # pyright: ignore[reportArgumentType]
        try:
            for digest, whole in missing.items():
                job = {"digest": digest, "whole": encode_whole(whole)}
                with contextlib.suppress(BrokenPipeError):  # It has ended, and said why.
                    worker.stdin.write(json.dumps(job).encode() + b"\n")
                line = answers.readline()
                answer = json.loads(line) if line.endswith(b"\n") else {"error": _last(said)}
                if "error" in answer:
                    raise ValueError(
                        f"compiling {_name(whole)} for TPU {generation} failed: {answer['error']}"
                    )
                yield answer
        finally:
            worker.kill()
            worker.communicate()


def _name(whole: Whole) -> str:
    if len(whole.program) == 1:
        return f"{whole.program[0].op} of {[str(s.shape) for s in whole.inputs.values()]}"
    return f"a network of {len(whole.program)} steps"


def _last(said: BinaryIO) -> str:
    """What a worker said before it ended."""
    said.seek(0)
    words = said.read().decode(errors="replace")[-2000:].strip()
    return f"its process ended; it said: {words or 'nothing'}"
