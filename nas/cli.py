"""The command line: `nas search` and `nas report`."""

import os
import sys

# The C library's malloc gives large arrays huge pages, which takes a third off a training step on
# CPU. It reads this when a process starts.
_TUNABLES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def main() -> None:
    """Runs the command line; the exit status is 0, 1 for an error, 130 for an interruption."""
    if "GLIBC_TUNABLES" not in os.environ and sys.platform == "linux":
        os.environ.update(_TUNABLES)
        os.execv(sys.executable, [sys.executable, "-m", "nas", *sys.argv[1:]])
    from nas.commands import run  # JAX reads the environment when it is imported.

    sys.exit(run(sys.argv[1:]))
