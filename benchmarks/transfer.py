"""How well a new device's latencies are known after a few measurements, task by task.

    python -m benchmarks.transfer [--task ND N1 ...] [--data ../shared/data] [--samples 20 ...]

A task (a JSON file, or the name of one in `benchmarks/tasks`) names source devices, of which
`budget` random architectures each are measured, and target devices, of which `samples` are. For
every seed all of that is drawn anew; latencies of a source device at other architectures are never
seen. Scored on all architectures of which nothing was measured on the target, and, if there are
gaps in the table, which every device of the task measured: rank correlation (Spearman), share of
predictions within 10 % of the measured latency, mean and median absolute relative error, share of
measurements inside the central 90 % of what was predicted, and seconds for fitting one device and
predicting all architectures, compilation (first seed) left out. Means over devices and seeds, and
the standard deviation over seeds of the mean over devices.

Beside it, measured here too: FLOPs alone; ridge regression and this same model on the target's
random samples only; and the source device whose function ranks the samples best.

    --oracle         a separate track: source devices have measured every architecture, also the
                     ones scored. True when the source devices are at hand, but outside the
                     published protocol.
    --help-protocol  a separate track: HELP's split. Targets are sampled from the first rows and
                     scored on the 1,000 after them, the fastest and slowest tenth of both
                     dropped; HELP's own count is 10 + 10 target measurements.

Prints Markdown. `--data` is a folder of folders (`nasbench201`, `fbnet`, as a task's `space` names
them) or one such folder, with `archs.parquet` and `latency_ms.parquet`. The six tasks of the
default take about five minutes on one idle core.
"""

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import scipy.stats
import tyro

from benchmarks.transfer_spaces import Space, read
from latency_models.choosing import choose
from latency_models.transfer import Prediction, Prior, adapt, learn

_TASKS = Path(__file__).parent / "tasks"
DATA = Path(__file__).parents[2] / "shared" / "data"
MAIN = ("ND", "N1", "N3", "FD", "F2", "F4")
# Standard deviations to either side that hold 90 % of a normal distribution.
_NINETY = 1.645


@dataclasses.dataclass(frozen=True)
class Task:
    """Who teaches whom. `published` are rank correlations of others, `reference` of ours.

    `aim` and `stretch` are rank correlations to reach with 20 samples, if any are set.
    """

    name: str
    space: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    budget: int
    samples: int = 20
    seeds: int = 10
    archs: str = "archs.parquet"
    latency: str = "latency_ms.parquet"
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    reference: Mapping[str, float] = dataclasses.field(default_factory=dict)
    aim: float | None = None
    stretch: float | None = None


def load(name: str) -> Task:
    """The task of this name in `benchmarks/tasks`, or in the file of this name."""
    file = Path(name) if name.endswith(".json") else _TASKS / f"{name}.json"
    try:
        fields = json.loads(file.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in _TASKS.glob("*.json")))
        raise SystemExit(f"no task {name}; there are {known}, or give a JSON file") from None
    try:
        for key in ("sources", "targets"):
            fields[key] = tuple(fields[key])
        return Task(name=file.stem, **fields)
    except (TypeError, KeyError) as error:
        raise SystemExit(f"{file} is no task: {error}") from None


def space_of(task: Task, data: Path) -> Space:
    folder = data / task.space if (data / task.space).is_dir() else data
    return read(folder, archs=task.archs, latency=task.latency)


class Score(NamedTuple):
    rank: float
    within: float
    error: float  # Mean of |predicted / measured - 1|.
    median: float  # Their median.
    coverage: float  # NaN where a method gives no interval.
    seconds: float


class Case(NamedTuple):
    """A target device in one seed."""

    prior: Prior  # Of the sources.
    alone: Prior  # Of no sources.
    archs: np.ndarray  # [n, width]
    plain: np.ndarray  # [n, width], encoded without sources.
    flops: np.ndarray  # [n], NaN if the table has none.
    latency: np.ndarray  # [n], of the target. A method looks at `chosen` and `random` only.
    chosen: np.ndarray  # [samples], by `choose`.
    random: np.ndarray  # [samples]


# What a method says of every architecture, and which it measured for that.
Outcome = tuple[Prediction, np.ndarray]


def adapted(case: Case) -> Outcome:
    return _adapted(case.prior, case.archs, case.latency, case.chosen)


def adapted_on_random(case: Case) -> Outcome:
    return _adapted(case.prior, case.archs, case.latency, case.random)


def from_scratch(case: Case) -> Outcome:
    return _adapted(case.alone, case.plain, case.latency, case.random)


def _adapted(prior: Prior, archs: np.ndarray, latency: np.ndarray, measured: np.ndarray) -> Outcome:
    return adapt(prior, archs[measured], latency[measured]).predict(archs), measured


def ridge(case: Case) -> Outcome:
    """On all features; its penalty by leaving one out."""
    x, y = case.plain[case.random], case.latency[case.random]
    mean, gram = y.mean(), x @ x.T
    best: tuple[float, np.ndarray] | None = None
    for penalty in np.geomspace(1e-4, 1e2, 13) * np.trace(gram) / len(y):
        inverse = np.linalg.inv(gram + penalty * np.eye(len(y)))
        left_out = float(np.mean((inverse @ (y - mean) / np.diag(inverse)) ** 2))
        if best is None or left_out < best[0]:
            best = left_out, inverse @ (y - mean)
    assert best is not None
    return _plain(mean + case.plain @ (x.T @ best[1]), y), case.random


def best_source(case: Case) -> Outcome:
    """The function of the source device that ranks the samples most like the target."""
    basis, sources = case.prior.basis, case.prior.sources
    said = sources.latencies(case.archs[:, : len(basis.mean)], basis.parts)
    y = case.latency[case.random]
    ranks = [spearman(each[case.random], y) for each in said.T]
    best = said[:, int(np.argmax(ranks))]
    return _plain(best * np.median(y) / np.median(best[case.random]), y), case.random


def flops(case: Case) -> Outcome:
    """Measures nothing for the rank; one factor from the samples for the milliseconds."""
    y = case.latency[case.random]
    return _plain(case.flops * np.median(y / case.flops[case.random]), y), case.random


def _plain(ms: np.ndarray, measured: np.ndarray) -> Prediction:
    positive = np.maximum(ms, measured.min() / 10 * (1 + 1e-6 * scipy.stats.rankdata(ms)))
    return Prediction(np.log(positive), np.full(len(ms), np.nan))


METHODS: Mapping[str, Callable[[Case], Outcome]] = {
    "**ours**": adapted,
    "ours, random samples": adapted_on_random,
    "ours, no source device, random samples": from_scratch,
    "ridge, no source device, random samples": ridge,
    "source device that fits the samples best": best_source,
    "FLOPs": flops,
}


# Scores of every method, by seed and target device.
Scores = dict[str, list[list[Score]]]


def run(
    task: Task,
    space: Space,
    samples: tuple[int, ...],
    seeds: int,
    *,
    oracle: bool,
    protocol: bool,
) -> dict[int, Scores]:
    """Scores by how many samples were measured; a larger number of them holds a smaller one's."""
    sources, targets = space.table(task.sources), space.table(task.targets)
    complete = np.flatnonzero(~np.isnan(np.vstack([sources, targets])).any(0))
    try:
        sizes = space.sizes()
    except ValueError:
        sizes = np.full(sources.shape[1], np.nan)
    methods = {n: m for n, m in METHODS.items() if m is not flops or np.isfinite(sizes).all()}
    alone = learn(space.components, np.zeros((0, sources.shape[1])))
    plain = alone.encode(space.components)
    scores: dict[int, Scores] = {count: {name: [] for name in methods} for count in samples}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        seen = np.full(sources.shape, np.nan)
        for device in range(len(sources)):
            picked = rng.choice(complete, min(task.budget, len(complete)), replace=False)
            seen[device, picked] = sources[device, picked]
        prior = learn(space.components, seen)
        archs = prior.encode(space.components, sources if oracle else None)
        cases: list[tuple[Case, np.ndarray]] = []
        for latency in targets:
            pool, scored = _split(latency, complete, protocol)
            chosen = pool[choose(prior.beliefs(), archs[pool], max(samples), seed=seed)]
            drawn = rng.permutation(pool)
            case = Case(prior, alone, archs, plain, sizes, latency, chosen, drawn)
            cases.append((case, scored))
        for count in samples:
            for name, method in methods.items():
                row = []
                for whole, scored in cases:
                    case = whole._replace(chosen=whole.chosen[:count], random=whole.random[:count])
                    begun = time.perf_counter()
                    prediction, measured = method(case)
                    seconds = time.perf_counter() - begun
                    test = np.setdiff1d(scored, measured)
                    row.append(score(prediction, case.latency, test, seconds))
                scores[count][name].append(row)
        print(f"{task.name}: seed {seed + 1} of {seeds}", file=sys.stderr)
    return scores


def _split(
    latency: np.ndarray, complete: np.ndarray, protocol: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What may be measured, and what is scored unless it was."""
    if not protocol:
        return complete, complete
    # HELP's split: the first 900 of NAS-Bench-201's 15,625 rows, and 4,000 of FBNet's 5,000.
    first = 900 if len(latency) > 10_000 else 4 * len(latency) // 5
    pool, test = np.arange(first), np.arange(first, first + 1000)
    return _trimmed(latency, np.intersect1d(pool, complete)), _trimmed(
        latency, np.intersect1d(test, complete)
    )


def _trimmed(latency: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`rows` without the fastest and slowest tenth of them."""
    ordered = rows[np.argsort(latency[rows], kind="stable")]
    cut = len(rows) // 10
    return np.sort(ordered[cut : len(rows) - cut])


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation."""
    found = scipy.stats.spearmanr(x, y)
    return float(found.statistic)  # pyright: ignore[reportAttributeAccessIssue]


def score(prediction: Prediction, latency: np.ndarray, test: np.ndarray, seconds: float) -> Score:
    true = latency[test]
    wrong = np.abs(prediction.ms[test] / true - 1)
    off = np.abs(prediction.mean[test] - np.log(true)) / prediction.std[test]
    return Score(
        spearman(prediction.mean[test], true),
        float(np.mean(wrong < 0.1)),
        float(np.mean(wrong)),
        float(np.median(wrong)),
        float(np.mean(off < _NINETY)) if np.isfinite(off).all() else np.nan,
        seconds,
    )


def main(
    task: tuple[str, ...] = MAIN,
    *,
    data: Path = DATA,
    samples: tuple[int, ...] = (),
    seeds: int | None = None,
    all: bool = False,
    oracle: bool = False,
    help_protocol: bool = False,
) -> None:
    """
    Args:
        task: Names of tasks in `benchmarks/tasks`, or JSON files.
        data: Folder with the tables of the spaces.
        samples: Measurements of the target; the task's own number unless given.
        seeds: The task's own number unless given.
        all: Every task in `benchmarks/tasks`.
        oracle: Source devices measured every architecture.
        help_protocol: HELP's split and trimming.
    """
    print(
        f"jax {jax.__version__}, {platform.machine()}, {jax.default_backend()}\n"
        + ("\nTrack: source latencies of the scored architectures are known.\n" * oracle)
        + ("\nTrack: HELP's protocol.\n" * help_protocol)
    )
    names = sorted(path.stem for path in _TASKS.glob("*.json")) if all else task
    tasks = [load(name) for name in names]
    spaces = {(one.space, one.archs, one.latency): space_of(one, data) for one in tasks}
    for one in tasks:  # Before hours are spent on the others.
        try:
            spaces[one.space, one.archs, one.latency].table((*one.sources, *one.targets))
        except ValueError as error:
            raise SystemExit(f"task {one.name}: {error}") from None
    summary = []
    for one in tasks:
        space = spaces[one.space, one.archs, one.latency]
        repeats = seeds or one.seeds
        counts = samples or (one.samples,)
        found = run(one, space, counts, repeats, oracle=oracle, protocol=help_protocol)
        for count, scores in found.items():
            report(one, space, scores, count, repeats)
            summary.append((one, count, scores))
    summarise(summary, others=not (oracle or help_protocol))


def report(task: Task, space: Space, found: Scores, samples: int, seeds: int) -> None:
    print(
        f"\n## {task.name}: {samples} samples, {seeds} seeds\n\n"
        f"{len(task.sources)} source devices, {task.budget} architectures each. Targets: "
        f"{', '.join(task.targets)}. Columns not used: {', '.join(space.unused) or 'none'}.\n\n"
        "| | Spearman | within 10 % | mean error | median error | 90 % interval holds | s |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, rows in found.items():
        values = np.array(rows)  # [seeds, targets, 6]
        mean = values.mean((0, 1))
        later = values[1:] if seeds > 1 else values
        seconds = float(np.median(later[:, :, 5]))
        held = f"{mean[4]:.2f}" if np.isfinite(mean[4]) else "–"
        print(
            f"| {name} | {mean[0]:.3f} ± {values[:, :, 0].mean(1).std():.3f} | {mean[1]:.2f} | "
            f"{mean[2]:.1%} | {mean[3]:.1%} | {held} | {seconds:.2f} |"
        )
    first = np.array(next(iter(found.values()))).mean(0)
    each = zip(task.targets, first, strict=True)
    print(
        "\nOurs, by device (Spearman, within 10 %, interval): "
        + "; ".join(f"{name} {s[0]:.3f}, {s[1]:.2f}, {s[4]:.2f}" for name, s in each)
        + ".",
        flush=True,
    )


def summarise(results: list[tuple[Task, int, Scores]], *, others: bool) -> None:
    """Prints all tasks; beside `others`, published under the same protocol, if that makes sense."""
    print("\n## Rank correlation beside others\n")
    print("| | samples | ours | simple, best here | published, best | aim / stretch | reached |")
    print("|---|---|---|---|---|---|---|")
    for task, samples, found in results:
        ranks = {name: np.array(rows)[:, :, 0].mean() for name, rows in found.items()}
        ours = ranks["**ours**"]
        others_here = [item for item in ranks.items() if "ours" not in item[0]]
        simple, value = max(others_here, key=lambda item: item[1])
        line = f"| {task.name} | {samples} | {ours:.4f} | {value:.3f} ({simple}) |"
        if others and samples == 20 and task.published:
            name, best = max(task.published.items(), key=lambda item: item[1])
            line += f" {best:.3f} ({name}) |"
        else:
            line += " – |"
        if others and samples == 20 and task.aim:
            reached = ours >= task.aim
            more = "" if task.stretch is None or ours < task.stretch else ", and the stretch"
            further = "–" if task.stretch is None else f"{task.stretch:.3f}"
            line += f" {task.aim:.3f} / {further} | {'yes' + more if reached else '**no**'} |"
        else:
            line += " – | – |"
        print(line)
    noted = {task.name: {**task.published, **task.reference} for task, *_ in results}
    if others and any(noted.values()):
        print("\n| published or noted before, 20 samples | " + " | ".join(noted) + " |")
        print("|---" * (len(noted) + 1) + "|")
        for name in dict.fromkeys(name for figures in noted.values() for name in figures):
            cells = (figures.get(name) for figures in noted.values())
            print(f"| {name} | " + " | ".join(f"{c:.3f}" if c else "–" for c in cells) + " |")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
