"""Reads a text file, plain or gzipped, in blocks of whole lines."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipmill.schemas.errors import UsageError

ReportBytes = Callable[[int], None]
"""Called with how many further bytes of the files have been read."""

_BLOCK_BYTES = 2 << 20
_LONGEST_LINE_BYTES = 256 << 20


@dataclass(frozen=True)
class LineBlock:
    """Bytes that end with a line; `first` is the number of the first line."""

    first: int
    text: bytes

    def lines(self) -> pa.StringArray:
        """The lines with their ends; invalid UTF-8 and the ends of Windows' lines are repaired."""
        text = _as_utf8(self.text)
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
        offsets = np.concatenate(([0], ends)).astype(np.int32)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
        return pa.Array.from_buffers(pa.string(), len(ends), buffers)


def line_blocks(path: Path, report: ReportBytes | None = None) -> Iterator[LineBlock]:
    """The blocks of a file in order; UsageError if it can't be read."""
    first = 1
    for text in _blocks(path, report):
        yield LineBlock(first, text)
        first += text.count(b"\n")


def _blocks(path: Path, report: ReportBytes | None) -> Iterator[bytes]:
    rest = b""
    try:
        with open(path, "rb") as raw, _unpacked(raw) as file:
            read_before = 0
            while data := file.read(_BLOCK_BYTES):
                if report is not None:
                    report(raw.tell() - read_before)
                    read_before = raw.tell()
                data = rest + data
                cut = data.rfind(b"\n") + 1
                rest = data[cut:]
                if cut:
                    yield data[:cut]
                elif len(rest) > _LONGEST_LINE_BYTES:
                    raise UsageError(
                        f"{path} has a line of over {_LONGEST_LINE_BYTES >> 20} MiB; "
                        "expected JSON lines"
                    )
            if rest:
                yield rest + b"\n"
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _unpacked(raw: io.BufferedReader) -> io.BufferedIOBase:
    is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"
    return gzip.GzipFile(fileobj=raw) if is_gzip else raw


def _as_utf8(block: bytes) -> bytes:
    block = block.removeprefix(b"\xef\xbb\xbf")
    if block.isascii():
        return block
    try:
        block.decode()
    except UnicodeDecodeError:
        return block.decode("utf-8", "replace").encode()
    return block
