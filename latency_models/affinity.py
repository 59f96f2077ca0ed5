"""Which cores this process runs on."""

import os
from collections.abc import Iterable
from pathlib import Path

from latency_models.provenance import cores

_TASKS = Path("/proc/self/task")


def pin(wanted: Iterable[int]) -> None:
    """Keeps this process, its threads, and what they start from now on, on these cores.

    XLA makes a thread for each core when it first runs something, and keeps them; so this comes
    first, or the command starts with `taskset`. Raises `ValueError` on cores that are not there, on
    an XLA that already runs with other threads, and on systems without affinity.
    """
    wanted = sorted(set(wanted))
    if not hasattr(os, "sched_setaffinity") or not _TASKS.exists():
        raise ValueError("this system does not say which threads run where; cores need Linux")
    there = range(os.cpu_count() or 1)
    if not wanted or not set(wanted) <= set(there):
        raise ValueError(f"no cores {wanted}; this machine has {list(there)}")
    running = xla_threads()
    if running not in (0, len(wanted)):
        raise ValueError(
            f"XLA runs already, with {running} threads, and keeps them on {len(wanted)} cores; "
            f"pin before JAX runs, or start the program with `taskset -c "
            f"{','.join(map(str, wanted))}`"
        )
    for task in _TASKS.iterdir():
        os.sched_setaffinity(int(task.name), wanted)
    assert cores() == wanted


def xla_threads() -> int:
    """How many threads XLA's CPU backend computes with in this process; none before it starts."""
    names = (_name(task) for task in _TASKS.iterdir()) if _TASKS.exists() else ()
    return sum(name.startswith("tf_XLAEigen") for name in names)


def _name(task: Path) -> str:
    try:
        return (task / "comm").read_text()
    except OSError:  # It has ended.
        return ""
