"""Reads a text line by line, or a block of lines at once, from one place in it."""

from __future__ import annotations

import numpy as np

from clipmill.pipeline.ingest.list_text import Line, TextLines, is_sound


class LineCursor:
    """An iterator over lines that may go back to earlier lines of the same block.

    `first` is the number of the block's first line; `at`, of how many of its lines are behind.
    """

    def __init__(self, source: TextLines) -> None:
        self.block = ""
        self.first = 1
        self.at = 0
        self._source = source
        self._blocks = source.blocks()
        self._count = 0
        self._lines: list[Line] | None = None

    def __iter__(self) -> LineCursor:
        return self

    def __next__(self) -> Line:
        if not self.more():
            raise StopIteration
        self.at += 1
        return self._all()[self.at - 1]

    def more(self) -> bool:
        """Whether a line follows; the next block is loaded if this one is behind."""
        while self.at == self._count:
            found = next(self._blocks, None)
            if found is None:
                return False
            self.first, self.block = found
            self.at, self._count, self._lines = 0, self.block.count("\n"), None
        return True

    def back(self, lines: int) -> bool:
        """Goes back by so many lines, if they are all in this block."""
        if lines > self.at:
            return False
        self.at -= lines
        return True

    def sound_text(self) -> tuple[bytes, np.ndarray]:
        """The block as UTF-8, and which of its lines are valid; the others are empty."""
        if self._lines is None and is_sound(self.block):
            return self.block.encode(), np.ones(self._count, bool)
        lines = self._all()
        text = "".join(f"{line if problem is None else ''}\n" for _, line, problem in lines)
        return text.encode(), np.array([problem is None for *_, problem in lines], bool)

    def _all(self) -> list[Line]:
        if self._lines is None:
            self._lines = list(self._source.lines_of(self.first, self.block))
        return self._lines
