"""What the documents show is what is there."""

import re
from pathlib import Path

import pytest

from search_spaces.counting import NONE, macs
from search_spaces.ops import model
from search_spaces.presets import PRESETS
from search_spaces.program import calls
from search_spaces.unet import lower

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "design-space.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_example_of_an_edit_runs():
    (example,) = (block for block in PYTHON if "space.illegal" in block)
    exec(example, {})


def test_the_example_of_an_op_is_the_one_that_is_tested():
    assert (ROOT / "experiments" / "convnext.py").read_text() in PYTHON


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_presets_says_what_is_counted(name):
    spec, inputs = PRESETS[name]()
    found = calls(lower(spec), inputs).values()
    size = sum(model(call).size for call in found) / 1e6
    total = sum((macs(call) for call in found), NONE).total / 1e9
    assert f"| `{name}` | {size:.2f} | {total:.1f} |" in PAGE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert link.startswith("http") or (page.parent / link).exists(), link
