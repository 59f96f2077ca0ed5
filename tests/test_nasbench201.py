"""NAS-Bench-201 as a plug-in, on tables of made-up numbers."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.nasbench201 import search
from experiments.nasbench201.cells import EDGES, NONE, OPS, Cell, Cells, Put, computed, everything
from experiments.nasbench201.table import read
from nas.journal import Journal
from search_spaces.values import decode, encode

cells = st.tuples(*[st.sampled_from(OPS)] * len(EDGES)).map(Cell)
CODES = np.array(list(itertools.product(range(len(OPS)), repeat=len(EDGES))))
WORTH = np.array([0.0, 3.0, 6.0, 9.0, 2.0])  # Of an op, on any edge.
COSTS = np.array([0.1, 0.2, 1.0, 2.0, 0.5])


def write(folder, *, drop=(), order=slice(None), **more):
    columns = {f"op{edge}": CODES[:, edge].astype("int8") for edge in range(len(EDGES))}
    numbers = np.arange(len(CODES), dtype="int32")
    quality = WORTH[CODES].sum(1) + CODES[:, 0] * CODES[:, 5] / 10
    archs = {"arch_idx": numbers, **columns, "val_12ep": quality, "test_200ep": quality + 30}
    times = {"phone": COSTS[CODES].sum(1), "board": COSTS[CODES][:, ::2].sum(1) + 1, **more}
    kept = {name: values for name, values in archs.items() if name not in drop}
    pq.write_table(pa.table(kept), folder / "archs.parquet")
    pq.write_table(pa.table({"arch_idx": numbers[order], **times}), folder / "latency_ms.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    gaps = np.where(np.arange(len(CODES)) == 7, np.nan, 1.0)
    return write(tmp_path_factory.mktemp("tables"), gappy=gaps)


def run(data, out, **settings):
    defaults = {"choose": "val_12ep", "report": "test_200ep", "evaluations": 40}
    settings = {"limits": ("phone=6", "board=4"), **defaults, **settings}
    return search.main(data=data, out=out, **settings)


def test_there_are_as_many_cells_as_the_benchmark_has():
    assert len(set(everything())) == 15_625


@given(cells)
def test_every_edit_is_of_one_edge_and_gives_another_cell(cell):
    edits = list(Cells().actions(cell))
    assert len({edit.apply(cell) for edit in edits} - {cell}) == len(edits) == 24
    for edit in edits:
        differing = [a != b for a, b in zip(cell.ops, edit.apply(cell).ops, strict=True)]
        assert sum(differing) == 1 and differing[edit.edge]


@given(cells, st.integers(0, 23))
def test_cells_and_edits_survive_json(cell, number):
    edit = list(Cells().actions(cell))[number]
    for value in (cell, edit):
        assert decode(json.loads(json.dumps(encode(value)))) == value


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
    assert table.accuracy(cell, "val_12ep") == pytest.approx(9 + 15 + 0.3)
    assert table.latency(cell, "phone").ms == pytest.approx(3.0)
    with pytest.raises(ValueError, match="phone, board, gappy"):
        table.latency(cell, "fridge")
    with pytest.raises(ValueError, match="val_12ep, test_200ep"):
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


def test_a_search_keeps_to_all_limits_and_finds_what_is_good(data, tmp_path, capsys):
    assert run(data, tmp_path, fronts=True) == 0
    said = capsys.readouterr().out
    problem = search.problem_of(table := read(data), {"phone": 6.0, "board": 4.0})
    best = Cell(tuple(said.splitlines()[1].rpartition("; ")[2].split()))
    worth = table.accuracy(best, "val_12ep")
    assert problem.fits(best) and f"{worth:.2f}% val_12ep, {worth + 30:.2f}% test_200ep" in said
    assert worth >= np.quantile([table.accuracy(c, "val_12ep") for c in problem.fitting], 0.99)
    assert "Front of phone" in said and "Front of board" in said


@pytest.mark.parametrize("policy", ["surrogate", "local"])
def test_a_search_cut_off_anywhere_writes_the_same_journal(policy, data, tmp_path):
    settings = {"policy": policy, "evaluations": 14, "limits": ("phone=11.9",)}

    def journal(out):
        try:
            run(data, out, **settings)
        except SystemExit as error:  # Few evaluations, and nothing found.
            assert "keeps to all limits" in str(error)
        return (out / "journal.jsonl").read_bytes()

    whole = journal(tmp_path)
    lines = whole.splitlines(keepends=True)
    for kept in (1, 6):
        out = tmp_path / str(kept)
        out.mkdir()
        (out / "journal.jsonl").write_bytes(b"".join(lines[:kept]) + b'{"torn')
        assert journal(out) == whole


def test_other_settings_on_the_same_journal_are_an_error(data, tmp_path):
    run(data, tmp_path, evaluations=12)
    with pytest.raises(SystemExit, match="another search"):
        run(data, tmp_path, evaluations=13)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"limits": ("phone",)}, "DEVICE=MS"),
        ({"limits": ("phone=1", "phone=2")}, "each device once"),
        ({"limits": ("fridge=5",)}, "no latencies 'fridge'"),
        ({"limits": ("phone=0",)}, "positive"),
        ({"limits": ("phone=0.1",)}, "0 evaluated"),
        ({"policy": "luck"}, "surrogate"),
        ({"choose": "luck"}, "val_12ep"),
    ],
)
def test_what_cannot_be_searched_is_an_error(wrong, message, data, tmp_path):
    with pytest.raises(SystemExit, match=message):
        run(data, tmp_path, **wrong)


def test_a_journal_of_something_else_is_an_error(data, tmp_path):
    run(data, tmp_path, evaluations=12)
    path = tmp_path / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(
        "".join([lines[0], *lines[2:4], lines[1].replace('"number": 0', '"number": 9')])
    )
    with pytest.raises(SystemExit, match="never asked for"):
        run(data, tmp_path, evaluations=12)
    with Journal(tmp_path / "fresh.jsonl", {}) as journal:
        assert not list(journal)
