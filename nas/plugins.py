"""What other packages add: objects they name in entry points, and objects at import paths.

A package names its own in `pyproject.toml`,

    [project.entry-points."nas.strategies"]
    mine = "my_package.search:Mine"

and `load("nas.strategies", "mine")` then gives that class, as `load(..., "my_package.search:Mine")`
does without the entry. Nothing is imported before it is asked for.
"""

import importlib
import traceback
from collections.abc import Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Any, NamedTuple

GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "nas.search_spaces": "a function without arguments that gives a `nas.recipe.Recipe` of a "
        "U-Net, or a `nas.study.Study` of another space",
        "nas.latency_models": "a function that fits a `LatencyModel` to latencies by call",
        "nas.scorers": "a function of a folder that gives a `nas.scoring.Judge`",
        "nas.strategies": "a class or function that gives a `nas.strategies.exploration.Policy`",
    }
)
"""Groups of entry points, and what theirs are to be."""


class Plugin(NamedTuple):
    """An entry point of a package, or what is wrong with it."""

    group: str
    name: str
    path: str
    package: str
    problem: str | None


def find(group: str) -> list[Plugin]:
    """The entry points of a group, by name, each imported to see whether it can be.

    Raises `ValueError` on a group that is none of `GROUPS`.
    """
    _known(group)
    return [_tried(point) for point in sorted(_points(group), key=lambda p: (p.name, p.value))]


def load(group: str, name: str) -> Any:
    """The object that an entry point of the group names, or that is at an import path.

    Raises `ValueError` saying what there is, or why it cannot be imported.
    """
    _known(group)
    if ":" in name:
        return at(name)
    points = [point for point in _points(group) if point.name == name]
    if not points:
        there = ", ".join(sorted({point.name for point in _points(group)})) or "none is installed"
        raise ValueError(
            f"no {name!r} among {group} ({there}); give one of these or an import path, "
            "`package.module:name`"
        )
    if len({point.value for point in points}) > 1:
        several = ", ".join(sorted(f"{_package(p)} has {p.value}" for p in points))
        raise ValueError(f"{name!r} of {group} is several things ({several}); give an import path")
    return at(points[0].value)


def at(path: str) -> Any:
    """The object at an import path, `package.module:name`. Raises `ValueError` saying why not."""
    module, _, name = path.partition(":")
    if not module or not name or module.startswith("."):
        raise ValueError(f"{path!r} is no import path, which is `package.module:name`")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ValueError(f"{path} cannot be imported: {_said(error)}") from error
    return found


def _tried(point: metadata.EntryPoint) -> Plugin:
    try:
        at(point.value)
        problem = None
    except ValueError as error:
        problem = str(error)
    return Plugin(point.group, point.name, point.value, _package(point), problem)


def _said(error: Exception) -> str:
    """What happened and, if it was in a file that was being imported, where."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = (
        ""
        if last.filename == importlib.__file__ or "importlib" in last.filename
        else (f" ({last.filename}, line {last.lineno})")
    )
    return f"{type(error).__name__}: {error}{where}"


def _points(group: str) -> list[metadata.EntryPoint]:
    # A package installed twice, as where it is developed, names the same twice.
    unique = {
        (point.name, point.value, _package(point)): point
        for point in metadata.entry_points(group=group)
    }
    return list(unique.values())


def _package(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def _known(group: str) -> None:
    if group not in GROUPS:
        raise ValueError(f"no group {group!r} of plug-ins; there are {', '.join(GROUPS)}")
