"""Shows pictures in a terminal, by the best method that it supports.

kitty's protocol, iTerm2's, and sixels show pixels; other terminals with 24-bit colour show two
pixels per character, as half blocks.
"""

from __future__ import annotations

import base64
import os
import select
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Literal

import numpy as np

from clipmill.stages.media.read.images import png_bytes

Way = Literal["kitty", "iterm2", "sixel", "blocks"]

_CHUNK = 4096
_ANSWER_SECONDS = 0.3
# Sixels have a palette: six steps of each colour, in per cent.
_STEPS = 6


def way_of_terminal(file: IO[str], environment: Mapping[str, str] = os.environ) -> Way | None:
    """How `file` can show pictures; None if it can't."""
    if not file.isatty() or environment.get("TERM", "dumb") == "dumb":
        return None
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    multiplexed = term.startswith(("screen", "tmux"))  # these drop what they don't support
    if not multiplexed:
        if (
            "KITTY_WINDOW_ID" in environment
            or "kitty" in term
            or "ghostty" in (f"{term} {program.lower()}")
        ):
            return "kitty"
        if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
            return "iterm2"
    if _knows_sixels():
        return "sixel"
    if environment.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return "blocks"
    return None


def show_picture(image: np.ndarray, way: Way, file: IO[str]) -> None:
    """Writes an RGB picture, scaled to `width_in_pixels`."""
    ways = {"kitty": _kitty, "iterm2": _iterm2, "sixel": _sixel, "blocks": _blocks}
    for part in ways[way](image):
        file.write(part)
    file.write("\n")
    file.flush()


def width_in_pixels(way: Way, columns: int) -> int:
    """The maximum width of a picture for this many columns; a character cell is about 9 pixels."""
    return columns if way == "blocks" else 9 * columns


def _kitty(image: np.ndarray) -> Iterator[str]:
    data = base64.standard_b64encode(png_bytes(image)).decode("ascii")
    for at in range(0, len(data), _CHUNK):
        more = int(at + _CHUNK < len(data))
        # Quiet (q=2): the terminal must not answer on standard input.
        keys = f"a=T,f=100,q=2,m={more}" if at == 0 else f"m={more}"
        yield f"\x1b_G{keys};{data[at : at + _CHUNK]}\x1b\\"


def _iterm2(image: np.ndarray) -> Iterator[str]:
    data = png_bytes(image)
    coded = base64.standard_b64encode(data).decode("ascii")
    yield f"\x1b]1337;File=inline=1;size={len(data)};width={image.shape[1]}px:{coded}\a"


def _blocks(image: np.ndarray) -> Iterator[str]:
    if image.shape[0] % 2:
        image = np.concatenate([image, image[-1:]])
    for number, (upper, lower) in enumerate(zip(image[::2], image[1::2], strict=True)):
        line = "".join(
            f"\x1b[38;2;{r};{g};{b};48;2;{r2};{g2};{b2}m▀"
            for (r, g, b), (r2, g2, b2) in zip(upper.tolist(), lower.tolist(), strict=True)
        )
        yield f"{chr(10) if number else ''}{line}\x1b[0m"


def _sixel(image: np.ndarray) -> Iterator[str]:
    height, width = image.shape[:2]
    steps = np.rint(image.astype(np.float32) / 255 * (_STEPS - 1)).astype(int)
    colours = (steps[..., 0] * _STEPS + steps[..., 1]) * _STEPS + steps[..., 2]
    yield f'\x1bPq"1;1;{width};{height}'
    for colour in np.unique(colours).tolist():
        red, green, blue = (colour // _STEPS**2, colour // _STEPS % _STEPS, colour % _STEPS)
        percent = ";".join(str(100 * step // (_STEPS - 1)) for step in (red, green, blue))
        yield f"#{colour};2;{percent}"
    for top in range(0, height, 6):
        band = colours[top : top + 6]
        bits = (1 << np.arange(len(band)))[:, None]
        for colour in np.unique(band).tolist():
            column = ((band == colour) * bits).sum(axis=0)
            yield f"#{colour}{_runs(column)}$"
        yield "-"
    yield "\x1b\\"


def _runs(column: np.ndarray) -> str:
    """Run-length encoded sixels."""
    edges = np.flatnonzero(np.diff(column)) + 1
    starts, ends = [0, *edges.tolist()], [*edges.tolist(), len(column)]
    parts = []
    for start, end in zip(starts, ends, strict=True):
        sign = chr(63 + int(column[start]))
        parts.append(sign * (end - start) if end - start < 4 else f"!{end - start}{sign}")
    return "".join(parts)


def _knows_sixels() -> bool:
    """Asks the terminal for its attributes (DA1): 4 means sixels."""
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        return False
    with _raw_input() as descriptor:
        if descriptor is None:
            return False
        sys.stdout.write("\x1b[c")
        sys.stdout.flush()
        answer = b""
        while not answer.endswith(b"c") and select.select([descriptor], [], [], _ANSWER_SECONDS)[0]:
            answer += os.read(descriptor, 64)
    attributes = answer.decode("ascii", "replace").partition("\x1b[?")[2].rstrip("c").split(";")
    return "4" in attributes[1:]


@contextmanager
def _raw_input() -> Iterator[int | None]:
    """Standard input without echo, so that an answer is read and not shown; None if unsupported."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
