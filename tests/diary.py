"""Workers that write down what they do, where it outlives them and all processes see it."""

import os
import time
from pathlib import Path
from typing import Any

from nas.on_ray import OnRay


class Diary:
    """A worker that writes down every call it begins and ends, in a folder that all see."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, what: str, number: int) -> None:
        name = f"{what}-{number}-{os.getpid()}-{time.monotonic_ns()}"
        (self.folder / name).touch()


def noted(folder: Path, what: str) -> list[tuple[int, int]]:
    """The number and the process of every call that was begun, or ended, oldest first."""
    names = [path.name.split("-") for path in folder.glob(f"{what}-*")]
    return [(int(n), int(pid)) for _, n, pid, at in sorted(names, key=lambda name: int(name[3]))]


def plod(diary: Diary, number: int, seconds: float = 0.5) -> int:
    diary.write("begun", number)
    time.sleep(seconds)
    diary.write("ended", number)
    return number**2


def begun(executor: OnRay[Any], folder: Path, count: int) -> list[tuple[int, int]]:
    """Waits until so many calls were begun."""
    while len(found := noted(folder, "begun")) < count:
        executor.step()
    return found
