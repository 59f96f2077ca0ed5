"""The originals, in PyTorch, on the numbers that our models see.

A module that imports this one is skipped where PyTorch or diffusers is not installed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="the originals run in PyTorch")
diffusers: Any = pytest.importorskip("diffusers", reason="the originals are those of diffusers")
transformers: Any = pytest.importorskip("transformers", reason="the originals of CLIP")

# Their own code warns with NumPy 2 and Python 3.12.
marks = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

CLOSE = 1e-4


def perturbed(module: Any) -> Any:
    """`module`, ready to run, with no weight left at zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def given(array: np.ndarray) -> Any:
    """A tensor of `array`; pictures and latents, which have four axes, get channels first."""
    if array.ndim == 4:
        array = array.transpose(0, 3, 1, 2)
    return torch.tensor(array.astype(np.int64) if array.dtype == np.int32 else array)


def taken(tensor: Any) -> np.ndarray:
    """Inverse of `given`."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def theirs(original: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a U-Net of diffusers gives for `inputs`."""
    sample, timestep, context, *more = (given(value) for value in inputs.values())
    added = dict(zip(("text_embeds", "time_ids"), more, strict=True)) if more else None
    with torch.no_grad():
        return taken(original(sample, timestep, context, added_cond_kwargs=added).sample)


def loaded(kind: Any, folder: Any) -> Any:
    """The original's reading of `folder`, which must have every weight and no other."""
    module, found = kind.from_pretrained(folder, output_loading_info=True)
    wrong = {name: keys for name, keys in found.items() if keys and name.endswith("_keys")}
    assert not wrong
    return module.eval()
