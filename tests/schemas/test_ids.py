"""Ids are stable, and safe as file names whatever they are made from."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.schemas.ids import clip_id, content_video_id, platform_video_id, safe_id, source_key

SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*\Z")


@given(st.text(), st.text())
def test_any_text_becomes_a_safe_id(extractor, platform_id):
    for made in (
        safe_id(platform_id),
        platform_video_id(extractor, platform_id),
        source_key(platform_id),
    ):
        assert SAFE.match(made)
        assert len(made) < 200


@given(st.text(), st.text())
def test_different_ids_stay_different(one, other):
    same = one == other
    assert (platform_video_id("youtube", one) == platform_video_id("youtube", other)) is same
    assert (source_key(one) == source_key(other)) is same


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (platform_video_id("Youtube", "dQw4w9WgXcQ"), "youtube-dQw4w9WgXcQ"),
        (platform_video_id("Youtube", "-wtIMTCHWuI"), "youtube--wtIMTCHWuI"),
        (content_video_id("a" * 64), "file-" + "a" * 20),
        (clip_id("youtube-x", 1.5, 4.0004), "youtube-x-1500-4000"),
        (clip_id("v", -0.25, 1), "v-m250-1000"),
    ],
)
def test_ids_have_the_documented_form(made, expected):
    assert made == expected


@given(st.floats(-1e4, 1e6), st.floats(-1e4, 1e6))
def test_clip_ids_are_safe_for_any_time(start, end):
    assert SAFE.match(clip_id("video", start, end))
