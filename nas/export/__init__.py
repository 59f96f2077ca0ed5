"""Networks of a pipeline for other programs, in folders with their weights and a manifest."""

from search_spaces.export import load_stablehlo

__all__ = ["load_stablehlo"]
