"""A partly downloaded file: records what is certainly on disk, so that a later process can resume.

download.mp4        the bytes so far
download.mp4.json   how many of them are on disk, and of which version of the file
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.fetch.problems import PassingProblem

# Compressions that are decompressed although not requested: some servers always apply them.
UNPACKED = ("gzip", "x-gzip", "deflate")

_NOTE_EVERY_SECONDS = 2.0
_CHUNK_BYTES = 1 << 20
# Video hardly compresses. Beyond a certain size, data that expands this much is not a video but an
# attempt to fill the disk.
_MOST_GROWTH = 50
_GROWTH_COUNTS_FROM_BYTES = 10_000_000


class Partial:
    """The file at `path` while the answer to `url` is written to it.

    `validator` identifies the server's version of the file; without one nothing can be resumed.
    """

    def __init__(self, path: Path, url: str) -> None:
        self._path, self._url = path, url
        self._note = path.with_name(f"{path.name}.json")
        self._noted_at = time.monotonic()
        self.received = 0
        self.total: int | None = None
        self.validator: str | None = None
        self.content_type = ""
        self.digest = hashlib.sha256()

    def __enter__(self) -> Partial:
        self._file: BinaryIO = open(self._path, "r+b" if self._path.exists() else "w+b")
        try:
            self._take_up()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._note.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self.digest.update(chunk)
        self.received += len(chunk)
        if self.validator and time.monotonic() - self._noted_at >= _NOTE_EVERY_SECONDS:
            self._write_note()

    def restart(self) -> None:
        """Discards the partial file."""
        self._note.unlink(missing_ok=True)
        self._file.seek(0)
        self._file.truncate()
        self.received = 0
        self.digest = hashlib.sha256()
        self.validator = self.total = None

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _take_up(self) -> None:
        """Resumes from what an earlier process recorded; starts again if that can't be trusted."""
        note = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            note = json.loads(self._note.read_text("utf-8"))
        if note.get("url") != self._url or not note.get("validator"):
            self.restart()
            return
        left = note["received"]
        while left > 0 and (chunk := self._file.read(min(left, _CHUNK_BYTES))):
            self.digest.update(chunk)
            left -= len(chunk)
        if left:
            self.restart()
            return
        self._file.truncate(note["received"])
        self._file.seek(note["received"])
        self.received, self.total = note["received"], note["total"]
        self.validator, self.content_type = note["validator"], note["content_type"]

    def _write_note(self) -> None:
        self.finish()
        temporary = self._note.with_suffix(".tmp")
        temporary.write_text(
            json.dumps(
                {
                    "url": self._url,
                    "validator": self.validator,
                    "total": self.total,
                    "received": self.received,
                    "content_type": self.content_type,
                }
            ),
            "utf-8",
        )
        os.replace(temporary, self._note)
        self._noted_at = time.monotonic()


def unpacked(chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """The decompressed bytes, in bounded pieces; RowFailed if they grow implausibly."""
    if not encoding:
        yield from chunks
        return
    # Window size plus 32: detects the header of gzip or zlib automatically.
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
    packed = grown = 0
    try:
        for chunk in chunks:
            packed += len(chunk)
            left = chunk
            while left and not inflater.eof:
                piece = inflater.decompress(left, _CHUNK_BYTES)
                left = inflater.unconsumed_tail
                grown += len(piece)
                if grown > max(packed * _MOST_GROWTH, _GROWTH_COUNTS_FROM_BYTES):
                    raise RowFailed(
                        "bad_media",
                        f"the compressed answer grew from {packed} to "
                        f"more than {grown} bytes: that is not a video",
                    )
                if piece:
                    yield piece
    except zlib.error as error:
        raise RowFailed("bad_media", f"the compressed answer is broken: {error}") from error
    if not inflater.eof:
        raise PassingProblem(f"the compressed answer ended early, after {packed} bytes")
