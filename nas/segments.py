"""Lines on an object store: every line is an object of its own, and the last writer's alone go on.

Objects cannot be appended to. So line after line is created under the next number, which succeeds
only where there is none: whoever has not seen the last line cannot write the next one. A process
becomes the writer by a line that says so. From then on its predecessor, paused and awake again,
finds the number it is about to use taken. No clock and no lock takes part in that.

What is left is to be kind: a process that would take over from one that works is told so. A writer
renews an object of its own, its lease, and has gone when it is not renewed any more. Its content
is compared and no time, as clocks differ.
"""

import contextlib
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Iterator

from nas.places import Remote
from nas.writers import Writer, held, superseded

LEASES = "leases"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pace:
    """How often a writer says that it lives, and when it is taken for dead."""

    beat: float = 10.0
    """Seconds between renewals of a lease."""
    expiry: float = 60.0
    """Seconds without one after which another process may take over."""


PACE = Pace()


class Segments:
    """The lines under `folder`, of which this process may become the writer."""

    def __init__(self, folder: Remote):
        self.path = folder
        self._pace = PACE
        self._next = 0
        self._writer: Writer | None = None
        self._renewal: _Renewal | None = None

    def lines(self) -> Iterator[tuple[str, bytes]]:
        """Yields what to call a line in errors, and the line, oldest first."""
        for number, segment in self._segments(0):
            if isinstance(segment, bytes):
                yield name(number), segment

    def take(self) -> None:
        """Makes this process the writer. Raises `ValueError` that names the one that is."""
        last = self._catch_up()
        if last is not None and not self._gone(last):
            raise held(self.path, last)
        self._writer = Writer.here()
        lease = self.path / LEASES / f"{self._writer.token}.json"
        self._renewal = _Renewal(lease, self._writer, self._pace.beat)
        if not _refuses(lease):
            raise ValueError(
                f"{self.path}: this store replaces an object that was to be created only where "
                "there is none, so two searches could write one journal; use one that keeps to "
                "that (S3's If-None-Match: *), or mount it and give a path"
            )
        while not self._create({"takes": json.loads(self._writer.to_json())}):
            # Our predecessor finished a line after all, or another process was faster than we.
            if (now := self._catch_up()) is not None and now != last:
                raise held(self.path, now)

    def append(self, line: bytes) -> None:
        """Returns once the line is stored. Raises `ValueError` if another process took over."""
        if self._writer is None or not self._create({"line": json.loads(line)}):
            self._writer = None
            raise superseded(self.path, self._newest(self._next))

    def check(self) -> None:
        """Raises `ValueError` if another process took over."""
        if self._writer is None or (self.path / name(self._next)).exists():
            raise superseded(self.path, self._newest(self._next))

    def close(self) -> None:
        """Lets others take over at once."""
        if self._renewal is not None:
            self._renewal.end()

    def _create(self, content: dict[str, object]) -> bool:
        """Whether the next line is ours."""
        assert self._writer
        segment = json.dumps({"by": self._writer.token, **content}).encode() + b"\n"
        target = self.path / name(self._next)
        try:
            target.create(segment)
        except FileExistsError:
            # A store may have written it, not have said so, and have been asked once more.
            if target.read_bytes() != segment:
                return False
        self._next += 1
        return True

    def _catch_up(self) -> Writer | None:
        """Sees what there is, without a last line that was cut short; the newest writer."""
        newest = None
        for number, segment in self._segments(0):
            if segment is None:
                (self.path / name(number)).unlink()
                break
            newest = segment if isinstance(segment, Writer) else newest
            self._next = number + 1
        return newest

    def _newest(self, first: int) -> Writer | None:
        """The newest writer of the lines from number `first` on."""
        found = [segment for _, segment in self._segments(first) if isinstance(segment, Writer)]
        return found[-1] if found else None

    def _segments(self, first: int) -> Iterator[tuple[int, Writer | bytes | None]]:
        """Yields numbers and what has them, from `first` on: writers, lines, and nothing for a last
        one that was cut short. Raises `ValueError` naming one that is missing or damaged."""
        names = [found for found in self.path.names() if found.endswith(".json")]
        names = names[first:]
        for number, found in enumerate(names, first):
            if found != name(number):
                raise ValueError(f"{self.path / name(number)} is missing: {found} is there")
        for number, content in enumerate(self.path.read_all(names), first):
            if not content.endswith(b"\n") and number == first + len(names) - 1:
                yield number, None
                return
            yield number, self._parsed(number, content)

    def _parsed(self, number: int, content: bytes) -> Writer | bytes:
        try:
            found = json.loads(content)
            if "takes" in found:
                return Writer.from_json(json.dumps(found["takes"]).encode())
            return json.dumps(found["line"]).encode() + b"\n"
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path}, {name(number)} is damaged: {error}") from None

    def _gone(self, writer: Writer) -> bool:
        """Whether a writer has ended. It takes a lease's time to find out of another machine's."""
        lease = self.path / LEASES / f"{writer.token}.json"
        first = _read(lease)
        if first is None or writer.alive is not None:
            return first is None or not writer.alive
        _log.warning(
            "%s was written by %s; if it does not say within %g s that it lives, this process "
            "goes on",
            *(self.path, writer, self._pace.expiry),
        )
        until = time.monotonic() + self._pace.expiry
        while time.monotonic() < until:
            time.sleep(min(self._pace.beat, self._pace.expiry) / 4)
            if (now := _read(lease)) != first:
                return now is None
        return True


def name(number: int) -> str:
    """The object of a line."""
    return f"{number:08}.json"


def _refuses(there: Remote) -> bool:
    """Whether an object that is there is not created again."""
    try:
        there.create(there.read_bytes())
    except FileExistsError:
        return True
    return False


def _read(lease: Remote) -> bytes | None:
    try:
        return lease.read_bytes()
    except FileNotFoundError:
        return None


class _Renewal:
    """Renews a lease, in a thread of its own, until it is ended."""

    def __init__(self, lease: Remote, writer: Writer, beat: float):
        self._lease, self._writer = lease, writer
        self._over = threading.Event()
        self._write(0)
        self._thread = threading.Thread(target=self._run, args=(beat,), daemon=True)
        self._thread.start()

    def _run(self, beat: float) -> None:
        number = 0
        while not self._over.wait(beat):
            number += 1
            # What is not renewed may be taken over, which does no harm: see the module.
            with contextlib.suppress(Exception):
                self._write(number)

    def _write(self, number: int) -> None:
        said = {**dataclasses.asdict(self._writer), "renewed": number}
        self._lease.write_bytes(json.dumps(said).encode())

    def end(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self._thread.join()
            self._lease.unlink()
