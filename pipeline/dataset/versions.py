"""Versions of the code that made a run: the package's, and the commit in a checkout."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from importlib import metadata
from pathlib import Path

from clipmill import pipeline

ROOT = Path(pipeline.__path__[0]).resolve().parent
"""The checkout, if Clipmill is installed from one."""
# Packages whose version may change what a run does.
_PACKAGES = (
    "av",
    "decord",
    "duckdb",
    "huggingface_hub",
    "imageio-ffmpeg",
    "numpy",
    "open_clip_torch",
    "opencv-python-headless",
    "pyarrow",
    "ray",
    "safetensors",
    "scenedetect-headless",
    "sentencepiece",
    "timm",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
    "yt-dlp",
)


@functools.cache
def code_version() -> str:
    """E.g. `0.1.0` from a wheel, `0.1.0+3f2a9c1` or `…-changed` from a checkout."""
    try:
        version = metadata.version("clipmill")
    except metadata.PackageNotFoundError:
        version = "0"
    if not (ROOT / ".git").exists():
        return version
    try:
        said = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty=-changed", "--exclude=*"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{said.stdout.strip()}"


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that media, models and tables depend on."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
