"""Reads a list's lines as text: decompresses, decodes, and reports invalid lines."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from clipmill.schemas.errors import UsageError

PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
_BLOCK_BYTES = 1 << 20
_LONGEST_LINE_BYTES = 256 << 20
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # starts like UTF-16's mark
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Undecodable bytes become this plus the byte's value: half of a surrogate pair, which valid text
# never contains.
_MARK = 0xDC00
_ADVICE = (
    "If the whole list is in another encoding, set it: `encoding: cp1252` "
    "(latin-1, gbk, …) on the source in the recipe, or --set encoding=cp1252"
)
_MARKS = re.compile("[\udc00-\udcff]")

Line = tuple[int, str, str | None]
"""A line's number, its text without its end, and why it is invalid (None if it is not)."""
Block = tuple[int, str]
"""The number of the first of several whole lines, and their text."""


def is_sound(text: str) -> bool:
    """Whether a text has no invalid bytes, no NUL and no byte order mark inside."""
    return "\0" not in text and (
        text.isascii() or (_MARKS.search(text) is None and "\ufeff" not in text)
    )


def _mark(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    raw = error.object[error.start : error.end]
    return "".join(chr(_MARK + byte) for byte in raw), error.end


codecs.register_error("clipmill.mark", _mark)


def check_encoding(name: str) -> str:
    """The name itself; ValueError if Python has no such text encoding."""
    try:
        b"a".decode(name)
    except (LookupError, UnicodeError):
        known = "utf-8, utf-16-le, cp1252, latin-1, gbk, shift_jis, euc-kr"
        raise ValueError(f"the encoding {name!r} is not known; for example: {known}") from None
    return name


def unpacked(raw: IO[bytes]) -> IO[bytes]:
    """A file's bytes, decompressed if the first ones indicate gzip, bzip2, xz or Zstandard."""
    head = raw.read(6)
    raw.seek(0)
    if head[:2] == b"\x1f\x8b":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if head[:3] == b"BZh":
        return bz2.BZ2File(raw)
    if head == b"\xfd7zXZ\x00":
        return lzma.LZMAFile(raw)
    if head[:4] == b"\x28\xb5\x2f\xfd":
        import pyarrow as pa

        return cast("IO[bytes]", pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))
    return raw


class TextLines:
    """The lines of a file with any line ends; `lines` counts them as they are read.

    A byte order mark determines the encoding, else `encoding`, else it is UTF-8. A line with
    invalid bytes comes with its problem. If most lines have some, UsageError is raised at the end:
    then the file has another encoding.
    """

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self.lines = 0
        self._path = path
        self._given = encoding
        self._encoding = encoding or "utf-8"
        self._unsound = 0

    def __iter__(self) -> Iterator[Line]:
        with self._checked():
            yield from self._lines()

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise UsageError(
                f"cannot read {self._path}: {error}; it is truncated, or not in the "
                "compression that its name says"
            ) from error
        except OSError as error:
            raise UsageError(f"cannot read {self._path}: {error.strerror or error}") from error
        if self._unsound * 2 > self.lines:
            raise UsageError(
                f"{self._path}: {self._unsound:,} of {self.lines:,} lines are not "
                f"{self._encoding.upper()}. {_ADVICE}"
            )

    def text(self) -> str:
        """The whole file; UsageError if any of it is invalid."""
        found = []
        for number, line, problem in self:
            if problem is not None:
                raise UsageError(f"{self._path}:{number}: {problem}")
            found.append(line)
        return "\n".join(found)

    def _lines(self) -> Iterator[Line]:
        for first, block in self._numbered():
            yield from self.lines_of(first, block)

    def blocks(self) -> Iterator[Block]:
        """The same lines in blocks of text; `lines_of` gives those of a block."""
        with self._checked():
            yield from self._numbered()

    def _numbered(self) -> Iterator[Block]:
        for block in self._blocks():
            first = self.lines + 1
            self.lines += block.count("\n")
            yield first, block

    def lines_of(self, first: int, block: str) -> Iterator[Line]:
        """The lines of a block whose first line has this number; once, for they are counted."""
        lines = block.split("\n")
        lines.pop()
        if is_sound(block):
            for number, line in enumerate(lines, first):
                yield number, line, None
        else:
            for number, line in enumerate(lines, first):
                # A mark is at the start of a file, and so of a line if files were concatenated.
                yield number, line.lstrip("\ufeff"), self._problem(line)

    def _problem(self, line: str) -> str | None:
        match = _MARKS.search(line)
        if match is not None:
            self._unsound += 1
            value = ord(match[0]) - _MARK
            before = len(line[: match.start()].encode(self._encoding))
            near = repr(_MARKS.sub("\ufffd", line[max(0, match.start() - 20) : match.end() + 10]))
            return (
                f"not {self._encoding.upper()}: byte {before + 1} of the line is 0x{value:02x} "
                f"({near}). {_ADVICE}"
            )
        if "\0" in line:
            return "NUL bytes in the line: was the file truncated while being written?"
        return None

    def _blocks(self) -> Iterator[str]:
        """Pieces of the text in which each line, including the last, ends with a line feed."""
        rest = ""
        with ExitStack() as stack:
            raw = stack.enter_context(open(self._path, "rb"))
            file = unpacked(raw)
            if file is not raw:
                stack.enter_context(file)
            data = file.read(_BLOCK_BYTES)
            data = data[self._read_mark(data) :]
            self._check_head(data)
            decode: Any = codecs.getincrementaldecoder(self._encoding)("clipmill.mark").decode
            is_last = False
            while not is_last:
                following = file.read(_BLOCK_BYTES)
                is_last = not following
                text = rest + decode(data, is_last)
                data = following
                if not is_last and text.endswith("\r"):
                    text, held = text[:-1], "\r"  # a line feed may follow
                else:
                    held = ""
                if "\r" in text:
                    text = text.replace("\r\n", "\n").replace("\r", "\n")
                cut = text.rfind("\n") + 1
                rest = text[cut:] + held
                if cut:
                    yield text[:cut]
                elif len(rest) > _LONGEST_LINE_BYTES:
                    raise UsageError(
                        f"{self._path} has a line of over "
                        f"{_LONGEST_LINE_BYTES >> 20} MiB; is it a list?"
                    )
        if rest:
            yield rest + "\n"

    def _read_mark(self, head: bytes) -> int:
        """Sets the encoding from a byte order mark; returns the length of the mark."""
        for mark, encoding in _BYTE_ORDER_MARKS:
            if head.startswith(mark):
                self._encoding = encoding
                return len(mark)
        return 0

    def _check_head(self, head: bytes) -> None:
        """Detects UTF-16 without a mark, where half of the bytes of most texts are NUL."""
        head = head[:1000]
        if self._given is None and self._encoding == "utf-8":
            for odd, name in ((1, "utf-16-le"), (0, "utf-16-be")):
                if len(head) > 3 and head[odd::2].count(0) > len(head) // 4:
                    raise UsageError(
                        f"{self._path} seems to be UTF-16 without a byte order mark: "
                        f"set `encoding: {name}` for it in the recipe, or "
                        f"--set encoding={name}"
                    )


def list_suffix(path: Path) -> str:
    """The suffix of a list's name, in lower case, without that of its compression: `.csv`."""
    name = path.name.lower()
    for packed in PACKED_SUFFIXES:
        name = name.removesuffix(packed)
    return Path(name).suffix
