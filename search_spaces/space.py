"""What a search space is: a first spec, the edits legal on a spec, and its lowering.

A search that never builds anything takes no more than a `Space`. A `SearchSpace` is one of
networks: its specs lower to programs, and weights follow its edits.
"""

import abc
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Protocol, TypeVar

from search_spaces.model import Weights
from search_spaces.ops import Call, Shape, output
from search_spaces.program import Program, calls
from search_spaces.surgery import Calibration, Carried

Spec = TypeVar("Spec")


class Edit(Protocol[Spec]):
    """A change of a spec, as a frozen, hashable value. It never mutates its arguments."""

    def apply(self, spec: Spec) -> Spec:
        """The edited spec. Raises `ValueError` with the reason where the edit is not legal."""
        ...


class Space(Protocol[Spec]):
    """All that a strategy has to know. Specs are frozen dataclasses, equal where they mean the
    same."""

    def initial(self) -> Spec:
        """The architecture the search starts from."""
        ...

    def actions(self, spec: Spec) -> Iterable[Edit[Spec]]:
        """All edits that are legal on `spec`; applying any of them stays in the space."""
        ...


class Action(Edit[Spec], Protocol[Spec]):
    """An edit of a network, which says how weights follow."""

    calibrated: ClassVar[bool]
    """Whether `carry` needs calibration samples."""

    def inverse(self, spec: Spec) -> "Action[Spec] | None":
        """The edit that leads from `apply(spec)` back to `spec`; none where there is none."""
        ...

    def carry(self, spec: Spec, weights: Weights, calibration: Calibration) -> Carried:
        """The weights of `apply(spec)`, made of those of `spec`."""
        ...


class SearchSpace(Space[Spec], abc.ABC):
    """A space of networks: equal specs mean equal architectures."""

    inputs: Mapping[str, Shape]
    """Shapes at which the network is deployed."""

    @abc.abstractmethod
    def initial(self) -> Spec:
        """The architecture the search starts from."""

    @abc.abstractmethod
    def candidates(self, spec: Spec) -> Iterable[Action[Spec]]:
        """All edits of `spec` that this space knows, legal or not."""

    @abc.abstractmethod
    def lower(self, spec: Spec) -> Program:
        """The architecture as a program of ops."""

    def actions(self, spec: Spec) -> Iterator[Action[Spec]]:
        """All edits that are legal on `spec`; applying any of them stays in the space. Raises
        `ValueError` where `spec` itself is no network."""
        before = calls(self.lower(spec), self.inputs)
        for action in self.candidates(spec):
            if self._illegal(spec, action, before) is None:
                yield action

    def illegal(self, spec: Spec, action: Action[Spec]) -> str | None:
        """Why `action` is not legal on `spec`; none where it is."""
        try:
            before = calls(self.lower(spec), self.inputs)
        except (TypeError, ValueError) as error:
            return str(error)
        return self._illegal(spec, action, before)

    def _illegal(self, spec: Spec, action: Action[Spec], before: Mapping[str, Call]) -> str | None:
        try:
            edited = action.apply(spec)
            after = calls(self.lower(edited), self.inputs)
        except (TypeError, ValueError) as error:
            return str(error)
        if edited == spec:
            return f"{action} changes nothing"
        given, wanted = (output([*found.values()][-1]) for found in (after, before))
        if given != wanted:
            return f"the network would give {given.shape} instead of {wanted.shape}"
        return self.unfit(action, before, after)

    def unfit(
        self, action: Action[Spec], before: Mapping[str, Call], after: Mapping[str, Call]
    ) -> str | None:
        """Why `action`, which keeps the network's interface, is not legal, given the calls before
        and after it; none where it is. A space with rules of its own says them here."""
        return None
