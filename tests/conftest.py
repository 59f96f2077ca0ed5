"""What keeps the suite fast and repeatable.

Nearly all of its time goes into XLA compiling small programs, so it compiles them without
optimisation, and each only once: they are kept between runs, beside pytest's own cache.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # JAX reads it once.
# So does Ray. On a busy machine nodes take long to start, and workers would be starved by others.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
os.environ.setdefault("RAY_worker_niceness", "0")

import hypothesis
import jax
import pytest

from nas.diffusion.pipeline import Pipeline
from tests import tiny

CACHE = Path(__file__).parent.parent / ".pytest_cache" / "xla"

jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    # Laws are inherited: one test runs for several spaces.
    suppress_health_check=[hypothesis.HealthCheck.differing_executors],
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tiny.Folders:
    """A tiny pipeline and a tiny CLIP model on disk. Tests that damage them copy them first."""
    return tiny.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def pipeline(folders: tiny.Folders) -> Pipeline:
    return Pipeline.load(folders.pipeline)


@pytest.fixture(scope="session")
def xl_folders(tmp_path_factory: pytest.TempPathFactory) -> tiny.Folders:
    """The same with two text encoders, as SDXL has it."""
    return tiny.write(tmp_path_factory.mktemp("xl"), tiny.XL)


@pytest.fixture(scope="session")
def xl_pipeline(xl_folders: tiny.Folders) -> Pipeline:
    return Pipeline.load(xl_folders.pipeline)


@pytest.fixture
def here(folders: tiny.Folders, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets `cli.run` be called in this process."""
    monkeypatch.setenv("NAS_TEST_MODELS", str(folders.pipeline.parent))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
