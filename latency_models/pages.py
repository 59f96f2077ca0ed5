"""Large pages under this process's memory, so that two measurements of one network compare.

Weights of hundreds of megabytes in pages of 4 KiB miss the processor's tables of pages all the
time. Whether memory is in pages of 2 MiB instead is up to the kernel: it gives them while it has
some, and memory that other programs and files have broken up has few. A network that is measured
then takes longer than before, and nothing else tells why.
"""

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_PAGE = 2 << 20  # Bytes of a large page.
_LEAST = 16 << 20  # Smaller pieces of memory are not what a network streams.
_MADV_COLLAPSE = 25  # Linux 6.1 and later: make it of large pages now, whoever must be moved.
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(\[heap\]|\[anon.*\]|)$")


def collapse() -> None:
    """Puts this process's own memory into large pages, as far as the kernel can find them.

    Takes what moving it takes, and next to nothing where it is there already. Does nothing on
    systems that have no such call.
    """
    if not _MAPS.exists():
        return
    libc = ctypes.CDLL(None)
    for begin, end in _own(_MAPS.read_text()):
        for start in range(begin, end, 64 * _PAGE):
            size = min(64 * _PAGE, end - start)
            # What comes back does not matter: it may be too old a kernel, or have no pages left.
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_COLLAPSE)


def _own(maps: str) -> Iterator[tuple[int, int]]:
    """Begin and end of the private, anonymous pieces of memory, in whole large pages."""
    for line in maps.splitlines():
        if match := _LINE.match(line):
            begin, end = (int(number, 16) for number in match.groups()[:2])
            begin, end = -(-begin // _PAGE) * _PAGE, end // _PAGE * _PAGE
            if end - begin >= _LEAST:
                yield begin, end
