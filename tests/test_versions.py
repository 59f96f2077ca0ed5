"""Sequences as values: old versions stay as they were, and share what they can with the new."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.strategies.exploration import Proposal, Trials
from nas.strategies.outcomes import failed, scored
from nas.strategies.versions import WIDTH, Places, Vector

edits = st.lists(st.tuples(st.integers(0, 10**6), st.booleans()), max_size=120)


def grown(count: int) -> Vector[int]:
    found = Vector[int]()
    for item in range(count):
        found = found.add(item)
    return found


@given(edits)
def test_every_version_is_what_a_list_would_have_been(steps):
    versions, lists = [Vector[int]()], [[]]
    for number, adds in steps:
        at = number % len(versions)  # Any version can be gone on from.
        vector, items = versions[at], list(lists[at])
        if adds or not items:
            vector, items = vector.add(number), [*items, number]
        else:
            place = number % len(items)
            vector = vector.set(place, number)
            items[place] = number
        versions.append(vector)
        lists.append(items)
    for vector, items in zip(versions, lists, strict=True):
        assert [*vector] == items and len(vector) == len(items) and vector[:] == tuple(items)
        assert all(vector[i] == items[i] for i in range(-len(items), len(items)))


@pytest.mark.parametrize("count", [0, 1, WIDTH, WIDTH + 1, WIDTH**2, WIDTH**2 + 1, 3 * WIDTH**2])
def test_a_vector_may_be_long(count):
    vector = grown(count)
    assert [*vector] == [*range(count)] and vector == grown(count)
    for start, stop, step in ((count // 2, None, None), (1, -1, 2), (None, None, -3), (9, 2, None)):
        part = slice(start, stop, step)
        assert vector[part] == tuple(range(count))[part]
    with pytest.raises(IndexError, match=f"no item {count} of {count}"):
        vector[count]
    with pytest.raises(IndexError, match=f"no item {count} of {count}"):
        vector.set(count, 0)


def nodes(vector: Vector) -> dict[int, tuple]:
    found, left = {}, [vector._root]
    while left:
        node = left.pop()
        found[id(node)] = node
        left += [child for child in node if isinstance(child, tuple)]
    return found


def test_a_change_makes_new_only_what_leads_to_it():
    before = grown(5 * WIDTH**2)
    for after in (before.set(77, -1), before.add(-1)):
        assert len(nodes(after).keys() - nodes(before).keys()) == 3
    assert before[77] == 77


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 8)), max_size=60))
def test_a_place_is_where_a_key_came_first_in_its_own_version(steps):
    versions, lists = [Places[int]()], [[]]
    for number, key in steps:
        at = number % len(versions)
        versions.append(versions[at].add(key))
        lists.append([*lists[at], key])
    for places, keys in zip(versions, lists, strict=True):
        assert [*places] == [*dict.fromkeys(keys)]
        for key in range(9):
            assert (key in places) == (key in keys)
            assert places.get(key) == (keys.index(key) if key in keys else None)


def test_trials_know_how_many_of_the_first_are_done():
    trials = Trials()
    for number in range(4):
        trials = trials.added(Proposal(number, (0, 1)))
    assert trials.shards == 8
    later = trials.told(1, 0, scored([1.0])).told(1, 1, scored([1.0]))
    assert later.settled == 0
    first = later.told(0, 1, failed("it broke"))
    assert first.settled == 2 and first.told(0, 0, scored([2.0])).settled == 2
    assert (trials.settled, later.settled) == (0, 0)


def test_notes_are_handed_on_and_not_back():
    before = Trials().added(Proposal("a", (0,)))
    before.notes["known"] = 1
    after = before.told(0, 0, scored([1.0]))
    after.notes["known"] = 2
    assert before.notes == {"known": 1} and before.told(0, 0, scored([1.0])).notes == before.notes
