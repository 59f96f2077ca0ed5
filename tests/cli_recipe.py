"""A recipe for the command line, on models that a test has written to `NAS_TEST_MODELS`."""

import dataclasses
import os
from pathlib import Path

from nas.executors import Pool
from nas.recipe import Pools, Recipe
from tests import tiny


def recipe() -> Recipe:
    folder = Path(os.environ["NAS_TEST_MODELS"])
    return tiny.recipe(tiny.Folders(folder / "pipeline", folder / "clip"))


def split() -> Recipe:
    """The same, trained by a worker that spans two hosts."""
    trainer = Pool(resources={"trainer": 1.0}, hosts=2)
    return dataclasses.replace(recipe(), pools=Pools(training=trainer))


def nothing() -> int:
    return 0
