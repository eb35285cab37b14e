"""Fetches the clips and films that annotations/sources.csv lists, from public repositories.

    python -m benchmarks.shots.footage_sources --out DIR [--only NAME …]

A `file` is one file of a repository at a commit, checked against its git hash; `append` puts a
stream's segments one after another; `join` encodes the frames of several files as one film. Some
have no stated licence: they are for measuring on your own machine and are not passed on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

TABLE = Path(__file__).parent / "annotations" / "sources.csv"
RAW = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Origin:
    """Where a clip comes from: a column of sources.csv each."""

    file: str
    repo: str
    commit: str
    path: str
    how: str
    git_blob: str
    licence: str
    note: str

    def paths(self) -> Iterator[str]:
        """The files in the repository: `output%d.ts 0-22` stands for 23 of them."""
        if self.how == "file":
            yield self.path
            return
        pattern, span = self.path.rsplit(" ", 1)
        first, last = (int(v) for v in span.split("-"))
        for number in range(first, last + 1):
            yield pattern % number


def origins() -> list[Origin]:
    with TABLE.open(newline="") as rows:
        return [Origin(**row) for row in csv.DictReader(rows)]


def _download(origin: Origin, path: str) -> bytes:
    url = f"{RAW}/{origin.repo}/{origin.commit}/{urllib.parse.quote(path)}"
    with urllib.request.urlopen(url) as answer:
        data: bytes = answer.read()
    return data


def fetch(origin: Origin, out: Path) -> None:
    parts = [_download(origin, path) for path in origin.paths()]
    if origin.how == "join":
        _join(parts, out)
        return
    data = b"".join(parts)
    found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if origin.git_blob and found != origin.git_blob:
        raise SystemExit(f"{origin.file}: {origin.repo} has another file at {origin.path} now")
    out.write_bytes(data)


def _join(parts: Sequence[bytes], out: Path) -> None:
    """Encodes the frames of several files as one film at 25 frames per second."""
    with tempfile.TemporaryDirectory() as folder, av.open(str(out), "w") as written:
        stream, number = None, 0
        for data in parts:
            part = Path(folder) / "part.mp4"
            part.write_bytes(data)
            with av.open(str(part)) as container:
                for frame in container.decode(video=0):
                    if stream is None:
                        options = {"crf": "21", "preset": "veryfast", "threads": "1"}
                        stream = written.add_stream("libx264", rate=25, options=options)
                        stream.width, stream.height = frame.width, frame.height
                        stream.pix_fmt = "yuv420p"
                    picture = frame.reformat(stream.width, stream.height, "yuv420p")
                    picture.pts, picture.time_base = number, Fraction(1, 25)
                    number += 1
                    written.mux(stream.encode(picture))
        if stream is not None:
            written.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the clips")
    parser.add_argument("--only", nargs="*", default=[], help="names of files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for origin in origins():
        path = options.out / origin.file
        if path.exists() or (options.only and origin.file not in options.only):
            continue
        fetch(origin, path)
        print(f"{origin.file}: {origin.repo}, {origin.licence}", flush=True)


if __name__ == "__main__":
    main()
