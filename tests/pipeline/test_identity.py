"""Video ids from URLs: the same for all forms, and never one id for two videos."""

from __future__ import annotations

import importlib
from collections import defaultdict

import pytest

from clipmill.pipeline.catalog.links import clip_link
from clipmill.pipeline.ingest.platforms import identify
from clipmill.stages.media.fetch.extractors import video_id_of


@pytest.mark.parametrize(
    "urls",
    [
        (
            "https://www.bilibili.com/video/BV1bK411W797",
            "https://www.bilibili.com/video/BV1bK411W797?p=2",
            "https://www.bilibili.com/video/BV1bK411W797?p=3&spm_id_from=333.999",
        ),
        (
            "https://www.instagram.com/p/BQ0eAlwhDrw/?img_index=1",
            "https://www.instagram.com/p/BQ0eAlwhDrw/?img_index=2",
        ),
        (
            "https://www.dropbox.com/sh/2mgpiuq7kv8nqdf/AABy/a.mp4?dl=0",
            "https://www.dropbox.com/sh/2mgpiuq7kv8nqdf/AABy/b.mp4?dl=0",
            "https://www.dropbox.com/sh/2mgpiuq7kv8nqdf/AABy?dl=0&preview=c.mp4",
        ),
        (
            "https://disk.yandex.com/d/VdOeDou8eZs6Y/a.mp4",
            "https://disk.yandex.com/d/VdOeDou8eZs6Y/b.mp4",
        ),
        (
            "https://files.example/s/TOKEN?path=/&files=a.mp4",
            "https://files.example/s/TOKEN?path=/&files=b.mp4",
        ),
        ("https://site.example/#/video/1", "https://site.example/#/video/2"),
    ],
)
def test_different_videos_of_one_page_or_folder_are_distinct(urls):
    assert len({identify(url).locator for url in urls}) == len(urls)


@pytest.mark.parametrize(
    "urls",
    [
        (
            "https://www.youtube.com/watch?v=dQw4w9WgXcQ",
            "https://youtu.be/dQw4w9WgXcQ?si=x&t=4",
            "https://www.youtube.com/watch?v=dQw4w9WgXcQ&list=PLabc&index=3&pp=x#t=10",
        ),
        ("https://vimeo.com/76979871", "https://vimeo.com/76979871?share=copy#t=12s"),
        (
            "https://www.bilibili.com/video/BV1bK411W797",
            "https://www.bilibili.com/video/BV1bK411W797/?spm_id_from=333&vd_source=1",
        ),
        (
            "https://videos.example/a.mp4",
            "https://VIDEOS.example:443/a.mp4#t=4",
            "https://videos.example/a.mp4#t=10,20",
        ),
    ],
)
def test_all_forms_of_a_videos_url_have_one_id(urls):
    assert len({identify(url).locator for url in urls}) == 1


@pytest.mark.parametrize(
    ("fragment", "span"),
    [
        ("#t=10,20", (10.0, 20.0)),
        ("#t=,20", (0.0, 20.0)),
        ("#t=npt:1:02,1:04.5", (62.0, 64.5)),
        ("#t=10", None),
        ("#t=20,10", None),
        ("#top", None),
        ("", None),
    ],
)
def test_media_fragment_is_a_span(fragment, span):
    assert identify(f"https://videos.example/a.mp4{fragment}").span == span


def test_ids_agree_with_yt_dlps_own_examples():
    """For the URLs in its extractors' tests: if we know an id, it is the expected one."""
    from yt_dlp.extractor import gen_extractor_classes

    seen, told, wrong = 0, 0, []
    ids = defaultdict(set)
    for stand_in in gen_extractor_classes():
        if stand_in.ie_key() == "Generic":
            continue
        cls = getattr(importlib.import_module(stand_in._module), stand_in.__name__)
        for example in getattr(cls, "_TESTS", None) or []:
            said = (example.get("info_dict") or {}).get("id")
            if (
                said is None
                or not example["url"].startswith("http")
                or any(word.startswith("playlist") for word in example)
            ):
                continue
            seen += 1
            identity = identify(example["url"])
            ids[identity.locator].add(said)
            if identity.platform_id is not None:
                told += 1
                if identity.platform_id != said:
                    wrong.append((example["url"], said, identity.platform_id))
    assert seen > 1000
    assert told > seen / 3
    assert len(wrong) < told / 100, wrong[:10]
    # Two of them are live channels, whose page shows another video each day.
    assert sum(len(found) > 1 for found in ids.values()) <= 3


@pytest.mark.parametrize(
    ("site", "name", "url", "video_id"),
    [
        ("bilibili", "BV1_p2", "https://www.bilibili.com/video/BV1?p=2", "bilibili-BV1_p2"),
        ("instagram", "BQ0", "https://www.instagram.com/p/BQ0/?img_index=2", "instagram-BQ0_2"),
        ("youtube", "dQw4w9WgXcQ", "https://youtu.be/dQw4w9WgXcQ?p=1", "youtube-dQw4w9WgXcQ"),
        ("vimeo", "1", "https://vimeo.com/1?share=copy", "vimeo-1"),
    ],
)
def test_url_distinguishes_what_the_extractor_does_not(site, name, url, video_id):
    assert video_id_of(site, name, url) == video_id


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("https://www.youtube.com/watch?v=abc&t=3s", "https://www.youtube.com/watch?v=abc&t=12s"),
        ("https://youtu.be/abc", "https://youtu.be/abc?t=12s"),
        ("https://vimeo.com/1", "https://vimeo.com/1#t=12s"),
        ("https://www.dailymotion.com/video/x", "https://www.dailymotion.com/video/x?start=12"),
        ("https://www.bilibili.com/video/BV1?p=2", "https://www.bilibili.com/video/BV1?p=2&t=12"),
        ("https://videos.example/a.mp4", "https://videos.example/a.mp4#t=12.5,16"),
        ("https://videos.example/a.mp4?x=1#t=1,2", "https://videos.example/a.mp4?x=1#t=12.5,16"),
        ("https://videos.example/#part", "https://videos.example/#part&t=12.5,16"),
        ("/home/a.mp4", "/home/a.mp4"),
        ("http://[broken", "http://[broken"),
        (None, None),
    ],
)
def test_link_opens_at_the_clips_start(url, link):
    assert clip_link(url, 12.5, 16.0) == link
