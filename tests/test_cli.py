"""The command line, as a user meets it: in a process of its own."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nas import cli
from nas.commands.search import form
from nas.diffusion.pipeline import Pipeline
from tests import tiny

RECIPE = "tests.cli_recipe:recipe"
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "xla"
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(folders: tiny.Folders) -> Start:
    """Starts `nas` with these arguments."""
    environment = {
        **os.environ,
        "NAS_TEST_MODELS": str(folders.pipeline.parent),
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }

    def starter(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "nas", *arguments],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return starter


def entries(folder: Path) -> list[Any]:
    """What the journal says, less what a task cost. Tasks that do not depend on each other are
    journalled as they end."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        line.get("outcome", {}).pop("cost", None)
    return sorted(lines, key=json.dumps)


def test_what_diffusers_cannot_express_is_said_with_the_reason(pipeline: Pipeline) -> None:
    said = form(tiny.without(pipeline.spec, "mid_block.resnets.0"))
    assert said.startswith("\nThe U-Net is in our own form, as diffusers cannot express it:\n  mid")
    assert "diffusers' own form" in form(pipeline.spec)


def test_a_search_ends_with_a_pipeline_a_journal_and_a_report_of_one_file(
    start: Start, here: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, pipeline: Pipeline
) -> None:
    out = tmp_path / "run"
    process = start("search", RECIPE, "--out", str(out))
    said, complained = process.communicate(timeout=300)
    assert process.returncode == 0, complained
    found = Pipeline.load(out / "pipeline")
    assert len(found.spec.blocks) < len(pipeline.spec.blocks)
    page = (out / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "keeps to the budget" in page and "keeps to the budget" in said
    assert form(found.spec) in said
    assert found.unet_config["_class_name"] == "UNet2DConditionModel"

    (out / "report.html").unlink()
    assert cli.run(["report", str(out)]) == 0 and (out / "report.html").read_text() == page

    before = (out / "journal.jsonl").read_bytes()
    assert cli.run(["search", RECIPE, "--out", str(out)]) == 0
    assert "finished search" in capsys.readouterr().out
    assert (out / "journal.jsonl").read_bytes() == before

    assert cli.run(["search", RECIPE, "--out", str(out), "--group", "1"]) == 1
    complained = capsys.readouterr().err
    assert "another search" in complained and "group" in complained


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["serach"], "nas search [RECIPE]"),
        (["search", "no.such.module:recipe"], "no recipe no.such.module:recipe"),
        (["search", "tests.cli_recipe:missing"], "has no attribute 'missing'"),
        (["search", "tests.cli_recipe:nothing"], "returned a int, not a Recipe"),
        (["search", RECIPE, "--budget", "half"], "budget 'half' is neither"),
        (["search", RECIPE, "--budget", "1%"], "no architecture meets the budget"),
        (["search", RECIPE, "--pipeline", "nowhere"], "no pipeline folder nowhere"),
        (["search", RECIPE, "--evaluator", "nowhere"], "no CLIP folder nowhere"),
        (["search", RECIPE, "--sampling.prompts", "5"], "do not divide into batches"),
        (["search", RECIPE, "--sampling.prompts", "64"], "fewer than the 64"),
        (["report", "nowhere"], "no journal nowhere"),
    ],
)
def test_bad_input_gets_one_clear_message_and_a_failure(
    here: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    complaint: str,
) -> None:
    if arguments[0] == "search":
        arguments = [*arguments, "--out", str(tmp_path / "run")]
    assert cli.run(arguments) == 1
    assert complaint in capsys.readouterr().err


def test_every_setting_is_explained(here: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run(["search", RECIPE, "--help"])
    said = capsys.readouterr().out
    for setting in ("--budget", "--group", "--sampling.prompts", "--training.skip", "--seed"):
        assert setting in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_says_how_to_go_on(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    journal = tmp_path / "run" / "journal.jsonl"
    process = start("search", RECIPE, "--out", str(journal.parent))
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, complained = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "nothing is lost" in complained and "Traceback" not in complained


STUCK = """
import ctypes, sys
from nas import cli

def compiling():
    # Locked twice: what no signal wakes, as in a compiler.
    locked, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    lock(locked)
    print("compiling", flush=True)
    lock(locked)

sys.exit(cli.guarded(compiling))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interruption_ends_at_once_what_hears_none(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "compiling\n"
    time.sleep(0.5)  # Between the print and the lock it still hears.
    for _ in range(2):  # As `timeout` does, which is one interruption.
        process.send_signal(number)
    assert process.stderr and process.stderr.readline() == "\n"
    assert "at once if asked again" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode == 130


@pytest.mark.slow
def test_a_search_killed_at_random_moments_ends_as_one_that_was_not(
    start: Start, tmp_path: Path
) -> None:
    begun = time.monotonic()
    start("search", RECIPE, "--out", str(tmp_path / "whole")).communicate()
    span = time.monotonic() - begun
    wanted = entries(tmp_path / "whole")
    draw, kills, runs = random.Random(0), 0, 0
    while kills < 20:
        out, runs = tmp_path / f"killed-{runs}", runs + 1
        for _ in range(100):
            process = start("search", RECIPE, "--out", str(out))
            try:
                process.communicate(timeout=draw.uniform(0.2, 0.9) * span)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
            else:
                assert process.returncode == 0
                break
        assert entries(out) == wanted
    assert runs > 1
