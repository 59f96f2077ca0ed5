"""Hardware-aware architecture search for text-to-image diffusion U-Nets."""

import os

# Only tokenizers of transformers are used; without this, importing it says that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
