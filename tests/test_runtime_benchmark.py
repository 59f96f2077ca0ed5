"""The benchmark of real runtimes waits for the machine it began on, and not for ever."""

from pathlib import Path

import pytest

from benchmarks import runtimes
from latency_models.campaign import Done, OffPace


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(runtimes.time, "sleep", found.append)
    return found


def test_another_pace_is_waited_for(slept, capsys):
    left = [OffPace(Path("x.json"), "it is slow"), OffPace(Path("x.json"), "it is slow")]

    def measure() -> Done:
        if left:
            raise left.pop()
        return Done(3, 0, 0, {"a block": "no strides"})

    runtimes.patiently(measure)
    assert slept == [60, 60]
    said = capsys.readouterr().out
    assert said.count("it is slow") == 2 and "refused: a block: no strides" in said


def test_a_machine_that_is_another_one_for_good_is_an_error(slept):
    def measure() -> Done:
        raise OffPace(Path("x.json"), "it is slow")

    with pytest.raises(OffPace, match="it is slow"):
        runtimes.patiently(measure)
    assert len(slept) == runtimes.PATIENCE - 1
