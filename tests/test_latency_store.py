import dataclasses
import json
import os

import jax
import pytest

from latency_models import store
from latency_models.latency import Latency, Spread, Whole
from latency_models.measure import PROBABILITIES
from latency_models.provenance import Provenance, local
from latency_models.rows import Network
from latency_models.table import EMPTY, Table
from search_spaces.blocks import Conv, ResNet, TimeEmbedding
from search_spaces.ops import Call
from search_spaces.program import Step

IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 4), "bfloat16")
TIME = jax.ShapeDtypeStruct((2,), "int32")
CONV, RESNET = Call(Conv(4), (IMAGE,)), Call(ResNet(4, groups=2, epsilon=1e-6), (IMAGE,))
EMBEDDING = Call(TimeEmbedding(4, 8), (TIME,))
SPREAD = Spread(len(PROBABILITIES), tuple(0.1 * n / 3 for n in range(len(PROBABILITIES))))
TABLE = Table(
    {
        CONV: Latency(0.1 + 0.2, 1 / 3, SPREAD),
        RESNET: Latency(1e-300, 0.0, SPREAD),
        EMBEDDING: Latency(2 / 7, 0.01),
    }
)
HERE = local()


@pytest.fixture
def path(tmp_path):
    return store.file(tmp_path / "tables", HERE)


@pytest.fixture
def written(path):
    store.write(path, HERE, TABLE)
    return path


def test_an_absent_file_is_an_empty_table(path):
    assert store.read(path, HERE).table == EMPTY


def test_a_table_is_read_back_to_the_bit(written):
    assert store.read(written, HERE).table == TABLE
    assert list(store.read(written, HERE).table.rows) == list(TABLE.rows)


def test_the_file_says_what_it_holds_for(written):
    content = json.loads(written.read_text())
    assert content["schema"] == store.SCHEMA
    said = content["provenance"]
    assert said["versions"]["jax"] == jax.__version__
    assert said["threads"] >= 1 and said["device"] and said["method"] == "measured"
    assert content["rows"][0]["date"].startswith("20")
    assert content["probabilities"] == list(PROBABILITIES)
    assert content["rows"][0]["inputs"] == [[[2, 8, 8, 4], "bfloat16"]]
    assert content["rows"][0]["repeats"] == SPREAD.repeats


OTHERS = {
    "device": "another",
    "runtime": "XLA:tpu",
    "versions": (("jax", "0.1"),),
    "precision": "int8",
    "attention": "flash",
    "threads": 1000,
    "method": "published",
}


@pytest.mark.parametrize("field", OTHERS)
def test_another_provenance_has_another_file(field, written):
    other = dataclasses.replace(HERE, **{field: OTHERS[field]})
    assert store.file(written.parent, other) != written
    named = "jax" if field == "versions" else field
    for use in (lambda: store.read(written, other)), (lambda: store.write(written, other)):
        with pytest.raises(ValueError, match=f"{written.name} holds .*{named}: .*delete") as error:
            use()
        assert error.value.__cause__ is None
    assert store.read(written, HERE).table == TABLE


def test_cores_and_source_are_stated_and_keep_nothing_apart(written):
    other = dataclasses.replace(HERE, affinity="7,9", source="elsewhere")
    assert (
        store.file(written.parent, other) == written and store.read(written, other).table == TABLE
    )
    assert {"affinity", "source"} <= json.loads(written.read_text())["provenance"].keys()
    compared = {field.name for field in dataclasses.fields(Provenance) if field.compare}
    assert compared == OTHERS.keys()


def test_provenance_is_read_back_and_nothing_else_is_taken_for_one():
    assert Provenance.from_json(json.loads(json.dumps(HERE.to_json()))) == HERE
    for wrong in {}, {**HERE.to_json(), "colour": "red"}, {**HERE.to_json(), "method": "felt"}:
        with pytest.raises(ValueError):
            Provenance.from_json(wrong)


def test_the_local_device_is_told_by_its_flags_and_cores(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--b --a")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    here = local()
    assert (dict(here.versions)["XLA_FLAGS"], here.threads, here.affinity) == (
        "--a --b",
        3,
        "0,1,5",
    )
    with jax.default_matmul_precision("highest"):
        assert "highest" in local().precision != HERE.precision


def test_a_file_cut_short_anywhere_is_damaged(written):
    whole = written.read_bytes()
    for end in {0, 1, 20, len(whole) // 2, len(whole) - 30, len(whole) - 3}:
        written.write_bytes(whole[:end])
        assert_damaged(written)


def assert_damaged(path):
    before = path.read_bytes()
    for use in (lambda: store.read(path, HERE)), (lambda: store.write(path, HERE, TABLE)):
        with pytest.raises(ValueError, match=f"{path.name} .*delete the file and measure again"):
            use()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"[]", b"3", b"null", b'{"rows": []}', b"{}", b"\x00" * 99]
)
def test_what_is_no_table_is_damaged(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    assert_damaged(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ms": 0},
        {"ms": -1.0},
        {"ms": float("nan")},
        {"ms": "1"},
        {"std": float("inf")},
        {"std": -0.1},
        {"std": None},
        {"quantiles_ms": [float("nan")]},
        {"quantiles_ms": 1},
        {"op": None},
        {"op": {"width": 4}},
        {"op": {"type": "search_spaces.layers:Softmax"}},
        {"inputs": [[[2, 8], "no such type"]]},
        {"inputs": [[["2", 8], "float32"]]},
        {"inputs": [[2, 8]]},
        {"inputs": None},
    ],
)
def test_a_garbled_row_is_damage(written, wrong):
    content = json.loads(written.read_text())
    content["rows"][1] |= wrong
    written.write_text(json.dumps(content))
    assert_damaged(written)


@pytest.mark.parametrize("wrong", [{"schema": 1}, {"schema": None}, {"probabilities": [0.5]}])
def test_another_schema_is_refused(written, wrong):
    written.write_text(json.dumps(json.loads(written.read_text()) | wrong))
    assert_damaged(written)


def test_writing_adds_rows_and_replaces_equal_calls(written):
    wider = Call(Conv(8), (IMAGE,))
    news = {CONV: Latency(5.0, 0.5), wider: Latency(6.0, 0.5)}
    store.write(written, HERE, Table(news))
    assert store.read(written, HERE).table.rows == {**TABLE.rows, **news}


@pytest.mark.parametrize("op", [{"type": "gone:Op"}, {"type": "search_spaces.blocks:Conv", "k": 1}])
def test_rows_of_ops_unknown_here_are_not_read_and_not_lost(written, op):
    content = json.loads(written.read_text())
    content["rows"][0]["op"] = op
    foreign = content["rows"][0]
    written.write_text(json.dumps(content))
    rest = {call: row for call, row in TABLE.rows.items() if call != CONV}
    assert store.read(written, HERE).table.rows == rest
    store.write(written, HERE, TABLE)
    store.write(written, HERE)
    assert store.read(written, HERE).table.rows == TABLE.rows
    assert foreign in json.loads(written.read_text())["rows"]


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(written, monkeypatch, step):
    before = written.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space left"):
        store.write(written, HERE, Table({CONV: Latency(9.0, 0.0)}))
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]


def test_the_file_is_on_disk_before_it_takes_the_name(path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (steps.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *a: (steps.append("replace"), replace(*a)))
    store.write(path, HERE, TABLE)
    assert steps == ["fsync", "replace"]


def test_what_cannot_be_read_back_is_not_written(written):
    @dataclasses.dataclass(frozen=True)
    class Local(Conv):
        width: int = 4

    weak = jax.ShapeDtypeStruct((2, 8, 8, 4), "bfloat16", weak_type=True)
    nameless, inexact = Call(Local(), (IMAGE,)), Call(Conv(4), (weak,))
    for call in nameless, inexact:
        with pytest.raises(ValueError, match="would not be read back"):
            store.write(written, HERE, Table({call: Latency(1.0, 0.0)}))
    with pytest.raises(ValueError, match="no latency"):
        store.write(written, HERE, Table({CONV: Latency(float("nan"), 0.0)}))
    assert store.read(written, HERE).table == TABLE


WHOLE = Whole(
    (Step("first", Conv(4), ("image",)), Step("second", RESNET.op, ("first",))), {"image": IMAGE}
)


def test_whole_networks_are_kept_by_name_beside_the_calls(written):
    store.write(written, HERE, networks=[Network("small", WHOLE, Latency(3.0, 0.1, SPREAD))])
    store.write(written, HERE, networks=[Network("other", WHOLE, Latency(4.0, 0.1))])
    store.write(written, HERE, networks=[Network("small", WHOLE, Latency(5.0, 0.2))])
    found = store.load(written)
    assert found == store.read(written, HERE) and found.table == TABLE
    assert found.networks == (
        Network("small", WHOLE, Latency(5.0, 0.2)),
        Network("other", WHOLE, Latency(4.0, 0.1)),
    )


def test_a_row_keeps_the_date_it_was_measured_on(written):
    content = json.loads(written.read_text())
    for row in content["rows"]:
        row["date"] = "2020-01-01T00:00:00+00:00"
    written.write_text(json.dumps(content))
    store.write(written, HERE, Table({**TABLE.rows, CONV: Latency(5.0, 0.5)}))
    dates = [row["date"][:4] for row in json.loads(written.read_text())["rows"]]
    assert dates[1:] == ["2020", "2020"] and dates[0] > "2020"


def test_measurements_that_are_not_there_are_an_error(path):
    with pytest.raises(ValueError, match=r"no measurements at .*nas profile"):
        store.load(path)
