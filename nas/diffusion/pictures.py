"""Pictures as files."""

import io

import numpy as np
from PIL import Image

from nas.places import Place, write_whole

COLUMNS = 8


def write_grid(path: Place, pixels: np.ndarray, *, columns: int = COLUMNS) -> None:
    """Writes pixels in [-1, 1], `[pictures, height, width, 3]`, as one PNG, row by row."""
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    page = np.ones((rows * columns, height, width, channels), np.float32)
    page[:count] = pixels
    page = page.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    page = page.reshape(rows * height, columns * width, channels)
    found = io.BytesIO()
    Image.fromarray(np.round(127.5 * (np.clip(page, -1, 1) + 1)).astype(np.uint8)).save(
        found, "PNG"
    )
    write_whole(path, found.getvalue())
