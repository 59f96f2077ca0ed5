"""Frozen dataclasses as JSON and back: how specs, ops and actions are stored.

A value is written with its class's import path. Reading finds the class among the modules already
imported and never imports one, so a file cannot make code run.
"""

import dataclasses
import sys
from typing import Any

_TYPE = "type"


def encode(value: Any) -> Any:
    """`value` as JSON types. Raises `TypeError` on what is no frozen dataclass, tuple or scalar."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        fields = {
            field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
        return {_TYPE: f"{cls.__module__}:{cls.__qualname__}", **fields}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot store {value!r}: only frozen dataclasses, tuples and scalars")


def decode(data: Any) -> Any:
    """Inverse of `encode`. Raises `ValueError` on what `encode` cannot have written."""
    if isinstance(data, list):
        return tuple(decode(item) for item in data)
    if not isinstance(data, dict):
        return data
    if _TYPE not in data:
        raise ValueError(f"an object without a {_TYPE!r}: {sorted(data)}")
    fields = {name: decode(item) for name, item in data.items() if name != _TYPE}
    try:
        return _find(data[_TYPE])(**fields)
    except TypeError as error:
        raise ValueError(f"cannot build {data[_TYPE]} from {sorted(fields)}: {error}") from None


def _find(path: str) -> type:
    module, _, name = str(path).partition(":")
    cls = getattr(sys.modules.get(module), name, None)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ValueError(f"no class {path} here; import the module that defines it first")
    if not cls.__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"{path} is not a frozen dataclass")
    return cls
