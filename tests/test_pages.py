"""Memory is put into large pages before anything is timed."""

import mmap
import re
from pathlib import Path

import pytest

from latency_models.measure import Plan, measure_all
from latency_models.pages import collapse

ROLLUP = Path("/proc/self/smaps_rollup")
SIZE = 256 << 20


def large() -> int:
    """Bytes of this process's memory that are in large pages."""
    found = re.search(r"AnonHugePages: +(\d+) kB", ROLLUP.read_text())
    assert found
    return int(found[1]) << 10


@pytest.fixture
def broken_up():
    """Memory in small pages."""
    if not ROLLUP.exists():
        pytest.skip("this system does not say what its pages are")
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        for start in range(0, SIZE, mmap.PAGESIZE):
            memory[start] = 1
        memory.madvise(mmap.MADV_HUGEPAGE)
        yield memory


def test_memory_in_small_pages_is_put_into_large_ones(broken_up):
    before = large()
    collapse()
    if large() == before:
        pytest.skip("this kernel has no large pages to give")
    assert large() - before > 0.9 * SIZE
    assert broken_up[SIZE - mmap.PAGESIZE] == 1 and broken_up[1] == 0


def test_it_is_done_once_all_that_is_timed_has_run():
    done = []
    plan = Plan(seconds=0.0, warmup=2, settle=lambda: done.append("settled"))
    measure_all([lambda: done.append("first"), lambda: done.append("second")], plan)
    at = done.index("settled")
    assert done[:at] == 2 * ["first", "second"] and done.count("settled") == 1
