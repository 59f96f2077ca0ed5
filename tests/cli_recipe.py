"""A recipe for the command line, on models that a test has written to `NAS_TEST_MODELS`."""

import os
from pathlib import Path

from nas.recipe import Recipe
from tests import tiny


def recipe() -> Recipe:
    folder = Path(os.environ["NAS_TEST_MODELS"])
    return tiny.recipe(tiny.Folders(folder / "pipeline", folder / "clip"))


def nothing() -> int:
    return 0
