"""The laws every search space obeys. Subclass one class to hold your space to them.

    class TestMine(PlainSpaceLaws):  # Of two methods; a `SearchSpace` of networks has SpaceLaws.
        space = MySpace(...)

Hypothesis walks through the space by random edits; pytest finds the laws.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.model import Weights
from search_spaces.ops import Shape, model, output
from search_spaces.program import Program, calls, network
from search_spaces.space import Action, SearchSpace, Space
from search_spaces.surgery import Calibration, Samples
from search_spaces.values import decode, encode

walks = st.lists(st.integers(0, 10**6), max_size=24)
"""Random walks through a space: which of the edits is tried next, modulo their number."""


class PlainSpaceLaws:
    """Of any space: what strategies, the journal and its replay rely on."""

    space: ClassVar[Space[Any]]

    @settings(max_examples=4)  # Listing all edits may take long.
    @given(walks)
    def test_every_edit_changes_the_spec_and_leads_to_one_of_the_space(self, walk):
        spec = self._walked(walk)
        for action in self.space.actions(spec):
            edited = action.apply(spec)
            assert edited != spec
            for further in itertools.islice(self.space.actions(edited), 1):
                assert further.apply(edited) != edited

    @settings(max_examples=4)  # Listing all edits may take long.
    @given(walks)
    def test_asking_is_pure(self, walk):
        assert repr(self.space.initial()) == repr(self.space.initial())
        spec = self._walked(walk)
        before = repr(spec)
        assert repr([*self.space.actions(spec)]) == repr([*self.space.actions(spec)])
        assert repr(spec) == before

    @settings(max_examples=20)
    @given(walks)
    def test_edits_are_pure(self, walk):
        for spec, action in self._steps(walk):
            before = repr(spec), repr(action)
            assert repr(action.apply(spec)) == repr(action.apply(spec))
            assert (repr(spec), repr(action)) == before

    @settings(max_examples=20)
    @given(walks)
    def test_specs_and_edits_survive_json(self, walk):
        for spec, action in self._steps(walk):
            for value in (spec, action):
                assert survives_json(value)

    @settings(max_examples=20)
    @given(walks)
    def test_equal_specs_and_edits_hash_equal(self, walk):
        for spec, action in self._steps(walk):
            for value in (spec, action):
                again = decode(json.loads(json.dumps(encode(value))))  # Shares no object with it.
                assert value == again and hash(value) == hash(again)

    @settings(max_examples=20)
    @given(walks, st.integers(0, 10**6))
    def test_neighbours_in_random_order_are_the_neighbours(self, walk, seed):
        shuffled = getattr(self.space, "shuffled", None)
        if shuffled is not None:  # It is for spaces whose neighbours take long to list.
            spec = self._walked(walk)
            found = list(shuffled(spec, np.random.default_rng(seed)))
            assert set(found) == {action.apply(spec) for action in self.space.actions(spec)}

    def _steps(self, walk: Sequence[int]) -> Iterator[tuple[Any, Any]]:
        """The specs of a walk, and the legal edits that lead on."""
        spec = self.space.initial()
        for choice in walk:
            actions = list(self.space.actions(spec))
            if not actions:
                return
            action = actions[choice % len(actions)]
            yield spec, action
            spec = action.apply(spec)

    def _walked(self, walk: Sequence[int]) -> Any:
        """Where a walk leads."""
        spec = self.space.initial()
        for before, action in self._steps(walk):
            spec = action.apply(before)
        return spec


class SpaceLaws(PlainSpaceLaws):
    """Of spaces of networks: edits keep what a network is for, and weights follow."""

    space: ClassVar[SearchSpace[Any]]  # pyright: ignore[reportIncompatibleVariableOverride]

    def _steps(self, walk: Sequence[int]) -> Iterator[tuple[Any, Action[Any]]]:
        return steps(self.space, walk)

    @settings(max_examples=20)
    @given(walks)
    def test_a_legal_edit_changes_the_architecture_and_keeps_its_interface(self, walk):
        for spec, action in steps(self.space, walk):
            edited = action.apply(spec)
            assert edited != spec
            assert _result(self.space, edited) == _result(self.space, spec)

    @settings(max_examples=20)
    @given(walks)
    def test_an_edit_and_its_inverse_give_the_spec_back(self, walk):
        for spec, action in steps(self.space, walk):
            back = action.inverse(spec)
            if back is not None:
                edited = action.apply(spec)
                assert repr(back.apply(edited)) == repr(spec)  # Names are not compared by `==`.
                assert self.space.illegal(edited, back) is None

    @settings(max_examples=20)
    @given(walks)
    def test_inverses_survive_json(self, walk):
        for spec, action in steps(self.space, walk):
            assert survives_json(action.inverse(spec))

    @settings(max_examples=20)
    @given(walks)
    def test_equal_specs_lower_to_equal_calls(self, walk):
        spec = walked(self.space, walk)
        again = decode(json.loads(json.dumps(encode(spec))))  # Shares no object with it.
        ours, theirs = (calls(self.space.lower(s), self.space.inputs) for s in (spec, again))
        assert list(ours.values()) == list(theirs.values())

    @settings(max_examples=20)
    @given(walks)
    def test_an_edit_that_is_not_legal_has_a_reason(self, walk):
        spec = walked(self.space, walk)
        for action in list(self.space.candidates(spec))[len(walk) :: 7]:
            reason = self.space.illegal(spec, action)
            assert reason is None or len(reason) > 10

    @settings(max_examples=3)  # Each builds a network.
    @given(walks)
    def test_a_network_has_the_parameters_of_its_calls(self, walk):
        program = self.space.lower(walked(self.space, walk))
        named = shapes(self.space, program)
        built = network(program, self.space.inputs)
        assert built.shapes == named
        assert built.size == sum(shape.size for shape in named.values())

    def test_weights_go_along_with_an_edit_of_every_kind_and_back(self):
        spec = self.space.initial()
        weights = noise(shapes(self.space, self.space.lower(spec)), seed=1)
        kinds = {
            (type(action), getattr(action, "field", None)): action
            for action in self.space.actions(spec)
        }
        for action in kinds.values():
            edited, back = action.apply(spec), action.inverse(spec)
            carried = self._carried(spec, action, weights)
            if back is not None:
                self._carried(edited, back, carried)

    def _carried(self, spec: Any, action: Action[Any], weights: Weights) -> Weights:
        """What an edit makes of weights, once it was held to what it says of it."""
        found = action.carry(spec, weights, calibration(self.space))
        wanted = shapes(self.space, self.space.lower(action.apply(spec)))
        assert {n: w.shape for n, w in found.weights.items()} == {
            n: s.shape for n, s in wanted.items()
        }
        assert set(found.fresh) <= wanted.keys() and set(found.lost) <= weights.keys()
        assert all(np.isfinite(np.asarray(w)).all() for w in found.weights.values())
        if not action.calibrated:  # What is fitted may be made of weights of other names.
            gone = weights.keys() - wanted.keys()
            assert gone <= set(found.lost)
            untold = wanted.keys() - weights.keys() - set(found.fresh)
            known = np.concatenate([*map(np.ravel, weights.values()), [0.0, 1.0]])
            taken = [np.ravel(found.weights[name]) for name in untold]
            assert np.isin(np.concatenate([*taken, []]), known).all()  # Old numbers, and no other.
        return found.weights


def survives_json(value: Any) -> bool:
    """Whether a value is the same after it was written and read."""
    found = decode(json.loads(json.dumps(encode(value))))
    return found == value and repr(found) == repr(value)


def steps(space: SearchSpace[Any], walk: Sequence[int]) -> Iterator[tuple[Any, Action[Any]]]:
    """The specs of a walk and the legal edits that lead on; edits that are not legal are passed."""
    spec = space.initial()
    for choice in walk:
        candidates = list(space.candidates(spec))
        action = candidates[choice % len(candidates)]
        if space.illegal(spec, action) is None:
            yield spec, action
            spec = action.apply(spec)


def walked(space: SearchSpace[Any], walk: Sequence[int]) -> Any:
    """Where `walk` leads, from the space's first spec."""
    spec = space.initial()
    for before, action in steps(space, walk):
        spec = action.apply(before)
    return spec


def shapes(space: SearchSpace[Any], program: Program) -> dict[str, Any]:
    """Names and shapes of a program's weights, call by call."""
    return {
        f"{step}.{name}": shape
        for step, call in calls(program, space.inputs).items()
        for name, shape in model(call).shapes.items()
    }


def calibration(space: SearchSpace[Any], rows: int = 6) -> Calibration:
    """Samples that are noise."""

    def samples(program: Program, weights: Weights, step: str) -> Samples:
        call = calls(program, space.inputs)[step]
        reads = {
            str(n): Shape((rows, *shape.shape[1:]), shape.dtype)
            for n, shape in enumerate(call.inputs)
        }
        return Samples(
            tuple(noise(reads, seed=2).values()), lambda: noise(model(call).shapes, seed=3)
        )

    return Calibration(space.inputs, samples)


def noise(shapes: Mapping[str, Shape], seed: int) -> Weights:
    """Normal numbers of these shapes."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.standard_normal(shape.shape), shape.dtype)
        for name, shape in shapes.items()
    }


def _result(space: SearchSpace[Any], spec: Any) -> Shape:
    program = space.lower(spec)
    return output(calls(program, space.inputs)[program[-1].name])
