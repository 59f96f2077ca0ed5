"""The laws every search space obeys. Subclass `SpaceLaws` to hold your space to them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.ops import Shape, model, output
from search_spaces.program import calls, network
from search_spaces.space import SearchSpace
from search_spaces.unet import UNetSpec, lower
from search_spaces.values import decode, encode

walks = st.lists(st.integers(0, 10**6), max_size=8)
"""Random walks through a space: which of the legal actions is taken, modulo their number."""


class SpaceLaws:
    space: ClassVar[SearchSpace[Any]]
    inputs: ClassVar[Mapping[str, Shape]]

    @settings(max_examples=10)
    @given(walks)
    def test_every_action_stays_in_the_space(self, walk):
        spec = walked(self.space, walk)
        shape = self._result(self.space.initial())
        for action in self.space.actions(spec):
            assert self._result(action.apply(spec)) == shape  # Raises if ill-typed.

    @given(walks)
    def test_actions_change_the_architecture(self, walk):
        spec = walked(self.space, walk)
        assert all(action.apply(spec) != spec for action in self.space.actions(spec))

    @given(walks)
    def test_actions_are_pure(self, walk):
        spec = walked(self.space, walk)
        before = repr(spec)
        for action in self.space.actions(spec):
            assert repr(action.apply(spec)) == repr(action.apply(spec))
        assert repr(spec) == before

    @given(walks)
    def test_specs_and_actions_survive_json(self, walk):
        spec = walked(self.space, walk)
        found = decode(json.loads(json.dumps(encode(spec))))
        assert found == spec and repr(found) == repr(spec)  # Names are not compared by `==`.
        for action in self.space.actions(spec):
            assert decode(json.loads(json.dumps(encode(action)))) == action

    @given(walks)
    def test_equal_specs_hash_equal_and_lower_to_equal_calls(self, walk):
        spec, again = walked(self.space, walk), walked(self.space, walk)
        assert spec == again and hash(spec) == hash(again)
        ours, theirs = (calls(self.space.lower(s), self.inputs) for s in (spec, again))
        assert list(ours.values()) == list(theirs.values())

    @settings(max_examples=2)  # Each builds a network.
    @given(walks)
    def test_a_network_has_the_parameters_of_its_calls(self, walk):
        program = self.space.lower(walked(self.space, walk))
        parts = calls(program, self.inputs)
        named = {
            f"{step}.{name}": shape
            for step, call in parts.items()
            for name, shape in model(call).shapes.items()
        }
        built = network(program, self.inputs)
        assert built.shapes == named
        assert built.size == sum(model(call).size for call in parts.values())

    def _result(self, spec: Any) -> Shape:
        program = self.space.lower(spec)
        return output(calls(program, self.inputs)[program[-1].name])


def walked(space: SearchSpace[Any], walk: Sequence[int]) -> Any:
    """Where `walk` leads, from the space's first spec."""
    spec = space.initial()
    for choice in walk:
        actions = list(space.actions(spec))
        spec = actions[choice % len(actions)].apply(spec)
    return spec


def same_function(one: UNetSpec, other: UNetSpec) -> bool:
    """Whether two U-Nets are one program but for the names of its steps."""
    first, second = lower(one), lower(other)
    names = {a.name: b.name for a, b in zip(first, second, strict=False)}
    return len(first) == len(second) and all(
        a.op == b.op and tuple(names.get(read, read) for read in a.reads) == b.reads
        for a, b in zip(first, second, strict=True)
    )
