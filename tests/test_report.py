"""The report says what the journal says, and nothing kinder."""

import base64
import dataclasses
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import t as student

from nas.evolution import Evolve, Measure, Profile, Score, Train, Validate
from nas.report import charts, headline, page, pictures, sections, tables
from nas.report.story import Result, Story, estimate
from tests import story as made_up
from tests import tiny

VOID = {"meta", "img"}
NORMAL_95 = 1.96


class Reader(HTMLParser):
    """Collects a page's text and links, and the tags that are not closed as they should be."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.wrong: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def read(story: Story) -> Reader:
    return Reader(page.page(story))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return made_up.run(tmp_path_factory.mktemp("kept"), slower=1.02, drift=1.1)


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return made_up.run(tmp_path_factory.mktemp("over"), slower=20.0)


def result_of(story: Story) -> Result:
    assert story.result is not None
    return story.result


def lines(story: Story) -> list[dict]:
    text = Path(str(story.folder / "journal.jsonl")).read_text()
    return [json.loads(line) for line in text.splitlines()[1:]]


def last(story: Story, kind: str, **wanted: object) -> dict:
    return next(
        line["outcome"]
        for line in reversed(lines(story))
        if line["task"]["type"] == f"nas.evolution:{kind}"
        and all(line["task"][name] == value for name, value in wanted.items())
    )


# What it says of the outcome.


def test_a_result_that_keeps_to_the_budget_is_said_to(kept: Story) -> None:
    assert kept.finished and kept.kept
    assert headline.verdict(kept).mood == "good"
    assert "keeps to the budget" in page.summary(kept) and "keeps to the budget" in read(kept).text


def test_a_result_over_the_budget_is_never_said_to_keep_to_it(over: Story) -> None:
    assert over.finished and over.kept is False
    for text in (page.summary(over), read(over).text):
        assert "is over the budget" in text and "the search has failed" in text
        assert not re.search(
            r"keeps to|kept to|met the budget|meets|success|within (the )?budget", text
        )
    assert 'class="verdict bad"' in page.page(over) and "verdict good" not in page.page(over)


def test_a_search_is_unfinished_until_its_last_task(tmp_path: Path, kept: Story) -> None:
    for count in range(len(kept.entries)):
        entries = kept.entries[:count]
        if count and isinstance(entries[-1][0], Score) and entries[-1][0].removed:
            continue  # Most of them; what is shown differs little.
        folder = tmp_path / str(count)
        folder.mkdir()
        whole = (kept.folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "journal.jsonl").write_bytes(b"".join(whole[: count + 1]))
        part = Story.read(folder, kept.strategy)
        text = read(part).text
        assert not part.finished and "Unfinished" in text, count
        assert "Unfinished" in page.summary(part) and "keeps to the budget" not in text


def test_a_torn_last_line_is_an_unfinished_search(tmp_path: Path, kept: Story) -> None:
    whole = (kept.folder / "journal.jsonl").read_bytes()
    (tmp_path / "journal.jsonl").write_bytes(whole[:-20])
    assert "Unfinished" in page.summary(Story.read(tmp_path, kept.strategy))


def test_an_unfinished_search_with_a_measured_result_says_that_it_is_over(
    tmp_path: Path, over: Story
) -> None:
    whole = (over.folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(whole) if b'"nas.evolution:Measure"' in line)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(whole[: first + 1]))
    text = page.summary(Story.read(tmp_path, over.strategy))
    assert "Unfinished" in text and "is over the budget" in text


def test_a_result_near_the_budget_is_called_uncertain() -> None:
    for near in (1.5, -1.5):
        assert "repetition" in headline.certainty(near, timed=True)
    assert "repetition" not in headline.certainty(2.5, timed=True)
    assert "repetition" not in headline.certainty(1.5, timed=False)


# Numbers.


def test_the_latencies_of_the_headline_are_those_of_the_journal(kept: Story) -> None:
    measured, text = last(kept, "Measure"), page.summary(kept).replace("\n", " ")
    share = measured["ms"] / measured["seed_ms"]
    error = share * math.hypot(
        measured["std"] / measured["ms"], measured["seed_std"] / measured["seed_ms"]
    )
    assert f"{measured['ms']:.3f} ± {measured['std']:.3f} ms" in text
    assert f"{measured['seed_ms']:.3f} ± {measured['seed_std']:.3f} ms" in text
    assert f"{share:.1%} ± {error:.1%} of it" in text
    assert f"by {(0.75 - share) / error:.1f} standard errors" in text
    assert f"{measured['seed_ms']:.2f} → {measured['ms']:.2f} ms" in read(kept).text


def test_a_budget_in_milliseconds_is_held_against_milliseconds(tmp_path: Path) -> None:
    story = made_up.run(tmp_path, strategy={"budget": 18.0, "unit": "ms"}, drift=1.1)
    measured = last(story, "Measure")
    reserve = (18.0 - measured["ms"]) / measured["std"]
    assert story.reserve(result_of(story)) == pytest.approx(reserve)
    assert "takes 18 ms a call" in page.summary(story)


def test_the_prediction_is_the_one_made_before_the_measurement(over: Story) -> None:
    """A result over the budget corrects later predictions, not the one that it refuted."""
    decided = {
        line["task"]["number"] + 1: line["outcome"]
        for line in lines(over)
        if line["task"]["type"] == "nas.evolution:Evolve"
    }
    results = over.results()
    assert len(results) > 1 and results[0].excess == pytest.approx(19, rel=0.1)
    for result in results:
        assert result.predicted.ms == pytest.approx(decided[result.number]["predicted_ms"])


def test_drift_of_the_machine_is_not_an_error_of_the_prediction(tmp_path: Path) -> None:
    slow = made_up.run(tmp_path / "slow", drift=1.5)
    same = made_up.run(tmp_path / "same")
    assert result_of(slow).found.ms == pytest.approx(1.5 * result_of(same).found.ms)
    assert result_of(slow).excess == pytest.approx(result_of(same).excess)
    assert slow.reserve(result_of(slow)) == pytest.approx(same.reserve(result_of(same)))


def test_the_scores_of_the_headline_are_those_of_the_journal(kept: Story) -> None:
    number = kept.state.current
    before, after = (
        np.array(last(kept, "Score", number=n, removed=None)["cosines"]) for n in (0, number)
    )
    change = after - before
    error = change.std(ddof=1) / math.sqrt(len(change))
    text = page.summary(kept).replace("\n", " ")
    assert f"CLIP score of network {number}: {after.mean():.4f} ± " in text
    assert f"the seed's {before.mean():.4f} ± " in text
    assert f"{change.mean():+.4f}" in text
    low, high = kept.difference(number).interval
    assert f"{low:+.4f} to {high:+.4f}" in text
    assert (high - low) / 2 == pytest.approx(2.0687 * error, rel=1e-4)  # Student's t, 23 degrees.
    assert (high - low) / 2 < NORMAL_95 * estimate(after).error  # Paired, so sharper.


def test_the_score_lies_between_floor_and_ceiling(kept: Story) -> None:
    references, number = kept.references(), kept.state.current
    assert references is not None
    assert references.share(references.real.mean) == 1
    assert references.share(references.mismatched.mean) == 0
    for n in (0, number):
        assert f"{references.share(kept.score(n).mean):.0%}" in page.summary(kept)


def test_recall_is_that_of_the_whole_network(kept: Story) -> None:
    number = kept.state.current
    wanted = last(kept, "Score", number=number, removed=None)["recall"]
    assert kept.recall(number) == wanted
    assert f"{kept.recall(0):.0%} → {wanted:.0%}" in read(kept).text


def test_one_sample_has_no_error() -> None:
    assert math.isnan(estimate([0.5]).error) and math.isnan(estimate([0.5]).margin)


# What it lists.


def test_every_candidate_of_every_round_is_listed_with_what_was_done(kept: Story) -> None:
    text = sections.rounds(kept)
    for number, found in enumerate(re.split("<details", text)[1:]):
        decision = kept.rounds()[number].decision
        rows = re.findall(r"<tr(?: class=chosen)?><td>(.*?)</tr>", found)
        assert [row.partition("<")[0] for row in rows] == [
            c["block"] for c in decision["candidates"]
        ]
        changed = {action.block for action in kept.rounds()[number].actions}
        for row, c in zip(rows, decision["candidates"], strict=True):
            prompts = len(kept.state.scores[kept.rounds()[number].network, None])
            margin = student.ppf(0.975, prompts - 1) * c["error"]
            assert f"{c['delta_clip']:+.4f} ± {margin:.4f}" in row
            assert f"<td>{charts.short(1000 * c['delta_clip'] / c['delta_ms'])}</td>" in row
            assert ("removed" in row or "copied" in row) == (c["block"] in changed)
    assert len(kept.rounds()) == sum(isinstance(task, Evolve) for task, _ in kept.entries) > 1


def test_the_story_has_removals_and_copies(kept: Story) -> None:
    done = [type(a).__name__ for found in kept.rounds() for a in found.actions]
    assert {"Remove", "Copy"} == set(done)
    assert f"{done.count('Remove')} blocks removed, {done.count('Copy')} copied" in (
        page.summary(kept)
    )


def test_table_3_counts_every_block_that_the_paper_counts(tmp_path: Path) -> None:
    space = tiny.unet_space(tiny.NARROW_SD15)
    story = made_up.run(tmp_path, space=space, tasks=1)
    rows = story.table3()
    assert [(r.stage, r.kind, r.before) for r in rows] == [
        ("Down-1", "Cross Attention", 2),
        ("Down-1", "ResNet", 2),
        ("Down-2", "Cross Attention", 2),
        ("Down-2", "ResNet", 2),
        ("Down-3", "Cross Attention", 2),
        ("Down-3", "ResNet", 2),
        ("Down-4", "ResNet", 2),
        ("Mid", "Cross Attention", 1),
        ("Mid", "ResNet", 2),
        ("Up-1", "ResNet", 3),
        ("Up-2", "Cross Attention", 3),
        ("Up-2", "ResNet", 3),
        ("Up-3", "Cross Attention", 3),
        ("Up-3", "ResNet", 3),
        ("Up-4", "Cross Attention", 3),
        ("Up-4", "ResNet", 3),
    ]
    shrunk = {r.stage: r.shrunk for r in rows}
    assert [shrunk[s] for s in ("Down-1", "Down-4", "Mid", "Up-1", "Up-4")] == [8, 64, 64, 64, 8]
    assert {r.stage: r.width for r in rows}["Down-3"] == 16


def test_table_3_counts_what_was_done(kept: Story) -> None:
    rows = kept.table3()
    before, after = kept.strategy.space.seed, kept.state.networks[-1].spec
    assert sum(r.before for r in rows) == len(before.blocks)
    assert sum(r.after for r in rows) == len(after.blocks) != len(before.blocks)


def test_blocks_add_up_to_the_network(kept: Story) -> None:
    """Parameters to the network's, latencies to its prediction less the fixed cost."""
    space, latency = kept.strategy.space, kept.state.latency
    assert latency is not None
    for network in (kept.state.networks[0], kept.state.networks[-1]):
        blocks = kept.blocks(network.spec)
        sizes = (shape.size for shape in tiny.shapes(space, network.spec).values())
        assert sum(b.parameters for b in blocks) == sum(sizes)
        whole = latency.predict(kept.calls(network.spec).values()).ms
        assert sum(b.ms for b in blocks) + latency.fixed_ms == pytest.approx(whole)


def test_bars_by_stage_add_up_the_blocks_of_their_kind(kept: Story) -> None:
    blocks = kept.blocks(kept.strategy.space.seed)
    text = sections.profile(kept)
    for kind in ("cross-attention", "ResNet"):
        rows = [b for b in blocks if (b.stage, b.kind) == ("Up-2", kind)]
        assert rows
        assert f"Up-2, {kind}: {charts.short(sum(b.ms for b in rows))} → " in text
        assert f"Up-2, {kind}: {charts.short(sum(b.parameters for b in rows) / 1e6)} → " in text


def test_predictions_are_compared_with_measurements(kept: Story) -> None:
    """By what is measured more than predicted, as a share of the prediction."""
    text = tables.latency(kept)
    for _, predicted, measured in kept.calibration():
        assert f"<td>{predicted:.3f}</td><td>{measured.ms:.3f} ± " in text
        assert f"<td>{(measured.ms - predicted) / predicted:+.1%}</td>" in text
    assert f"<td>{result_of(kept).excess:+.1%}</td>" in text


def test_the_profile_multiplies_the_unet_by_its_steps(kept: Story) -> None:
    found = sections.parts(kept, 0, kept.blocks(kept.strategy.space.seed))
    text, unet, decoder = found
    assert (text.calls, unet.calls, decoder.calls) == (1, 8, 1)
    assert kept.state.seed_ms is not None
    assert unet.total_ms == pytest.approx(8 * kept.state.seed_ms.ms) and unet.measured


def test_a_second_text_encoder_is_a_part_of_its_own(kept: Story) -> None:
    second = {"ms": 1.5, "std": 0.1, "parameters": 456_000}
    entries = [
        (task, {**found, "text_encoder_2": second} if isinstance(task, Profile) else found)
        for task, found in kept.entries
    ]
    two = dataclasses.replace(kept, entries=entries)
    names = [part.name for part in sections.parts(two, 0, kept.blocks(kept.strategy.space.seed))]
    assert names == ["text encoder", "second text encoder", "U-Net", "decoder"]
    assert "<td>second text encoder</td><td>0.456</td><td>1.500" in sections.profile(two)


def test_an_unmeasured_unet_is_called_an_estimate(tmp_path: Path) -> None:
    story = made_up.run(tmp_path, tasks=20)
    assert story.state.current > 1 and story.result is None
    assert " est." in sections.profile(story) and "an estimated" in page.summary(story)
    assert sections.path(story).count('class="hollow"') == len(story.path()) - 2
    assert [p.measured for p in story.path()] == [True, True, *(len(story.path()) - 2) * [False]]


def test_costs_are_the_sums_of_the_journal(kept: Story) -> None:
    count = len(kept.entries)
    assert sum(kept.spent("seconds").values()) == pytest.approx(1.5 * count)
    text = read(kept).text
    scored = sum(isinstance(task, Score) for task, _ in kept.entries)
    steps = sum(outcome["steps"] for task, outcome in kept.entries if isinstance(task, Train))
    assert f"{scored} evaluations made {24 * scored:,} pictures by {8 * 24 * scored:,}" in text
    assert f"{steps:,} steps" in text and f"{2 * count}" in text


def test_every_training_has_its_curve(kept: Story) -> None:
    text = page.page(kept)
    for task, _ in kept.outcomes(Train):
        assert f'aria-label="Network {task.number}: {task.objective}"' in text


def test_losses_on_held_out_pictures_are_listed(kept: Story) -> None:
    entries = [*kept.entries, (Validate(1), {"loss": 0.1234567})]
    state = kept.strategy.tell(kept.state, *entries[-1])
    text = read(dataclasses.replace(kept, entries=entries, state=state)).text
    assert "0.12346" in text and "validation loss" in text
    assert "held-out" not in read(kept).text


def test_settings_and_provenance_are_shown(kept: Story) -> None:
    text = read(kept).text
    for wanted in ("Made-up CPU", "sampling.steps", "search.budget", "made-up-pipeline"):
        assert wanted in text


def test_a_modelled_device_is_not_called_measured(tmp_path: Path) -> None:
    text = page.summary(made_up.run(tmp_path, spread=0.0))
    assert "By the latency model" in text and "Measured in turns" not in text and "inf" not in text


# The file.


@pytest.mark.parametrize("name", ["kept", "over"])
def test_the_page_is_one_well_formed_file_without_links(
    name: str, request: pytest.FixtureRequest
) -> None:
    story = request.getfixturevalue(name)
    path = page.write(story)
    assert path == story.folder / "report.html"
    text = Path(str(path)).read_text(encoding="utf-8")
    found = Reader(text)
    assert not found.wrong and not found.open
    assert found.links and all(link.startswith("data:image/png;base64,") for link in found.links)
    assert not re.search(r"https?:|url\(|@import|//\w", re.sub(r"base64,[^\"]*", "", text))
    assert not {"script", "link", "iframe", "object"} & found.tags
    assert not re.search(r"\b(nan|inf|None)\b", found.text)
    assert not [p for p in story.folder.iterdir() if p.name.startswith(".")]


def test_writing_again_gives_the_same_page(kept: Story) -> None:
    again = Story.read(kept.folder, kept.strategy)
    assert page.page(again) == page.page(kept)


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('&')</script>"
    header = {**made_up.HEADER, "recipe": evil, "pipeline": evil, "settings": {evil: {evil: evil}}}
    story = made_up.run(tmp_path, header=header, prompts=(evil, '"><u>'), strategy={"rounds": 1})
    found = read(story)
    assert not {"script", "u"} & found.tags and not found.wrong
    assert found.text.count(evil) >= 4


def test_pictures_stand_beside_each_other_under_their_prompt(tmp_path: Path) -> None:
    prompts = tuple(f"prompt {i}" for i in range(11))
    made_up.draw_pictures(tmp_path, prompts)
    before, after = (
        pictures.tiles(tmp_path / "pictures" / f"{name}.png", 11) for name in ("before", "after")
    )
    for i in range(11):
        level = 127.5 * (1 + i / 11 - 0.5)
        assert np.ptp(np.asarray(before[i])) == 0 and before[i].size == (16, 16)
        assert np.asarray(before[i])[0, 0, 0] == pytest.approx(level, abs=1)
        assert np.asarray(after[i])[0, 0, 0] == pytest.approx(255 - level, abs=1)


def test_every_prompt_has_its_pair(kept: Story) -> None:
    text = pictures.pictures(kept.folder)
    assert text.count("<figure>") == len(made_up.PROMPTS) and text.count("<img") == 16
    assert text.index("before: a red fox") < text.index("after: a red fox") < text.index("tea pot")
    before, after = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[0, 0, 0]
        for data in re.findall(r"base64,([^\"]*)", text)[:2]
    )
    assert before == pytest.approx(64, abs=1) and after == pytest.approx(191, abs=1)


@pytest.mark.parametrize("name", ["kept", "over"])
def test_the_summary_fits_a_terminal(name: str, request: pytest.FixtureRequest) -> None:
    said = page.summary(request.getfixturevalue(name)).splitlines()
    assert len(said) <= 24 and max(map(len, said)) <= 100


def test_the_summary_of_a_long_search_is_cut_at_its_edits(kept: Story) -> None:
    removals = [{"type": "search_spaces.actions:Remove", "block": f"block.{i}"} for i in range(500)]
    outcome = {**kept.rounds()[0].decision, "actions": removals}
    long = dataclasses.replace(kept, entries=[*kept.entries, (Evolve(9), outcome)])
    said = page.summary(long).splitlines()
    assert len(said) == 24 and max(map(len, said)) <= 100 and said[-1].endswith(" ...")
    assert "off by" in page.summary(long)
    assert len(headline.summary(long, lines=6).splitlines()) == 6


# Damage.


def damaged(story: Story, folder: Path, number: int, change: bytes) -> Path:
    whole = (story.folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    whole[number] = change
    (folder / "journal.jsonl").write_bytes(b"".join(whole))
    return folder


@pytest.mark.parametrize(
    "line",
    [
        b"{nonsense\n",
        b"[1, 2]\n",
        b'{"a": 1}\n',
        b'{"task": {"type": "nas.evolution:Score", "number": 0, "removed": null}, "outcome": {}}\n',
        b'{"task": {"type": "os:system"}, "outcome": {}}\n',
        b'{"task": 3, "outcome": {"cosines": []}}\n',
        b'{"task": {"type": "nas.evolution:Measure", "number": 7}, "outcome": {"ms": 1}}\n',
    ],
)
def test_a_damaged_journal_is_one_clear_error(tmp_path: Path, kept: Story, line: bytes) -> None:
    with pytest.raises(ValueError, match=r"journal|object|class|line"):
        page.page(Story.read(damaged(kept, tmp_path, 3, line), kept.strategy))


def test_no_journal_is_an_error_that_names_it(tmp_path: Path, kept: Story) -> None:
    with pytest.raises(ValueError, match="no journal"):
        Story.read(tmp_path, kept.strategy)


# Charts.


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.463, 0.5512), (-3e-4, 8e-4), (1200, 98000), (5.0, 5.0)]
)
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert len(found) <= 6 and all(low - 1e-9 <= value <= high + 1e-9 for value, _ in found)
    assert len({shown for _, shown in found}) == len(found)
    assert all(float(shown) == pytest.approx(value, abs=1e-9) for value, shown in found)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.01234, "0.0123"), (5.087, "5.09"), (139.2, "139")]
)
def test_short_numbers_have_three_digits(value: float, shown: str) -> None:
    assert charts.short(value) == shown


def test_labels_of_crowded_points_do_not_cover_each_other() -> None:
    points = [charts.Point(10 + 0.1 * i, 0.5, 0.1, 0.1, f"{i} robust: −4 blocks") for i in range(5)]
    drawn = charts.path(
        points, budget=charts.Mark(12, "budget"), bounds=[], x_name="ms", y_name="score"
    )
    places = re.findall(r'class="label" x="([\d.]+)" y="([\d.]+)"', drawn)
    assert len(places) == 5
    boxes = [charts.Box(float(x), float(y) - 11, float(x) + 110, float(y)) for x, y in places]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_chart_draws_estimates_hollow_and_notes_bounds_out_of_range() -> None:
    points = [charts.Point(1, 0.5, 0, 0.01, "a"), charts.Point(2, 0.6, 0, 0.01, "b", hollow=True)]
    drawn = charts.path(
        points,
        budget=charts.Mark(1.5, "budget"),
        bounds=[charts.Mark(0.9, "real"), charts.Mark(0.55, "between"), charts.Mark(0.1, "wrong")],
        x_name="ms",
        y_name="score",
    )
    assert drawn.count("hollow") == 1 and drawn.count('class="bound"') == 1
    assert "↑ real" in drawn and "↓ wrong" in drawn and ">between<" in drawn


def test_bars_are_as_long_as_their_values() -> None:
    bar = charts.Bar("Mid", "one", 4.0, 1.0)
    drawn = charts.paired_bars([("Mid", [bar])], unit="ms", title="latency")
    before, after = map(float, re.findall(r'<rect.*? width="([\d.]+)"', drawn))
    assert before == pytest.approx(4 * after, rel=0.01)


def test_a_story_is_read_with_any_strategy_it_was_run_with(tmp_path: Path) -> None:
    """Also by one that copies nothing, ends in one round, or has nothing to do."""
    for name, settings in (("one", {"rounds": 1}), ("none", {"budget": 1.5, "rounds": 1})):
        story = made_up.run(tmp_path / name, strategy=settings)
        assert story.finished
        assert any(isinstance(task, Measure) for task, _ in story.entries)
        assert not read(story).wrong
