"""A whole search at a URL ends as it does in a folder, wherever its process was killed."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

from nas.commands import report, search
from nas.diffusion.pipeline import Pipeline
from nas.evolution import Task
from nas.journal import read
from nas.places import Place, Remote, files, place
from tests import tiny
from tests.conftest import CACHE

RECIPE = "tests.cli_recipe:recipe"


@pytest.fixture
def models(folders: tiny.Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_TEST_MODELS", str(folders.pipeline.parent))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def outcomes(folder: Place) -> dict[Task, Any]:
    _, found = read(folder / "journal.jsonl")
    return {task: {k: x for k, x in outcome.items() if k != "cost"} for task, outcome in found}


def same_nets(one: Path, other: Path) -> bool:
    nets = [Pipeline.load(folder).unet for folder in (one, other)]
    return nets[0].keys() == nets[1].keys() and all(
        np.array_equal(nets[0][name], nets[1][name]) for name in nets[0]
    )


@pytest.mark.parametrize(
    ("out", "found"), [("runs/1", Path("runs/1")), ("memory://runs/1", Remote("memory://runs/1"))]
)
def test_out_is_a_path_or_a_url(folders, out, found):
    asked = tiny.recipe(folders)
    given = {name: getattr(asked, name) for name in search.OF_RECIPE}
    default = search.Settings(Path("default"), **given)
    assert tyro.cli(search.Settings, default=default, args=["--out", out]).out == found
    assert tyro.cli(search.Settings, default=default, args=[]).out == Path("default")


def test_a_url_that_cannot_hold_a_search_is_an_error_of_out(models, capsys):
    with pytest.raises(SystemExit):
        search.run([RECIPE, "--out", "nowhere://a"])
    assert "Error parsing --out: nowhere://a: fsspec knows no" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_in_memory_and_one_in_files_are_the_same(models, tmp_path, capsys):
    there = place(f"memory://{uuid.uuid4().hex}/run")
    assert isinstance(there, Remote)
    runs: list[Place] = [tmp_path / "here", there]
    for out in runs:
        assert search.run([RECIPE, "--out", str(out)]) == 0
    one, other = (outcomes(out) for out in runs)
    assert one == other
    ours = tmp_path / "here" / "pipeline"
    (there / "pipeline").download(tmp_path / "fetched", files(ours))
    assert same_nets(ours, tmp_path / "fetched")
    for name in ("before.png", "after.png", "prompts.json"):
        assert len({(out / "pictures" / name).read_bytes() for out in runs}) == 1
    page = (runs[1] / "report.html").read_bytes()
    assert b"keeps to the budget" in page and page.count(b"data:image/png") > 2
    capsys.readouterr()
    assert search.run([RECIPE, "--out", str(runs[1])]) == 0
    assert "holds this finished search" in capsys.readouterr().out
    assert report.run([str(runs[1])]) == 0 and (runs[1] / "report.html").read_bytes() == page


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["training", "networks", "journal.jsonl/00000008.json"])
def test_a_killed_search_is_gone_on_with_at_a_url(models, tmp_path, moment):
    """By another process, which is told of the dead one by the system and need not wait."""
    whole, killed = tmp_path / "whole", place(f"file://{tmp_path}/killed")
    assert search.run([RECIPE, "--out", str(whole)]) == 0
    command = [sys.executable, "-m", "nas", "search", RECIPE, "--out", str(killed)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, env=environment) as process:
        while not any((tmp_path / "killed" / moment).parent.glob(f"{Path(moment).name}*")):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    before = _lines(killed)
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert _lines(killed)[: len(before)] == before
    assert outcomes(killed) == outcomes(whole)
    assert same_nets(whole / "pipeline", tmp_path / "killed" / "pipeline")


def _lines(folder: Place) -> list[str]:
    journal = folder / "journal.jsonl"
    try:
        return [json.dumps(outcome) for _, outcome in read(journal)[1]]
    except ValueError:  # It was killed before it wrote the first.
        return []
