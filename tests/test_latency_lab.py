"""The worked example of docs/latency-runtimes.md is run, on one runtime and for a short time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from latency_models import saved, store

HERE = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_an_empty_device_gets_a_checked_model(tmp_path):
    # However busy the machine is: what comes out is not looked at here.
    loose = "--seconds 1 --target.limit-s 2 --target.useless 50 --target.relative 50"
    loose += " --target.drift 50 --target.corrected 50"
    settings = {"RUNTIMES": "onnxruntime", "MINUTES": "5", "EDITED": "3", "CHECKED": "2"}
    settings |= {"PROFILE": loose}
    done = subprocess.run(
        ["bash", "experiments/latency_lab.sh", tmp_path],
        cwd=HERE,
        env=os.environ | settings | {"NAS": f"{sys.executable} -m nas"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    learnt = store.load(tmp_path / "onnxruntime.json")
    _, card = saved.load(tmp_path / "onnxruntime")
    assert card["calls"] == len(learnt.table.rows) > 0 and card["networks"] > 0
    held_out = store.load(tmp_path / "onnxruntime-held-out.json")
    assert held_out.networks and not held_out.table.rows
    assert "worst networks" in done.stdout
    for plot in ("reliability.svg", "agreement.svg"):
        assert (tmp_path / "onnxruntime" / plot).read_text().startswith("<svg")
