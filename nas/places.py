"""Places that a search keeps things in: paths of this machine, and URLs that fsspec understands.

A place that is a `Path` is used as files are. One at a URL is `Remote`, which does the few things
with it that object stores do well: whole objects are written, read, listed, deleted, and created
where there is none.
"""

import contextlib
import dataclasses
import functools
import inspect
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

EXTRA = "nas[storage]"
_AT_ONCE = 1000  # Objects that are asked for at once, of which fsspec fetches some in parallel.


@dataclasses.dataclass(frozen=True)
class Remote:
    """An object, or a folder of objects, at a URL such as `s3://bucket/runs/1`.

    `file://` is one too: the same objects as files, for shared filesystems without locks.
    """

    url: str

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def absolute(self) -> "Remote":
        """Itself, as a URL means the same everywhere."""
        return self

    def exists(self) -> bool:
        """Whether there is such an object, or one under it."""
        return self._files.exists(self._path)

    def read_bytes(self) -> bytes:
        """Raises `FileNotFoundError` if there is no such object."""
        return self._files.cat_file(self._path)

    def write_bytes(self, content: bytes) -> None:
        """Writes or replaces the object, which others see whole or not at all."""
        if self._local:
            _replace(Path(self._path), content)
        else:
            self._files.pipe_file(self._path, content)

    def create(self, content: bytes) -> None:
        """Writes the object, which others see whole or not at all. Raises `FileExistsError` if it
        is there: of many who create one at once, one succeeds."""
        if self._local:
            _create(Path(self._path), content)
        else:
            self._files.pipe_file(self._path, content, mode="create")

    def unlink(self) -> None:
        """Deletes the object, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path)

    def remove(self) -> None:
        """Deletes all that is under it."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(self._path, recursive=True)

    def names(self) -> list[str]:
        """The names right under it, sorted; none if there is no such folder."""
        try:
            found = self._files.ls(self._path, detail=False)
        except FileNotFoundError:
            return []
        return sorted({str(name).rstrip("/").rpartition("/")[2] for name in found})

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yields objects right under it, in the order of their names here."""
        for start in range(0, len(names), _AT_ONCE):
            paths = [f"{self._path}/{name}" for name in names[start : start + _AT_ONCE]]
            found = self._files.cat(paths)
            yield from (found[self._files._strip_protocol(path)] for path in paths)

    def upload(self, folder: Path, names: Sequence[str]) -> None:
        """Writes files of a local folder, given by their paths in it, under the same names."""
        ours = [str(folder / name) for name in names]
        theirs = [f"{self._path}/{name}" for name in names]
        if self._local:
            for path in theirs:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._files.put(ours, theirs)

    def download(self, folder: Path, names: Sequence[str]) -> None:
        """The inverse of `upload`."""
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        theirs = [f"{self._path}/{name}" for name in names]
        self._files.get(theirs, [str(folder / name) for name in names])

    @property
    def _files(self) -> Any:
        return _filesystem(self.url)[0]

    @property
    def _path(self) -> str:
        return _filesystem(self.url)[1]

    @property
    def _local(self) -> bool:
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self._files, LocalFileSystem)


Place: TypeAlias = Path | Remote


def place(text: str) -> Place:
    """The place that `text` names, a path or a URL.

    Raises `ValueError` on a URL of a filesystem that is not known, whose package is not installed,
    or which cannot create an object only where there is none.
    """
    if "://" not in text:
        return Path(text)
    try:
        import fsspec
    except ImportError:
        raise ValueError(f"{text} needs the package fsspec: pip install '{EXTRA}'") from None
    if "::" in text:
        raise ValueError(f"{text} is a chain of filesystems; give the URL of one")
    protocol, _, path = text.partition("://")
    if not path.strip("/"):
        raise ValueError(f"{text} names no folder; give one, as in {protocol}://bucket/runs/1")
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise ValueError(
            f"{text} needs a package that is not installed ({error}): pip install '{EXTRA}' has "
            "s3fs for s3://; gcsfs is for gs:// and adlfs for az://"
        ) from None
    except ValueError:
        raise ValueError(f"{text}: fsspec knows no filesystem {protocol}://") from None
    if not _creates(kind):
        raise ValueError(
            f"{text}: {protocol}:// cannot create an object only where there is none, without "
            "which two searches could write one journal; mount it and give a path, or use a "
            "filesystem that can, such as s3:// or gs://"
        )
    return Remote(text.rstrip("/"))


def _creates(kind: type) -> bool:
    """Whether `mode="create"` is the filesystem's own doing, or ours. fsspec's default looks first
    and writes then, which is no guarantee."""
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem
    from fsspec.implementations.local import LocalFileSystem

    if issubclass(kind, LocalFileSystem):
        return True
    base, name = AbstractFileSystem, "pipe_file"
    if issubclass(kind, AsyncFileSystem):
        base, name = AsyncFileSystem, "_pipe_file"
    method = getattr(kind, name)
    return method is not getattr(base, name) and "mode" in inspect.signature(method).parameters


@functools.lru_cache(maxsize=4096)
def _filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of a URL, and the path in it. Listings are not cached: others write too."""
    from fsspec.core import url_to_fs

    return url_to_fs(url, use_listings_cache=False)


def write_whole(target: Place, content: bytes) -> None:
    """Writes or replaces a file or object, which others see whole or not at all."""
    if isinstance(target, Path):
        _replace(target, content)
    else:
        target.write_bytes(content)


def publish(target: Place, last: str, make: Callable[[Path], object]) -> None:
    """Has `make` write a folder that is then at `target`, in place of what was there.

    It is whole once the file `last` is there: a folder of this machine is renamed, and of another
    that file is written last.
    """
    if isinstance(target, Path):
        draft = target.with_name(f".{target.name}")
        shutil.rmtree(draft, ignore_errors=True)
        make(draft)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        return
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / target.name
        make(made)
        names = files(made)
        target.remove()
        target.upload(made, [name for name in names if name != last])
        target.upload(made, [last])


def files(folder: Path) -> list[str]:
    """The files in a folder, by their paths in it, sorted."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def _replace(path: Path, content: bytes) -> None:
    with _draft(path, content) as draft:
        os.replace(draft, path)


def _create(path: Path, content: bytes) -> None:
    with _draft(path, content) as draft:
        os.link(draft, path)  # Unlike a rename, it fails if there is one; on NFS, too.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _draft(path: Path, content: bytes) -> Iterator[Path]:
    """A file beside `path` with that content, on disk; it is gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)
