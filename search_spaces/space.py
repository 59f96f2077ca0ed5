"""What a search space is: a first spec, the edits legal on a spec, and its lowering."""

import abc
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from search_spaces.program import Program

Spec = TypeVar("Spec")


class Action(Protocol[Spec]):
    """An edit, as data. `apply` is pure and never mutates its argument."""

    def apply(self, spec: Spec) -> Spec:
        """Returns the edited spec. Raises `ValueError` where the edit is not legal."""
        ...


class SearchSpace(abc.ABC, Generic[Spec]):
    """Specs are frozen, hashable dataclasses; equal specs mean equal architectures."""

    @abc.abstractmethod
    def initial(self) -> Spec:
        """The architecture the search starts from."""

    @abc.abstractmethod
    def actions(self, spec: Spec) -> Iterable[Action[Spec]]:
        """All edits that are legal on `spec`; applying any of them stays in the space."""

    @abc.abstractmethod
    def lower(self, spec: Spec) -> Program:
        """The architecture as a program of ops."""
