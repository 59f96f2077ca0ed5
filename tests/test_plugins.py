"""Plug-ins, in a package that pip installs."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nas import cli, plugins

INFO = "a_plugin-1.2.dist-info"
FILES = {
    "a_plugin/__init__.py": "class Mine:\n    nested = 7\n",
    "a_plugin/broken.py": "x = 1\nimport not_there\n",
    f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: a-plugin\nVersion: 1.2\n",
    f"{INFO}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{INFO}/entry_points.txt": """[nas.strategies]
mine = a_plugin:Mine
broken = a_plugin.broken:Theirs
gone = a_plugin:Gone
""",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder into which pip has installed a plug-in package."""
    wheel = tmp_path_factory.mktemp("wheel") / "a_plugin-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
        archive.writestr(f"{INFO}/RECORD", "".join(f"{name},,\n" for name in FILES))
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    return target


@pytest.fixture
def plugged(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))


def test_an_installed_package_is_listed_with_what_does_not_load_of_it(plugged, capsys):
    assert cli.run(["plugins"]) == 1
    shown = capsys.readouterr().out
    assert "mine  a_plugin:Mine, of a-plugin 1.2" in shown
    assert "ModuleNotFoundError: No module named 'not_there'" in shown
    assert "broken.py, line 2)" in shown and "has no attribute 'Gone'" in shown
    found = {plugin.name: plugin.problem for plugin in plugins.find("nas.strategies")}
    assert found["mine"] is None and found["broken"] and found["gone"]


def test_a_plugin_is_loaded_by_its_name_and_by_its_path(plugged):
    mine = plugins.load("nas.strategies", "mine")
    assert mine is plugins.load("nas.strategies", "a_plugin:Mine") and mine.__name__ == "Mine"
    assert plugins.at("a_plugin:Mine.nested") == 7


def test_without_plugins_all_is_well(capsys):
    assert cli.run(["plugins"]) == 0
    assert "does not load" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("group", "name", "said"),
    [
        ("nas.strategies", "yours", r"no 'yours' among nas.strategies \(.*mine.*import path"),
        ("nas.strategies", "a_plugin:Yours", "a_plugin:Yours cannot be imported: AttributeError"),
        ("nas.strategies", ".a:b", "no import path"),
        ("nas.strategies", "broken", "a_plugin.broken:Theirs cannot be imported"),
        ("nas.toys", "mine", "no group 'nas.toys' .* nas.search_spaces"),
    ],
)
def test_what_is_not_there_is_one_clear_message(plugged, group, name, said):
    with pytest.raises(ValueError, match=said):
        plugins.load(group, name)


def test_one_name_for_two_things_is_an_error(plugged, tmp_path, monkeypatch):
    info = tmp_path / "other-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[nas.strategies]\nmine = json:loads\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"several things \(a-plugin 1.2 has .*, other 0.1 has"):
        plugins.load("nas.strategies", "mine")
