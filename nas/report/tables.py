"""Tables, and the parts of the page that are little else: latency, training, cost, settings."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from nas.evolution import Profile, Score, Train
from nas.journal import flat
from nas.report import charts
from nas.report.story import Story

PHASES = {
    "Profile": "latency table",
    "Reference": "ceiling and floor of the score",
    "Train": "training",
    "Score": "scoring",
    "Evolve": "decisions",
    "Measure": "results as a whole",
    "Validate": "validation loss",
}


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    style: str = "",
    chosen: Sequence[bool] = (),
) -> str:
    """An HTML table of plain text; rows that are `chosen` stand out."""
    body = "".join(
        f"<tr{' class=chosen' if any(chosen[i : i + 1]) else ''}>"
        + "".join(f"<td>{escape(value)}</td>" for value in row)
        + "</tr>"
        for i, row in enumerate(rows)
    )
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (
        f'<div class="wide"><table class="{style}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def latency(story: Story) -> str:
    """Predicted by the sum of calls against known as a whole, of the networks that calibrate and
    of results."""
    fitted = story.state.latency
    if fitted is None:
        return "<p>Not known yet.</p>"
    rows = [
        (
            f"seed without {removed} blocks" if removed else "seed",
            "calibration",
            f"{predicted:.3f}",
            f"{measured.ms:.3f} ± {measured.std:.3f}",
            "",
            f"{measured.ms / predicted - 1:+.1%}",
        )
        for removed, predicted, measured in story.calibration()
    ]
    rows += [
        (
            f"network {found.number}",
            "result",
            f"{found.predicted.ms:.3f} ± {found.predicted.std:.3f}",
            f"{found.found.ms:.3f} ± {found.found.std:.3f}",
            f"{found.seed.ms:.3f} ± {found.seed.std:.3f}",
            f"{found.excess:+.1%}",
        )
        for found in story.results()
    ]
    within = "" if story.timed else ", the error of the device's model included"
    note = (
        f"<p>A prediction is {fitted.scale:.3f} times the sum of the table's rows, plus "
        f"{fitted.fixed_ms:.3f} ms. On the networks it was fitted on it is off by "
        f"{fitted.residual:.1%} (standard deviation{within}), which is part of every prediction's "
        "error. "
        "The calibration's networks had a part in the fit; a result had none. "
    )
    if story.timed and story.strategy.unit == "share":
        note += (
            "Results are compared with their prediction as if the seed beside them had been as "
            "fast as when it was profiled."
        )
    whole = "measured ms" if story.timed else "as a whole, by the device's model, ms"
    head = ("network", "", "predicted ms", whole, "seed beside it, ms", "difference")
    return note + "</p>" + table(head, rows, style="left2")


def training(story: Story) -> str:
    """The loss of every training."""
    done = story.outcomes(Train)
    if not done:
        return "<p>None yet.</p>"
    drawn = "".join(
        charts.curve(
            outcome["losses"],
            outcome["steps"],
            title=f"Network {task.number}: {task.objective}",
            y_name="loss",
        )
        for task, outcome in done
    )
    note = (
        "<p class=soft>Means of consecutive steps; every chart has its own scale. The loss of a "
        "recovery has the terms of distillation too: it is not to be compared with the others.</p>"
    )
    rows = [(str(number), f"{loss:.5f}") for number, loss in story.state.losses.items()]
    held_out = table(("network", "loss on held-out pictures"), rows) if rows else ""
    return f'<div class="curves">{drawn}</div>{note}{held_out}'


def cost(story: Story) -> str:
    """Time by phase, compiles, pictures and evaluations."""
    seconds, compiles = story.spent("seconds"), story.spent("compiles")
    whole = sum(seconds.values()) or 1.0
    counts = {kind: sum(type(t).__name__ == kind for t, _ in story.entries) for kind in seconds}
    rows = [
        (
            PHASES[kind],
            str(counts[kind]),
            f"{seconds[kind]:.1f}",
            f"{seconds[kind] / whole:.0%}",
            f"{compiles[kind]:.0f}",
        )
        for kind in PHASES
        if kind in seconds
    ]
    rows.append(
        (
            "in all",
            str(len(story.entries)),
            f"{sum(seconds.values()):.1f}",
            "100%",
            f"{sum(compiles.values()):.0f}",
        )
    )
    head = ("phase", "tasks", "seconds", "share", "compilations")
    compile_s = sum(story.spent("compile_seconds").values())
    note = (
        f"Compiling took {compile_s:.0f} s of the time above. A task that was interrupted and "
        "begun again counts once, and loading models not at all."
    )
    return table(head, rows) + f"<p>{work(story)} {note}</p>"


def work(story: Story) -> str:
    """What was done, in a few words: evaluations, pictures, trainings."""
    steps, trainings = story.setting("sampling", "steps"), story.outcomes(Train)
    scored, pictures = len(story.outcomes(Score)), story.images()
    calls = f" by {pictures * steps:,} calls of the U-Net for both branches" if steps else ""
    trained = sum(outcome["steps"] for _, outcome in trainings)
    return (
        f"{scored} evaluations made {pictures:,} pictures{calls}. {len(trainings)} trainings took "
        f"{trained:,} steps."
    )


def settings(story: Story) -> str:
    """What was asked for, and on what."""
    profile = story.outcome(Profile)
    found: dict[str, Any] = {name: v for name, v in story.header.items() if name != "settings"}
    asked = [*_rows(found), *_rows(story.header.get("settings", {}))]
    shown = table(("setting", "value"), asked, style="left3")
    if profile is not None:
        known = _rows(profile["provenance"])
        shown = table(("latency holds for", ""), known, style="left3") + shown
    return shown


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(n, "by default" if value is None else str(value)) for n, value in flat(values)]
