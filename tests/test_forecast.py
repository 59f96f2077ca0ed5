"""What a search will take is found by running its engine, and says where its numbers are from."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from nas import cli
from nas.commands import plan
from nas.executors import Pool
from nas.forecast import Times, forecast, read, seconds_of, space
from nas.recipe import Exploration, Pools, Recipe
from nas.simulation import Conditions
from tests import cli_recipe, tiny

TIMES = Times(0.5, 3.0, 100.0, 20.0, 5.0, 30.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tiny.Folders:
    return tiny.write(tmp_path_factory.mktemp("models"))


def recipe(folders: tiny.Folders, workers: int = 2) -> Recipe:
    """4 prompts in shards of 2, of two steps."""
    return tiny.recipe(folders, pools=Pools(scoring=Pool(workers=workers)))


@pytest.fixture(scope="module")
def found(folders):
    return forecast(recipe(folders), TIMES)


def test_what_is_done_is_counted_as_the_engine_does_it(folders, found):
    blocks = len(tiny.REMOVABLE)
    # The seed; in every round the network and it without each block; the result.
    assert found.rounds in (1, 2)
    first_round = 1 + (1 + blocks)
    assert first_round < found.scores <= first_round + found.rounds * (1 + blocks) + 1
    assert found.pictures == 4 * found.scores and found.passes == 2 * found.pictures
    assert found.steps == 4 + 3 * (found.rounds - 1) + 4
    assert found.programs == 2 + 1 and found.calls > 3


def test_seconds_are_those_of_the_tasks(found):
    assert found.scoring.useful == pytest.approx(found.scores * 2 * (0.5 * 2 * 2) + 5.0)
    assert found.training.useful == pytest.approx(found.steps * 3.0 + 100.0 + 20.0)
    assert found.same and found.measuring == found.training
    assert found.held == found.scoring.held + found.training.held
    # One after the other, but for the shards on two workers.
    least = found.training.useful + (found.scoring.useful + 5.0) / 2
    assert least <= found.seconds <= least + 60.0 + found.scores


def test_more_workers_take_less_time_and_what_goes_wrong_takes_more(folders, found):
    many = forecast(recipe(folders, workers=8), TIMES)
    assert many.scores == found.scores and many.seconds < found.seconds
    assert many.scoring.utilisation < found.scoring.utilisation
    hard = forecast(recipe(folders), TIMES, Conditions(start=10.0, lifetime=60.0), seed=3)
    assert hard.scores == found.scores and hard.seconds > found.seconds
    assert hard.scoring.lost + hard.training.lost > 0 and hard.held > found.held


def test_a_worker_that_spans_hosts_is_paid_for_on_each(folders, found):
    once = recipe(folders)
    pools = dataclasses.replace(once.pools, training=Pool(cpus=1.0, hosts=3))
    several = forecast(dataclasses.replace(once, pools=pools), TIMES)
    assert several.scoring.useful == found.scoring.useful
    assert several.training.useful == pytest.approx(3 * found.steps * 3.0)
    assert several.measuring.useful == pytest.approx(100.0 + 20.0)


def test_a_forecast_is_the_same_again(folders, found):
    assert forecast(recipe(folders), TIMES) == found


def test_the_space_is_the_pipelines_and_no_weights_are_read(folders, tmp_path):
    bare = tmp_path / "pipeline"
    for file in Path(folders.pipeline).rglob("*.json"):
        copy = bare / file.relative_to(folders.pipeline)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    there = space(dataclasses.replace(recipe(folders), pipeline=bare))
    assert there.seed == tiny.unet_space(tiny.UNET).seed
    assert there.inputs["sample"].shape[0] == 2


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Times)])
def test_a_time_that_is_not_known_is_an_error_that_says_what_to_do(folders, name):
    option = name.replace("_", "-")
    with pytest.raises(ValueError, match=rf"long {name} takes; give --times\.{option} SECONDS, or"):
        seconds_of(recipe(folders), dataclasses.replace(TIMES, **{name: None}))
    with pytest.raises(ValueError, match="task times are seconds"):
        seconds_of(recipe(folders), dataclasses.replace(TIMES, **{name: -1.0}))


# Task times of a journal.


def entry(task: dict, outcome: dict, seconds: float, compiling: float = 0.0) -> dict:
    cost = {"seconds": seconds, "compiles": 1, "compile_seconds": compiling}
    name = task.pop("name")
    return {"task": {"type": f"nas.evolution:{name}", **task}, "outcome": {**outcome, "cost": cost}}


@pytest.fixture
def before(tmp_path) -> Path:
    whole, without = [1.0, 2.0, 3.0, 4.0], [0.5, 2.0, 2.0, 4.0]
    lines = [
        {"journal": 1, "settings": {"sampling": {"steps": 5}}},
        entry({"name": "Profile"}, {}, 90.0),
        entry({"name": "Reference"}, {}, 7.0),
        entry({"name": "Score", "number": 0, "removed": None}, {"cosines": whole}, 50.0, 30.0),
        entry({"name": "Score", "number": 0, "removed": "a"}, {"cosines": without}, 24.0),
        entry({"name": "Score", "number": 0, "removed": "b"}, {"failed": "so"}, 1e6),
        entry({"name": "Score", "number": 0, "removed": "c"}, {"cosines": without}, 22.0),
        entry(
            {"name": "Train", "number": 1, "parent": 0, "actions": [], "objective": "robust"},
            {"steps": 10},
            52.0,
            12.0,
        ),
    ]
    (tmp_path / "journal.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    return tmp_path


def test_task_times_are_read_from_a_journal(before):
    times, spread = read(before)
    assert times == Times(
        picture_step=22.0 / 20, train_step=4.0, profile=90.0, reference=7.0, start=30.0
    )
    assert spread == pytest.approx(np.std([0.5, 0.0, 1.0, 0.0], ddof=1))
    assert Times(picture_step=1.0, measure=2.0).over(times) == dataclasses.replace(
        times, picture_step=1.0, measure=2.0
    )


def test_a_journal_that_does_not_say_how_it_scored_is_an_error(tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"journal": 1}\n')
    with pytest.raises(ValueError, match="does not say with how many sampling steps"):
        read(tmp_path)


# The command.

GIVEN = ["--times.measure", "20"]


@pytest.fixture
def command(folders, monkeypatch, capsys):
    monkeypatch.setenv("NAS_TEST_MODELS", str(Path(folders.pipeline).parent))

    def run(*arguments: str) -> tuple[int, str]:
        status = cli.run(["plan", "tests.cli_recipe:recipe", *arguments])
        printed = capsys.readouterr()
        return status, " ".join((printed.out + printed.err).split())

    return run


def test_the_command_says_what_is_not_known(command):
    status, said = command("--times.picture-step", "1")
    assert status == 1 and "not known: how long train_step, profile, measure" in said


def test_the_command_prints_estimates_and_where_they_are_from(command, before):
    status, said = command("--journal", str(before), *GIVEN, "--workers", "3", "--price", "36")
    assert status == 0
    for line in (
        "estimate of",
        "4 prompts each",
        "3 scoring workers, one training",
        f"task times as given, else measured by the search of {before}",
        "spread of 0.4787 over 4 prompts, paired",
        "36 and 36 an hour, held from start to end",
    ):
        assert line in said


def test_without_a_spread_an_interval_is_said_in_spreads():
    shown, source = plan.width(None, 2000)
    assert shown == "± 0.044 spreads" and "--spread or --journal" in source
    assert plan.width(0.1, 2000)[0] == "± 0.0044"


def test_another_strategy_than_algorithm_1_has_no_forecast(folders, monkeypatch, command):
    other = dataclasses.replace(recipe(folders), exploration=Exploration("nsga2", evaluations=7))
    with pytest.raises(ValueError, match="strategy is nsga2, and only Algorithm 1 is forecast"):
        forecast(other, TIMES)
    monkeypatch.setattr(cli_recipe, "recipe", lambda: other)
    monkeypatch.setattr(plan, "measured", lambda _: pytest.fail("it is refused before"))
    status, said = command("--measure")
    assert status == 1 and "nsga2 evaluates 7 candidates at most" in said


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--training-price", "3"), "--training-price needs --price"),
        (("--spread", "-1"), "none of these may be negative"),
        (("--conditions.lifetime", "0"), "a lifetime is positive"),
    ],
)
def test_settings_that_mean_nothing_are_refused(command, capsys, wrong, message):
    with pytest.raises(SystemExit):
        command(*GIVEN, *wrong)
    assert message in " ".join(capsys.readouterr().err.split())
