"""Latency models on disk: numbers as safetensors, the rest as JSON with a card. No code is loaded.

A folder holds `model.json`, `model.safetensors` and, in the first, the card: what the model was
fitted on and how wrong it is. A model is a frozen dataclass of scalars, arrays, tables and models.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from latency_models import (
    calibrate,
    components,
    conditioned,
    fewshot,
    gaussian,
    interpolation,
    learned,
    phones,
    rates,
    roofline,
    transfer,
    trees,
)
from latency_models.latency import LatencyModel
from latency_models.rows import decode_row, encode_row
from latency_models.store import replace
from latency_models.table import Table
from search_spaces import values

KNOWN = (
    calibrate.Calibrated,
    components.Basis,
    conditioned.Conditioned,
    fewshot.FewShot,
    fewshot.Kin,
    gaussian.Gaussian,
    interpolation.Interpolated,
    learned.Learned,
    phones.Overhead,
    phones.PhoneGpu,
    phones.Predictor,
    rates.Rates,
    roofline.Roofline,
    transfer.Adapted,
    transfer.Mixture,
    transfer.Prior,
    transfer.Sources,
    trees.Boosted,
    trees.Stratified,
    trees.Trees,
    Table,
)
"""Classes that a file may hold: reading builds no other."""

SCHEMA = 1
MODEL, TENSORS = "model.json", "model.safetensors"


def save(folder: Path, model: LatencyModel, card: Mapping[str, Any]) -> None:
    """Writes `model` and what is to be known of it. `card` is JSON."""
    tensors: dict[str, np.ndarray] = {}
    encoded = _encode(model, "model", tensors)
    packed = save_tensors(tensors)
    content = {
        "schema": SCHEMA,
        "tensors": hashlib.sha256(packed).hexdigest(),
        "model": encoded,
        "card": dict(card),
    }
    # The tensors first: a model whose tensors are others' is told by their hash.
    replace(folder / TENSORS, packed)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    replace(folder / MODEL, text.encode())


def load(folder: Path) -> tuple[LatencyModel, dict[str, Any]]:
    """The model in `folder`, which predicts the same to the bit as the one that was saved, and its
    card. Raises `ValueError` saying what is wrong with the folder."""
    try:
        text, packed = (folder / MODEL).read_bytes(), (folder / TENSORS).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(
            f"no latency model in {folder}: {error.filename} is missing; "
            "`nas latency fit` writes such a folder"
        ) from None
    try:
        content = json.loads(text)
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}, this version reads {SCHEMA}")
        if content["tensors"] != hashlib.sha256(packed).hexdigest():
            raise ValueError(f"{TENSORS} is not the one that {MODEL} was written with")
        model = _decode(content["model"], load_tensors(packed))
        if not isinstance(model, LatencyModel):
            raise ValueError(f"a {type(model).__name__} is no latency model")
        return model, content["card"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{folder} holds no latency model that can be read: {error}; write it again by `nas "
            "latency fit`, with this version"
        ) from error


def _encode(value: Any, name: str, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        tensors[name] = np.ascontiguousarray(value)
        return {"tensor": name}
    if isinstance(value, Table):
        return {"rows": [encode_row(call, row) for call, row in value.rows.items()]}
    if isinstance(value, KNOWN):
        fields = [field.name for field in dataclasses.fields(value)]
        return {
            "class": _name(type(value)),
            "fields": {f: _encode(getattr(value, f), f"{name}.{f}", tensors) for f in fields},
        }
    if isinstance(value, tuple):
        return [_encode(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    if dataclasses.is_dataclass(value):
        raise ValueError(f"a {type(value).__name__} cannot be saved; {_possible()} can")
    return values.encode(value)


def _decode(data: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    if isinstance(data, list):
        return tuple(_decode(item, tensors) for item in data)
    if not isinstance(data, dict):
        return values.decode(data)
    if "tensor" in data:
        return tensors[data["tensor"]]
    if "rows" in data:
        return Table(dict(map(decode_row, data["rows"])))
    found = {_name(cls): cls for cls in KNOWN}.get(data["class"])
    if found is None:
        raise ValueError(f"a model of class {data['class']}; this version has {_possible()}")
    return found(**{name: _decode(value, tensors) for name, value in data["fields"].items()})


def _possible() -> str:
    return ", ".join(sorted(_name(cls) for cls in KNOWN))


def _name(cls: type) -> str:
    return cls.__name__
