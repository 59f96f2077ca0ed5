"""The pictures of the embedded default: about 1,700 concepts drawn in seven styles, captioned."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent / "data"
DROPPED = ("flags", "symbols")  # Nearly text, which 32 pixels cannot hold.


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures with captions, one row each, concepts numbered as in `concepts.jsonl`."""

    rgba: np.ndarray  # uint8 [rows, 32, 32, 4], straight alpha.
    prompts: tuple[str, ...]  # Style phrase and caption.
    captions: tuple[str, ...]  # The caption alone.
    others: tuple[tuple[str, ...], ...]  # Other captions of the same concept.
    concepts: np.ndarray  # int [rows]
    styles: np.ndarray  # str [rows]
    splits: np.ndarray  # str [rows]: train, val_combo or val_concept.

    def __len__(self) -> int:
        return len(self.prompts)

    def where(self, mask: np.ndarray) -> "Pictures":
        """The rows where `mask` is true."""
        return self.take(np.flatnonzero(mask))

    def take(self, rows: np.ndarray) -> "Pictures":
        """These rows, in this order."""
        pick = lambda values: tuple(values[row] for row in rows)  # noqa: E731
        return Pictures(
            self.rgba[rows],
            pick(self.prompts),
            pick(self.captions),
            pick(self.others),
            self.concepts[rows],
            self.styles[rows],
            self.splits[rows],
        )

    def of(self, *splits: str, styles: tuple[str, ...] | None = None) -> "Pictures":
        """The rows of these splits, and of these styles where given."""
        mask = np.isin(self.splits, splits)
        return self.where(mask if styles is None else mask & np.isin(self.styles, styles))

    def on_white(self) -> np.ndarray:
        """Pixels in [-1, 1], `[rows, 32, 32, 3]` float32, over a white background."""
        return over(self.rgba, np.ones(3, np.float32))


def over(rgba: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Pixels in [-1, 1] of uint8 `rgba` over `background` colours in [-1, 1]."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return alpha * (rgba[..., :3].astype(np.float32) / 127.5 - 1) + (1 - alpha) * background


def load(folder: Path = DATA) -> Pictures:
    """All pictures but flags and symbols."""
    concepts, rows = _lines(folder / "concepts.jsonl"), _lines(folder / "captions.jsonl")
    with np.load(folder / "images_32.npz") as arrays:
        rgba = arrays["images"]
    kept = [row["index"] for row in rows if concepts[row["concept"]].get("group") not in DROPPED]
    rows = [rows[index] for index in kept]
    return Pictures(
        rgba[kept],
        tuple(row["prompt"] for row in rows),
        tuple(row["caption"] for row in rows),
        tuple(tuple(concepts[row["concept"]].get("alt_captions", ())) for row in rows),
        np.array([row["concept"] for row in rows]),
        np.array([row["style"] for row in rows]),
        np.array([row["split"] for row in rows]),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return [json.loads(line) for line in file]
