"""The parts of the page that are about networks: the way, their profile, their architecture."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from latency_models.latency import Latency
from nas.evolution import Profile
from nas.report import charts
from nas.report.story import BlockRow, Estimate, PathPoint, Story, describe
from nas.report.tables import table
from search_spaces.actions import Copy
from search_spaces.unet import stage_names

KINDS = {"cross-attention": "one", "ResNet": "two"}


def path(story: Story) -> str:
    """Latency against score, round by round."""
    points = story.path()
    if not points:
        return "<p>No network was scored yet.</p>"
    limit, references = story.strategy.limit_ms(story.state), story.references()
    bounds = (
        []
        if references is None
        else [
            charts.Mark(references.real.mean, f"real pictures {references.real.mean:.3f}"),
            charts.Mark(
                references.mismatched.mean, f"wrong prompts {references.mismatched.mean:.3f}"
            ),
        ]
    )
    drawn = charts.path(
        [_point(p) for p in points],
        budget=charts.Mark(limit, f"budget {limit:.3f} ms"),
        bounds=bounds,
        x_name="latency of one U-Net call (both branches of guidance), ms",
        y_name="CLIP score",
    )
    rows = [
        (
            f"{p.number} {p.objective}",
            f"{p.latency.ms:.3f} ± {p.latency.std:.3f}",
            "measured" if p.measured else "estimate" if story.timed else "predicted",
            f"{p.score.mean:.4f} ± {p.score.error:.4f}",
            "" if p.number == 0 else _difference(story, p.number),
            f"{p.recall:.0%}",
            describe(p.actions) or "—",
        )
        for p in points
    ]
    told = (
        "Filled: measured as a whole. Hollow: an estimate, as the search predicted it."
        if story.timed
        else "No latency was measured: the seed's and results' are as a model of the device has "
        "them, those between as the search predicted them from it."
    )
    note = (
        f"<p class=soft>{told} Bars are 95% of the score, over prompts, and one standard error of "
        "the latency. All networks share prompts, noise and sampler, so that differences are surer "
        "than the bars: "
        "their 95% intervals are in the table, after ±.</p>"
    )
    head = ("network", "ms", "", "CLIP score", "less the seed's", "R@5", "made from the last by")
    return drawn + note + table(head, rows, style="words")


def _point(p: PathPoint) -> charts.Point:
    copied = sum(isinstance(action, Copy) for action in p.actions)
    removed = len(p.actions) - copied
    parts = [f"−{removed}" if removed else "", f"+{copied}" if copied else ""]
    changed = " ".join(part for part in parts if part)
    blocks = f": {changed} block{'s' if removed + copied > 1 else ''}" if changed else ""
    tip = f"network {p.number}, {p.objective}: {describe(p.actions) or 'no edit'}"
    label = f"{p.number} {p.objective}{blocks}"
    return charts.Point(
        p.latency.ms, p.score.mean, p.latency.std, p.score.margin, label, tip, not p.measured
    )


def _difference(story: Story, number: int) -> str:
    change = story.difference(number)
    return f"{change.mean:+.4f} ± {change.margin:.4f}"


class Part(NamedTuple):
    """A part of the pipeline: its size, the latency of a call and how often it is called."""

    name: str
    parameters: int
    latency: Latency
    calls: int
    measured: bool = True

    @property
    def total_ms(self) -> float:
        return self.calls * self.latency.ms


def profile(story: Story) -> str:
    """Text encoder, U-Net times steps and decoder; then the U-Net by stage and by block."""
    if story.outcome(Profile) is None:
        return "<p>Not known yet.</p>"
    numbers = (0, story.state.current)
    before, after = (story.blocks(story.state.networks[n].spec) for n in numbers)
    tables = [
        f"<h3>{title}</h3>{_pipeline(story, number, blocks)}"
        for title, number, blocks in zip(("Before", "After"), numbers, (before, after), strict=True)
    ]
    known = (
        "Each part was measured as a whole, unless it says estimate."
        if story.timed
        else "Nothing was measured: each part is an estimate by a model of the device."
    )
    note = (
        f"<p class=soft>{known} One call of the "
        "text encoder or of the U-Net runs both branches of guidance, as a batch of two; the "
        "decoder makes one picture. “In all” is calls times latency: a sum, not a measurement of "
        f"the whole pipeline.{_speed(story)}</p>{_unpriced(story)}"
    )
    return "".join(tables) + note + _by_stage(story, before, after) + _by_block(before, after)


def _unpriced(story: Story) -> str:
    """The parts that a model of the device cannot price, and why."""
    found = story.outcome(Profile)
    assert found is not None
    told = [
        f"The {OTHERS[name]} is in none of these tables: {why}."
        for name, why in found.get("unpriced", {}).items()
    ]
    return f"<p>{escape(' '.join(told))}</p>" if told else ""


def _speed(story: Story) -> str:
    if not story.timed or story.strategy.unit == "ms" or story.result is None:
        return ""
    return (
        " The searched U-Net's latency is given at the speed that the machine had when the seed "
        "was profiled."
    )


# The parts of a pipeline that a search leaves alone, by their names in the profile.
OTHERS = {
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "decoder": "decoder",
}


def parts(story: Story, number: int, blocks: Sequence[BlockRow]) -> list[Part]:
    """The parts of the pipeline with network `number`, whose blocks are given."""
    found = story.outcome(Profile)
    assert found is not None
    steps = story.setting("sampling", "steps") or 1
    others = {
        key: Part(title, part["parameters"], Latency(part["ms"], part["std"]), 1, story.timed)
        for key, title in OTHERS.items()
        if (part := found.get(key)) is not None
    }
    decoder = [others.pop("decoder")] if "decoder" in others else []
    size = sum(block.parameters for block in blocks)
    backbone = Part("U-Net", size, story.latency(number), steps, story.measured(number))
    return [*others.values(), backbone, *decoder]


def _pipeline(story: Story, number: int, blocks: Sequence[BlockRow]) -> str:
    found = parts(story, number, blocks)
    whole = sum(part.total_ms for part in found)
    rows = [
        (
            part.name,
            f"{part.parameters / 1e6:.3f}",
            f"{part.latency.ms:.3f} ± {part.latency.std:.3f}" + ("" if part.measured else " est."),
            str(part.calls),
            f"{part.total_ms:.2f}",
            f"{part.total_ms / whole:.1%}",
        )
        for part in found
    ]
    size = sum(part.parameters for part in found)
    rows.append(("in all", f"{size / 1e6:.3f}", "", "", f"{whole:.2f}", "100.0%"))
    return table(("part", "parameters, M", "ms a call", "calls", "ms in all", "share"), rows)


def _by_stage(story: Story, before: Sequence[BlockRow], after: Sequence[BlockRow]) -> str:
    names = stage_names(story.state.networks[0].spec)
    drawn = []
    for title, unit, attribute, scale in (
        ("parameters", "M", "parameters", 1e-6),
        ("latency of one call (estimate)", "ms", "ms", 1.0),
    ):
        groups = []
        for name in names:
            bars = [
                charts.Bar(
                    f"{name}, {kind}",
                    style,
                    *(scale * _sum(rows, attribute, name, kind) for rows in (before, after)),
                )
                for kind, style in KINDS.items()
                if any((row.stage, row.kind) == (name, kind) for row in before)
            ]
            if bars:
                groups.append((name, bars))
        drawn.append(charts.paired_bars(groups, unit=unit, title=title))
    legend = "".join(f'<span class="key {style}">{kind}</span>' for kind, style in KINDS.items())
    return (
        f'<h3>By stage</h3><p>{legend}<span class="soft">pale before, solid after; '
        f"{_rest(before)}</span></p>"
        f'<div class="pair">{"".join(drawn)}</div>'
    )


def _sum(rows: Sequence[BlockRow], attribute: str, stage: str, kind: str) -> float:
    return sum(getattr(r, attribute) for r in rows if (r.stage, r.kind) == (stage, kind))


def _rest(rows: Sequence[BlockRow]) -> str:
    other = [row for row in rows if row.kind not in KINDS]
    size, ms = sum(row.parameters for row in other) / 1e6, sum(row.ms for row in other)
    return (
        "cross-attention means the whole transformer, as in the paper; what lies between the "
        f"blocks, {size:.3f} M and {ms:.3f} ms, stays as it is"
    )


def _by_block(before: Sequence[BlockRow], after: Sequence[BlockRow]) -> str:
    left, had = {row.name for row in after}, {row.name for row in before}
    new = [row for row in after if row.name not in had]
    rows = [
        (
            row.name,
            row.stage,
            row.kind,
            f"{row.parameters / 1e6:.4f}",
            f"{row.ms:.4f}",
            "copied" if row.name not in had else "kept" if row.name in left else "removed",
        )
        for row in [*before, *new]
    ]
    note = (
        "<p class=soft>Latency by block is an estimate: the block's row of the table times the "
        "calibration's scale. The calibration's fixed cost is no block's.</p>"
    )
    listed = table(("block", "stage", "type", "parameters, M", "ms", ""), rows, style="left3")
    return f"<details><summary>Block by block</summary>{note}{listed}</details>"


def architecture(story: Story) -> str:
    """The architecture before and after, in the form of SnapFusion's Table 3."""
    rows, last = [], ""
    for r in story.table3():
        first = r.stage if r.stage != last else ""
        size = f"H/{r.shrunk:g} × W/{r.shrunk:g}"
        change = f"{r.after - r.before:+d}" if r.after != r.before else ""
        rows.append(
            (
                first,
                size if first else "",
                r.kind,
                str(r.width),
                str(r.before),
                str(r.after),
                change,
            )
        )
        last = r.stage
    if not rows:
        return "<p>Not known before the profile.</p>"
    networks = (story.state.networks[0], story.state.networks[-1])
    old, new = (sum(b.parameters for b in story.blocks(n.spec)) / 1e6 for n in networks)
    note = f"<p>The U-Net has {old:.3f} M parameters before and {new:.3f} M after.</p>"
    if not story.finished:
        note += f"<p>“After” is network {story.state.current}, as the search has it so far.</p>"
    head = ("stage", "resolution", "type", "dimension", "blocks before", "after", "")
    return table(head, rows, style="left3") + note


def rounds(story: Story) -> str:
    """The table of every round's candidates."""
    found = story.rounds()
    if not found:
        return "<p>No round is finished yet.</p>"
    note = (
        "<p class=soft>ΔCLIP is what the score loses without the block, with its 95% interval "
        "(paired over prompts), Δlatency the predicted saving, value their ratio. The worst block "
        "comes first; where ΔCLIP is less than its standard error, that error takes its place in "
        "the order, as the noise of a small block's value is large.</p>"
    )
    return note + "".join(_round(story, index) for index in range(len(found)))


def _round(story: Story, index: int) -> str:
    number, decision, actions = story.rounds()[index]
    done = {action.block: action for action in actions}
    prompts = len(story.state.scores[number, None])
    margin = lambda c: Estimate(c["delta_clip"], c["error"], prompts).margin  # noqa: E731
    rows = []
    for c in decision["candidates"]:
        action = done.get(c["block"])
        rows.append(
            (
                c["block"],
                f"{c['delta_clip']:+.4f} ± {margin(c):.4f}",
                f"{c['delta_ms']:.4f}",
                charts.short(1e3 * c["delta_clip"] / c["delta_ms"]) if c["delta_ms"] else "—",
                "" if action is None else "copied" if isinstance(action, Copy) else "removed",
            )
        )
    for block in decision.get("failed", ()):
        rows.append((block, "failed", "—", "—", "stays: " + story.state.failed[number, block]))
    head = ("block", "ΔCLIP", "Δlatency, ms", "value, 1/s", "")
    chosen = [row[0] in done for row in rows]
    return (
        f"<details{' open' if index == 0 else ''}><summary>Round {index + 1}, network {number}, "
        f"{len(rows)} candidates: {escape(describe(actions)) or 'nothing to do'}; "
        f"predicted {decision['predicted_ms']:.3f} ± {decision['predicted_std']:.3f} ms</summary>"
        f"{table(head, rows, chosen=chosen)}</details>"
    )
