"""NAS-Bench-201 as a plug-in, on tables of made-up numbers."""

import itertools
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.nasbench201 import tested
from experiments.nasbench201.cells import EDGES, NONE, OPS, Cell, Cells, Put, computed, everything
from experiments.nasbench201.study import DATA, cifar100, study, study_of
from experiments.nasbench201.table import read
from nas import cli
from nas.exploring import Limit
from nas.plugins import at
from nas.study import Study
from nas.testing.spaces import PlainSpaceLaws

cells = st.tuples(*[st.sampled_from(OPS)] * len(EDGES)).map(Cell)
CODES = np.array(list(itertools.product(range(len(OPS)), repeat=len(EDGES))))
WORTH = np.array([0.0, 3.0, 6.0, 9.0, 2.0])  # Of an op, on any edge.
COSTS = np.array([0.1, 0.2, 1.0, 2.0, 0.5])


def write(folder, *, drop=(), order=slice(None), **more):
    columns = {f"op{edge}": CODES[:, edge].astype("int8") for edge in range(len(EDGES))}
    numbers = np.arange(len(CODES), dtype="int32")
    quality = WORTH[CODES].sum(1) + CODES[:, 0] * CODES[:, 5] / 10
    archs = {
        "arch_idx": numbers,
        **columns,
        "c10_val_12ep": quality,
        "c10_test_200ep": quality + 30,
    }
    archs["c100_val_12ep"] = quality[::-1]
    times = {"phone": COSTS[CODES].sum(1), "board": COSTS[CODES][:, ::2].sum(1) + 1, **more}
    kept = {name: values for name, values in archs.items() if name not in drop}
    pq.write_table(pa.table(kept), folder / "archs.parquet")
    pq.write_table(pa.table({"arch_idx": numbers[order], **times}), folder / "latency_ms.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    gaps = np.where(np.arange(len(CODES)) == 7, np.nan, 1.0)
    return write(tmp_path_factory.mktemp("tables"), gappy=gaps)


@pytest.fixture
def tables(data, monkeypatch):
    monkeypatch.setenv(DATA, str(data))


STUDY = "experiments.nasbench201.study:study"


class TestCells(PlainSpaceLaws):
    space = Cells()


def test_there_are_as_many_cells_as_the_benchmark_has():
    assert len(set(everything())) == 15_625


@given(cells)
def test_every_edit_is_of_one_edge_and_gives_another_cell(cell):
    edits = list(Cells().actions(cell))
    assert len({edit.apply(cell) for edit in edits} - {cell}) == len(edits) == 24
    for edit in edits:
        differing = [a != b for a, b in zip(cell.ops, edit.apply(cell).ops, strict=True)]
        assert sum(differing) == 1 and differing[edit.edge]


def test_what_is_no_cell_and_what_changes_nothing_is_an_error():
    with pytest.raises(ValueError, match="a cell has 6"):
        Cell(("none",) * 5)
    with pytest.raises(ValueError, match="a cell has 6"):
        Cell(("conv",) * 6)
    with pytest.raises(ValueError, match="already"):
        Put(0, "nor_conv_3x3").apply(Cells().initial())


@given(cells, st.sampled_from(OPS), st.sampled_from(OPS))
def test_ops_that_nothing_is_read_through_do_not_count(cell, one, other):
    first, second, third, *rest = cell.ops
    # Nothing comes into node 1, so what leaves it does not matter.
    cut = [Cell((NONE, second, op, rest[0], op, rest[2])) for op in (one, other)]
    assert computed(cut[0]) == computed(cut[1])
    # Nothing leaves node 2, so what comes into it does not matter.
    cut = [Cell((first, op, third, rest[0], rest[1], NONE)) for op in (one, other)]
    assert computed(cut[0]) == computed(cut[1])


def test_different_ways_are_told_apart():
    found = [computed(cell) for cell in itertools.islice(everything(), 0, None, 7)]
    distinct = {tuple(sorted(each.items())) for each in found}
    assert len(distinct) > 0.4 * len(found)


def test_the_table_gives_what_is_in_its_rows(data):
    table = read(data)
    cell = Cell(("nor_conv_3x3",) + ("skip_connect",) * 5)
    assert table.accuracy(cell, "c10_val_12ep") == pytest.approx(9 + 15 + 0.3)
    assert table.latency(cell, "phone").ms == pytest.approx(3.0)
    with pytest.raises(ValueError, match="phone, board, gappy"):
        table.latency(cell, "fridge")
    with pytest.raises(ValueError, match="c10_val_12ep, c10_test_200ep"):
        table.accuracy(cell, "luck")
    with pytest.raises(ValueError, match="has not run"):
        table.latency(list(table.rows)[7], "gappy")


def test_tables_that_are_not_there_or_do_not_fit_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no .*archs.parquet"):
        read(tmp_path)
    with pytest.raises(ValueError, match="op3"):
        read(write(tmp_path, drop=("op3",)))
    with pytest.raises(ValueError, match="same rows"):
        read(write(tmp_path, order=slice(None, None, -1)))


@pytest.mark.usefixtures("here", "tables")
def test_it_is_a_plug_in_that_nas_explore_searches(data, tmp_path, capsys):
    limits = ("--device", "phone=6ms", "--device", "board=4ms")
    words = ("--out", str(tmp_path), "--strategy", "surrogate", "--evaluations", "40")
    assert cli.run(["explore", STUDY, *limits, *words]) == 0
    assert "The best: Cell(ops=(" in capsys.readouterr().out
    assert tested.main(tmp_path, fronts=True) == 0
    said = capsys.readouterr().out
    table = read(data)
    problem = study_of(table, "c10_val_12ep").problem(
        {"phone": Limit(6, "ms"), "board": Limit(4, "ms")}
    )
    best = Cell(tuple(said.splitlines()[1].rpartition("; ")[2].split()))
    worth = table.accuracy(best, "c10_val_12ep")
    assert problem.fits(best)
    assert f"{worth:.2f}% as evaluated, {worth + 30:.2f}% c10_test_200ep" in said
    good = np.quantile([table.accuracy(c, "c10_val_12ep") for c in problem.fitting], 0.99)
    assert worth >= good
    assert "40 cells evaluated" in said
    assert "Front of phone" in said and "Front of board" in said


def test_the_entry_point_of_the_package_is_the_study():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert at(project["project"]["entry-points"]["nas.search_spaces"]["nasbench201"]) is study


@pytest.mark.usefixtures("tables")
def test_a_study_is_of_the_devices_that_ran_all_cells(data):
    found, other = study(), cifar100()
    assert isinstance(found, Study) and list(found.devices) == ["phone", "board"]
    table, cell = read(data), Cells().initial()
    for each, column in ((found, "c10_val_12ep"), (other, "c100_val_12ep")):
        assert list(each.evaluate(cell, 0)) == [table.accuracy(cell, column)]
    assert found.devices["phone"](cell) == table.latency(cell, "phone")
    assert set(found.specs) == set(everything())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("folder", "said"),
    [(None, f"{DATA} is not set"), ("", f"{DATA} is not set"), ("nowhere", "no nowhere/archs")],
)
def test_tables_that_are_not_given_are_one_clear_message(folder, said, monkeypatch, capsys):
    monkeypatch.delenv(DATA, raising=False)
    if folder is not None:
        monkeypatch.setenv(DATA, folder)
    assert cli.run(["explore", STUDY, "--device", "phone=6ms"]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("here", "tables")
def test_test_accuracies_are_of_a_search_that_found_something(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"journal.jsonl"):
        tested.main(tmp_path)
    words = ["explore", STUDY, "--strategy", "random", "--evaluations", "3"]
    assert cli.run([*words, "--out", str(tmp_path / "none"), "--device", "phone=0.1ms"]) == 1
    with pytest.raises(ValueError, match="no evaluated cell keeps to all limits"):
        tested.main(tmp_path / "none")
    assert cli.run([*words, "--out", str(tmp_path / "some"), "--device", "phone=6ms"]) == 0
    with pytest.raises(ValueError, match=r"no accuracies 'luck'; there are .*c10_test_200ep"):
        tested.main(tmp_path / "some", accuracy="luck")
    assert cli.run(["report", str(tmp_path / "some")]) == 0
    assert "random evaluated 3 candidates" in capsys.readouterr().out
