"""Tables of TPU estimates as files: those that ship, and those of your own.

A file is JSON: what its rows hold for (a provenance), how they become milliseconds (an estimator
and a calibration), on which published latencies that was calibrated, and the rows, a line each:
a call in bfloat16 and what the compiler says of it. Reading one takes no libtpu.
"""

import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from latency_models.calibrate import Calibrated
from latency_models.measure import Progress
from latency_models.provenance import AS_WRITTEN, Method, Provenance
from latency_models.rows import decode_call, decode_op, encode_call
from latency_models.store import damage, lines, replace
from latency_models.tpu import lowering
from latency_models.tpu.compiler import Cache, Versions, compile_all
from latency_models.tpu.estimates import Estimate, Estimates, Estimator, summed
from latency_models.tpu.generations import Generation, generation
from search_spaces.ops import Call
from search_spaces.values import decode, encode

SCHEMA = 1
FOLDER = Path(__file__).parent.parent / "tables"


class Anchor(NamedTuple):
    """A published latency that a table is calibrated on.

    `left_out_ms` is what is predicted for it by a calibration on the others, none where it is the
    only one.
    """

    network: str
    ms: float
    left_out_ms: float | None
    source: str


class TpuTable(NamedTuple):
    """Estimates of one generation by one compiler, and what they are calibrated to."""

    provenance: Provenance
    model: Calibrated
    anchors: tuple[Anchor, ...]
    networks: Mapping[str, Estimate]  # Compiled as a whole, to see whether calls add up.

    @property
    def estimates(self) -> Estimates:
        assert isinstance(self.model.model, Estimates)
        return self.model.model

    @property
    def calibration(self) -> str:
        """How estimates become milliseconds, in words."""
        fixed = f"{self.model.fixed_ms:.4g} ms + " if self.model.fixed_ms else ""
        return f"{fixed}{self.model.scale:.4g} x {type(self.estimates.estimator).__name__}"

    @property
    def calibrated_on(self) -> str:
        """The published latencies that it is calibrated on, in words."""
        return ", ".join(f"{anchor.network} {anchor.ms:g} ms" for anchor in self.anchors)


def names() -> tuple[str, ...]:
    """The generations whose tables ship."""
    return tuple(sorted(path.stem.removeprefix("tpu-") for path in FOLDER.glob("tpu-*.json")))


def shipped(name: str) -> TpuTable:
    """The table of generation `name` that ships. Raises `ValueError` if there is none."""
    path = FOLDER / f"tpu-{generation(name).name}.json"
    if not path.exists():
        raise ValueError(
            f"no table of TPU {name} ships; there are {', '.join(names())}. Of others no U-Net's "
            "latency is published; `estimated` compiles for them, and is not calibrated"
        )
    return load(path)


def provenance(of: Generation, versions: Versions, source: str) -> Provenance:
    """What the estimates of these versions hold for."""
    return Provenance(
        device=of.device,
        runtime="XLA:TPU, compiled ahead of time",
        versions=versions,
        precision=lowering.PRECISION,
        attention=AS_WRITTEN,
        threads=None,
        method=Method.COMPILED,
        source=source,
    )


def estimated(
    calls: Iterable[Call], of: Generation, cache: Cache, progress: Progress | None = None
) -> dict[Call, Estimate]:
    """A row for each of `calls`, by the compiler that is installed; what `cache` lacks is compiled.

    Rows are of the calls as they run, in bfloat16.
    """
    wanted = list(dict.fromkeys(map(lowering.in_bfloat16, calls)))
    found = compile_all(list(map(lowering.alone, wanted)), of, cache, progress)
    return {call: summed(each, of) for call, each in zip(wanted, found, strict=True)}


def load(path: Path) -> TpuTable:
    """The table at `path`. Rows whose op is not known here are left out.

    Raises `ValueError` if the file is damaged.
    """
    with damage(path, "write it again with `python -m benchmarks.tpu`"):
        return _decoded(json.loads(path.read_bytes()))


def _decoded(content: Mapping[str, Any]) -> TpuTable:
    if content["schema"] != SCHEMA:
        raise ValueError(f"schema {content['schema']!r}, this version reads {SCHEMA}")
    estimator = decode(content["estimator"])
    if not isinstance(estimator, Estimator):
        raise ValueError(f"not an estimator: {estimator!r}")
    rows = {
        decode_call(row): _estimate(row["estimate"])
        for row in content["rows"]
        if decode_op(row["op"])
    }
    return TpuTable(
        Provenance.from_json(content["provenance"]),
        Calibrated(
            Estimates(generation(content["generation"]), rows, estimator), **content["calibration"]
        ),
        tuple(Anchor(**anchor) for anchor in content["anchors"]),
        {name: _estimate(data) for name, data in content["networks"].items()},
    )


def _estimate(data: Mapping[str, Any]) -> Estimate:
    return Estimate(**{**data, "cycles": tuple(data["cycles"].items())})


def _encoded(estimate: Estimate) -> dict[str, Any]:
    return {**dataclasses.asdict(estimate), "cycles": dict(estimate.cycles)}


def write(path: Path, table: TpuTable) -> None:
    """Writes the table, with today's date; a reader finds the old file or the new one."""
    model, estimates = table.model, table.estimates
    header = {
        "schema": SCHEMA,
        "provenance": table.provenance.to_json(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "generation": estimates.generation.name,
        "estimator": encode(estimates.estimator),
        "calibration": {
            "fixed_ms": model.fixed_ms,
            "scale": model.scale,
            "residual": model.residual,
        },
        "anchors": [anchor._asdict() for anchor in table.anchors],
        "networks": {name: _encoded(row) for name, row in table.networks.items()},
    }
    rows = lines({**encode_call(c), "estimate": _encoded(e)} for c, e in estimates.rows.items())
    text = f'{json.dumps(header, indent=1)[:-2]},\n "rows": {rows}}}\n'
    replace(path, text.encode())
