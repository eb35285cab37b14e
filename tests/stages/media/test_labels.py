"""A frame carries its packet's label, whatever else is decoded meanwhile."""

from __future__ import annotations

import itertools

import av

from clipmill.stages.media.read.forward import Forward
from clipmill.stages.media.read.labels import place_of, put_place
from clipmill.stages.media.read.packets import read_packets
from tests.numbered import render_numbered


def test_freed_packet_does_not_remove_others_labels():
    first, second = av.Packet(b"a"), av.Packet(b"b")
    put_place(first, 7)
    put_place(second, 7)
    del second
    assert place_of(first) == 7


def test_no_frame_is_lost_when_another_decoder_ends(tmp_path):
    """Decoders hold packets back, and both label theirs with the same places."""
    path = tmp_path / "numbered.mp4"
    render_numbered(path, 60)
    index = read_packets(path)
    numbers = []
    for number, _ in Forward(path, index).frames(0):
        numbers.append(number)
        other = Forward(path, index).frames(0)
        list(itertools.islice(other, 12))
        other.close()
    assert numbers == list(range(60))
