"""What giving work to workers costs, and what a second worker gains.

    python -m benchmarks.executor [--calls 200] [--megabytes 100] [--seconds 0.5] [--repeats 5]

- overhead of a call that does nothing: in this process, and by a worker on Ray, one at a time and
  as many as 1 and 2 workers take on;
- sending weights: from this process to the store, then to the first call of each worker that has
  them, and to its second, which has them already;
- wall time and utilisation of this process alone, and of 1 and 2 workers on Ray, of calls that each
  keep one core busy for so long, and the ideal, which is the calls' own time over the number of
  workers;
- starting Ray and the first worker, which a search that goes on waits for besides its journal
  (`python -m benchmarks.journal`).

Prints Markdown, medians with their quartiles; two minutes on two cores. Run it with nothing else
running.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro

from nas.executors import Executor, Here, Pool, finish
from nas.on_ray import OnRay

ONE, TWO = Pool(workers=1), Pool(workers=2)


class Idler:
    """A worker that holds nothing."""


def nothing(_: Idler) -> None:
    pass


def size(_: Idler, weights: dict[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in weights.values())


def work(_: Idler, seconds: float) -> tuple[float, float]:
    """Computes for so many seconds of this process's CPU; when it began and ended."""
    begun, until = time.time(), time.process_time() + seconds
    while time.process_time() < until:
        np.linalg.norm(np.ones(1000))
    return begun, time.time()


def timed(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def one_by_one(executor: Executor[Idler], pool: Pool, calls: int) -> float:
    """Seconds a call, where the next is submitted when the one before has ended."""
    finish(executor, [executor.submit(pool, nothing)])
    return (
        timed(lambda: [finish(executor, [executor.submit(pool, nothing)]) for _ in range(calls)])
        / calls
    )


def at_once(executor: Executor[Idler], pool: Pool, calls: int) -> float:
    """Seconds a call, where all are submitted first."""
    finish(executor, [executor.submit(pool, work, 0.05) for _ in range(8)])  # All have started.
    return (
        timed(lambda: finish(executor, [executor.submit(pool, nothing) for _ in range(calls)]))
        / calls
    )


def sending(executor: Executor[Idler], megabytes: int) -> tuple[float, float, float]:
    """Seconds to share weights, of the first call that has them, and of the second."""
    weights = {str(n): np.random.default_rng(n).random((1 << 20) // 8) for n in range(megabytes)}
    begun = time.perf_counter()
    shared = executor.share(weights)
    put = time.perf_counter() - begun

    def call() -> float:
        return timed(lambda: finish(executor, [executor.submit(ONE, size, shared)]))

    return put, call(), call()


def working(executor: Executor[Idler], pool: Pool, calls: int, seconds: float) -> np.ndarray:
    """Wall time, the ideal, and the share of it that workers were busy."""
    begun = time.perf_counter()
    found = np.array(finish(executor, [executor.submit(pool, work, seconds) for _ in range(calls)]))
    wall, workers = time.perf_counter() - begun, pool.workers or 1
    return np.array([wall, calls * seconds / workers, np.diff(found).sum() / (wall * workers)])


def shown(values: list[float], scale: float = 1.0, digits: int = 2) -> str:
    """Median, and quartiles."""
    low, middle, high = scale * np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main(*, calls: int = 200, megabytes: int = 100, seconds: float = 0.5, repeats: int = 5) -> None:
    many = range(repeats)
    with Here(Idler()) as here:
        ours = [one_by_one(here, ONE, calls) for _ in many]
        alone = np.array([working(here, ONE, 12, seconds) for _ in many])
    starting = time.perf_counter()
    with OnRay(Idler, cpus=3) as ray:
        finish(ray, [ray.submit(ONE, nothing)])
        started = time.perf_counter() - starting
        rows = [
            ("in this process", shown(ours, 1e3, 3)),
            ("1 worker, one by one", shown([one_by_one(ray, ONE, calls) for _ in many], 1e3)),
            ("1 worker, at once", shown([at_once(ray, ONE, calls) for _ in many], 1e3)),
            ("2 workers, at once", shown([at_once(ray, TWO, calls) for _ in many], 1e3)),
        ]
        print(f"Starting Ray and the first worker took {started:.1f} s.\n")
        print("| a call that does nothing | ms |\n|---|---|")
        print("\n".join(f"| {name} | {ms} |" for name, ms in rows))
        print(f"\n| {megabytes} MB of weights | ms |\n|---|---|")
        sent = zip(*(sending(ray, megabytes) for _ in many), strict=True)
        for name, column in zip(("to the store", "first call", "second call"), sent, strict=True):
            print(f"| {name} | {shown(list(column), 1e3, 1)} |")
        print(f"\n| 12 calls of {seconds} s | wall, s | ideal, s | busy |\n|---|---|---|---|")
        ran = {"this process": alone}
        for name, pool in (("1 worker", ONE), ("2 workers", TWO)):
            ran[name] = np.array([working(ray, pool, 12, seconds) for _ in many])
        for name, found in ran.items():
            walls, busy = shown(list(found[:, 0])), shown(list(100 * found[:, 2]), digits=0)
            print(f"| {name} | {walls} | {found[0, 1]:.2f} | {busy} % |")


if __name__ == "__main__":
    tyro.cli(main)
