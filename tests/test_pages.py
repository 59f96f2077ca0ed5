"""Memory is put into large pages before anything is timed."""

import contextlib
import mmap
import re
from pathlib import Path

import pytest

from latency_models.measure import Plan, measure_all
from latency_models.pages import collapse

ROLLUP = Path("/proc/self/smaps_rollup")
SIZE = 256 << 20
MADV_COLLAPSE = 25


def large() -> int:
    """Bytes of this process's memory that are in large pages."""
    found = re.search(r"AnonHugePages: +(\d+) kB", ROLLUP.read_text())
    assert found
    return int(found[1]) << 10


@contextlib.contextmanager
def small_pages():
    """Memory in small pages."""
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for start in range(0, SIZE, mmap.PAGESIZE):
            memory[start] = 1
        memory.madvise(mmap.MADV_HUGEPAGE)
        yield memory


@pytest.fixture
def kernel_can() -> None:
    """Asks the kernel itself for large pages, once."""
    if not ROLLUP.exists():
        pytest.skip("this system does not say what its pages are")
    with small_pages() as memory:
        try:
            memory.madvise(MADV_COLLAPSE)
        except OSError as error:
            pytest.skip(f"this kernel has no large pages to give: {error}")


@pytest.mark.usefixtures("kernel_can")
def test_memory_in_small_pages_is_put_into_large_ones():
    with small_pages() as memory:
        before = large()
        collapse()
        assert large() - before > 0.9 * SIZE
        assert memory[SIZE - mmap.PAGESIZE] == 1 and memory[1] == 0


def test_it_is_done_once_all_that_is_timed_has_run():
    done = []
    plan = Plan(seconds=0.0, warmup=2, settle=lambda: done.append("settled"))
    measure_all([lambda: done.append("first"), lambda: done.append("second")], plan)
    at = done.index("settled")
    assert done[:at] == 2 * ["first", "second"] and done.count("settled") == 1
