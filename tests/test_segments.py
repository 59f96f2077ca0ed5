"""Journals on object stores: the same laws as of a file, and one writer without any lock."""

import json
import os
import signal
import threading
import uuid
from collections.abc import Iterator

import pytest

from nas import segments, writers
from nas.journal import Journal, read
from nas.places import Place, Remote, place
from nas.segments import Segments
from tests.journal_writer import PACE, Step, start, until

HEADER = {"seed": 0}
ENTRIES = [(Step(n), {"scores": [n / 3, -0.0], "text": 'é "\n\u2028'}) for n in range(4)]


@pytest.fixture(params=["memory", "file"])
def folder(request, tmp_path) -> Iterator[Remote]:
    under = tmp_path if request.param == "file" else uuid.uuid4().hex
    found = place(f"{request.param}://{under}/run")
    assert isinstance(found, Remote)
    yield found
    found.remove()


@pytest.fixture
def shared(tmp_path) -> Place:
    return place(f"file://{tmp_path}/run/journal.jsonl")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(segments, "PACE", PACE)


@pytest.fixture
def far(monkeypatch):
    """Processes of other machines cannot be seen from here."""
    monkeypatch.setattr(writers.Writer, "alive", property(lambda _: None))


def write(path: Place, entries=ENTRIES) -> None:
    with Journal(path, HEADER) as journal:
        for entry in entries:
            journal.append(*entry)


def objects(folder: Remote) -> list[str]:
    return [name for name in folder.names() if name != segments.LEASES]


def test_a_journal_is_read_back_as_it_was_written(folder):
    write(folder)
    header, found = read(folder)
    assert header == {"journal": 1, **HEADER}
    assert repr(found) == repr(ENTRIES)
    with Journal(folder, HEADER) as journal:
        assert repr(list(journal)) == repr(ENTRIES)


def test_what_is_appended_is_there_at_once_and_is_gone_on_with(folder):
    for number in range(len(ENTRIES)):
        with Journal(folder, HEADER) as journal:
            journal.append(*ENTRIES[number])
            journal.check()
            assert read(folder)[1] == list(journal) == ENTRIES[: number + 1]


def test_a_journal_of_other_settings_is_refused_and_left_as_it_is(folder):
    write(folder)
    before = objects(folder)
    with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
        Journal(folder, {"seed": 1})
    assert objects(folder) == before


def test_there_is_nothing_to_read_before_the_search_has_begun(folder):
    with pytest.raises(ValueError, match=r"no journal .*run"):
        read(folder)


def test_a_last_line_is_dropped_wherever_it_was_cut_short(folder):
    """Stores that write in place may cut one short; a line is whole where they do not."""
    write(folder)
    last = folder / objects(folder)[-1]
    content = last.read_bytes()
    for end in range(len(content)):
        last.write_bytes(content[:end])
        assert read(folder)[1] == ENTRIES[:-1]
    with Journal(folder, HEADER) as journal:
        assert list(journal) == ENTRIES[:-1]
        journal.append(*ENTRIES[-1])
    assert read(folder)[1] == ENTRIES


@pytest.mark.parametrize("damage", [b"{\n", b"[]\n", b"{}\n", b'{"by": ""', b"\xff\n"])
def test_a_damaged_object_is_an_error_that_names_it(folder, damage):
    write(folder)
    name = objects(folder)[3]
    (folder / name).write_bytes(damage)
    for opened in (lambda: Journal(folder, HEADER), lambda: read(folder)):
        with pytest.raises(ValueError, match=rf"{name} is damaged"):
            opened()


def test_a_missing_object_is_an_error_that_names_it(folder):
    write(folder)
    name = objects(folder)[3]
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing: 0"):
        read(folder)


# One writer.


def test_a_second_writer_is_refused_until_the_first_is_done(folder):
    told = rf"another process is writing .* {os.getpid()} on .*kill {os.getpid()} on "
    with Journal(folder, HEADER), pytest.raises(ValueError, match=told):
        Journal(folder, HEADER)
    write(folder)


def test_a_writer_of_another_machine_that_lives_is_not_taken_over_from(folder, far):
    with Journal(folder, HEADER) as journal:
        with pytest.raises(ValueError, match=rf"is writing .* {os.getpid()} on .* since 20"):
            Journal(folder, HEADER)
        journal.append(*ENTRIES[0])
    assert read(folder)[1] == ENTRIES[:1]


def test_who_was_taken_over_from_cannot_write(folder, far, monkeypatch):
    paused = Journal(folder, HEADER)
    paused.append(*ENTRIES[0])
    # It is paused: its lease is not renewed.
    monkeypatch.setattr(paused._log._renewal, "_write", lambda _: None)  # pyright: ignore
    with Journal(folder, HEADER) as journal:
        journal.append(*ENTRIES[1])
        for late in (paused.check, lambda: paused.append(*ENTRIES[2]), paused.check):
            with pytest.raises(ValueError, match=rf"another process \(process {os.getpid()} on"):
                late()
        journal.append(*ENTRIES[3])
    assert read(folder)[1] == [ENTRIES[0], ENTRIES[1], ENTRIES[3]]
    paused._log.close()


def test_a_line_that_the_last_writer_finished_while_it_was_taken_over_from_is_kept(
    folder, far, monkeypatch
):
    paused = Segments(folder)
    paused.take()
    paused.append(b'"header"\n')
    create = Remote.create

    def late(target: Remote, content: bytes) -> None:
        if b"takes" in content and len(objects(folder)) == 2:
            create(target, json.dumps({"by": "paused", "line": "late"}).encode() + b"\n")
        create(target, content)

    monkeypatch.setattr(Remote, "create", late)
    monkeypatch.setattr(Segments, "_gone", lambda *_: True)
    new = Segments(folder)
    new.take()
    new.append(b'"after"\n')
    assert [line for _, line in new.lines()] == [b'"header"\n', b'"late"\n', b'"after"\n']
    for each in (paused, new):
        each.close()


def test_of_several_who_take_over_at_once_one_does(shared, monkeypatch):
    write(shared)
    crew, ready, outcomes = [Segments(shared) for _ in range(4)], threading.Barrier(4), []
    contested, create = segments.name(len(objects(shared))), Remote.create

    def together(target: Remote, content: bytes) -> None:
        if target.name == contested:
            ready.wait(30)
        create(target, content)

    monkeypatch.setattr(Remote, "create", together)

    def take(one: Segments) -> None:
        try:
            one.take()
            outcomes.append("taken")
        except ValueError as error:
            outcomes.append(str(error).partition(" /")[0].partition(" file:")[0])

    threads = [threading.Thread(target=take, args=(one,)) for one in crew]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == 3 * ["another process is writing"] + ["taken"]
    for one in crew:
        one.close()


def test_a_line_that_was_stored_without_an_answer_is_written_once(folder, monkeypatch):
    """A client that hears nothing asks again, and is told that there is such an object."""
    create = Remote.create

    def twice(target: Remote, content: bytes) -> None:
        create(target, content)
        raise FileExistsError

    with Journal(folder, HEADER) as journal:
        monkeypatch.setattr(Remote, "create", twice)
        journal.append(*ENTRIES[0])
        journal.append(*ENTRIES[1])
    monkeypatch.undo()
    assert read(folder)[1] == ENTRIES[:2]


def test_a_store_that_replaces_what_is_there_is_refused(folder, monkeypatch):
    monkeypatch.setattr(Remote, "create", Remote.write_bytes)
    with pytest.raises(ValueError, match="replaces an object that was to be created only"):
        Journal(folder, HEADER)


# Real processes.


def steps(count: int) -> list[tuple[Step, dict[str, int]]]:
    return [(Step(n), {"square": n**2}) for n in range(count)]


def test_a_killed_writer_is_followed_at_once_on_its_machine(shared):
    with start(shared, 10**6) as process:
        until(process, "5")
        with pytest.raises(ValueError, match=rf"another process is writing .* {process.pid} on "):
            Journal(shared, {})
        process.kill()
        process.wait()
    before = read(shared)[1]
    with start(shared, len(before) + 3) as process:
        until(process, "begun")
        assert process.wait(60) == 0
    assert read(shared)[1] == steps(len(before) + 3)


def test_a_killed_writer_is_followed_on_another_machine_when_its_lease_has_run_out(shared):
    with start(shared, 10**6) as process:
        until(process, "5")
        process.kill()
        process.wait()
    before = len(read(shared)[1])
    with start(shared, before + 3, "elsewhere") as process:
        until(process, "begun")
        assert process.wait(60) == 0
    assert read(shared)[1] == steps(before + 3)


def test_a_paused_writer_that_was_followed_writes_nothing_and_says_by_whom(shared):
    with start(shared, 10**6) as paused:
        until(paused, "5")
        paused.send_signal(signal.SIGSTOP)
        with start(shared, 10**6, "elsewhere") as second:
            until(second, "begun")
            paused.send_signal(signal.SIGCONT)
            said = until(paused, "error")
            assert f"another process (process {second.pid} on" in said and "gone on" in said
            assert paused.wait(60) == 0
            until(second, str(len(read(shared)[1]) + 3))  # It was not disturbed.
            second.kill()
    found = read(shared)[1]
    assert found == steps(len(found))
