"""A process that writes a journal until it is killed.

    python -c "from tests.journal_writer import main; main()" PLACE STEPS [elsewhere]

appends what is missing of so many steps, a line of output for each. With `elsewhere` it passes for
one of another machine, whose processes cannot be seen from here.
"""

import dataclasses
import subprocess
import sys
import time

from nas import segments, writers
from nas.journal import Journal
from nas.places import place

PACE = segments.Pace(beat=0.2, expiry=1.5)
COMMAND = [sys.executable, "-c", "from tests.journal_writer import main; main()"]


@dataclasses.dataclass(frozen=True)
class Step:
    number: int


def main() -> None:
    segments.PACE = PACE
    if sys.argv[3:] == ["elsewhere"]:
        writers.kernel = lambda: "another machine's"
    try:
        with Journal(place(sys.argv[1]), {}) as journal:
            print("begun", flush=True)
            for number in range(len(journal), int(sys.argv[2])):
                journal.append(Step(number), {"square": number**2})
                print(number, flush=True)
                time.sleep(0.02)
    except ValueError as error:
        print(f"error: {error}", flush=True)


def start(path: object, steps: int, *how: str) -> "subprocess.Popen[str]":
    """Starts such a process."""
    return subprocess.Popen([*COMMAND, str(path), str(steps), *how], stdout=-1, text=True)


def until(process: "subprocess.Popen[str]", wanted: str) -> str:
    """Reads what a process says up to the first line with that in it, which is returned."""
    assert process.stdout
    for line in process.stdout:
        if wanted in line:
            return line
    raise AssertionError(f"it ended without saying {wanted!r}")
