"""CLIP's tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CLIPTokenizer


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer from `folder`. Raises `ValueError` naming a folder that holds none."""
    try:
        return CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers and tokenizers raise many kinds.
        raise ValueError(f"cannot read the tokenizer in {folder}: {error}") from None


def tokenize(tokenizer: Any, texts: Sequence[str], length: int) -> np.ndarray:
    """Token ids, `[texts, length]` int32."""
    found = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length)
    return np.array(found["input_ids"], np.int32)
