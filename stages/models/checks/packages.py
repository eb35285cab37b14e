"""Python packages that a model needs and that are missing here, as a sentence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.extras import missing_extra

# What to install for a module, or for a library's name in transformers' messages, if that differs.
_TO_INSTALL = {
    "cv2": "opencv-python-headless",
    "flash_attn": "flash-attn",
    "google": "protobuf",
    "open_clip": "open_clip_torch",
    "opencv": "opencv-python-headless",
    "pil": "pillow",
    "pyav": "av",
    "qwen_vl_utils": "qwen-vl-utils",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# What transformers says if a processor, a tokenizer or a model's own code needs packages.
_SAID = (
    re.compile(r"packages that were not found in your environment: ([^\n]+?)\. Run"),
    re.compile(r"pip install ((?:[\w.-]+(?:\[\w,]+\])?)(?: [a-zA-Z][\w.-]*(?=[ `\"'.\n]|$))*)"),
    re.compile(r"requires the (?:🤗 )?(\S+) library but it was not found"),
    re.compile(r"need to install (\S+)"),
)
_TOKENIZERS = re.compile(r"need to have (sentencepiece)(?: or (tiktoken))? installed")


def missing_packages(error: BaseException) -> list[str]:
    """What to install, if an exception is about missing packages; an empty list if it is not."""
    text = str(error)
    if found := _TOKENIZERS.search(text):
        return [name for name in found.groups() if name]
    if isinstance(error, ModuleNotFoundError) and error.name:
        return [_to_install(error.name.partition(".")[0])]
    if isinstance(error, ImportError):
        for pattern in _SAID:
            if match := pattern.search(text):
                return [_to_install(name) for name in re.split(r"[,\s]+", match[1]) if name]
    return []


def _to_install(name: str) -> str:
    name = name.strip("`'\".").lower()
    return _TO_INSTALL.get(name, name)


@contextlib.contextmanager
def packages_explained(setting: str) -> Iterator[None]:
    """Turns an exception about missing packages into an error with the command that helps."""
    try:
        yield
    except ClipmillError:
        raise
    except (ImportError, ValueError) as error:
        names = missing_packages(error)
        if not names:
            raise
        said = missing_extra(error) if isinstance(error, ModuleNotFoundError) else None
        several = len(names) > 1 and not _TOKENIZERS.search(str(error))
        needed = (" and " if several else " or ").join(names)
        raise ClipmillError(
            f"{setting}: {said}"
            if said
            else f"{setting}: the model needs the Python {'packages' if several else 'package'} "
            f"{needed}, which {'are' if several else 'is'} not installed: "
            f"pip install {' '.join(names)}"
        ) from error
