"""How runs are counted in the benchmark of strategies, and drawn."""

import sys
import types
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from benchmarks import strategies
from benchmarks.strategy_peers import PEERS
from benchmarks.strategy_runs import Step, steps
from nas.report.plots import race


def task(**cells):
    """A stand-in for a task: accuracy and overrun of each cell."""
    accuracy = {name: a for name, (a, _) in cells.items()}
    over = {name: o for name, (_, o) in cells.items()}
    best = max(a for a, o in cells.values() if o <= 0)
    return types.SimpleNamespace(accuracy=accuracy, over=over, best=best)


TASK = task(a=(90.0, -0.1), b=(93.95, 0.0), c=(94.0, -0.2), d=(99.0, 0.1))


def test_every_evaluation_counts_and_new_cells_within_the_limit_are_counted_apart():
    found = steps(TASK, iter("daabdbc"), 10)  # pyright: ignore
    assert [(s.spent, s.new) for s in found] == [(2, 1), (4, 2), (7, 3)]
    assert [s.regret for s in found] == pytest.approx([4.0, 0.05, 0.0])


def test_a_run_ends_at_the_optimum_or_when_its_evaluations_are_spent():
    assert steps(TASK, iter("cab"), 10) == [Step(1, 1, 0.0)]  # pyright: ignore
    endless = iter(lambda: "d", None)
    assert steps(TASK, endless, 5) == []  # pyright: ignore
    assert next(endless) == "d"


def test_what_is_never_reached_counts_as_the_most():
    assert strategies.needed([Step(3, 2, 0.5), Step(9, 6, 0.1)]) == (6, 9)
    assert strategies.needed([Step(3, 2, 0.5)]) == (np.inf, np.inf)
    assert strategies.spread(np.array([4, 9, np.inf, np.inf])) == "9 (4 to never)"
    assert strategies.regret([Step(3, 2, 0.5), Step(9, 6, 0.1)], 5) == 0.5
    assert strategies.regret([Step(3, 2, 0.5)], 1) == np.inf


def test_the_report_has_a_row_for_every_strategy_that_ran():
    names = {data: case.name for case, data in strategies.cases().items()}
    runs = {
        ("random", case, seed): [Step(3, 2, 0.05)] for case in names.values() for seed in (0, 1)
    }
    said = strategies.report(runs)
    assert said.count("| **random** | 2 | 2 (2 to 2) | 3 (3 to 3) | 100% |") == 2
    root = ElementTree.fromstring(race(strategies.curves(runs), "evaluations", "regret"))
    assert root.tag.endswith("svg")


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_is_not_installed_is_named_with_its_extra(name, monkeypatch):
    for module in ("optuna", "pymoo.core.mixed"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"nas\[peers\]"):
        next(PEERS[name](TASK, 0))  # pyright: ignore


def test_an_unknown_strategy_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="no strategy luck"):
        strategies.main(data=tmp_path, runs=tmp_path / "runs.jsonl", only=("luck",))
