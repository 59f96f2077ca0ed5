"""A search as a job: what the manifests run, submitted to a cluster by Ray's own command."""

import contextlib
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nas.diffusion.pipeline import Pipeline
from tests import tiny
from tests.conftest import CACHE
from tests.test_deploy import DEPLOY, command, manifest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def surroundings(folders: tiny.Folders) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(HERE),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "NAS_TEST_MODELS": str(folders.pipeline.parent),
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }


@pytest.fixture
def dashboard(surroundings: dict[str, str]) -> Iterator[str]:
    """The address of a cluster that takes jobs."""
    ports = {name: free() for name in ("port", "dashboard-port", "dashboard-agent-listen-port")}
    options = [f"--{name}={port}" for name, port in ports.items()]
    start = [BIN / "ray", "start", "--head", "--block", "--num-cpus=4", *options]
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    with subprocess.Popen(start, env=surroundings, stdout=subprocess.DEVNULL) as head:
        try:
            while not answers(f"{address}/api/version"):
                assert head.poll() is None
                time.sleep(0.5)
            yield address
        finally:
            ours = family(head)
            head.kill()
            for process in ours:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(ours, timeout=60)


def family(head: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(head.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status == 200
    except urllib.error.HTTPError:
        return True  # It wants to know by whom it is asked.
    except OSError:
        return False


def test_what_the_manifest_runs_is_a_search_as_a_job(dashboard, surroundings, folders, tmp_path):
    entrypoint = manifest(DEPLOY / "kuberay" / "cpu.yaml")["spec"]["entrypoint"]
    ours = {"pipeline": folders.pipeline, "evaluator": folders.evaluator, "out": tmp_path / "run"}
    arguments = command(entrypoint)
    for name, path in ours.items():
        arguments[arguments.index(f"--{name}") + 1] = str(path)
    wanted = ["nas", "search", "tests.cli_recipe:recipe", *arguments]
    submit = [BIN / "ray", "job", "submit", f"--address={dashboard}", "--", *wanted]
    done = subprocess.run(submit, env=surroundings, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "keeps to the budget" in done.stdout, shlex.join(wanted)
    assert Pipeline.load(tmp_path / "run" / "pipeline").spec.blocks
    assert (tmp_path / "run" / "report.html").exists()
