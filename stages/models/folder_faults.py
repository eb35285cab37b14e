"""What keeps a model's folder from being used, where its files' names and first bytes tell it.

What libraries say about such a folder seldom helps: a pointer of Git LFS is "not valid JSON", an
adapter "lacks a model_type".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from clipmill.schemas.command_line import shell_word
from clipmill.schemas.words import counted

_SAFE = ".safetensors"
_WEIGHTS = (_SAFE, ".bin", ".pt", ".pth", ".onnx")
_READ = (*_WEIGHTS, ".json", ".txt", ".model", ".jinja", ".tiktoken")
_CONFIGURATIONS = ("config.json", "open_clip_config.json")
_TOKENIZERS = re.compile(
    r"tokenizer\.(json|model)|vocab\.(json|txt)|tekken\.json|.*\.(spm|tiktoken)"
    r"|(spiece|sentencepiece\.bpe|vocab)\.model"
)
_POINTER = b"version https://git-lfs.github.com/"
_MOST_SHOWN = 3

GGUF = (
    "GGUF files are for llama.cpp and Ollama: start one of these with the model and name its "
    "address, such as http://127.0.0.1:8080/v1#NAME, or fetch the model as safetensors"
)


def fault_of(folder: Path, setting: str, said: str) -> str | None:
    """What is wrong with the folder, after its name; None if its files look well.

    `said` is the error that it led to.
    """
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    if pointers := list(_pointers(files.values())):
        return (
            f"holds pointers of Git LFS instead of {counted(len(pointers), 'file')}: "
            f"{_shown(pointers)}; `git lfs pull` in that folder fetches what they stand for"
        )
    has_weights = any(name.endswith(_WEIGHTS) for name in files)
    if not has_weights and any(name.endswith(".gguf") for name in files):
        return f"has weights as GGUF only. {GGUF}"
    if not any(name in files for name in _CONFIGURATIONS):
        return _without_configuration(folder, files, setting)
    if "token" in said.lower() and not any(_TOKENIZERS.fullmatch(name) for name in files):
        return (
            "has no files of a tokenizer (tokenizer.json, or tokenizer.model, vocab.json and the "
            "like); fetch the model again"
        )
    return None


def _without_configuration(folder: Path, files: dict[str, Path], setting: str) -> str | None:
    if "adapter_config.json" in files:
        try:
            base = json.loads(files["adapter_config.json"].read_text("utf-8"))
            name = str(base["base_model_name_or_path"])
        except (OSError, ValueError, LookupError, TypeError):
            name = "its base model"
        return (
            f"is an adapter (LoRA) for {name}, not a whole model; merge it into that (peft's "
            "merge_and_unload) and save the result, or serve both (vLLM: --enable-lora) and name "
            "the server's address and the adapter's name"
        )
    if any(name.endswith(_WEIGHTS) for name in files):
        return None
    below = [
        place.parent
        for pattern in ("snapshots/*", "*")
        for name in _CONFIGURATIONS
        for place in sorted(folder.glob(f"{pattern}/{name}"))
    ]
    if below and "model_index.json" not in files:
        places = ", ".join(place.relative_to(folder).as_posix() for place in below[:_MOST_SHOWN])
        return (
            f"has no config.json, but a folder in it has ({places}): "
            f"--set {setting}={shell_word(str(below[0]))}"
        )
    return None if files else "is empty; fetch the model again"


def _pointers(files: Iterable[Path]) -> Iterator[str]:
    """Names of files whose bytes are elsewhere; not of weights that are here as safetensors."""
    found = {path.name: _is_pointer(path) for path in sorted(files) if path.suffix in _READ}
    has_safe = any(name.endswith(_SAFE) and not elsewhere for name, elsewhere in found.items())
    for name, elsewhere in found.items():
        if elsewhere and not (has_safe and name.endswith(_WEIGHTS[1:])):
            yield name


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_SHOWN]) + (", …" if len(names) > _MOST_SHOWN else "")
