"""What the golden outputs are the outputs of: configurations, and inputs made from seeds."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.drawn import normal

_UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
}
# The published U-Nets at full depth and little width.
SMALL = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "norm_num_groups": 4,
    "cross_attention_dim": 24,
    "layers_per_block": 2,
    "block_out_channels": [8, 16, 24, 24],
    "attention_head_dim": 4,
    "down_block_types": [*3 * ["CrossAttnDownBlock2D"], "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *3 * ["CrossAttnUpBlock2D"]],
}
THREE = {
    **SMALL,
    "block_out_channels": [8, 16, 24],
    "down_block_types": 3 * ["CrossAttnDownBlock2D"],
    "up_block_types": 3 * ["CrossAttnUpBlock2D"],
}
SDXL = {
    **THREE,
    "down_block_types": ["DownBlock2D", *2 * ["CrossAttnDownBlock2D"]],
    "up_block_types": [*2 * ["CrossAttnUpBlock2D"], "UpBlock2D"],
    "attention_head_dim": [1, 2, 3],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 10,
}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "sd-1.5": SMALL,
    "sd-2.1": {**SMALL, "attention_head_dim": [1, 2, 3, 4], "use_linear_projection": True},
    "sdxl": SDXL,
    "bk-sdm-base": {**SMALL, "layers_per_block": 1},
    "bk-sdm-small": {**SMALL, "layers_per_block": 1, "mid_block_type": None},
    "bk-sdm-tiny": {**THREE, "layers_per_block": 1, "mid_block_type": None},
    "koala-1b": {**SDXL, "layers_per_block": 1, "transformer_layers_per_block": [1, 2, 6]},
    "koala-700m": {
        **SDXL,
        "layers_per_block": 1,
        "transformer_layers_per_block": [1, 2, 5],
        "mid_block_type": None,
    },
}
UNETS = {
    "unet-default": {
        **_UNET,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 4,
    },
    "unet-sd-2.1": {
        **_UNET,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "transformer_layers_per_block": [1, 2],
    },
}
AUTOENCODER = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 16],
    "down_block_types": 2 * ["DownEncoderBlock2D"],
    "up_block_types": 2 * ["UpDecoderBlock2D"],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "sample_size": 16,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 12,
}
_TEXT = {
    **_TOWER,
    "model_type": "clip_text_model",
    "vocab_size": 50,
    "max_position_embeddings": 8,
    "bos_token_id": 48,
    "pad_token_id": 0,
}
# An end token of 2 means the largest id: configurations before 2023.
TEXT = {**_TEXT, "hidden_act": "gelu", "eos_token_id": 2}
CLIP = {
    "model_type": "clip",
    "projection_dim": 12,
    "text_config": {**_TEXT, "hidden_act": "quick_gelu", "eos_token_id": 40},
    "vision_config": {
        **_TOWER,
        "model_type": "clip_vision_model",
        "hidden_act": "quick_gelu",
        "image_size": 16,
        "patch_size": 4,
    },
}
_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
_SOLVERS = {
    "ddim": {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False},
    "dpm": {"_class_name": "DPMSolverMultistepScheduler"},
    "dpm-sigma-min": {
        "_class_name": "DPMSolverMultistepScheduler",
        "final_sigmas_type": "sigma_min",
    },
}
SAMPLERS = {
    f"{solver}-{spacing}-{prediction}": {
        **_SCHEDULE,
        **_SOLVERS[solver],
        "timestep_spacing": spacing,
        "steps_offset": int(spacing == "leading"),
        "prediction_type": prediction,
    }
    for solver, spacing, prediction in itertools.product(
        _SOLVERS, ("leading", "trailing", "linspace"), ("epsilon", "v_prediction")
    )
}
STEPS = (2, 5, 20)

NOISE = normal(0, 2, 2, 2, 3)
LATENTS = normal(1, 2, 8, 8, 4)
PIXELS = normal(2, 2, 16, 16, 3)
CONTEXT = normal(3, 2, 5, 12)
TIMESTEPS = np.array([3.0, 981.0], np.float32)
# Ids above the end token, and more than one of it: a wrong place shows.
IDS = np.array([[48, 3, 40, 5, 49, 40, 0, 0], [48, 7, 8, 2, 10, 11, 40, 45]], np.int32)
TOKENS = 5
Values = Mapping[str, np.ndarray]


def inputs_of(config: Mapping[str, Any]) -> Values:
    size = config["sample_size"]
    found = {
        "sample": normal(0, 2, size, size, config["in_channels"]),
        "timestep": np.array([3.0, 981.0], np.float32),
        "context": normal(1, 2, TOKENS, config["cross_attention_dim"]),
    }
    if "addition_embed_type" in config:
        found["pooled"] = normal(2, 2, 10)
        found["sizes"] = np.array([[64, 48, 0, 3, 64, 64], [16, 16, 5, 0, 32, 32]], np.float32)
    return found
