"""Labels packets with their place in the stream, so that their frames carry it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import av


@contextmanager
def carrying_labels(decoder: av.CodecContext) -> Iterator[None]:
    """Makes a decoder's frames carry the labels of their packets; call it before its first use.

    At the end the decoder drops what it still holds. A label belongs to Python, so the decoder's
    threads take the GIL to free it: a decoder that is freed with packets in flight would wait for
    them while it holds the GIL, for ever.
    """
    decoder.copy_opaque = True
    try:
        yield
    finally:
        decoder.flush_buffers()  # without the GIL


def put_place(packet: av.Packet[Any], place: int | None) -> None:
    """Labels a packet for a decoder whose frames carry labels."""
    # In a tuple, because PyAV identifies a label by its address in memory. Equal small numbers
    # share an address, so the first packet to be freed would remove the label of all others.
    packet.opaque = None if place is None else (place,)


def place_of(frame: av.VideoFrame | av.Packet[Any]) -> int | None:
    """The place of the packet that a frame came from; None if it had none."""
    label: Any = frame.opaque
    return None if label is None else label[0]
