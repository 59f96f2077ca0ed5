"""`nas precompute [RECIPE]`: training data encoded once, for any number of searches and workers."""

import dataclasses
from pathlib import Path

import tyro

from nas import precomputed
from nas import recipe as recipes
from nas.diffusion.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Settings:
    """Encodes a recipe's pictures and prompts and stores them, for `nas search --precomputed`.
    Killed at any moment, the same command goes on; what is stored is not made again."""

    out: str
    """Path, or URL that tensorstore understands (file://, s3://, gs://), to write to."""
    pipeline: Path
    """Folder of the pipeline that encodes; by default the recipe's."""
    shard: int = precomputed.SHARD
    """Rows in a file; a multiple of those encoded at once."""


def run(arguments: list[str]) -> int:
    named = bool(arguments) and not arguments[0].startswith("-")
    path = arguments[0] if named else recipes.DEFAULT
    recipe = recipes.load(path)
    prog = f"nas precompute {path}"
    default = Settings(tyro.MISSING, recipe.pipeline)
    settings = tyro.cli(Settings, default=default, args=arguments[named:], prog=prog)
    pipeline = Pipeline.load(settings.pipeline)
    made = there = 0
    for shard in precomputed.write(settings.out, recipe, pipeline, settings.shard):
        made, there = made + shard.made, there + (not shard.made)
        done = "made" if shard.made else "was there"
        rows = f"rows {shard.rows.start} to {shard.rows.stop - 1}"
        print(f"{shard.part}, shard {shard.number}, {rows}: {done}", flush=True)
    print(f"{settings.out} is whole: {made} shards made, {there} were there")
    return 0
