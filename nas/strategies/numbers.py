"""What numbers a policy takes."""

from typing import Any


def whole(policy: Any, **least: int) -> None:
    """Raises `ValueError` naming the first field that is no whole number of at least so many."""
    for name, floor in least.items():
        value = getattr(policy, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < floor:
            raise ValueError(f"{name} is {value!r}; it must be a whole number, {floor} or more")
