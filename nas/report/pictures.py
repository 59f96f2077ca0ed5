"""Pictures in the report: the same prompts and seeds before and after."""

import base64
import io
import itertools
from html import escape

from PIL import Image

from nas.diffusion.folders import read_json
from nas.diffusion.pictures import COLUMNS
from nas.places import Place


def pictures(search: Place) -> str:
    """Pairs of pictures in the folder of a search, each under its prompt."""
    folder = search / "pictures"
    listed = folder / "prompts.json"
    if not listed.exists():
        return "<p>The search has not drawn them yet.</p>"
    prompts = read_json(listed)["prompts"]
    before, after = (tiles(folder / f"{name}.png", len(prompts)) for name in ("before", "after"))
    pairs = "".join(
        f"<figure><div>{_image(old, f'before: {prompt}')}{_image(new, f'after: {prompt}')}</div>"
        f"<figcaption>{escape(prompt)}</figcaption></figure>"
        for prompt, old, new in itertools.zip_longest(prompts, before, after, fillvalue=None)
        if prompt is not None
    )
    note = (
        "<p class=soft>The first prompts of those that were scored, not a selection. "
        "Left the seed, right the result: same prompt, same noise, same sampler.</p>"
    )
    return f'{note}<div class="pictures">{pairs}</div>'


def tiles(path: Place, count: int) -> list[Image.Image]:
    """The first `count` pictures of a grid; none if there is no such file."""
    if not path.exists():
        return []
    with Image.open(io.BytesIO(path.read_bytes())) as grid:
        width, height = grid.width // COLUMNS, grid.height // -(-count // COLUMNS)
        corners = [(width * (i % COLUMNS), height * (i // COLUMNS)) for i in range(count)]
        return [grid.crop((x, y, x + width, y + height)) for x, y in corners]


def _image(tile: Image.Image | None, name: str) -> str:
    if tile is None:
        return '<span class="soft">not drawn</span>'
    stream = io.BytesIO()
    tile.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'
