"""Imports point one way: search_spaces <- latency_models <- nas <- experiments."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    "search_spaces": {"search_spaces"},
    "latency_models": {
        "latency_models",
        "search_spaces.counting",
        "search_spaces.export",
        "search_spaces.model",
        "search_spaces.ops",
        "search_spaces.program",
        "search_spaces.values",
    },
    "nas": {"nas", "latency_models", "search_spaces"},
}
OURS = {*LAYERS, "experiments", "benchmarks", "tests", "ray"}


def imports(text: str) -> Iterator[str]:
    """Names of the modules that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            # `from search_spaces import unet` is an import of `search_spaces.unet`.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong(text: str, allowed: set[str]) -> list[str]:
    return [
        name
        for name in imports(text)
        if name.split(".")[0] in OURS and not any(f"{name}.".startswith(f"{a}.") for a in allowed)
    ]


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        # One module knows of Ray.
        allowed = LAYERS[package] | ({"ray"} if file == ROOT / "nas" / "on_ray.py" else set())
        found = wrong(file.read_text(), allowed)
        assert not found, f"{file.relative_to(ROOT)} may not import {found}"


@pytest.mark.parametrize(
    "text",
    [
        "import nas",
        "from nas import journal",
        "def f():\n    from search_spaces.unet import lower",
        "from search_spaces import unet",
        "import experiments.emoji.recipe",
        "import ray",
        "from tests.tiny import write",
    ],
)
def test_an_import_the_other_way_is_seen(text):
    assert wrong(text, LAYERS["latency_models"])


def test_what_is_not_ours_may_be_imported():
    assert not wrong("import jax\nfrom search_spaces.ops import Op", LAYERS["latency_models"])
