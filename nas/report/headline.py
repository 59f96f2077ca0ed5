"""What was asked, what came out and how sure that is, in sentences."""

import math
import textwrap
from typing import NamedTuple

from latency_models.latency import Latency
from nas.evolution import Evolve, Measure, Profile, Reference, Score, Task, Train, Validate
from nas.report.story import Estimate, Result, Story, describe
from search_spaces.actions import Copy

SURE = 2.0  # Standard errors from which on a result would hardly come out otherwise.


class Verdict(NamedTuple):
    """How the search ended; `mood` is "good", "bad" or "open"."""

    mood: str
    text: str


def verdict(story: Story) -> Verdict:
    """Whether the search is over and its result keeps to the budget."""
    result = story.result
    if not story.finished:
        over = f" Network {result.number} is over the budget." if result else ""
        text = f"Unfinished: {upcoming(story.waiting)}.{over} This is what is known so far."
        return Verdict("open", text)
    assert result is not None
    sure = certainty(story.reserve(result), timed=story.timed)
    if story.kept:
        return Verdict("good", f"The searched U-Net keeps to the budget{sure}.")
    return Verdict("bad", f"The searched U-Net is over the budget{sure}: the search has failed.")


def certainty(reserve: float, *, timed: bool) -> str:
    """By how much a budget is kept or missed, in standard errors of what was measured (`timed`) or
    predicted."""
    if math.isinf(reserve):
        return " (by a latency model, which has no spread)"
    if not timed:
        return f", as predicted, by {abs(reserve):.1f} of the prediction's standard errors"
    by = f", by {abs(reserve):.1f} standard errors"
    return by if abs(reserve) >= SURE else f"{by}, so that a repetition may find otherwise"


def upcoming(waiting: tuple[Task, ...]) -> str:
    """The task that comes next."""
    match waiting[0]:
        case Profile():
            return "no latency is known yet"
        case Reference():
            return "the ceiling and the floor of the score come next"
        case Score(number, removed):
            without = f" without {removed}" if removed else ""
            left = f", of {len(waiting)} scores of this round" if len(waiting) > 1 else ""
            return f"scoring network {number}{without} comes next{left}"
        case Train(number, _, _, objective):
            return f"the {objective} training of network {number} comes next"
        case Evolve(number):
            return f"what to change in network {number} is decided next"
        case Measure(number):
            return f"the latency of network {number} as a whole comes next"
        case Validate(number):
            return f"the validation loss of network {number} comes next"


def asked(story: Story) -> str:
    """What was asked for: pipeline, device, budget."""
    return (
        f"Asked for: a U-Net for {story.header.get('pipeline', 'the pipeline')} that takes "
        f"{budget(story)} a call, on {device(story)}."
    )


def budget(story: Story, *, brief: bool = False) -> str:
    """The budget in words and, unless `brief`, in milliseconds once the seed was measured."""
    strategy = story.strategy
    if strategy.unit == "ms":
        return f"{strategy.budget:g} ms"
    share = f"{100 * strategy.budget:g}% of the seed's latency"
    if brief or story.state.seed_ms is None:
        return share
    return f"{share} ({strategy.limit_ms(story.state):.3f} ms, as it was profiled)"


def device(story: Story) -> str:
    """The device in words."""
    found = story.known
    if found is None:
        return "a device that is not recorded yet"
    if not story.timed:
        return f"{found.device} ({found.runtime}), which is not here"
    threads = (
        f", {found.threads} thread{'s' if found.threads != 1 else ''}" if found.threads else ""
    )
    return f"{found.device}{threads} ({found.runtime})"


def findings(story: Story) -> list[str]:
    """Latency, score and how sure both are, a sentence or two each."""
    if story.state.seed_ms is None:
        return []
    return [
        *_known(story),
        *_latency(story),
        *_score(story),
        *_references(story),
        *_model(story),
    ]


def _known(story: Story) -> list[str]:
    """How a device is known on which nothing was measured."""
    if story.timed or story.known is None:
        return []
    how = story.known.source or story.known.method
    return [f"No latency was measured: all are of a model of that device, {how}."]


def _latency(story: Story) -> list[str]:
    result = story.result
    if result is None:
        number = story.state.current
        takes = "takes" if story.timed else "is predicted to take"
        found = f"The seed's U-Net {takes} {story.state.seed_ms}"
        if number and story.foreseen[number].ms != story.latency(0).ms:
            found += f", network {number} an estimated {story.foreseen[number]}"
        return [f"{found}. No result was {story.how} as a whole yet."]
    how = "Measured in turns" if story.timed else "By the latency model"
    before = (
        predicted(result)
        if story.timed
        else f"The sum of its blocks, by which the search chose: {result.predicted}."
    )
    return [
        f"{how}: {result.found} against the seed's {result.seed}, "
        f"{percent(result.share)} of it. {before}"
    ]


def predicted(result: Result) -> str:
    """What had been predicted of the result, against what was measured."""
    error, off = result.predicted.std, result.adjusted.ms - result.predicted.ms
    by = f", {abs(off) / error:.1f} of the prediction's standard errors" if error else ""
    drift = result.adjusted.ms / result.found.ms
    speed = f" (at the speed the machine had when the seed was profiled, {result.adjusted})"
    return (
        f"Predicted: {result.predicted}. What was measured"
        f"{'' if math.isclose(drift, 1, abs_tol=5e-4) else speed} "
        f"is {abs(result.excess):.1%} {'more' if off > 0 else 'less'}{by}."
    )


def percent(share: Latency) -> str:
    """A share of a latency, with its standard error if it has one."""
    return f"{share.ms:.1%}" + (f" ± {share.std:.1%}" if share.std else "")


def _score(story: Story) -> list[str]:
    numbers = story.scored()
    if not numbers:
        return []
    before, number = story.score(0), numbers[-1]
    if number == 0:
        return [f"CLIP score of the seed: {score(before)}, R@5 {story.recall(0):.0%}."]
    after, change = story.score(number), story.difference(number)
    low, high = change.interval
    return [
        f"CLIP score of network {number}: {score(after)}, the seed's {score(before)}. "
        f"The difference is {change.mean:+.4f}, its 95% interval {low:+.4f} to {high:+.4f} "
        f"(paired over {change.size} prompts). "
        f"R@5 is {story.recall(number):.0%}, the seed's {story.recall(0):.0%}."
    ]


def score(found: Estimate) -> str:
    return f"{found.mean:.4f} ± {found.error:.4f}"


def _references(story: Story) -> list[str]:
    references, numbers = story.references(), story.scored()
    if references is None:
        return []
    places = [
        f"{'the seed' if number == 0 else f'network {number}'} at "
        f"{references.share(story.score(number).mean):.0%}"
        for number in dict.fromkeys((*numbers[:1], *numbers[-1:]))
    ]
    between = f" On the way from one to the other are {' and '.join(places)}." if places else ""
    return [
        f"Real pictures score {references.real.mean:.4f} with their own prompts (R@5 "
        f"{references.recall:.0%}) and {references.mismatched.mean:.4f} with the wrong ones."
        + between
    ]


def _model(story: Story) -> list[str]:
    latency, strategy = story.state.latency, story.strategy
    assert latency is not None
    count, off = len(story.calibration()), f"{latency.residual:.1%} (standard deviation)"
    said = (
        f"Predictions add up calls measured one by one; on the {count} whole networks they were "
        f"calibrated with they are off by {off}."
        if story.timed
        else f"The search adds up calls that the model priced one by one, calibrated on what it "
        f"says of {count} whole networks; the error of that, the model's own included, is {off}."
    )
    return [
        f"{said} Against the budget the search held predictions plus {strategy.caution:g} of their "
        "standard errors."
    ]


def edits(story: Story) -> str:
    """Everything that was done to the seed, in one sentence."""
    done = [action for found in story.rounds() for action in found.actions]
    copied = sum(isinstance(action, Copy) for action in done)
    counts = f"{len(done) - copied} blocks removed, {copied} copied"
    return f"{counts}: {describe(done)}." if done else "No block was changed yet."


def summary(story: Story, lines: int = 24, columns: int = 100) -> str:
    """A few lines for the terminal; the list of edits is cut to fit."""
    said = [verdict(story).text, asked(story), *findings(story)]
    found = [line for paragraph in said for line in _wrapped(paragraph, columns, 5)]
    found += _wrapped(edits(story), columns, max(1, lines - len(found)))
    return "\n".join(found[:lines])


def _wrapped(paragraph: str, columns: int, lines: int) -> list[str]:
    return textwrap.wrap(
        paragraph, columns, max_lines=lines, placeholder=" ...", break_on_hyphens=False
    )
