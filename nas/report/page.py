"""The report of a search: one HTML file that needs no network."""

from collections.abc import Iterator
from html import escape

from nas.places import Place, write_whole
from nas.report import headline, referee, sections, tables, timeline
from nas.report.charts import short
from nas.report.headline import summary
from nas.report.pictures import pictures
from nas.report.story import Story

__all__ = ["html", "page", "put", "section", "summary", "write"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --soft: #5d6874; --line: #d8dee4;
  --paper: #fff; --panel: #f5f7f9; --one: #2f6db3; --two: #d9822b; --bad: #b3372f;
  --good: #2a7d46; --open: #8a6100; --three: #7b4fb0; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa5b0;
  --line: #39424b; --paper: #14181c; --panel: #1d2329; --one: #6aa7e8; --two: #eba75c;
  --bad: #ef8077; --good: #6cc48a; --open: #e3b341;
  --three: #b793e6; } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 980px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .4rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem }
.soft { color: var(--soft) } p.soft { font-size: .9rem }
.verdict { font-size: 1.1rem; font-weight: 600; margin: .8rem 0; padding: .6rem .9rem;
  border-left: 5px solid; background: var(--panel) }
.good { color: var(--good) } .bad { color: var(--bad) } .open { color: var(--open) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: .8rem;
  margin: 1rem 0 }
.tile { background: var(--panel); padding: .6rem .9rem; border-radius: 6px }
.tile b { display: block; font-size: 1.15rem; white-space: nowrap;
  font-variant-numeric: tabular-nums }
.tile span { color: var(--soft); font-size: .85rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; font-size: .9rem;
  font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .2rem .5rem; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top }
th { color: var(--soft); font-weight: 500 }
th:first-child, td:first-child, .left2 :is(th, td):nth-child(2),
  .left3 :is(th, td):nth-child(-n + 3) { text-align: left }
.words :is(th, td):last-child { text-align: left; white-space: normal; min-width: 14rem }
.left3 td:nth-child(2) { white-space: normal; overflow-wrap: anywhere }
tr.chosen td { font-weight: 600; background: var(--panel) }
svg { display: block; width: 100%; height: auto; margin: .4rem 0 }
svg text { fill: var(--ink); font-size: 12px } svg .title { font-weight: 600 }
svg .note { fill: var(--soft); font-size: 11px } svg .label { font-size: 11px }
svg :is(.label, .note, .budget-name) { paint-order: stroke; stroke: var(--paper);
  stroke-width: 3px; stroke-linejoin: round }
svg .leader { stroke: var(--soft); stroke-width: .8 }
svg .axis { stroke: var(--soft) } svg .grid { stroke: var(--line); stroke-width: .7 }
svg .bar { stroke: var(--one); stroke-width: 1.3; opacity: .55 }
svg .way { fill: none; stroke: var(--one); stroke-width: 1.6 }
svg circle { fill: var(--one); stroke: var(--one); stroke-width: 1.8 }
svg circle.hollow { fill: var(--paper) }
svg .budget { stroke: var(--bad); stroke-width: 1.4; stroke-dasharray: 6 4 }
svg .budget-name { fill: var(--bad) } svg .bound { stroke: var(--soft); stroke-dasharray: 2 3 }
svg rect.one { fill: var(--one) } svg rect.two { fill: var(--two) } svg rect.pale { opacity: .3 }
.is-loading { --is: var(--soft) } .is-measuring { --is: var(--two) }
.is-scoring { --is: var(--one) } .is-training { --is: var(--good) }
.is-validating { --is: var(--open) } .is-deciding { --is: var(--ink) }
.is-pictures { --is: var(--three) } .is-other { --is: var(--line) } .is-wasted { --is: var(--bad) }
svg [class^="is-"] { fill: var(--is) }
svg rect.compiling { fill: var(--paper); opacity: .5; pointer-events: none }
.key { margin-right: 1.2em } .key::before { content: ""; display: inline-block; width: .8em;
  height: .8em; margin-right: .4em; background: var(--is, var(--one)) } .key.two::before {
  background: var(--two) }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: .6rem }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 1rem }
figure { margin: 0 } figure div { display: flex; gap: 4px } figure img { width: 50%;
  image-rendering: pixelated; border: 1px solid var(--line) }
figcaption { font-size: .8rem; color: var(--soft); overflow-wrap: anywhere }
details { margin: .5rem 0 } details summary { cursor: pointer }
@media (max-width: 640px) { .pair { grid-template-columns: 1fr } }
@media print { body { max-width: none; margin: 0; font-size: 12px }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact }
  details::details-content { content-visibility: visible; display: block; height: auto }
  svg, figure, tr, .tile { break-inside: avoid } h2, h3 { break-after: avoid } }
"""


def write(story: Story, *, price: float | None = None) -> Place:
    """Writes `report.html` into the search's folder and returns its path. With the `price` of a
    worker's hour it says what the search cost."""
    return put(story.folder, page(story, price=price))


def put(folder: Place, text: str) -> Place:
    """Writes a page as `report.html` into `folder` and returns its path."""
    target = folder / "report.html"
    write_whole(target, text.encode())
    return target


def page(story: Story, *, price: float | None = None) -> str:
    """The whole page."""
    parts = [
        _head(story),
        section("The way", sections.path(story)),
        section("Pictures before and after", pictures(story.folder)),
        section("Where the time goes", sections.profile(story)),
        section("Architecture before and after", sections.architecture(story)),
        section("Every block, every round", sections.rounds(story)),
        section("Greedy against exact choice", referee.section(story.strategy, story.state, 1)),
        section("Latency, by calls and as a whole", tables.latency(story)),
        section("Training", tables.training(story)),
        section("Who did what when", timeline.section(story.sessions)),
        section("What the search cost", timeline.costs(story, price)),
        section("Settings and provenance", tables.settings(story)),
    ]
    return html(_title(story), "".join(parts))


def html(title: str, body: str) -> str:
    """A page of the project's style."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def _title(story: Story) -> str:
    return f"Architecture search {story.header.get('recipe', story.folder.name)}"


def _head(story: Story) -> str:
    mood, text = headline.verdict(story)
    said = "".join(f"<p>{escape(line)}</p>" for line in headline.findings(story))
    return (
        f"<h1>{escape(_title(story))}</h1><p>{escape(headline.asked(story))}</p>"
        f'<p class="verdict {mood}">{escape(text)}</p>'
        f'<div class="tiles">{"".join(_tiles(story))}</div>{said}'
    )


def _tiles(story: Story) -> Iterator[str]:
    """Yields the numbers that a reader looks for first, before and after."""
    result, numbers = story.result, story.scored()
    if result is not None:
        yield _tile(
            f"U-Net latency, {story.how}",
            f"{result.seed.ms:.2f} → {result.found.ms:.2f} ms",
            f"{headline.percent(result.share)} of the seed's; the budget is "
            f"{headline.budget(story, brief=True)}",
        )
    if len(numbers) > 1:
        change, last = story.difference(numbers[-1]), numbers[-1]
        yield _tile(
            "CLIP score",
            f"{story.score(0).mean:.4f} → {story.score(last).mean:.4f}",
            f"{change.mean:+.4f}, 95% interval {change.interval[0]:+.4f} to "
            f"{change.interval[1]:+.4f}",
        )
        yield _tile(
            "retrieval recall, R@5",
            f"{story.recall(0):.0%} → {story.recall(last):.0%}",
            "pictures whose own prompt is among the five nearest",
        )
    if result is not None:
        old, new = (
            sum(block.parameters for block in story.blocks(story.state.networks[n].spec)) / 1e6
            for n in (0, result.number)
        )
        yield _tile(
            "U-Net parameters", f"{short(old)} → {short(new)} M", f"{new / old:.0%} of the seed's"
        )


def _tile(name: str, value: str, note: str) -> str:
    return (
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(note)}</span></div>"
    )


def section(title: str, content: str) -> str:
    """A part of a page."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"
