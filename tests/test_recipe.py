import dataclasses

import pytest

from nas.recipe import Recipe, Sampling, Search, Training, load
from tests import tiny


def make() -> Recipe:
    return tiny.recipe(tiny.Folders(tiny.Path("here"), tiny.Path("there")))


def make_nothing() -> int:
    return 7


CONSTANT = 7


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        ("75%", (0.75, "share")),
        ("100%", (1.0, "share")),
        ("12.5%", (0.125, "share")),
        ("12.5ms", (12.5, "ms")),
        (" 12.5 ms ", (12.5, "ms")),
        (".5ms", (0.5, "ms")),
    ],
)
def test_a_budget_is_a_share_or_milliseconds(budget, limit):
    assert Search(budget=budget).limit() == limit


@pytest.mark.parametrize(
    "budget",
    ["", "75", "ms", "%", "-5ms", "0%", "0.0ms", "1e3ms", "5 s", "nan%", "1.2.3ms", "5ms%"],
)
def test_any_other_budget_is_an_error_that_says_what_is_possible(budget):
    with pytest.raises(ValueError, match=r"is neither milliseconds \('12\.5ms'\) nor a share"):
        Search(budget=budget).limit()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling(prompts=1), "prompts is 1; it must be two or more"),
        (lambda: Sampling(batch=0), "batch is 0; it must be one or more"),
        (lambda: Sampling(steps=-1), "steps is -1"),
        (lambda: Training(robust_steps=0), "robust_steps is 0"),
        (lambda: Training(save_every=0), "save_every is 0"),
        (lambda: Training(rate=0.0), "rate is 0.0; it must be positive"),
        (lambda: Training(skip=1.0), "skip is 1.0; it must be at least 0 and below 1"),
        (lambda: Training(average=-0.1), "average is -0.1"),
        (lambda: Search(group=0), "group is 0"),
        (lambda: Search(caution=-1.0), "caution is -1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_recipe_is_what_a_function_returns():
    found, expected = load(f"{__name__}:make"), make()
    for field in dataclasses.fields(Recipe):
        if field.name not in ("pictures", "references"):
            assert getattr(found, field.name) == getattr(expected, field.name)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.recipe:default", "no recipe gone.recipe:default: .* No module named 'gone'"),
        (f"{__name__}:gone", "has no attribute 'gone'"),
        (__name__, r"among nas.search_spaces \(.*emoji.*give one of these or an import path"),
        (f"{__name__}:CONSTANT", "is no function"),
        (f"{__name__}:make_nothing", "returned a int, not a Recipe"),
        ("", "no recipe"),
        (":default", "no recipe"),
        (".relative:default", "no recipe"),
    ],
)
def test_what_is_no_recipe_is_one_clear_error(path, message):
    with pytest.raises(ValueError, match=message):
        load(path)
