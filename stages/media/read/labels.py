"""Labels packets with their place in the stream, so that their frames carry it."""

from __future__ import annotations

from typing import Any

import av


def put_place(packet: av.Packet[Any], place: int | None) -> None:
    """Labels a packet; its decoder must have `copy_opaque` set."""
    # In a tuple, because PyAV identifies a label by its address in memory. Equal small numbers
    # share an address, so the first packet to be freed would remove the label of all others.
    packet.opaque = None if place is None else (place,)


def place_of(frame: av.VideoFrame | av.Packet[Any]) -> int | None:
    """The place of the packet that a frame came from; None if it had none."""
    label: Any = frame.opaque
    return None if label is None else label[0]
