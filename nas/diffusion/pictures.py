"""Pictures as files."""

from pathlib import Path

import numpy as np
from PIL import Image

COLUMNS = 8


def write_grid(path: Path, pixels: np.ndarray, *, columns: int = COLUMNS) -> None:
    """Writes pixels in [-1, 1], `[pictures, height, width, 3]`, as one PNG, row by row."""
    count, height, width, channels = pixels.shape
    rows = -(-count // columns)
    page = np.ones((rows * columns, height, width, channels), np.float32)
    page[:count] = pixels
    page = page.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    page = page.reshape(rows * height, columns * width, channels)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(127.5 * (np.clip(page, -1, 1) + 1)).astype(np.uint8)).save(path)
