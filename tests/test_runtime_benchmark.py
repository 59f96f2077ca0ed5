"""The benchmark of real runtimes learns from other networks than it is judged on, measured side by
side, and waits for the machine it began on, not for ever."""

from pathlib import Path

import pytest

from benchmarks import runtimes
from benchmarks.runtimes import LEARNT, Settings, networks, parted, side_by_side
from latency_models import store
from latency_models.campaign import Done, OffPace
from latency_models.latency import Latency
from latency_models.rows import Network
from latency_models.runtimes.xla import XLA
from search_spaces.counting import macs
from search_spaces.program import calls


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


WHOLES = networks(LEARNT, 3) | networks(Settings.seed, 5)


def test_what_is_judged_was_not_learnt_from(tmp_path):
    measured = [Network(name, whole, Latency(1.0, 0.1)) for name, whole in WHOLES.items()]
    store.write(tmp_path / "xla.json", XLA().provenance, networks=measured)
    for seed, judged in ((Settings.seed, 5), (Settings.seed + 1, 0)):
        learnt, held_out = parted(tmp_path, "xla", seed)
        assert {n.name for n in learnt.networks} == networks(LEARNT, 3).keys()
        assert {n.name for n in held_out} == networks(seed, judged).keys()


def test_what_a_network_takes_is_the_median_of_visits_known_as_well_as_they_agree(tmp_path):
    (name, whole), (other, second), *_ = WHOLES.items()
    for visit, ms in enumerate((3.0, 5.0, 9.0)):
        rows = [Network(name, whole, Latency(ms, 0.1))]
        if visit:  # The first visit refused it.
            rows.append(Network(other, second, Latency(2.0, 0.1 + visit)))
        store.write(runtimes.file(tmp_path, "xla", visit), XLA().provenance, networks=rows)
    found = {n.name: n.latency for n in parted(tmp_path, "xla", Settings.seed)[0].networks}
    assert (found[name].ms, found[name].std) == (5.0, 3.0)
    assert (found[other].ms, found[other].std) == (2.0, 1.1)
    said = runtimes.again(runtimes.visited(tmp_path, "xla"))
    assert said.startswith("3 networks were measured again: 33% within 10%, 66.7% off")
    assert runtimes.again({}) == "networks were measured once"


def test_every_visit_measures_all_networks_in_portions_of_others(monkeypatch):
    monkeypatch.setattr(runtimes.campaign, "NETWORKS", 3)
    first, second = (list(side_by_side(WHOLES, visit)) for visit in (0, 1))
    assert set(first) == set(second) == WHOLES.keys()

    def portions(names: list[str]) -> set[frozenset[str]]:
        return {frozenset(names[start : start + 3]) for start in range(0, len(names), 3)}

    assert not portions(first) & portions(second)


def test_networks_of_about_one_size_are_measured_together_whatever_they_are_for(monkeypatch):
    monkeypatch.setattr(runtimes.campaign, "NETWORKS", 3)
    found = side_by_side(WHOLES)
    assert list(found) == list(side_by_side(dict(reversed(WHOLES.items()))))
    sizes = [sum(macs(c).total for c in calls(*whole).values()) for whole in found.values()]
    portions = sorted([sizes[:3], sizes[3:6], sizes[6:]])  # Of eight networks, two are left over.
    assert [size for portion in portions for size in portion] == sorted(sizes) != sizes
