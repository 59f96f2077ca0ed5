"""The space of one's own that the documentation shows is one, and is as short as it says."""

import re
import sys
import types
from pathlib import Path
from typing import Any

from nas.strategies.exploration import Exploration

PAGE = Path(__file__).parent.parent / "docs" / "plug-ins.md"


def run(code: str, monkeypatch) -> dict[str, Any]:
    """What `code` defines, as a module of its own: that is where a journal finds its classes."""
    module = types.ModuleType("an_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, module.__dict__)
    return module.__dict__


def test_the_page_s_example_runs_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    lines = [line for line in code[1].splitlines() if line and "import" not in line]
    assert len(lines) < 32
    found = run(code[1], monkeypatch)
    strategy, state = found["strategy"], found["state"]
    assert isinstance(strategy, Exploration) and len(state.trials) == 20
    best = strategy.best(state)
    assert best is not None and strategy.problem.fits(best.spec)
    assert strategy.front(state, ["phone"]) and strategy.front(state, ["board"])
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[: len(whole) // 2])
    run(code[1], monkeypatch)
    assert journal.read_bytes() == whole
