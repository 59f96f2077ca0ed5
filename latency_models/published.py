"""Latencies of diffusion models that others published: facts, each with its source.

They are whole networks or pipelines, by runtimes, precisions and spellings of attention that differ
by up to a factor of nine on one phone, so none stands for its device without those.
"""

import csv
import dataclasses
from pathlib import Path

from latency_models.provenance import Method, Provenance

FILE = Path(__file__).parent / "tables" / "published.csv"


@dataclasses.dataclass(frozen=True)
class Published:
    """A published latency. `component` is unet, unet_step (with guidance a batch of two), pipeline,
    vae_decoder or text_encoder; `steps` are those of a pipeline. `confidence` is exact, approx, or
    bound where the source says "under". Texts are empty where the source does not say."""

    device: str
    chip: str
    runtime: str
    precision: str
    attention: str
    model: str
    component: str
    resolution: int
    batch: int
    steps: str
    latency_ms: float
    stat: str
    note: str
    source: str
    confidence: str

    @property
    def provenance(self) -> Provenance:
        return Provenance(
            device=self.device,
            runtime=self.runtime,
            versions=(("chip", self.chip), ("statistic", self.stat)),
            precision=self.precision,
            attention=self.attention,
            threads=None,
            method=Method.PUBLISHED,
            source=self.source,
        )


def read(path: Path = FILE) -> tuple[Published, ...]:
    """The published latencies. Raises `ValueError` with the line that is malformed."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        expected = [field.name for field in dataclasses.fields(Published)]
        if reader.fieldnames != expected:
            raise ValueError(f"{path}, line 1: columns {reader.fieldnames}, not {expected}")
        return tuple(_row(row, f"{path}, line {reader.line_num}") for row in reader)


def _row(row: dict[str, str], place: str) -> Published:
    try:
        numbers = {"resolution": int(row["resolution"]), "batch": int(row["batch"])}
        found = Published(**{**row, **numbers, "latency_ms": float(row["latency_ms"])})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error
    if not found.latency_ms > 0 or not found.source:
        raise ValueError(f"{place}: a latency above zero and its source, not {row}")
    return found
