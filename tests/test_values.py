import dataclasses
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.values import decode, encode

_IDLE = "antigravity"  # A module of the standard library that nothing imports.


@dataclasses.dataclass(frozen=True)
class Point:
    x: object = None
    y: object = None


@dataclasses.dataclass
class Thawed:
    x: int = 0


def function() -> None:
    raise AssertionError("it was called")


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.builds(Point, inner, inner)),
    max_leaves=10,
)


@given(values)
def test_values_survive_json(value):
    found = decode(json.loads(json.dumps(encode(value))))
    assert found == value and repr(found) == repr(value)


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, Thawed, function, object(), 1j, b"x"])
def test_what_would_not_be_read_back_equal_is_not_written(value):
    with pytest.raises(TypeError, match="cannot store"):
        encode((1, value))


@pytest.mark.parametrize(
    "path",
    [
        "os:system",
        "builtins:eval",
        "builtins:exec",
        "subprocess:Popen",
        f"{__name__}:function",
        f"{__name__}:gone",
        f"{__name__}:Point.__init__",
        "",
        ":",
        "os",
        "os:",
        ":system",
        7,
        None,
        ["os", "system"],
    ],
)
def test_only_dataclasses_are_built(path):
    with pytest.raises(ValueError, match="no class"):
        decode({"type": path})


def test_reading_imports_nothing(monkeypatch):
    monkeypatch.delitem(sys.modules, _IDLE, raising=False)
    monkeypatch.setattr("webbrowser.open", function)
    with pytest.raises(ValueError, match=f"no class {_IDLE}:fly here; import the module"):
        decode({"type": f"{_IDLE}:fly"})
    assert _IDLE not in sys.modules


def test_a_dataclass_that_is_not_frozen_is_refused():
    with pytest.raises(ValueError, match="Thawed is not a frozen dataclass"):
        decode({"type": f"{__name__}:Thawed", "x": 1})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": 1}, "an object without a 'type'"),
        ({"type": f"{__name__}:Point", "z": 1}, "cannot build .*Point from"),
        ({"type": f"{__name__}:Point", "x": {"y": 2}}, "an object without a 'type'"),
    ],
)
def test_what_was_not_written_is_not_read(data, message):
    with pytest.raises(ValueError, match=message):
        decode(data)
