"""Models of transformers that turn a text or a picture into vectors, without a head."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import ClipmillError


def load_backbone(folder: Path) -> Any:
    """The model in float32 on the CPU; ClipmillError if its files lack weights.

    Only safetensors, or pickles with weights_only. A pooler that the files lack is made at random,
    as transformers does: nothing must read it.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        model, loaded = transformers.AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            weights_only=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except pickle.UnpicklingError as error:
        raise ClipmillError(
            f"{folder} contains a pickle with more than weights, which may run code when it is "
            "loaded; use the model's safetensors"
        ) from error
    missing = sorted(name for name in loaded["missing_keys"] if "pooler" not in name)
    if missing:
        raise ClipmillError(
            f"{folder} lacks {len(missing)} weights that {type(model).__name__} needs, the first "
            f"of them {missing[0]}"
        )
    return model
