"""Says that work on a file comes forward, to whoever waits for it (see `isolated`)."""

from __future__ import annotations

from collections.abc import Callable

_listener: Callable[[int | None], None] | None = None


def beat(decoded_frames: int | None = None) -> None:
    """A packet was read, a frame decoded: whoever waits need not give the file up yet.

    `decoded_frames` is how many frames of the file were decoded so far, where that is counted.
    Costs next to nothing, and nothing hears it outside a helper process.
    """
    if _listener is not None:
        _listener(decoded_frames)


def listen(listener: Callable[[int | None], None] | None) -> None:
    """Who hears the beats from now on; None for nobody."""
    global _listener
    _listener = listener
