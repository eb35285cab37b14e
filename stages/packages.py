"""Files and folders that come in installed Python packages, such as the weights of a model."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from pathlib import Path

from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.extras import EXTRAS, MissingExtra

PACKAGE = "package:"
_PINNED = re.compile(r"([\w.]+(?:/[\w.-]+)+)#sha256=([0-9a-f]{64})")


def packaged_path(text: str) -> Path:
    """The path that `package:NAME/…` means: data in an installed Python package.

    ValueError if there is no such package here.
    """
    name, _, rest = text.removeprefix(PACKAGE).partition("/")
    if name == "jobs":
        name = "clipmill.jobs"  # the name in recipes for releases before 0.2
    try:
        spec = importlib.util.find_spec(name) if name.replace(".", "").isidentifier() else None
    except ModuleNotFoundError:  # of its parent package
        spec = None
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if folder is None or not rest:
        raise ValueError(f"{text}: expected package:NAME/path of an installed Python package")
    return Path(folder, rest)


def pinned(text: str) -> dict[str, str]:
    """The fields of a reference `package:NAME/path#sha256=HEX`; ValueError if it isn't one."""
    found = _PINNED.fullmatch(text.removeprefix(PACKAGE))
    if found is None or ".." in found[1].split("/"):
        raise ValueError(
            f"{text}: expected package:NAME/path#sha256=… with 64 hexadecimal digits in lower case"
        )
    return {"package": found[1], "sha256": found[2]}


def installed(package: str, setting: str) -> Path:
    """Where `NAME/path` lies here. Raises MissingExtra if the package isn't installed, and
    UsageError if it lacks the path; both name the setting."""
    name, _, rest = package.partition("/")
    try:
        path = packaged_path(PACKAGE + package)
    except ValueError as error:
        extra = EXTRAS.get(name)
        what = f"clipmill[{extra}]" if extra else _requirement(name)
        raise MissingExtra(
            f"{setting}: the Python package {name}, whose {rest} it names, is not installed: "
            f"pip install '{what}'"
        ) from error
    if not path.exists():
        raise UsageError(
            f"{setting}: the installed {_version(name)} has no {rest}; "
            f"pip install '{_requirement(name)}', or set {setting} to another file"
        )
    return path


def check_same(package: str, expected: str, found: str, setting: str) -> None:
    """ClipmillError if the SHA-256 of what is installed is not the expected one."""
    if found == expected:
        return
    name, _, rest = package.partition("/")
    override = shell_word(f"{PACKAGE}{package}#sha256={found}")
    raise ClipmillError(
        f"{setting}: {rest} of the installed {_version(name)} has the SHA-256 {found}, not "
        f"{expected}. pip install '{_requirement(name)}' brings the file that is expected; to use "
        f"the installed one: --set {setting}={override}"
    )


def _requirement(name: str) -> str:
    """What to ask pip for: with the version that Clipmill's own metadata wants."""
    wanted = _plain(name)
    for line in metadata.requires("clipmill") or ():
        requirement = line.partition(";")[0].strip()
        if (found := re.match(r"[\w.-]+", requirement)) and _plain(found[0]) == wanted:
            return requirement
    return wanted


def _version(name: str) -> str:
    try:
        return f"{name} {metadata.version(_plain(name))}"
    except metadata.PackageNotFoundError:
        return name


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
