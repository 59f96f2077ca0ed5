"""The space of one's own that the documentation shows is one, and is as short as it says."""

import re
from pathlib import Path

import pytest

from nas.cli import run
from nas.journal import read

PAGE = (Path(__file__).parent.parent / "docs" / "plug-ins.md").read_text()


@pytest.mark.usefixtures("here")
def test_the_page_s_example_is_searched_by_the_page_s_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    command = re.search(r"^    nas (explore my_space:study .*)$", PAGE, re.MULTILINE)
    assert code is not None and command is not None
    lines = [line for line in code[1].splitlines() if line and "import" not in line]
    assert len(lines) <= 32
    (tmp_path / "my_space.py").write_text(code[1])
    assert run(command[1].split()) == 0
    said = capsys.readouterr().out
    assert "The best: Net(widths=(" in said and "report    runs/study/report.html" in said
    assert len(read(tmp_path / "runs" / "study" / "journal.jsonl")[1]) > 10
