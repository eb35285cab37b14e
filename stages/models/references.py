"""Model references: where a model comes from, and what it is.

A reference names a model in one of three ways, in a recipe as one string or as a mapping:

    Salesforce/blip-image-captioning-base@main     a hub id, with or without a revision
    ./models/captioner                             a folder (relative to the recipe's file)
    http://127.0.0.1:8000/v1#qwen2.5-vl            a model behind an OpenAI-compatible server
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

# What is read from a model's folder for its identity: all that could change its output.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_CONFIG = (".json", ".txt", ".model", ".jinja", ".tiktoken")


@functools.lru_cache(maxsize=4096)
def _file_sha256(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; remembered while size and time of the file stay."""
    status = path.stat()
    return _file_sha256(str(path), status.st_size, status.st_mtime_ns)


def folder_sha256(folder: Path) -> str:
    """SHA-256 over names and bytes of weights, configuration and tokenizer files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in _WEIGHTS + _CONFIG:
            digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


class DataFile(BaseModel):
    """A file of settings (a vocabulary, a head's weights) that counts by its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, str | Path) else value

    def identity(self) -> str:
        path = Path(self.path)
        return "sha256:" + file_sha256(path) if path.is_file() else "missing:" + path.name

    def relative_to(self, folder: Path) -> DataFile:
        """The same file with its path read from `folder` where it is relative."""
        return DataFile(path=str((folder / self.path).resolve()))


def _check_server(url: str) -> None:
    """ValueError where nothing could be asked at this address, whoever listens."""
    import httpx

    example = "e.g. http://127.0.0.1:8000/v1#name"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"the server's address is no URL: {error}; {example}") from error
    labels = parsed.host.removesuffix(".").split(".")
    if (parsed.scheme not in ("http", "https") or not all(0 < len(one) <= 63 for one in labels)
            or not 0 < (parsed.port or 1) < 65536):
        raise ValueError(f"the server's address is none that could be asked: {url}; {example}")


class ModelReference(BaseModel):
    """Exactly one of `hub`, `folder` and `server` is set; `model` names the server's model."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    hub: str | None = None
    revision: str | None = None
    folder: str | None = None
    server: str | None = None
    model: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, Path):
            return {"folder": str(value)}
        if not isinstance(value, str):
            return value
        if value.startswith(("http://", "https://")):
            url, _, model = value.partition("#")
            return {"server": url, "model": model or None}
        if value.startswith((".", "/", "~")):
            return {"folder": str(Path(value).expanduser())}
        name, _, revision = value.partition("@")
        return {"hub": name, "revision": revision or None}

    @model_validator(mode="after")
    def _one_place(self) -> ModelReference:
        if sum(place is not None for place in (self.hub, self.folder, self.server)) != 1:
            raise ValueError("a model reference needs exactly one of: hub, folder, server")
        if self.server:
            _check_server(self.server)
            if not self.model:
                raise ValueError("a server needs the model's name, e.g. "
                                 "http://127.0.0.1:8000/v1#name")
        return self

    def __str__(self) -> str:
        if self.server:
            return f"{self.server}#{self.model}"
        if self.folder:
            return self.folder
        return f"{self.hub}@{self.revision}" if self.revision else str(self.hub)

    def relative_to(self, folder: Path) -> ModelReference:
        """The same model with a relative folder read from `folder`."""
        if self.folder is None:
            return self
        return self.model_copy(update={"folder": str((folder / self.folder).resolve())})

    def identity(self) -> str:
        """What the results depend on: bytes for a folder, name and revision for the rest."""
        if self.folder:
            path = Path(self.folder)
            return "sha256:" + folder_sha256(path) if path.is_dir() else "missing:" + path.name
        if self.server:
            return f"{self.server}#{self.model}"
        return f"{self.hub}@{self.revision or 'main'}"
