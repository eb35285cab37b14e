"""Model references: where a model comes from, and its identity.

A reference names a model in one of these ways, in a recipe as one string or as a mapping:

    Salesforce/blip-image-captioning-base@main     a hub id, with or without a revision
    ./models/captioner                             a folder (relative to the recipe's file)
    package:clipmill.jobs/demo/models/captioner    a folder in an installed Python package
    package:NAME/models#sha256=HEX                 the same, of known content (`folder_sha256`)
    http://127.0.0.1:8000/v1#qwen2.5-vl@7b-0125    a model behind an OpenAI-compatible server, with
                                                   or without a revision of your own choice

Servers at several addresses that serve the same model are a list of such references, or one text
with commas: http://a:8000/v1,http://b:8000/v1#qwen2.5-vl.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, model_validator

from clipmill.stages.media.isolation.progress import LargeFile
from clipmill.stages.packages import PACKAGE, packaged_path, pinned

# Files of a model's folder that count for its identity: all that could change its output.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_WEB = ("http://", "https://")
# As the hub takes it.
_HUB_ID = re.compile(r"(?!.*(--|\.\.))[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_NEXT_ADDRESS = re.compile(r"\s*,\s*(?=https?://)")
_CONFIG = (".json", ".txt", ".model", ".jinja", ".tiktoken")


@functools.lru_cache(maxsize=4096)
def _file_sha256(path: str, size: int, modified: int) -> str:
    with LargeFile(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, cached while its size and time are unchanged."""
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
    """A file in settings (a vocabulary, a head's weights) that counts by its content.

    Either `path` is set, or the file's `sha256` with its `url` or, for a file in an installed
    Python package, with `package`; as text `URL#sha256=HEX` and `package:NAME/path#sha256=HEX`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str | None = None
    url: str | None = None
    sha256: str | None = None
    package: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str | Path):
            return value
        text = str(value)
        if text.startswith(PACKAGE) and "#" in text:
            return pinned(text)
        if text.startswith(PACKAGE):
            return {"path": str(packaged_path(text))}
        if text.startswith(_WEB):
            url, _, digest = text.partition("#sha256=")
            return {"url": url, "sha256": digest or None}
        return {"path": text}

    @model_validator(mode="after")
    def _one_place(self) -> DataFile:
        if sum(place is not None for place in (self.path, self.url, self.package)) != 1:
            raise ValueError("a file needs a path, a url or a package")
        if self.package is not None:
            pinned(f"{PACKAGE}{self.package}#sha256={self.sha256}")
        if self.url is not None:
            if not self.url.startswith(_WEB) or not self.name:
                raise ValueError(f"{self.url}: expected the URL of a file, with http or https")
            if not re.fullmatch(r"[0-9a-f]{64}", self.sha256 or ""):
                raise ValueError(
                    "a file from the web needs its SHA-256, so that it is the same file "
                    f"everywhere: {self.url}#sha256=… (64 digits, as `sha256sum` prints them)"
                )
        return self

    def __str__(self) -> str:
        return f"{PACKAGE}{self.package}" if self.package else str(self.url or self.path)

    @property
    def name(self) -> str:
        """The file's own name, without a folder."""
        path = unquote(urlsplit(self.url).path) if self.url else self.package or self.path
        return Path(str(path)).name

    def identity(self) -> str:
        if self.path is None:
            return f"sha256:{self.sha256}"
        path = Path(str(self.path))
        return "sha256:" + file_sha256(path) if path.is_file() else "missing:" + path.name

    def relative_to(self, folder: Path) -> DataFile:
        """The same file; a relative path is resolved from `folder`."""
        if self.path is None:
            return self
        return DataFile(path=str((folder / self.path).resolve()))


def _check_hub_id(name: str) -> None:
    """ValueError if the hub can't have it: often the beginning of an address or path is missing."""
    if name.startswith("open_clip:") or _HUB_ID.fullmatch(name):
        return
    if "#" in name or re.match(r"[\w.-]+:\d", name):
        raise ValueError(
            f"{name}: a server's address begins with http:// or https://, "
            "e.g. http://127.0.0.1:8000/v1#name"
        )
    raise ValueError(
        f"{name}: expected a hub id (OWNER/NAME), a folder (which begins with ./ or /), "
        "or a server (http://HOST:PORT/v1#NAME)"
    )


def _check_server(url: str) -> None:
    """ValueError if no request could be sent to this address."""
    import httpx

    example = "e.g. http://127.0.0.1:8000/v1#name"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"the server's address is not a URL: {error}; {example}") from error
    labels = parsed.host.removesuffix(".").split(".")
    if (
        parsed.scheme not in ("http", "https")
        or not all(0 < len(one) <= 63 for one in labels)
        or not 0 < (parsed.port or 1) < 65536
    ):
        raise ValueError(f"the server's address is not usable: {url}; {example}")


def _served(addresses: Sequence[Any]) -> dict[str, Any]:
    """The fields of a reference to a model that is served at each of these addresses."""
    if not addresses or not all(
        isinstance(address, str) and address.startswith(_WEB) for address in addresses
    ):
        raise ValueError(
            "a list as a model means servers with the same model, "
            "e.g. [http://a:8000/v1#name, http://b:8000/v1#name]"
        )
    urls, names = [], []
    for address in addresses:
        url, _, name = address.partition("#")
        urls.append(url)
        names += [name] * bool(name)
    if len(set(names)) > 1:
        raise ValueError(
            f"servers of one reference serve one model, but these are {len(set(names))}: "
            f"{', '.join(dict.fromkeys(names))}"
        )
    model, _, revision = names[0].partition("@") if names else ("", "", "")
    return {
        "server": urls[0],
        "more_servers": tuple(urls[1:]),
        "model": model or None,
        "revision": revision or None,
    }


class ModelReference(BaseModel):
    """Exactly one of `hub`, `folder`, `server` and `package` is set.

    `model` names the server's model, and `more_servers` serve the same. `sha256` is that of a
    package's folder, as `folder_sha256` computes it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    hub: str | None = None
    revision: str | None = None
    folder: str | None = None
    server: str | None = None
    model: str | None = None
    more_servers: tuple[str, ...] = ()
    package: str | None = None
    sha256: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, Path):
            return {"folder": str(value)}
        if isinstance(value, list | tuple):
            return _served(value)
        if not isinstance(value, str):
            return value
        if value.startswith(_WEB):
            return _served(_NEXT_ADDRESS.split(value))
        if value.startswith(PACKAGE) and "#" in value:
            return pinned(value)
        if value.startswith(PACKAGE):
            return {"folder": str(packaged_path(value))}
        if value.startswith((".", "/", "~")):
            return {"folder": str(Path(value).expanduser())}
        name, _, revision = value.partition("@")
        return {"hub": name, "revision": revision or None}

    @model_validator(mode="after")
    def _one_place(self) -> ModelReference:
        places = (self.hub, self.folder, self.server, self.package)
        if sum(place is not None for place in places) != 1:
            raise ValueError("a model reference needs exactly one of: hub, folder, server, package")
        if self.package is not None:
            pinned(f"{PACKAGE}{self.package}#sha256={self.sha256}")
        if self.more_servers and not self.server:
            raise ValueError("more_servers are further addresses of the model that server names")
        if self.hub is not None:
            _check_hub_id(self.hub)
        if self.server:
            for address in self.servers:
                _check_server(address)
            if not self.model:
                raise ValueError(
                    "a server needs the model's name, e.g. http://127.0.0.1:8000/v1#name"
                )
        return self

    def __str__(self) -> str:
        if self.server:
            return f"{','.join(self.servers)}#{self.served_as}"
        if self.package:
            return f"{PACKAGE}{self.package}"
        if self.folder:
            return self.folder
        return f"{self.hub}@{self.revision}" if self.revision else str(self.hub)

    @property
    def servers(self) -> tuple[str, ...]:
        """All addresses of a served model."""
        return (self.server, *self.more_servers) if self.server else ()

    @property
    def served_as(self) -> str:
        """A served model's name and declared revision."""
        return f"{self.model}@{self.revision}" if self.revision else str(self.model)

    def relative_to(self, folder: Path) -> ModelReference:
        """The same model; a relative folder is resolved from `folder`."""
        if self.folder is None:
            return self
        return self.model_copy(update={"folder": str((folder / self.folder).resolve())})

    def identity(self) -> str:
        """What the results depend on: bytes for a folder, name and revision for the rest.

        A served model is the same at another address, and a package's is known without it.
        """
        if self.package:
            return f"sha256:{self.sha256}"
        if self.folder:
            path = Path(self.folder)
            return "sha256:" + folder_sha256(path) if path.is_dir() else "missing:" + path.name
        if self.server:
            return f"served:{self.served_as}"
        return f"{self.hub}@{self.revision or 'main'}"
