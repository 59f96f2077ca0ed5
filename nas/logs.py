"""Where a journal's lines are: in a file that grows, or in objects."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from nas.places import Place, write_whole
from nas.segments import Segments
from nas.writers import Writer, held, superseded


class Log(Protocol):
    """Lines that anybody reads and one process appends to."""

    def lines(self) -> Iterator[tuple[str, bytes]]:
        """Yields what to call a line in errors, and the line, oldest first. A last line that was
        cut short is none."""
        ...

    def take(self) -> None:
        """Makes this process the writer, and drops a last line that was cut short.

        Raises `ValueError` that names the writer if there is one.
        """
        ...

    def append(self, line: bytes) -> None:
        """Returns once the line is stored. Raises `ValueError` if another process took over."""
        ...

    def check(self) -> None:
        """Raises `ValueError` if another process took over."""
        ...

    def close(self) -> None:
        """Lets others take over."""
        ...


def log(path: Place) -> Log:
    """The lines at `path`."""
    return Lines(path) if isinstance(path, Path) else Segments(path)


class Lines:
    """The lines of a file. Its writer holds a lock that the system frees when the process dies, and
    says who it is in a file beside it."""

    def __init__(self, path: Path):
        self.path = path
        self._beside = path.with_name(f"{path.name}.writer")
        self._file = None
        self._writer = Writer.here()
        self._end = 0  # Of what we know of.

    def lines(self) -> Iterator[tuple[str, bytes]]:
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.endswith(b"\n"):
                        yield f"line {number}", line
        except FileNotFoundError:
            return

    def take(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._file.close()
            self._file = None
            raise held(self.path, self._holder()) from None
        except OSError as error:
            raise ValueError(
                f"{self.path} cannot be locked ({error}): its filesystem has no locks; give "
                f"file://{self.path.parent.absolute()} as the folder, which needs none"
            ) from None
        write_whole(self._beside, self._writer.to_json())
        content = self.path.read_bytes()
        self._end = content.rfind(b"\n") + 1
        if self._end < len(content):
            self._file.truncate(self._end)

    def append(self, line: bytes) -> None:
        self.check()
        assert self._file
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._end += len(line)

    def check(self) -> None:
        """A network filesystem may lose a lock; then the file has grown without us."""
        if self._file is None or os.fstat(self._file.fileno()).st_size != self._end:
            raise superseded(self.path, self._holder())

    def close(self) -> None:
        if self._file is not None:
            if self._holder() == self._writer:
                self._beside.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _holder(self) -> Writer | None:
        """Who says that it writes."""
        try:
            return Writer.from_json(self._beside.read_bytes())
        except (OSError, ValueError):
            return None
