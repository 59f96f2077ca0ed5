"""What workers did when is recorded beside the journal, and outlives what stops a search."""

import functools
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas import timings
from nas.conduct import Conductor
from nas.dispatch import Dispatcher
from nas.executors import LOADING, Here, Label, Pool, finish
from nas.journal import Journal
from nas.places import place
from nas.search import search_abreast
from nas.simulation import Conditions, VirtualHosts
from nas.testing.executors import Tally, square
from nas.timings import SEARCH, Timings
from tests.fake_workers import BATCH, NONE, PROMPTS, STRATEGY, FakeWorker, Trouble, entries
from tests.tiny import REMOVABLE

WORK = Label("scoring", "network 1 without mid.0", 2)


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def searched(folder: Path, *, threads: int = 2, trouble: Trouble = NONE, tasks: int = 10**6):
    """The sessions of a search in `folder` that goes on for so many tasks."""
    worker, kept = FakeWorker(trouble), Timings()
    with (
        Here(worker, threads=threads, tries=2, observer=kept) as executor,
        Journal(folder / "journal.jsonl", {}) as journal,
        kept.recorded(folder),
    ):
        conductor = Conductor(worker, executor, timings=kept)  # pyright: ignore
        for _, _ in zip(range(tasks), search_abreast(STRATEGY, conductor, journal), strict=False):
            pass
    return timings.read(folder)


def test_every_call_of_a_search_has_a_span_that_says_its_phase_subject_and_shard(tmp_path):
    (session,) = searched(tmp_path)
    found = [span.label for span in session.spans]
    assert len(found) == len(set(found)) and session.closed
    for shard in range(PROMPTS // BATCH):
        assert Label("scoring", "network 0", shard) in found
        assert Label("scoring", f"network 1 without {REMOVABLE[0]}", shard) in found
    assert Label("measuring", "latency table") in found and Label("deciding", "network 1") in found
    assert {span.worker for span in session.spans} == {"thread 1", "thread 2", SEARCH}
    assert str(found[-1]) and str(WORK) == "scoring network 1 without mid.0, shard 2"


def test_what_a_worker_does_never_overlaps_and_is_no_longer_than_it_was_there(tmp_path):
    (session,) = searched(tmp_path, threads=3)
    for rate in timings.rates(session):
        ours = [span for span in session.spans if span.worker == rate.worker]
        assert all(a.ended <= b.begun for a, b in itertools.pairwise(ours))
        assert 0 <= rate.idle <= 1 and rate.busy <= rate.held + 1e-3
        assert rate.calls == len(ours)


def test_watching_changes_nothing_in_the_journal(tmp_path):
    searched(tmp_path / "watched")
    worker = FakeWorker()
    with Here(worker) as executor, Journal(tmp_path / "journal.jsonl", {}) as journal:
        for _ in search_abreast(STRATEGY, Conductor(worker, executor), journal):  # pyright: ignore
            pass
    assert entries(tmp_path) == entries(tmp_path / "watched")


def test_a_try_that_failed_is_there_and_so_is_the_next(tmp_path):
    class Stumbles(FakeWorker):
        stumbled = False

        def measure(self, spec):
            if not self.stumbled:
                self.stumbled = True
                raise FloatingPointError("it stumbled")
            return super().measure(spec)

    worker, kept = Stumbles(), Timings()
    with Here(worker, tries=2, observer=kept) as executor, kept.recorded(tmp_path):
        finish(executor, [executor.submit(Pool(), Stumbles.measure, tiny_spec(), label=WORK)])
    (session,) = timings.read(tmp_path)
    assert [(span.label, span.how) for span in session.spans] == [(WORK, "failed"), (WORK, "done")]


def tiny_spec():
    return STRATEGY.space.seed


def test_sessions_follow_each_other_with_what_each_did(tmp_path):
    searched(tmp_path, tasks=5)
    first, second = searched(tmp_path)
    assert first.begun <= second.begun and first.closed and second.closed
    done = [{s.label for s in session.spans if s.how == "done"} for session in (first, second)]
    assert done[0] and done[1]
    assert Label("measuring", "latency table") in done[0] - done[1]


def test_what_a_killed_session_was_doing_is_cut_where_it_was_last_heard_of(tmp_path):
    script = f"""
import os, signal
from nas.executors import Label
from nas.timings import Timings
from pathlib import Path
kept = Timings()
with kept.recorded(Path({str(tmp_path)!r})):
    kept.begin("worker 1", Label("training", "network 1"))
    kept.begin("worker 2", Label("scoring", "network 0", 1))
    kept.end("worker 2", "done")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    (session,) = timings.read(tmp_path)
    cut = {span.worker: (span.how, span.ended == session.seconds) for span in session.spans}
    assert cut == {"worker 1": ("cut", True), "worker 2": ("done", True)}
    assert not session.closed and set(session.held) == {"worker 1", "worker 2"}


def test_a_line_that_was_being_written_is_left_out_and_a_damaged_one_is_named(tmp_path):
    searched(tmp_path)
    path = tmp_path / "timings" / "0001.jsonl"
    whole = timings.read(tmp_path)
    (spans,) = [session.spans for session in whole]
    path.write_bytes(path.read_bytes()[:-5])  # The last says that the session was closed.
    (session,) = timings.read(tmp_path)
    assert session.spans == spans and not session.closed
    path.write_text('{"begun": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"0001.jsonl, line 2 is damaged.*delete the file"):
        timings.read(tmp_path)
    path.write_text('{"begun": 1}\n{"at": 1.0}\n')
    with pytest.raises(ValueError, match=r"no record of a session.*delete the file"):
        timings.read(tmp_path)


def test_nothing_recorded_is_no_session(tmp_path):
    assert timings.read(tmp_path) == []
    (tmp_path / "timings").mkdir()
    (tmp_path / "timings" / "0001.jsonl").touch()
    assert timings.read(tmp_path) == []


def test_what_happened_before_there_was_a_file_is_in_it(tmp_path):
    clock = Clock()
    kept = Timings(clock)
    kept.begin("worker 1", LOADING, "node")
    clock.now += 7
    with kept.recorded(tmp_path):
        kept.end("worker 1", "done")
    ((span,),) = [session.spans for session in timings.read(tmp_path)]
    assert (span.label, span.seconds, span.node) == (LOADING, 7.0, "node")


def test_sessions_are_recorded_at_urls_too(tmp_path):
    at = place(f"file://{tmp_path}/run")
    for _ in range(2):
        kept = Timings(Clock())
        with kept.recorded(at):
            kept.begin("worker 1", WORK)
            kept.end("worker 1", "done")
    assert [s.closed and [x.label for x in s.spans] for s in timings.read(at)] == [[WORK], [WORK]]


def test_compiling_is_said_of_the_call_that_compiled(tmp_path):
    kept = Timings(Clock())
    with kept.recorded(tmp_path):
        for shard, seconds in enumerate((3.5, 0.0)):
            kept.begin("worker 1", WORK._replace(shard=shard))
            kept.compiled(WORK._replace(shard=shard), int(seconds > 0), seconds)
            kept.end("worker 1", "done")
    (session,) = timings.read(tmp_path)
    assert [span.compiling for span in session.spans] == [3.5, 0.0]


def test_throughput_and_idle_share_are_of_the_time_that_a_worker_was_there(tmp_path):
    clock = Clock()
    kept = Timings(clock)
    kept.begin("worker 10", LOADING)
    kept.begin("worker 9", LOADING)
    clock.now += 30
    for worker in ("worker 10", "worker 9"):
        kept.end(worker, "done")
    clock.now += 30
    for _ in range(3):
        kept.begin("worker 10", WORK)
        clock.now += 20
        kept.end("worker 10", "done")
    ninth, tenth = kept.rates()
    assert (ninth.worker, tenth.worker) == ("worker 9", "worker 10")
    assert (tenth.held, tenth.busy, tenth.calls) == (120.0, 90.0, 3)
    assert (tenth.per_minute, tenth.idle, ninth.idle) == (1.5, 0.25, 0.75)
    kept.leave("worker 9")
    assert [rate.worker for rate in kept.rates()] == ["worker 10"]


# With the engine that gives calls to workers that die.


@given(
    workers=st.integers(1, 12),
    calls=st.integers(1, 40),
    lifetime=st.sampled_from([15.0, 60.0, float("inf")]),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_spans_add_up_to_what_workers_spent(workers, calls, lifetime, seed):
    conditions = Conditions(start=3.0, spread=0.4, lifetime=lifetime)
    hosts = VirtualHosts(Tally, lambda function, arguments: 10.0, conditions, seed=seed)
    kept = Timings(lambda: hosts.clock)
    with tempfile.TemporaryDirectory() as folder:
        with kept.recorded(Path(folder)), Dispatcher(hosts, tries=100, observer=kept) as executor:
            labels = [Label("scoring", "network 0", shard) for shard in range(calls)]
            pool = Pool(workers=workers)
            finish(executor, [executor.submit(pool, square, 2, label=name) for name in labels])
        (session,) = timings.read(Path(folder))
    useful = [span for span in session.spans if span.how == "done" and span.label != LOADING]
    assert sorted(span.label for span in useful) == labels
    about = functools.partial(pytest.approx, abs=0.01)
    assert sum(span.seconds for span in useful) == about(hosts.spent.useful)
    assert 1 <= len(session.held) <= workers
    # One that is taken away while it is idle is not missed at once.
    assert sum(session.held.values()) >= hosts.spent.held - 0.01
    if lifetime == float("inf"):
        assert sum(session.held.values()) == about(hosts.spent.held)
        loading = sum(span.seconds for span in session.spans if span.label == LOADING)
        assert loading == about(hosts.spent.starting)


def test_a_worker_that_takes_the_place_of_a_lost_one_has_its_name(tmp_path):
    hosts = VirtualHosts(Tally, lambda function, arguments: 10.0, Conditions(lifetime=25.0))
    kept = Timings(lambda: hosts.clock)
    with kept.recorded(tmp_path), Dispatcher(hosts, tries=100, observer=kept) as executor:
        finish(executor, [executor.submit(Pool(workers=3), square, n) for n in range(30)])
    (session,) = timings.read(tmp_path)
    assert set(session.held) == {"worker 1", "worker 2", "worker 3"}
    lost = [span for span in session.spans if span.how == "lost"]
    assert lost and hosts.spent.preempted >= len(lost)
