"""A space of anybody's own is searched by one command, which loses nothing when it is killed."""

import dataclasses
import functools
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from latency_models.latency import Latency
from nas.cli import run
from nas.commands import explore as explore_command
from nas.executors import UNNAMED, Here, Pool
from nas.exploring import Limit
from nas.journal import read
from nas.report import studied
from nas.report.studied import Studied
from nas.strategies import outcomes
from nas.strategies.exploration import Evaluate, Exploration, Proposal
from tests import beads

pytestmark = pytest.mark.usefixtures("here")

STUDY = "tests.beads:study"
LIMITS = ("--device", "linear=4.5ms", "--device", "late=80%")


def explore(out: Path, *words: str) -> int:
    return run(["explore", STUDY, "--out", str(out), *LIMITS, *words])


def entries(out: Path) -> dict[Any, Any]:
    """What is in the journal, in whatever order, but for what it cost."""
    found = {}
    for task, outcome in read(out / "journal.jsonl")[1]:
        found[task] = {name: value for name, value in outcome.items() if name != "cost"}
    return found


def scored(found: dict[Any, Any]) -> dict[Any, Any]:
    return {task: outcome for task, outcome in found.items() if "failed" not in outcome}


def broken(found: dict[Any, Any]) -> set[Any]:
    return {task.spec for task, outcome in found.items() if "failed" in outcome}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a search that looked at all there is within the limits."""
    out = tmp_path_factory.mktemp("whole")
    assert explore(out, "--strategy", "random", "--evaluations", "30") == 0
    return out


def test_the_best_within_the_limits_of_all_devices_is_found(whole, capsys):
    study = beads.study()
    fitting = [
        spec
        for spec in study.specs
        if beads.linear(spec).ms <= 4.5
        and beads.late(spec).ms <= 0.8 * beads.late(beads.String(3).initial()).ms
        and spec.colours != beads.TORN
    ]
    best = max(fitting, key=beads.entangled)
    assert run(["report", str(whole)]) == 0
    said = capsys.readouterr().out
    assert f"The best: {best};" in said and "linear: " in said and "late: " in said
    done = {task.spec for task in entries(whole) if isinstance(task, Evaluate)}
    assert done >= set(fitting) and len(done) == len(fitting) + 1


def test_one_evaluation_serves_the_fronts_of_all_devices(whole):
    report = (whole / "report.html").read_text()
    assert "<h3>linear</h3>" in report and "<h3>late</h3>" in report
    assert "Every candidate" in report and "Who did what when" in report


def test_a_candidate_that_breaks_its_worker_is_out_and_the_search_goes_on(whole):
    torn = [(t, o) for t, o in entries(whole).items() if t.spec == beads.Beads(beads.TORN)]
    assert torn and all("the string is torn" in outcome["failed"] for _, outcome in torn)
    assert "of which 1 failed" in (whole / "report.html").read_text()


@pytest.mark.parametrize("strategy", ["nsga2", "surrogate", "exact"])
def test_a_killed_search_goes_on_to_the_same_end(tmp_path, strategy, capsys):
    words = ("--strategy", strategy, "--evaluations", "9")
    assert explore(tmp_path, *words) == 0
    journal, report = tmp_path / "journal.jsonl", tmp_path / "report.html"
    lines, text = journal.read_text().splitlines(), report.read_text()
    ended = entries(tmp_path)
    journal.write_text("".join(f"{line}\n" for line in lines[:6]) + lines[6][:20])
    report.unlink()
    capsys.readouterr()
    assert explore(tmp_path, *words) == 0
    assert "going on after 5 finished tasks" in capsys.readouterr().out
    assert entries(tmp_path) == ended
    assert _fronts(report.read_text()) == _fronts(text)


def _fronts(page: str) -> str:
    return page[page.index("Fronts") : page.index("Every candidate")]


def test_the_single_edits_have_their_referee_in_the_report(tmp_path):
    assert explore(tmp_path, "--strategy", "exact", "--evaluations", "9") == 0
    text = (tmp_path / "report.html").read_text()
    assert "Greedy choice is " in text and "Paint(place=" in text


def test_other_settings_do_not_go_on_with_a_journal(whole, capsys):
    assert explore(whole, "--strategy", "random", "--evaluations", "31") == 1
    assert "evaluations" in capsys.readouterr().err


def test_shares_are_of_what_the_first_spec_takes_and_devices_without_limit_take_no_part():
    problem = beads.study().problem({"late": Limit(0.5)})
    assert problem.devices.keys() == {"late"}
    assert problem.devices["late"].limit_ms == 0.5 * beads.late(beads.String(3).initial()).ms


def test_caution_holds_more_than_the_mean_against_a_limit(tmp_path):
    study = beads.study()
    unsure = dataclasses.replace(study, devices={"one": lambda spec: Latency(1.0, 0.2)})
    spec = study.space.initial()
    assert unsure.problem({"one": Limit(1.1, "ms")}).fits(spec)
    assert not unsure.problem({"one": Limit(1.1, "ms")}, caution=1.0).fits(spec)


def _nsga2(option: str) -> tuple[str, ...]:
    return (STUDY, *LIMITS, "--strategy", "nsga2", "--options", option)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "takes first what to search"),
        ((STUDY,), "no limit is given: --device NAME=LIMIT, of linear, late"),
        ((STUDY, "--device", "phone=2ms"), "no device phone in this study, which has linear, late"),
        ((STUDY, "--device", "linear=2"), "budget '2' is neither milliseconds"),
        ((STUDY, "--device", "linear"), "--device linear: give NAME=LIMIT"),
        ((STUDY, *LIMITS, "--device", "late=2ms"), "each device once"),
        ((STUDY, *LIMITS, "--strategy", "guess"), "no 'guess' among nas.strategies"),
        ((STUDY, *LIMITS, "--evaluations", "0"), "evaluations is 0"),
        (
            (STUDY, *LIMITS, "--strategy", "successive-halving", "--evaluations", "3"),
            "take 18 evaluations until some have had all 2 shards, and there are 3: allow more",
        ),
        (_nsga2('devices=["phone"]'), "no device phone to be searched for; there are linear, late"),
        (_nsga2("devices=late"), "devices is 'late'; it must be names of devices"),
        (_nsga2("devices={}"), "devices is {}; it must be names"),
        (_nsga2("population=0"), "population is 0; it must be a whole number, 1 or more"),
        (_nsga2("population=many"), "population is 'many'; it must be a whole number"),
        (_nsga2("size=3"), "unexpected keyword argument 'size'"),
        (
            (STUDY, *LIMITS, "--options", "describe=tests.beads:nothing"),
            "tests.beads:nothing cannot be imported",
        ),
        (("tests.cli_recipe:nothing",), "gives a int, not a nas.study.Study"),
        (("nowhere:study",), "nowhere:study cannot be imported"),
    ],
)
def test_what_cannot_be_asked_for_is_one_clear_message(words, said, tmp_path, capsys):
    out = ("--out", str(tmp_path / "out")) if words else ("--seed", "1")
    assert run(["explore", *words, *out]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_within_the_limits_is_said_so(tmp_path, capsys):
    words = ["explore", STUDY, "--out", str(tmp_path), "--strategy", "random"]
    assert run([*words, "--device", "linear=0.5ms"]) == 1
    assert "None of them keeps to all limits" in capsys.readouterr().out


@dataclasses.dataclass(frozen=True)
class Glimpse:
    """A policy that takes a shard of a few, and never all."""

    def propose(self, problem, trials, rng):
        return Proposal(problem.fitting[len(trials)], (0,)) if len(trials) < 3 else None


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (outcomes.scored([1.0]), "None of those that keep to all limits has had all 2 shards"),
        (outcomes.failed("torn"), "All that keep to the limits failed"),
    ],
)
def test_a_search_that_finds_nothing_says_the_reason_and_no_other(tmp_path, outcome, why):
    strategy = Exploration(beads.study().problem({"linear": Limit(9.0, "ms")}), Glimpse(), 30)
    state = strategy.init()
    while asked := strategy.ask(state):
        state = strategy.tell(state, asked[0], outcome)
    said = studied.summary(Studied(tmp_path, {"strategy": "glimpse"}, strategy, state))
    assert f"{why}" in said and "None of them keeps" not in said


@pytest.mark.parametrize(
    ("strategy", "option"),
    [("nsga2", 'devices=["late"]'), ("surrogate", "describe=nas.strategies.leaves:indicators")],
)
def test_options_can_be_lists_and_functions(tmp_path, strategy, option):
    words = ("--strategy", strategy, "--evaluations", "12", "--options", option)
    if strategy == "surrogate":
        words = (*words, "first=3")
    assert explore(tmp_path, *words) == 0
    assert run(["report", str(tmp_path)]) == 0


def test_successive_halving_finds_something_where_its_rung_cannot_be_filled(tmp_path, capsys):
    assert explore(tmp_path, "--strategy", "successive-halving", "--evaluations", "200") == 0
    assert "The best: " in capsys.readouterr().out


@pytest.mark.parametrize(("words", "workers"), [((), 3), (("--workers", "5"), 5)])
def test_workers_on_ray_are_given_what_the_study_says(tmp_path, monkeypatch, words, workers):
    from nas import on_ray

    asked: list[tuple[Pool, int | None]] = []

    class Seen(Here):
        """Workers of this process, which take note of what is asked of those on Ray."""

        def __init__(self, make, *, address, cpus, tries, observer):
            super().__init__(make(), tries=tries, observer=observer)
            self.cpus = cpus

        def submit(self, pool, function, /, *arguments, label=UNNAMED):
            asked.append((pool, self.cpus))
            return super().submit(pool, function, *arguments, label=label)

    monkeypatch.setattr(on_ray, "OnRay", Seen)
    path = "tests.beads:study_of_gpus"
    out = ("--out", str(tmp_path), "--strategy", "random", "--evaluations", "3")
    assert run(["explore", path, *LIMITS, *out, "--on", "ray", *words]) == 0
    wanted = dataclasses.replace(beads.study_of_gpus().pool, workers=workers)
    assert set(map(str, asked)) == {str((wanted, workers))}


def test_in_this_process_a_search_can_be_interrupted_whatever_its_pool():
    study = beads.study_of_gpus()
    settings = explore_command.Settings(Path("out"))
    assert settings.pool(study) == dataclasses.replace(study.pool, workers=1)
    assert beads.study().pool == Pool(workers=None, cpus=1.0)


def test_a_candidate_is_evaluated_by_one_process():
    with pytest.raises(ValueError, match="of one host, not of 2"):
        dataclasses.replace(beads.study(), pool=Pool(cpus=1.0, hosts=2))


def test_a_long_evaluation_shows_who_does_it(tmp_path, monkeypatch):
    shown = io.StringIO()
    terminal = functools.partial(Console, file=shown, force_terminal=True, width=100, height=40)
    monkeypatch.setattr("nas.progress.Console", terminal)
    words = ("--out", str(tmp_path), "--strategy", "random", "--evaluations", "1")
    assert run(["explore", "tests.beads:slow_study", *LIMITS, *words]) == 0
    said = shown.getvalue()
    assert "candidate 1" in said and "1 worker: 0.0 calls a minute, idle" in said
    assert re.search(r"thread 1 +0.0 a minute, idle +\d+%  scoring candidate 1, shard 0", said)
    assert "candidate 1: quality" in said


def test_a_study_is_no_recipe_and_is_told_where_it_belongs(capsys):
    assert run(["search", STUDY]) == 1
    assert "returned a Study, not a Recipe; a Study is for nas explore" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_workers_on_ray_find_what_one_process_does(whole, tmp_path):
    words = ("--strategy", "random", "--evaluations", "30", "--on", "ray", "--workers", "2")
    assert explore(tmp_path, *words) == 0
    abreast, one_by_one = entries(tmp_path), entries(whole)
    assert scored(abreast) == scored(one_by_one)
    # The second half of a candidate whose first half fails may have begun by then.
    assert broken(abreast) == broken(one_by_one) != set()
    ours, others = (
        json.loads((out / "journal.jsonl").read_text().splitlines()[0]) for out in (whole, tmp_path)
    )
    assert ours == others
