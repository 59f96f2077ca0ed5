"""The timeline, the cost by phase and the lines of a running search say what was timed."""

import io
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nas import timings
from nas.executors import LOADING, Label
from nas.progress import Live, crew
from nas.report import page, timeline
from nas.report.timeline import MOST, WASTED, Spent
from nas.timings import SEARCH, How, Rate, Session, Span, Timings
from tests import story as made_up
from tests.test_report import Reader

HOUR = 3600.0
SCORE, TRAIN = Label("scoring", "network 0", 1), Label("training", "network 1, robust")


def session(*spans: Span, seconds: float = HOUR, begun: float = 0.0, closed: bool = True):
    """A session whose workers are all there from its beginning to its end."""
    names = {span.worker: seconds for span in spans if span.worker != SEARCH}
    return Session(begun, seconds, "host", spans, names, closed)


def apart(worker: str, label: Label, begun: float, ended: float, how: How = "done", compiling=0.0):
    return Span(worker, label, begun, ended, how, compiling, node="there")


def test_workers_that_are_apart_are_paid_for_one_by_one_and_the_search_is_not():
    found = timeline.spent(
        session(
            apart("worker 1", LOADING, 0, 100),
            apart("worker 1", SCORE, 100, 1900, compiling=400.0),
            apart("worker 2", TRAIN, 0, 3600),
            apart("worker 1", SCORE, 1900, 2000, how="lost"),
            Span(SEARCH, Label("deciding"), 0, 50),
        )
    )
    assert found == {
        "loading": Spent(100, 0, 1),
        "scoring": Spent(1800, 400, 1),
        "training": Spent(3600, 0, 1),
        WASTED: Spent(100, 0, 1),
        "idle": Spent(1600),
    }


def test_threads_share_the_time_of_their_process():
    found = timeline.spent(
        session(
            Span("thread 1", SCORE, 0, 1000, compiling=500.0),
            Span("thread 2", SCORE, 0, 1000),
            Span("thread 1", TRAIN, 1000, 2000),
            Span(SEARCH, Label("deciding"), 2000, 2100),
        )
    )
    assert found["scoring"] == Spent(1000.0, 250.0, 2)
    assert found["training"] == Spent(1000.0, 0.0, 1) and found["deciding"].seconds == 100.0
    assert found["idle"].seconds == 1500.0


spans = st.lists(
    st.tuples(
        st.integers(1, 5),
        st.sampled_from([SCORE, TRAIN, LOADING]),
        st.integers(0, 90),
        st.integers(0, 10),
        st.sampled_from(["done", "failed", "lost", "cut"]),
    ),
    max_size=20,
)


@given(spans, st.sampled_from(["", "there"]))
def test_what_is_spent_adds_up_to_what_workers_were_there_for(drawn, node):
    ours, free = [], {}
    for number, label, wait, takes, how in drawn:
        at = free.get(number, 0) + wait
        free[number] = at + takes
        ours.append(Span(f"worker {number}", label, at, at + takes, how, 0.0, node))
    whole = session(*ours, seconds=float(max(free.values(), default=1)))
    paid = sum(whole.held.values()) if not whole.threads else whole.seconds
    assert sum(x.seconds for x in timeline.spent(whole).values()) == pytest.approx(paid)


def test_money_is_hours_times_the_price():
    told = timeline.cost([session(apart("worker 1", SCORE, 0, HOUR / 2, compiling=36.0))], 2.5)
    text = " ".join(Reader(told).words)
    assert "at 2.5 an hour" in text
    assert re.search(r"scoring 1 0\.5000 0\.0100 50\.0% 1\.25", text), text
    assert re.search(r"in all 1 1\.00 0\.0100 100\.0% 2\.50", text), text
    assert "an hour" not in timeline.cost([session(apart("worker 1", SCORE, 0, 1))], None)


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_what_is_no_price_is_an_error(price):
    with pytest.raises(ValueError, match="it must be what a worker costs an hour, 0 or more"):
        timeline.check_price(price)


@pytest.mark.parametrize("workers", [1, 4, MOST, MOST + 10])
def test_a_timeline_has_a_row_for_every_worker_as_far_as_there_is_room(workers):
    names = [f"worker {number}" for number in range(1, workers + 1)]
    drawn = timeline.draw([session(*(apart(name, SCORE, 0, HOUR / 2) for name in names))])
    assert drawn.count("<rect") == min(workers, MOST)
    more = f"{workers - MOST} more workers"
    assert (more in drawn) == (workers > MOST)
    places = [float(y) for y in re.findall(r'<rect[^>]* y="([0-9.]+)"', drawn)]
    assert places == sorted(set(places))
    assert "minutes of running" in drawn


def test_many_short_calls_are_drawn_together_and_none_is_wider_than_it_was():
    spans = [apart("worker 1", SCORE, at, at + 0.9) for at in range(3000)]
    drawn = timeline.draw([session(*spans)])
    assert len(drawn) < 6000
    paths = re.findall(r'class="is-scoring" d="([^"]*)"', drawn)
    ends = re.findall(r"M([0-9.]+),[0-9.]+h([0-9.]+)", "".join(paths))
    # The calls took 3,000 of 3,600 seconds of a scale of 812 pixels.
    assert max(float(at) + float(wide) for at, wide in ends) == pytest.approx(
        76 + 812 * 3 / 3.6, abs=1
    )


def test_sessions_stand_one_after_another_with_what_lay_between():
    first = session(apart("worker 1", SCORE, 0, 3000), apart("worker 1", TRAIN, 3000, HOUR, "cut"))
    first = Session(0.0, HOUR, "host", first.spans, first.held, closed=False)
    second = session(apart("worker 1", TRAIN, 0, HOUR), begun=3 * HOUR)
    told = timeline.section([first, second])
    assert "stopped for 2.0 h" in told
    assert "2 sessions, 1 of which were killed or run still" in told
    assert told.count("is-wasted") == 2  # The key, and the training that was cut.
    places = [float(x) for x in re.findall(r'<rect class="is-t[^"]*" x="([0-9.]+)"', told)]
    assert places and places[0] > 76 + 812 / 2


def test_the_page_has_the_timeline_and_the_cost_of_its_sessions(tmp_path):
    found = made_up.run(tmp_path)
    assert "No session was recorded" in page.page(found)
    assert "what it cost in money is not known" in page.page(found, price=1.0)
    kept = Timings()
    with kept.recorded(tmp_path):
        kept.begin("worker 1", SCORE, "<node>")
        kept.end("worker 1", "done")
    again = made_up.run(tmp_path)
    read = Reader(page.page(again, price=2.0))
    assert not read.wrong and not read.open
    assert "scoring network 0, shard 1" in read.text or "is-scoring" in page.page(again)
    assert "at 2 an hour" in read.text and "evaluations made" in read.text


# While it runs.


def rates(count: int) -> list[Rate]:
    return [Rate(f"worker {n}", 600.0, 600.0 - n, 10 * n, SCORE) for n in range(1, count + 1)]


def test_every_worker_has_a_line_and_all_have_one():
    lines = crew(rates(3))
    assert lines[0] == "3 workers: 6.0 calls a minute, idle 0%"
    assert [line.split()[:2] for line in lines[1:]] == [["worker", str(n)] for n in (1, 2, 3)]
    assert "3.0 a minute" in lines[3] and "scoring network 0, shard 1" in lines[3]
    assert crew([]) == []


def test_of_many_workers_those_that_idle_most_are_shown_and_the_rest_together():
    lines = crew(rates(500))
    assert len(lines) == 1 + 8 + 1 and lines[1].split()[1] == "500"
    assert lines[-1].strip() == "492 others: 1.0 to 492.0 a minute each, idle 82% or less"


def test_a_running_search_shows_its_workers(tmp_path):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, height=40)
    live = Live(console, rates=lambda: rates(2))
    strategy = made_up.run(tmp_path, tasks=2).strategy
    with live:
        live.begin(strategy, strategy.init(), made_up.PROVENANCE, resumed=0)
        assert "%" not in shown.getvalue().split("workers")[0]  # Nobody has said how far it is.
        live.watch("score", 0.5)
    assert "score 50%" in shown.getvalue()
    assert "2 workers: 3.0 calls a minute" in shown.getvalue()
    assert "worker 2" in shown.getvalue()


def test_workers_are_shown_while_nothing_ends(tmp_path):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, height=40)
    there = 1
    live = Live(console, rates=lambda: rates(there))
    strategy = made_up.run(tmp_path, tasks=2).strategy
    with live:
        live.begin(strategy, strategy.init(), made_up.PROVENANCE, resumed=0)
        there = 3  # No task ends, and nobody says anything of it.
        until = time.monotonic() + 20
        while "3 workers: 6.0 calls" not in shown.getvalue() and time.monotonic() < until:
            time.sleep(0.05)
    assert "3 workers: 6.0 calls" in shown.getvalue()


def test_the_record_of_a_search_is_read_with_its_story(tmp_path):
    found = made_up.run(tmp_path, tasks=3)
    assert found.sessions == timings.read(tmp_path) == []
