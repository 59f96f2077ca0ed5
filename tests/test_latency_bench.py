"""A bench on this machine measures by any runtime, keeps what it measured, and never mixes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pytest

from latency_models import store
from latency_models.bench import LocalBench
from latency_models.latency import Whole
from latency_models.measure import Plan, Target, TooNoisy
from latency_models.provenance import Method, Provenance
from latency_models.runtimes import Loaded, Row, Runtime
from search_spaces.blocks import Conv, NormSiLU
from search_spaces.export.part import Dtype, Part
from search_spaces.ops import Call
from search_spaces.program import Step

IMAGE = jax.ShapeDtypeStruct((2, 4, 4, 4), "float32")
CONV, NORM = Call(Conv(4), (IMAGE,)), Call(NormSiLU(groups=2), (IMAGE,))
WHOLE = Whole((Step("conv_in", Conv(4), ("sample",)),), {"sample": IMAGE})


@dataclasses.dataclass(frozen=True)
class Fake(Runtime):
    """Takes `ms` of a clock that only it advances; calls of `NormSiLU` take up to thrice as long,
    for a whole round, by chance where `noisy`."""

    ms: float = 5.0
    noisy: bool = False
    precision: Dtype | None = None
    prepared: ClassVar[list[str]] = []
    now: ClassVar[float] = 0.0
    factor: ClassVar[float] = 1.0

    @property
    def provenance(self) -> Provenance:
        return Provenance("a fake", f"fake {self.ms}", (), "any", "none", 1, Method.MEASURED)

    def load(self, part: Part, values: Mapping[str, np.ndarray]) -> Loaded:
        self.prepared.append(part.name)
        return Busy(part, values, self)

    @classmethod
    def clock(cls) -> float:
        return cls.now

    def plan(self, **options: Any) -> Plan:
        rng = np.random.default_rng(0)

        def pause(seconds: float) -> None:
            Fake.factor = 1 + 2 * rng.random()

        return Plan(
            0.0, rounds=6, pause_s=1.0, clock=Fake.clock, sleep=pause, throttled=lambda: None,
            **options,
        )  # fmt: skip


class Busy(Loaded):
    def __init__(self, part: Part, values: Mapping[str, np.ndarray], of: Fake):
        super().__init__(part, values, "fake")
        self._of = of

    def compare(self) -> None:
        self.difference = 0.0

    def run(self) -> None:
        factor = Fake.factor if self._of.noisy and self.part.name == "NormSiLU" else 1.0
        Fake.now += 1e-3 * self._of.ms * factor

    def outputs(self) -> dict[str, np.ndarray]:
        return {}

    def profile(self, passes: int = 20) -> list[Row]:
        return []


@pytest.fixture(autouse=True)
def forgotten() -> None:
    Fake.prepared.clear()


def test_calls_are_measured_once_and_by_the_bench_s_runtime(tmp_path: Path):
    runtime = Fake(ms=5.0)
    bench = LocalBench(tmp_path, runtime.plan(), runtime.plan(), runtime)
    assert bench.provenance == runtime.provenance
    assert bench.table([CONV]).rows[CONV].ms == pytest.approx(5)
    assert set(bench.table([NORM, CONV]).rows) == {CONV, NORM}
    assert Fake.prepared == ["Conv", "NormSiLU"]
    (whole,) = bench.networks([WHOLE])
    assert whole.ms == pytest.approx(5) and Fake.prepared[-1] == "network"


def test_runtimes_never_share_a_file(tmp_path: Path):
    found = []
    for runtime in Fake(ms=5.0), Fake(ms=7.0):
        bench = LocalBench(tmp_path, runtime.plan(), runtime.plan(), runtime)
        found.append(bench.table([CONV]).rows[CONV].ms)
    assert found == pytest.approx([5, 7]) and len(list(tmp_path.iterdir())) == 2


def test_what_is_sure_is_kept_where_the_rest_is_too_noisy(tmp_path: Path):
    runtime = Fake(noisy=True)
    plan = runtime.plan(target=Target(limit_s=0.0))
    bench = LocalBench(tmp_path, plan, plan, runtime)
    with pytest.raises(TooNoisy, match="1 of 2 measurements"):
        bench.table([CONV, NORM])
    kept = store.read(store.file(tmp_path, bench.provenance), bench.provenance).table
    assert set(kept.rows) == {CONV}
    with pytest.raises(TooNoisy, match="1 of 1 measurements"):
        bench.table([CONV, NORM])
    assert Fake.prepared == ["Conv", "NormSiLU", "NormSiLU"]


def test_a_plan_without_a_target_reports_what_is_noisy_too(tmp_path: Path):
    runtime = Fake(noisy=True)
    bench = LocalBench(tmp_path, runtime.plan(), runtime.plan(), runtime)
    assert set(bench.table([CONV, NORM]).rows) == {CONV, NORM}
