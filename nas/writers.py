"""Who writes a journal: one process at a time, which says who it is."""

import dataclasses
import datetime
import json
import os
import socket
import uuid
from pathlib import Path

from nas.places import Place


@dataclasses.dataclass(frozen=True)
class Writer:
    """A process that writes a journal, and since when."""

    token: str
    """What tells it from all others."""
    host: str
    pid: int
    since: str
    """ISO 8601, UTC."""
    kernel: str
    """What tells apart the machines, since they were started, and containers, that number processes
    on their own; empty where that is not known."""
    began: str
    """When the process began, as its kernel counts; a number of a process may be given again."""

    @classmethod
    def here(cls) -> "Writer":
        """This process."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        return cls(uuid.uuid4().hex, socket.gethostname(), pid, now, kernel(), _began(pid))

    @classmethod
    def from_json(cls, content: bytes) -> "Writer":
        """Raises `ValueError` on what is none."""
        try:
            return cls(**json.loads(content))
        except TypeError as error:
            raise ValueError(f"no writer of a journal: {error}") from None

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @property
    def alive(self) -> bool | None:
        """Whether the process runs, or `None` where that cannot be seen from here."""
        if not self.kernel or self.kernel != kernel():
            return None
        return _began(self.pid) == self.began

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def held(path: Place, writer: Writer | None) -> ValueError:
    """The error that another process writes the journal at `path`."""
    who = f": {writer}" if writer else ""
    stop = f" (kill {writer.pid} on {writer.host})" if writer else ""
    return ValueError(
        f"another process is writing {path}{who}; wait for it, stop it{stop}, or choose another "
        "folder"
    )


def superseded(path: Place, writer: Writer | None) -> ValueError:
    """The error that another process went on with the journal at `path`, so that we must not."""
    who = f" ({writer})" if writer else ""
    return ValueError(
        f"another process{who} has gone on with {path} while this one did not answer, or its lock "
        "was lost; nothing was written, and that process has all that was finished"
    )


def kernel() -> str:
    """What `Writer.kernel` says of this process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # Not Linux.
        return ""


def _began(pid: int) -> str:
    """When a process began, in ticks since its kernel did; empty if it has ended."""
    try:
        # The name of the program, in brackets, may have spaces. A zombie has ended.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
