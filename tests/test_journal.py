import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.evolution import Evolve, Profile, Reference, Score, Train
from nas.journal import Journal, read
from search_spaces.actions import Copy, Remove
from tests.journal_writer import Step, start, until

HEADER = {"recipe": "a:b", "seed": 0, "settings": {"group": 4, "rates": [0.1, 0.2]}}
ENTRIES = [
    (Profile(), {"rows": [], "ms": 0.1 + 0.2}),
    (Reference(), {"real": [0.1]}),
    (Train(1, 0, (), "robust"), {"losses": [1e-300]}),
    (Score(1, "mid_block.resnets.0"), {"cosines": [1 / 3, -0.0]}),
    (Train(2, 1, (Remove("x"), Copy("y", "y+1")), "recovery"), {"text": 'é "\n\r\u2028'}),
]
_WRITER = f"""
import pathlib, sys, nas.evolution
from nas.journal import Journal
try:
    Journal(pathlib.Path(sys.argv[1]), {HEADER})
except ValueError as error:
    print(error)
"""


def write(path: Path, entries=ENTRIES) -> bytes:
    with Journal(path, HEADER) as journal:
        for task, outcome in entries:
            journal.append(task, outcome)
    return path.read_bytes()


def entries(path: Path):
    with Journal(path, HEADER) as journal:
        return list(journal)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "journal.jsonl"


def test_a_journal_is_read_back_as_it_was_written(path):
    content = write(path)
    assert entries(path) == ENTRIES and path.read_bytes() == content
    assert [repr(entry) for entry in entries(path)] == [repr(entry) for entry in ENTRIES]
    header, found = read(path)
    assert found == ENTRIES and HEADER.items() <= header.items()


def test_what_is_appended_is_there_at_once(path):
    with Journal(path, HEADER) as journal:
        for number, (task, outcome) in enumerate(ENTRIES, 1):
            journal.append(task, outcome)
            assert read(path)[1] == list(journal) == ENTRIES[:number] and len(journal) == number


@settings(max_examples=50)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5))
def test_floats_are_read_back_to_the_bit(tmp_path_factory, floats):
    path = tmp_path_factory.mktemp("floats") / "journal.jsonl"
    write(path, [(Score(0), {"cosines": floats})])
    ((_, outcome),) = entries(path)
    assert repr(outcome["cosines"]) == repr(floats)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_does_not_know_is_not_written(path, value):
    with Journal(path, HEADER) as journal, pytest.raises(ValueError):
        journal.append(Score(0), {"cosines": [value]})
    assert entries(path) == []


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(path):
    content = write(path)
    start = content[:-1].rfind(b"\n") + 1
    for end in range(start, len(content)):
        path.write_bytes(content[:end])
        assert read(path)[1] == ENTRIES[:-1]
        assert entries(path) == ENTRIES[:-1]
        assert path.read_bytes() == content[:start]
    path.write_bytes(content[:-1])
    with Journal(path, HEADER) as journal:
        journal.append(*ENTRIES[-1])
    assert path.read_bytes() == content


def test_a_torn_header_begins_the_journal_anew(path):
    content = write(path, [])
    for end in range(len(content)):
        path.write_bytes(content[:end])
        assert entries(path) == [] and path.read_bytes() == content


@pytest.mark.parametrize("number", range(1, len(ENTRIES) + 2))
def test_a_damaged_line_is_an_error_that_names_it(path, number):
    lines = write(path).splitlines(keepends=True)
    for damage in (b"{\n", b"\n", b"[]\n", b"7\n", lines[number - 1][:-3] + b"\n", b"\xff\xfe\n"):
        path.write_bytes(b"".join([*lines[: number - 1], damage, *lines[number:]]))
        for opened in (lambda: Journal(path, HEADER), lambda: read(path)):
            with pytest.raises(ValueError, match=rf"journal\.jsonl, line {number} "):
                opened()


@pytest.mark.parametrize("kind", ["os:system", "antigravity:fly", "builtins:print", "gone:Gone"])
def test_a_journal_cannot_make_code_run(path, kind):
    write(path, [])
    with path.open("a") as file:
        file.write(json.dumps({"task": {"type": kind}, "outcome": {}}) + "\n")
    with pytest.raises(ValueError, match=f"no class {kind}"):
        entries(path)
    assert "antigravity" not in sys.modules


def test_a_line_that_is_no_entry_is_an_error(path):
    write(path, [])
    with path.open("a") as file:
        file.write('{"task": {}}\n')
    with pytest.raises(ValueError, match=r"no entry: it has \['task'\]"):
        entries(path)


def test_a_second_writer_is_refused_until_the_first_is_done(path):
    def second() -> str:
        command = [sys.executable, "-c", _WRITER, str(path)]
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout

    with Journal(path, HEADER) as journal:
        told = second()
        assert f"another process is writing {path}: process {os.getpid()} on " in told
        assert "since 20" in told and f"stop it (kill {os.getpid()} on " in told
        with pytest.raises(ValueError, match="another process is writing"):
            Journal(path, HEADER)
        journal.append(*ENTRIES[0])
    assert second() == "" and entries(path) == ENTRIES[:1]


def test_a_killed_writer_leaves_no_lock(path):
    with start(path, 10**6) as process:
        until(process, "5")
        with pytest.raises(ValueError, match=rf"is writing .*: process {process.pid} on "):
            Journal(path, {})
        process.kill()
        process.wait()
    done = len(read(path)[1])
    with Journal(path, {}) as journal:
        assert list(journal) == [(Step(n), {"square": n**2}) for n in range(done)]


def test_a_writer_that_lost_its_lock_to_another_writes_nothing(path):
    """As a network filesystem may have it."""
    with Journal(path, HEADER) as journal:
        journal.append(*ENTRIES[0])
        content = path.read_bytes() + b"another's"
        path.write_bytes(content)
        for late in (journal.check, lambda: journal.append(*ENTRIES[1])):
            with pytest.raises(ValueError, match="has gone on with"):
                late()
        assert path.read_bytes() == content


def test_a_filesystem_without_locks_is_an_error_that_says_what_has_none(path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(ValueError, match=rf"cannot be locked .* file://{path.parent}"):
        Journal(path, HEADER)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({**HEADER, "seed": 1}, r"seed: 0 there, 1 here"),
        ({**HEADER, "settings": {}}, r"settings.group: 4 there, none here; settings.rates: "),
        ({**HEADER, "more": True}, r"more: none there, True here"),
        ({"recipe": "a:b"}, r"seed: 0 there, none here; settings.group:"),
    ],
)
def test_a_journal_of_other_settings_is_refused_with_their_names(path, header, message):
    content = write(path)
    with pytest.raises(ValueError, match=message):
        Journal(path, header)
    assert path.read_bytes() == content


@pytest.mark.parametrize(("known", "told"), [([], True), (ENTRIES[:1], False)])
def test_only_a_journal_without_entries_is_said_to_be_deletable(path, known, told):
    write(path, known)
    with pytest.raises(ValueError, match="choose another folder") as refused:
        Journal(path, {**HEADER, "seed": 1})
    assert ("delete it" in str(refused.value)) == told


def test_a_refused_journal_can_be_opened_at_once(path):
    write(path)
    try:
        Journal(path, {})
    except ValueError as error:  # Which holds on to the frames that it went through.
        assert entries(path) == ENTRIES, error


def test_settings_are_compared_as_json(path):
    write(path)
    with Journal(path, {**HEADER, "settings": {"rates": (0.1, 0.2), "group": 4}}) as journal:
        assert list(journal) == ENTRIES


def test_there_is_nothing_to_read_before_the_search_has_begun(tmp_path):
    with pytest.raises(ValueError, match=r"no journal .*gone"):
        read(tmp_path / "gone")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty: the search has not begun"):
        read(tmp_path / "empty")


def test_tasks_that_are_no_frozen_dataclasses_are_not_written(path):
    with Journal(path, HEADER) as journal, pytest.raises(TypeError, match="cannot store"):
        journal.append([Evolve(1)], {})
    assert entries(path) == []
