"""The report of a search: one HTML file that needs no network."""

import base64
import html
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from nas.diffusion.folders import read_json
from nas.evolution import Measure, Profile, Train
from nas.report import charts
from nas.report.story import BlockRow, Story, estimate

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --soft: #66717d; --line: #d8dee4;
  --paper: #fff; --one: #2f6db3; --two: #d9822b; --bad: #b3372f; --good: #2a7d46; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #98a3ae; --line: #39424b;
  --paper: #14181c; --one: #6aa7e8; --two: #eba75c; --bad: #ef8077; --good: #6cc48a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 860px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.lead { font-size: 1.05rem } .soft { color: var(--soft) }
.good { color: var(--good) } .bad { color: var(--bad) }
table { border-collapse: collapse; width: 100%; margin: .6rem 0;
  font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .2rem .5rem; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left } th { color: var(--soft); font-weight: 500 }
tr.chosen td { font-weight: 600 }
svg { width: 100%; height: auto; margin: .4rem 0 } svg text { fill: var(--ink); font-size: 12.5px }
svg text.note { fill: var(--soft); font-size: 11px } svg .axis { stroke: var(--soft) }
svg .grid { stroke: var(--line); stroke-width: .6 }
svg .bar { stroke: var(--one); stroke-width: 1.4 }
svg .way { fill: none; stroke: var(--one); stroke-width: 1.6 } svg circle { fill: var(--one) }
svg .budget { stroke: var(--bad); stroke-dasharray: 5 4 } svg rect.one { fill: var(--one) }
svg rect.two { fill: var(--two) }
.pictures { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }
.pictures img { width: 100%; image-rendering: pixelated; border: 1px solid var(--line) }
details summary { cursor: pointer; color: var(--soft) } pre { overflow-x: auto; font-size: 12px }
"""


def write(story: Story) -> Path:
    """Writes `report.html` into the search's folder and returns its path."""
    target = story.folder / "report.html"
    draft = target.with_name(".report.html")
    draft.write_text(page(story), encoding="utf-8")
    os.replace(draft, target)
    return target


def page(story: Story) -> str:
    """The whole page."""
    sections = [
        headline(story),
        _section("The way", path(story)),
        _section("Pictures before and after", pictures(story)),
        _section("Where the time goes", profile(story)),
        _section("Architecture before and after", architecture(story)),
        _section("Every block, every round", rounds(story)),
        _section("Latency, predicted and measured", latency(story)),
        _section("Training", training(story)),
        _section("What the search cost", cost(story)),
        _section("Settings and provenance", settings(story)),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>nas: {html.escape(story.folder.name)}</title><style>{_STYLE}</style>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def headline(story: Story) -> str:
    """What was asked, what came out, and how sure that is."""
    title = f"<h1>{html.escape(str(story.header.get('recipe', 'search')))}</h1>"
    return title + "".join(f'<p class="lead">{line}</p>' for line in sentences(story))


def sentences(story: Story) -> list[str]:
    """The headline's sentences, as HTML."""
    state, strategy = story.state, story.strategy
    if state.seed_ms is None or state.latency is None:
        return ["<b>Unfinished</b>: nothing was measured yet."]
    said = []
    if not story.finished:
        said.append("<b>Unfinished</b>: this is what is known so far.")
    limit = strategy.limit_ms(state)
    number = state.current
    if number in state.measured:
        found = state.measured[number]
        margin = (limit - found.ms) / max(found.std, 1e-9)
        verdict = (
            f'<b class="good">keeps to the budget</b>, {margin:.1f} standard errors under it'
            if story.kept
            else '<b class="bad">is over the budget</b>'
        )
        said.append(
            f"The U-Net takes {found.ms:.3f} ± {found.std:.3f} ms, "
            f"{found.ms / state.seed_ms.ms:.1%} of the seed's {state.seed_ms.ms:.3f} ms. "
            f"It {verdict} of {limit:.3f} ms."
        )
    else:
        said.append(f"The seed takes {state.seed_ms}, the budget is {limit:.3f} ms.")
    if number and (number, None) in state.scores and (0, None) in state.scores:
        after, before = (estimate(state.scores[n, None]) for n in (number, 0))
        change = story.difference(number)
        low, high = change.interval
        said.append(
            f"CLIP score {after.mean:.4f} ± {after.error:.4f} against the seed's "
            f"{before.mean:.4f} ± {before.error:.4f}: a change of {change.mean:+.4f}, "
            f"95 % interval {low:+.4f} to {high:+.4f}, paired over "
            f"{len(state.scores[0, None])} prompts."
        )
    bounds = story.ceiling()
    if bounds is not None:
        real, wrong, recall = bounds
        recalls = ", ".join(f"network {p.number} {p.recall:.0%}" for p in _ends(story))
        said.append(
            f"Real pictures score {real.mean:.4f}, the wrong prompts {wrong.mean:.4f}. "
            f"A picture's own prompt is among the five nearest for {recall:.0%} of real pictures"
            f"{'; ' + recalls if recalls else ''}."
        )
    return said


def _ends(story: Story) -> list:
    points = story.path()
    return points if len(points) < 3 else [points[0], points[-1]]


def path(story: Story) -> str:
    """Latency against score, round by round."""
    points = story.path()
    if not points:
        return "<p>No network was scored yet.</p>"
    marks = [
        charts.Point(
            p.latency.ms,
            p.score.mean,
            p.latency.std,
            1.96 * p.score.error,
            f"{p.number} {p.objective}: {', '.join(p.edits) or 'no edit'}",
        )
        for p in points
    ]
    drawn = charts.path(
        marks,
        budget=story.strategy.limit_ms(story.state),
        x_name="predicted latency of one U-Net call, ms",
        y_name="CLIP score",
    )
    rows = [
        (
            f"{p.number} ({p.objective})",
            f"{p.latency.ms:.3f} ± {p.latency.std:.3f}",
            f"{p.score.mean:.4f} ± {p.score.error:.4f}",
            f"{p.recall:.0%}",
            ", ".join(p.edits) or "—",
        )
        for p in points
    ]
    note = (
        "<p class=soft>Bars: one standard error of the prediction, 95 % of the score. "
        "Scores share prompts, noise and sampler, so differences are surer than the bars.</p>"
    )
    return drawn + note + table(("network", "predicted ms", "CLIP score", "R@5", "edits"), rows)


def pictures(story: Story) -> str:
    """The same prompts and seeds, before and after."""
    parts = []
    for name in ("before", "after"):
        file = story.folder / "pictures" / f"{name}.png"
        if file.exists():
            data = base64.b64encode(file.read_bytes()).decode()
            parts.append(
                f'<figure><img alt="{name}" src="data:image/png;base64,{data}">'
                f"<figcaption>{name}</figcaption></figure>"
            )
    if not parts:
        return "<p>None yet.</p>"
    prompts = story.folder / "pictures" / "prompts.json"
    listed = read_json(prompts)["prompts"] if prompts.exists() else []
    items = "".join(f"<li>{html.escape(prompt)}</li>" for prompt in listed)
    return (
        f'<div class="pictures">{"".join(parts)}</div>'
        f"<details><summary>prompts, row by row</summary><ol>{items}</ol></details>"
    )


def profile(story: Story) -> str:
    """Text encoder, U-Net times steps and decoder; then the U-Net by stage."""
    found, state = story.outcome(Profile), story.state
    if found is None:
        return "<p>Not measured yet.</p>"
    steps = int(story.header.get("settings", {}).get("sampling", {}).get("steps", 1))
    specs = {"before": state.networks[0].spec, "after": state.networks[state.current].spec}
    parts = []
    for name, spec in specs.items():
        predicted = story.strategy.predict(state, spec)
        rows = [
            ("text encoder", found["text_encoder"]["parameters"], found["text_encoder"]["ms"], 1),
            ("U-Net", sum(b.parameters for b in story.blocks(spec)), predicted.ms, steps),
            ("decoder", found["decoder"]["parameters"], found["decoder"]["ms"], 1),
        ]
        whole = sum(ms * count for _, _, ms, count in rows)
        parts.append(
            f"<h3>{name}</h3>"
            + table(
                ("part", "parameters, M", "ms a call", "calls", "ms in all", "share"),
                [
                    (
                        part,
                        f"{size / 1e6:.3f}",
                        f"{ms:.3f}",
                        str(count),
                        f"{ms * count:.2f}",
                        f"{ms * count / whole:.1%}",
                    )
                    for part, size, ms, count in rows
                ],
            )
        )
    note = (
        "<p class=soft>A call of the text encoder or the U-Net runs both branches of guidance, "
        "as a batch of two. The U-Net's latency is predicted from the table.</p>"
    )
    before, after = (story.blocks(spec) for spec in specs.values())
    return "".join(parts) + note + _by_stage(before, after) + _by_block(before, after)


def _by_stage(before: Sequence[BlockRow], after: Sequence[BlockRow]) -> str:
    parts = []
    for title, unit, value in (
        ("Parameters by stage and kind", "k", lambda row: row.parameters / 1e3),
        ("Latency by stage and kind", "ms", lambda row: row.ms),
    ):
        names = list(dict.fromkeys((row.stage, row.kind) for row in before))
        rows = [
            (
                f"{stage} {kind}",
                [
                    (name, sum(value(r) for r in rows if (r.stage, r.kind) == (stage, kind)))
                    for name, rows in (("before", before), ("after", after))
                ],
            )
            for stage, kind in names
        ]
        drawn = charts.bars(rows, unit=unit, colours=("one", "two"))
        parts.append(f"<h3>{title}</h3>{drawn}")
    return "".join(parts)


def _by_block(before: Sequence[BlockRow], after: Sequence[BlockRow]) -> str:
    left = {row.name for row in after}
    new = [row for row in after if row.name not in {r.name for r in before}]
    rows = [
        (
            html.escape(row.name),
            f"{row.parameters:,}",
            f"{row.ms:.4f}",
            "added" if row in new else "kept" if row.name in left else "removed",
        )
        for row in [*before, *new]
    ]
    listed = table(("block", "parameters", "ms", ""), rows, escape=False)
    return f"<details><summary>by block</summary>{listed}</details>"


def architecture(story: Story) -> str:
    """SnapFusion's Table 3."""
    rows = [
        (r.stage, f"H/{r.shrunk} x W/{r.shrunk}", r.kind, str(r.width), str(r.before), str(r.after))
        for r in story.table3()
    ]
    return table(("stage", "resolution", "type", "dimension", "blocks before", "after"), rows)


def rounds(story: Story) -> str:
    """The table of every round's candidates."""
    parts = []
    for index, (number, decision, done) in enumerate(story.rounds(), 1):
        rows = []
        for candidate in decision["candidates"]:
            name = candidate["block"]
            what = next((d.partition(" ")[0] for d in done if d.partition(" ")[2] == name), "")
            rows.append(
                (
                    name,
                    f"{candidate['delta_clip']:+.4f} ± {candidate['error']:.4f}",
                    f"{candidate['delta_ms']:.4f}",
                    f"{candidate['delta_clip'] / candidate['delta_ms']:+.4f}",
                    what,
                )
            )
        parts.append(
            f"<details{' open' if index == 1 else ''}><summary>round {index}, network {number}: "
            f"{html.escape(', '.join(done)) or 'nothing to do'}; predicted "
            f"{decision['predicted_ms']:.3f} ms</summary>"
            + table(("block", "ΔCLIP", "Δlatency, ms", "value, 1/ms", "done"), rows)
            + "</details>"
        )
    note = (
        "<p class=soft>ΔCLIP is what the score loses without the block (± standard error, paired "
        "over prompts), value is ΔCLIP/Δlatency. Blocks stand in the order of removal: by value, "
        "where a ΔCLIP within its standard error counts as that error.</p>"
    )
    return note + ("".join(parts) or "<p>No round yet.</p>")


def latency(story: Story) -> str:
    """Predicted against measured, of the result and of the networks that calibrate."""
    state = story.state
    rows = [
        (
            f"seed without {removed} blocks" if removed else "seed",
            "calibration",
            f"{predicted:.3f}",
            f"{measured.ms:.3f} ± {measured.std:.3f}",
            f"{predicted / measured.ms - 1:+.1%}",
        )
        for removed, predicted, measured in story.calibration()
    ]
    uncorrected = state.latency
    for task, outcome in story.outcomes(Measure):
        assert uncorrected is not None
        spec = state.networks[task.number].spec
        predicted = uncorrected.predict(story.calls(spec).values()).ms
        rows.append(
            (
                f"network {task.number}",
                "result",
                f"{predicted:.3f}",
                f"{outcome['ms']:.3f} ± {outcome['std']:.3f}",
                f"{predicted / outcome['ms'] - 1:+.1%}",
            )
        )
        rows.append(
            (
                "seed, beside it",
                "result",
                "",
                f"{outcome['seed_ms']:.3f} ± {outcome['seed_std']:.3f}",
                "",
            )
        )
    if uncorrected is None:
        return "<p>Not measured yet.</p>"
    note = (
        f"<p>The table's sum times {uncorrected.scale:.3f} plus {uncorrected.fixed_ms:.3f} ms; on "
        f"the networks it was fitted on it is off by {uncorrected.residual:.1%} (standard "
        "deviation). The budget is held against the prediction plus "
        f"{story.strategy.caution:g} standard errors.</p>"
    )
    return note + table(("network", "", "predicted ms", "measured ms", "difference"), rows)


def training(story: Story) -> str:
    """The loss of every training."""
    done = story.outcomes(Train)
    if not done:
        return "<p>None yet.</p>"
    curves = [(f"{task.number} {task.objective}", outcome["losses"]) for task, outcome in done]
    note = (
        "<p class=soft>Means of consecutive steps. The loss of a recovery has the terms of "
        "distillation too, so it is not to be compared with the others.</p>"
    )
    return charts.lines(curves, y_name="loss") + note


def cost(story: Story) -> str:
    """Time by phase, compiles, pictures and evaluations."""
    names = {
        "Profile": "latency table",
        "Reference": "ceiling and floor",
        "Train": "training",
        "Score": "scoring",
        "Evolve": "decisions",
        "Measure": "measuring results",
    }
    spent = story.seconds()
    whole = sum(seconds for _, seconds in spent.values()) or 1.0
    rows = [
        (names[kind], str(count), f"{seconds:.1f}", f"{seconds / whole:.0%}")
        for kind, (count, seconds) in spent.items()
    ]
    compile_s = sum(outcome["cost"]["compile_seconds"] for _, outcome in story.entries)
    steps = sum(outcome["steps"] for _, outcome in story.outcomes(Train))
    return table(("phase", "tasks", "seconds", "share"), rows) + (
        f"<p>{whole:.0f} s in all; {story.compiles()} compilations took {compile_s:.0f} s of it. "
        f"{story.images()} pictures were generated, and {steps} training steps done.</p>"
    )


def settings(story: Story) -> str:
    """What was asked for, and on what."""
    profile = story.outcome(Profile)
    shown = dict(story.header)
    if profile is not None:
        shown["latency"] = profile["provenance"]
    return f"<pre>{html.escape(json.dumps(shown, indent=2, ensure_ascii=False))}</pre>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, escape: bool = True) -> str:
    """An HTML table."""
    cell = html.escape if escape else str
    body = "".join(
        "<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows
    )
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>"


def summary(story: Story) -> str:
    """A few lines for the terminal."""
    plain = [
        html.unescape(line)
        for line in (
            line.replace("<b>", "")
            .replace("</b>", "")
            .replace('<b class="good">', "")
            .replace('<b class="bad">', "")
            for line in sentences(story)
        )
    ]
    edits = [edit for _, _, done in story.rounds() for edit in done]
    if edits:
        plain.append(f"{len(edits)} edits: {', '.join(edits)}.")
    return "\n".join(plain)
