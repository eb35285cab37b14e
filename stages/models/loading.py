"""Turns a model reference into a local folder of files."""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.media.fetch.data_files import Unreachable
from clipmill.stages.models.folder_faults import GGUF
from clipmill.stages.models.published_weights import PAIR, published_weights
from clipmill.stages.packages import check_same, installed
from clipmill.stages.references import DataFile, ModelReference, folder_sha256

logger = logging.getLogger(__name__)

# Configuration, tokenizer and template files. No Python files: code that comes with a model is
# never run.
_CONFIGURATION = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
# What a model in the layout of sentence-transformers has in further folders: 1_Pooling, 2_Dense.
_OF_MODULES = re.compile(r"\d+_\w+/(config\.json|model\.safetensors|pytorch_model\.bin)")
# In order of preference; a later pattern is used only if no earlier one matches. `.bin` is loaded
# with weights_only. open_clip repositories often also hold the same model for transformers.
_WEIGHTS = ("*.safetensors", "*.bin")
_OPEN_CLIP_WEIGHTS = ("open_clip_*.safetensors", "open_clip_*.bin")
# The same weights in another precision or for another framework.
_DUPLICATES = re.compile(r"\.(fp16|fp32)\.|^(flax|tf|rust)_model|^(training_args|optimizer)\b")
_HUB_TIMEOUT_SECONDS = 10.0


class NotFetched(ClipmillError):
    """The hub can't provide a model. `explain` makes the message for settings that name it."""

    def __init__(self, explain: Callable[[Sequence[str]], str], setting: str) -> None:
        super().__init__(explain([setting]))
        self.explain = explain


def local_folder(reference: ModelReference, *, setting: str) -> Path:
    """The folder that holds a model's files, downloaded from the hub if necessary.

    `setting` is named in errors, as `<stage>.<setting>`. If the hub is unreachable, its cache is
    used after a few seconds. Raises UsageError if a local folder lacks files, ClipmillError if the
    hub or an installed package cannot provide the model.
    """
    if reference.server:
        raise UsageError(
            f"{setting}: {reference} is a server; this setting needs a hub id or a local folder"
        )
    if reference.package:
        folder = installed(reference.package, setting)
        check_same(reference.package, str(reference.sha256), folder_sha256(folder), setting)
        return folder
    if reference.folder:
        folder = Path(reference.folder)
        if folder.is_file():
            step = f". {GGUF}" if folder.suffix == ".gguf" else f": name {folder.parent}"
            raise UsageError(f"{setting}: {folder} is a file, and a model is a folder{step}")
        if not folder.is_dir():
            raise UsageError(
                f"{setting}: no folder {folder}; it should contain a model's "
                "configuration and weights (safetensors)"
            )
        return folder
    return hub_folder(repository_of(str(reference.hub)), reference.revision, setting=setting)


def hub_folder(repository: str, revision: str | None, *, setting: str) -> Path:
    """The cache folder of a hub repository with its configuration and one set of weights."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ValueError as error:  # it reads its address on import
        raise ClipmillError(
            f"{setting}: $HF_ENDPOINT ({os.environ.get('HF_ENDPOINT')}) is not a "
            f"URL: {error}; fix or unset it"
        ) from error
    if _is_commit(revision) and (folder := cached_folder(repository, revision)):
        return folder
    try:
        found = HfApi().model_info(repository, revision=revision, timeout=_HUB_TIMEOUT_SECONDS)
        names = [file.rfilename for file in found.siblings or ()]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_wanted(names)))
    # Any cause (name look-up, proxy, HTTP status, disk) is reported with the next step.
    except Exception as error:
        if folder := cached_folder(repository, revision):
            logger.warning("%s is loaded from the hub's cache: %s", repository, error)
            return folder
        explain = partial(_explain, repository, revision, error)
        if _nobody_answers(error):
            raise Unreachable(explain([setting]), _reason(error)) from error
        raise NotFetched(explain, setting) from error


def _nobody_answers(error: BaseException | None) -> bool:
    """Whether the hub could not be reached; any answer from it concerns only this model."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response is not None and error.response.status_code >= 500
        if isinstance(
            error,
            httpx.TransportError | OfflineModeIsEnabled | TimeoutError | LocalEntryNotFoundError,
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def resolved_revision(reference: ModelReference) -> str | None:
    """The commit of a hub model in the cache; None if it isn't cached or isn't from the hub."""
    if not reference.hub:
        return None
    folder = _snapshot(repository_of(reference.hub), reference.revision)
    return folder.name if folder and _is_commit(folder.name) else None


def repository_of(hub: str) -> str:
    """The hub repository behind a hub id; `open_clip:MODEL/WEIGHTS` pairs are looked up."""
    if not hub.startswith(PAIR):
        return hub
    return published_weights(hub).repository


def _is_commit(revision: str | None) -> bool:
    return bool(revision and re.fullmatch(r"[0-9a-f]{40}", revision))


def _snapshot(repository: str, revision: str | None) -> Path | None:
    """The cache folder of a repository's revision, complete or not."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("open_clip_config.json", "config.json"):
        path = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None


def cached_folder(repository: str, revision: str | None) -> Path | None:
    """The cache folder if its weights are complete: a download may have been interrupted."""
    folder = _snapshot(repository, revision)
    if folder is None:
        return None
    needed = set(_weights_among([path.name for path in folder.iterdir()]))
    for index in folder.glob("*.index.json"):
        parts = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        if parts & needed:
            needed |= parts
    return folder if needed and all((folder / name).is_file() for name in needed) else None


def _weights_among(names: Sequence[str]) -> list[str]:
    """The top-level files that match the first weights pattern with any match."""
    candidates = [name for name in names if "/" not in name and not _DUPLICATES.search(name)]
    first = _OPEN_CLIP_WEIGHTS if "open_clip_config.json" in names else ()
    for pattern in (*first, *_WEIGHTS):
        if found := fnmatch.filter(candidates, pattern):
            return found
    return []


def _wanted(names: Sequence[str]) -> list[str]:
    chosen = _weights_among(names)
    if not chosen:
        hint = f". {GGUF}" if any(name.endswith(".gguf") for name in names) else ""
        raise FileNotFoundError(f"it contains no weights as safetensors or .bin{hint}")
    has_modules = "modules.json" in names
    return [
        *chosen,
        *(
            name
            for name in names
            if (
                "/" not in name
                and any(fnmatch.fnmatch(name, pattern) for pattern in _CONFIGURATION)
            )
            or (has_modules and _OF_MODULES.fullmatch(name))
        ),
    ]


def _reason(error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason if len(reason) <= 300 else reason[:299] + "…"


def as_folder(reference: ModelReference | DataFile) -> str | None:
    """That a hub id is also a folder's path, which a recipe writes in another way."""
    hub = reference.hub if isinstance(reference, ModelReference) else None
    if hub is None or hub.startswith(PAIR) or not Path(hub).is_dir():
        return None
    return f"{hub} is a hub's id; the folder of that name here is ./{hub}"


def _explain(
    repository: str, revision: str | None, error: Exception, settings: Sequence[str]
) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    name = f"{repository}@{revision}" if revision else repository
    folder = "./models/" + repository.rpartition("/")[2]
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    those = "the setting" if len(settings) == 1 else "the settings"
    said = (
        f"{', '.join(settings)}: the model {name} could not be fetched from the Hugging Face hub"
        f"{offline}: {_reason(error)}"
    )
    if isinstance(error, FileNotFoundError):
        return said
    own = as_folder(ModelReference(hub=repository))
    token = "with your token (`hf auth login`, or HF_TOKEN in the environment)"
    if isinstance(error, GatedRepoError):
        own = f"Ask for access at https://huggingface.co/{repository}, and run again {token}"
    elif isinstance(error, RepositoryNotFoundError) and own is None:
        own = f"Check the name; a private model is fetched {token}"
    return (
        said
        + (f"\n{own}." if own else "")
        + (
            f"\nOn a machine that can reach the hub, `hf download {repository} "
            f"--local-dir {folder}` gets it; then point {those} to that folder: "
            f"{' '.join(f'--set {setting}={folder}' for setting in settings)}"
        )
    )
