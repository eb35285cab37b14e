"""Reads records of delimited text strictly: a bad one affects its own lines, never later ones.

A quote that opens a cell and is never closed would turn all rows up to the next quote into one
cell. So a cell may span several lines only if it is closed, if the record then has the header's
number of cells, and if the lines inside are not valid rows themselves.
"""

from __future__ import annotations

import csv
import itertools
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from clipmill.pipeline.ingest.list_text import Line
from clipmill.schemas.words import counted
from clipmill.stages.media.read.suffixes import MEDIA_SUFFIXES

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))

DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_MOST_INNER_LINES = 100_000
_MOST_INNER_CHARACTERS = 64 << 20
_ENOUGH_INNER_LINES = 8
"""How many lines inside a cell suffice to tell whether most of them are rows."""
_FIRST_LINES = 200
_MOST_LINES_OF_A_CELL = 200
_SAMPLE_LINES = 50_000
_SAMPLE_CHARACTERS = 8 << 20
_TRIES = 20
_ENOUGH_WITH_COMMAS = 3

Record = tuple[int, list[str] | None, str | None]
"""The number of a record's first line, its cells, and why it is rejected."""


@dataclass(slots=True)
class Counts:
    """Lines by kind; `row_lines` counts the lines of rows, since a row may have several."""

    header: int = 0
    blank: int = 0
    comments: int = 0
    rows: int = 0
    row_lines: int = 0


class Ahead:
    """Lines that can be inspected before they are consumed."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = iter(lines)
        self._seen: deque[Line] = deque()

    def __iter__(self) -> Iterator[Line]:
        while True:
            while self._seen:
                yield self._seen.popleft()
            for line in self._lines:
                yield line
                if self._seen:
                    break
            else:
                return

    def peek(self) -> Iterator[Line]:
        """The next lines, without consuming them."""
        at = 0
        while True:
            if at == len(self._seen):
                line = next(self._lines, None)
                if line is None:
                    return
                self._seen.append(line)
            yield self._seen[at]
            at += 1

    def give_back(self, line: Line) -> None:
        """Puts a consumed line back in front of the next ones."""
        self._seen.appendleft(line)

    def drop(self, count: int) -> None:
        for _ in range(count):
            self._seen.popleft()

    def __len__(self) -> int:
        """How many lines were inspected and not consumed."""
        return len(self._seen)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a line is split into cells; unless `quoted`, a quote is an ordinary character."""

    delimiter: str
    quoted: bool = True
    spaced: bool = False
    """Whether a space follows each delimiter."""

    def cells(self, text: str) -> list[str]:
        """The cells of one record; csv.Error if they can't be split."""
        if not self.quoted or '"' not in text:
            return text.split(self.delimiter)
        lines = [f"{line}\n" for line in text.split("\n")]
        reader = csv.reader(
            lines, delimiter=self.delimiter, strict=True, skipinitialspace=self.spaced
        )
        found = next(reader)
        if reader.line_num != len(lines):
            raise csv.Error("the record ends before its last line")
        return found

    @staticmethod
    def is_open(error: csv.Error) -> bool:
        """Whether a record was only incomplete."""
        return "unexpected end of data" in str(error)


class Records:
    """The records after the header. `width` is the header's number of cells; `at`, the cell that
    names the source, distinguishes rows from lines of text inside a quoted cell.
    """

    def __init__(
        self,
        lines: Ahead,
        dialect: Dialect,
        header: Sequence[str],
        at: int,
        counts: Counts,
        header_text: str,
    ) -> None:
        self._lines = lines
        self._dialect = dialect
        self._header = [name.strip() for name in header]
        self._header_text = header_text
        self._width = len(header)
        self._at = at
        self._counts = counts
        self._all_quoted = header_text.count('"') == 2 * len(header)
        self._kinds = self._learned()
        self._budget = _MOST_INNER_LINES

    def __iter__(self) -> Iterator[Record]:
        counts, width = self._counts, self._width
        delimiter, quoted = self._dialect.delimiter, self._dialect.quoted
        for number, text, problem in self._lines:
            if problem is not None:
                yield self._bad(number, problem)
            elif not text or text.isspace():
                counts.blank += 1
            elif quoted and '"' in text:
                yield from self._with_quotes(number, text)
            else:
                cells = text.split(delimiter)
                if len(cells) != width or not cells[0] or text == self._header_text:
                    yield from self._fitted(number, cells, 1)
                else:
                    counts.rows += 1
                    counts.row_lines += 1
                    yield number, cells, None

    def of_cells(self, number: int, cells: list[str], *, quoted: bool) -> Iterator[Record]:
        """The record of a line that was split elsewhere; `quoted` if it contains a quote."""
        if quoted or self._dialect.delimiter.join(cells) == self._header_text:
            yield from self._fitted(number, cells, 1)
        else:
            self._counts.rows += 1
            self._counts.row_lines += 1
            yield number, cells, None

    def _learned(self) -> set[str]:
        """The forms of source names, learned from the first rows without quotes."""
        found = set()
        for _, text, problem in itertools.islice(self._lines.peek(), _FIRST_LINES):
            cells = text.split(self._dialect.delimiter)
            if problem is None and '"' not in text and self._misfit(cells) is None:
                found.add(_kind(cells[self._at]))
        return found - {"", "text"} or {"url", *MEDIA_SUFFIXES}

    def _bad(self, number: int, problem: str, lines: int = 1) -> Record:
        self._counts.rows += 1
        self._counts.row_lines += lines
        return number, None, problem

    def _fitted(self, number: int, cells: list[str], lines: int) -> Iterator[Record]:
        """Checks cells whose number may not match the header's."""
        if not any(cell.strip() for cell in cells):
            self._counts.blank += lines
            return
        problem = self._misfit(cells)
        if problem is not None and len(cells) == 1 and cells[0].startswith("#"):
            self._counts.comments += lines
        elif problem is not None:
            yield self._bad(number, problem, lines)
        elif [cell.strip() for cell in cells] == self._header:
            self._counts.header += lines  # in concatenated lists
        else:
            self._counts.rows += 1
            self._counts.row_lines += lines
            yield number, cells, None

    def _misfit(self, cells: list[str]) -> str | None:
        """What is wrong with the number of cells; empty ones at the end are dropped."""
        while len(cells) > self._width and not cells[-1].strip():
            cells.pop()
        if len(cells) == self._width:
            return None
        name = DELIMITER_NAMES.get(self._dialect.delimiter, "delimiter")
        count = f"{counted(len(cells), 'cell')} under a header of {self._width}"
        if len(cells) > self._width:
            return f"{count}; is there a {name} without quotes around it?"
        return f"{count}; was the line truncated or split?"

    def _with_quotes(self, number: int, text: str) -> Iterator[Record]:
        try:
            cells = self._dialect.cells(text)
        except csv.Error as error:
            if self._dialect.is_open(error):
                yield from self._open(number, text)
            else:
                yield self._bad(number, 'a quoted cell contains a quote; write it twice there: ""')
            return
        yield from self._fitted(number, cells, 1)

    def _open(self, number: int, text: str) -> Iterator[Record]:
        """A record whose last cell is still open at the end of its first line."""
        inner: list[Line] = []
        rows = texts = characters = tries = 0
        # The first line of a genuine multi-line cell may not name a source yet.
        may_be_row = self._names_source(text)
        odd = text.count('"') & 1
        cells: list[str] | None = None
        for line in self._lines.peek():
            inner.append(line)
            characters += len(line[1])
            if line[1].strip():
                texts += 1
                rows += self._is_row(line[1])
            if (
                len(inner) > min(_MOST_INNER_LINES, self._budget)
                or characters > _MOST_INNER_CHARACTERS
                or (may_be_row and texts >= _ENOUGH_INNER_LINES and rows * 2 > texts)
            ):
                break
            if '"' not in line[1]:
                continue
            odd ^= line[1].count('"') & 1
            tries += 1
            if odd and tries > _TRIES:
                continue
            try:
                cells = self._dialect.cells("\n".join([text, *(other[1] for other in inner)]))
            except csv.Error as error:
                if self._dialect.is_open(error):
                    continue
            break
        if cells is None or (may_be_row and rows * 2 > texts):
            # Limits how often lines are inspected again after a failed search.
            self._budget = max(100, self._budget - len(inner))
            yield self._bad(
                number,
                "a quoted cell is never closed; a quote that belongs "
                'to the text is written twice, inside a quoted cell: """like this"""',
            )
            return
        self._lines.drop(len(inner))
        unsound = next((line for line in inner if line[2] is not None), None)
        if unsound is not None:
            yield self._bad(number, f"line {unsound[0]}: {unsound[2]}", 1 + len(inner))
        else:
            yield from self._fitted(number, cells, 1 + len(inner))

    def _is_row(self, text: str) -> bool:
        """Whether a line inside a quoted cell looks like a row of the list by itself."""
        if self._all_quoted and not text.startswith('"'):
            return False
        try:
            cells = self._dialect.cells(text)
        except csv.Error:
            cells = text.split(self._dialect.delimiter)
        fits = self._misfit(cells) is None
        kind = _kind(cells[self._at]) if self._at < len(cells) else ""
        # An otherwise bad row counts as a row if it certainly names a source.
        return kind in self._kinds and (fits or (len(cells) > 1 and kind != "word"))

    def _names_source(self, text: str) -> bool:
        cells = text.split(self._dialect.delimiter)
        if len(cells) == self._width and _kind(cells[self._at]) in self._kinds:
            return True
        return any(_kind(cell) in self._kinds - {"word"} for cell in cells)


def _kind(locator: str) -> str:
    """The form of a source's name: a URL, a kind of file, one word, or text."""
    locator = locator.strip().strip('"')
    if "://" in locator:
        return "url"
    if not locator:
        return ""
    match = re.search(r"\.([A-Za-z][A-Za-z0-9]{1,4})$", locator)
    if match is not None:
        return match[0].lower()
    return "text" if re.search(r"\s", locator) else "word"


def writer_quotes(lines: Ahead, dialect: Dialect, header: str) -> bool:
    """Whether the writer of a tab-separated list quotes cells with quotes, tabs or line ends.

    Many programs write such lists without any quoting, and a quote is then part of the text. The
    cells show which it is: with quoting, each quote is doubled inside a quoted cell.
    """
    quoted = Dialect(dialect.delimiter, True, dialect.spaced)
    width = len(header.split(dialect.delimiter))
    if header.startswith('"'):
        return True
    sample = []
    characters = 0
    for _, text, _problem in itertools.islice(lines.peek(), _SAMPLE_LINES):
        characters += len(text)
        sample.append(text)
        if characters > _SAMPLE_CHARACTERS:
            break
    says_yes = says_no = with_commas = skip = 0
    for at, text in enumerate(sample):
        if skip or '"' not in text:
            skip = max(0, skip - 1)
            continue
        cells = text.split(dialect.delimiter)
        fits = len(cells) == width
        try:
            parsed = quoted.cells(text)
        except csv.Error as error:
            if quoted.is_open(error):
                skip = _lines_inside(quoted, sample[at : at + _MOST_LINES_OF_A_CELL], width)
            says_yes += skip > 0
            says_no += fits and not skip
            continue
        inside = [cell[1:-1] for cell in cells if len(cell) > 1 and cell[0] == cell[-1] == '"']
        if any('"' in cell and not cell.startswith('"') for cell in cells) or len(parsed) != width:
            says_no += fits
        elif not fits or any('""' in cell for cell in inside):
            says_yes += 1
        elif all("," in cell for cell in inside):
            with_commas += 1  # some programs quote cells with commas
        else:
            says_no += 1
    if says_yes == says_no == 0 and with_commas >= _ENOUGH_WITH_COMMAS:
        return not any(
            "," in cell and not cell.startswith('"')
            for text in sample
            for cell in text.split(dialect.delimiter)
        )
    return says_yes > 0 and says_yes >= says_no


def _lines_inside(dialect: Dialect, lines: Sequence[str], width: int) -> int:
    """How many lines after the first belong to its last cell; 0 if they don't close it properly."""
    rows = 0
    for count, line in enumerate(lines[1:], 1):
        rows += len(line.split(dialect.delimiter)) == width
        if '"' not in line:
            continue
        try:
            cells = dialect.cells("\n".join(lines[: count + 1]))
        except csv.Error as error:
            if dialect.is_open(error):
                continue
            return 0
        # The last of them may look like a row, because it contains the cells after this one.
        return (
            count
            if len(cells) == width
            and rows <= max(1, count // 2)
            and (rows == 0 or len(lines[0].split(dialect.delimiter)) < width)
            else 0
        )
    return 0
