"""What the scripts of a folder of models read of its manifest: written there as `subject.py`, so
it stands by itself and runs on any Python 3.8.

python3 subject.py hash NAME FORMAT: the hash of its model, all files of which have to be those that
were written; python3 subject.py inputs NAME: its inputs as iree-benchmark-module takes them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

_KINDS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int32": "i32"}


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def together(parts: dict[str, str]) -> str:
    """SHA-256 of a model in several files, of their hashes by path: of what `sha256sum` prints."""
    lines = "".join(f"{parts[path]}  {path}\n" for path in sorted(parts))
    return hashlib.sha256(lines.encode()).hexdigest()


def checked(folder: Path, name: str, form: str) -> tuple[Path, str]:
    """The main file of a model and the model's hash. Exits where a file is not the one that was
    written, or none was."""
    files = json.loads((folder / "manifest.json").read_text())["subjects"][name]["files"]
    if form not in files:
        sys.exit(f"no {form} of {name} was written")
    parts = files[form]["parts"]
    for path, written in parts.items():
        if not (folder / path).is_file() or digest(folder / path) != written:
            sys.exit(f"{path} is not the one that was written")
    return folder / files[form]["file"], together(parts)


def _inputs(folder: Path, name: str) -> list[str]:
    subject = json.loads((folder / "manifest.json").read_text())["subjects"][name]
    return [
        f"--input={'x'.join([*map(str, sizes), _KINDS[kind]])}="
        + ("1" if kind.startswith("int") else "0.5")
        for sizes, kind in subject["arguments"].values()
    ]


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    verb, subject, *rest = sys.argv[1:]
    if verb == "hash":
        print(checked(here, subject, rest[0])[1])
    else:
        print("\n".join(_inputs(here, subject)))
