"""Sets up the project in `.venv` and runs one of its jobs. Needs Python 3.11 or later, and pip.

    python3.11 bootstrap.py search [SETTINGS]   the main job: `nas search`
    python3.11 bootstrap.py test [SETTINGS]     the tests: `pytest`, a process for each core

Versions are those of `requirements.txt`, which were tested together. The set-up is done once and
again when the versions change.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORES = str(os.cpu_count() or 1)
JOBS = {
    "search": ("-m", "nas", "search"),
    "test": ("-m", "pytest", "--numprocesses", CORES, "--dist", "worksteal"),
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in JOBS:
        sys.exit(__doc__)
    if sys.version_info < (3, 11):
        sys.exit(f"this is Python {sys.version.split()[0]}; nas needs 3.11 or later")
    python = set_up(HERE / ".venv")
    os.chdir(HERE)
    arguments = [str(python), *JOBS[sys.argv[1]], *sys.argv[2:]]
    os.execv(python, arguments)


def set_up(folder: Path) -> Path:
    """Installs the project and its tests' needs into a virtual environment; returns its Python."""
    python = folder / "bin" / "python"
    mark = folder / "installed"
    wanted = hashlib.sha256(
        (HERE / "requirements.txt").read_bytes() + (HERE / "pyproject.toml").read_bytes()
    ).hexdigest()
    if not mark.exists() or mark.read_text() != wanted:
        if not mark.exists():  # Nothing here, or a set-up that was killed.
            venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", "requirements.txt", "-e", ".[test]"], cwd=HERE, check=True)
        mark.write_text(wanted)
    return python


if __name__ == "__main__":
    main()
