"""The space of one's own that the documentation shows is one, and is as short as it says."""

import re
import sys
import types
from pathlib import Path

import pytest

from nas.cli import run
from nas.journal import read
from nas.testing.spaces import PlainSpaceLaws

CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
PAGE = (Path(__file__).parent.parent / "docs" / "plug-ins.md").read_text()


def example() -> str:
    found = CODE.search(PAGE)
    assert found is not None
    return found[1]


# Decoding looks specs up by their module.
THEIRS = types.ModuleType("nas_page_of_plug_ins")
sys.modules[THEIRS.__name__] = THEIRS
exec(compile(example(), "docs/plug-ins.md", "exec"), THEIRS.__dict__)


class TestTheSpaceOfThePage(PlainSpaceLaws):
    space = THEIRS.Nets()


@pytest.mark.usefixtures("here")
def test_the_page_s_example_is_searched_by_the_page_s_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = example()
    command = re.search(r"^    nas (explore my_space:study .*)$", PAGE, re.MULTILINE)
    assert command is not None
    lines = [line for line in code.splitlines() if line and "import" not in line]
    assert len(lines) <= 32
    (tmp_path / "my_space.py").write_text(code)
    assert run(command[1].split()) == 0
    said = capsys.readouterr().out
    assert "The best: Net(widths=(" in said and "report    runs/study/report.html" in said
    assert len(read(tmp_path / "runs" / "study" / "journal.jsonl")[1]) > 10
