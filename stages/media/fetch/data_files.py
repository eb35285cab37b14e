"""Finds data files: local ones, and remote ones, which are downloaded once into a cache."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.retries import Backoff, retried
from clipmill.stages.packages import check_same, installed
from clipmill.stages.references import DataFile, file_sha256

if TYPE_CHECKING:
    import httpx

_TIMEOUT_SECONDS = 20.0
_BACKOFF = Backoff(retries=2, first_seconds=1.0, longest_seconds=2.0)
_MOST_REASON_CHARACTERS = 200


class Unreachable(ClipmillError):
    """Something could not be fetched because its server did not answer."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def cache_folder() -> Path:
    """Folder of downloaded files, named by their SHA-256."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipmill" / "files"


def local_file(file: DataFile, *, setting: str) -> Path:
    """The local path of a data file, downloaded if necessary.

    `setting` is named in errors, as `<stage>.<setting>`. A path is returned unchanged, whether
    the file exists or not. Raises ClipmillError if a file can't be fetched (Unreachable if its
    server doesn't answer), is in a package that isn't installed, or doesn't match the recipe's
    checksum.
    """
    if file.package is not None:
        path = installed(file.package, setting)
        check_same(file.package, str(file.sha256), file_sha256(path), setting)
        return path
    if file.url is None:
        return Path(str(file.path))
    place = cache_folder() / str(file.sha256) / file.name
    try:
        if place.is_file() and file_sha256(place) == file.sha256:
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{uuid.uuid4().hex}.part")
        try:
            _fetch(file, partial, setting)
            os.replace(partial, place)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ClipmillError(
            f"{setting}: {file.url} can't be stored in {cache_folder()}: "
            f"{error.strerror or error}; free some space or set XDG_CACHE_HOME to "
            "another folder"
        ) from error
    return place


def how_to_fetch(file: DataFile, setting: str) -> tuple[str, str]:
    """The command that downloads a file to this machine, and the option that then names it."""
    own = shell_word(f"./{file.name}")
    return f"curl --location --output {own} {shell_word(str(file.url))}", f"--set {setting}={own}"


def _fetch(file: DataFile, target: Path, setting: str) -> None:
    """Writes the file to `target`; raises if it isn't the expected one."""
    import httpx
    from huggingface_hub import constants

    from clipmill.stages.media.fetch.proxies import proxies_of_environment

    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
        raise Unreachable(_explain(file, setting, reason), reason)
    with proxies_of_environment():
        client = httpx.Client(timeout=_TIMEOUT_SECONDS, follow_redirects=True)
    try:
        with client:
            digest, kind = retried(
                lambda: _stream(client, str(file.url), target),
                _BACKOFF,
                httpx.HTTPError,
                may_pass=_may_pass,
            )
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise ClipmillError(_explain(file, setting, f"HTTP {status}")) from error
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise Unreachable(_explain(file, setting, reason), reason) from error
    if digest != file.sha256:
        raise ClipmillError(
            f"{setting}: {file.url} returned a different file: {target.stat().st_size:,} "
            f"bytes of {kind} with SHA-256 {digest}, not {file.sha256}; either it changed, or "
            f"something on the way answered instead. The file was discarded. To use the new one: "
            f"--set {setting}={shell_word(f'{file.url}#sha256={digest}')}"
        )


def _may_pass(error: httpx.HTTPError) -> bool:
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.ConnectError)


def _stream(client: httpx.Client, url: str, target: Path) -> tuple[str, str]:
    """Streams a URL to a file; returns its SHA-256 and its media type."""
    digest = hashlib.sha256()
    with client.stream("GET", url) as answer, open(target, "wb") as output:
        answer.raise_for_status()
        for piece in answer.iter_bytes():
            digest.update(piece)
            output.write(piece)
        return digest.hexdigest(), answer.headers.get("Content-Type") or "an unknown kind"


def _explain(file: DataFile, setting: str, reason: str) -> str:
    command, override = how_to_fetch(file, setting)
    return (
        f"{setting}: {file.name} could not be fetched from {file.url}: "
        f"{reason[:_MOST_REASON_CHARACTERS]}\nOn a machine that can reach it, `{command}` "
        f"downloads it; then add {override}"
    )
