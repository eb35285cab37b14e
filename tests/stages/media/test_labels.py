"""A frame carries its packet's label, whatever else is decoded meanwhile."""

from __future__ import annotations

import itertools
import sys

import av
import pytest

from clipmill.stages.media.read.forward import Forward
from clipmill.stages.media.read.labels import carrying_labels, place_of, put_place
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


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_decoder_holds_no_labels_when_it_is_freed(tmp_path, codec):
    """Its threads would wait for the GIL to free them, and freeing a decoder waits for its threads
    with the GIL held."""
    path = tmp_path / "numbered.mp4"
    render_numbered(path, 60, codec=codec)
    places = [1000 + number for number in range(60)]
    references = [sys.getrefcount(place) for place in places]
    with av.open(str(path)) as container:
        decoder = container.streams.video[0].codec_context
        decoder.thread_count = 4
        with carrying_labels(decoder):
            for place, packet in zip(places, container.demux(video=0), strict=False):
                put_place(packet, place)
                if frames := packet.decode():
                    break
            has_label = place_of(frames[0]) == places[0]
            del packet, place, frames
            held = [sys.getrefcount(place) for place in places]
        left = [sys.getrefcount(place) for place in places]
    assert has_label
    assert held != references
    assert left == references
