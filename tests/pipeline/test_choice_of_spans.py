"""Choices of clips that are given spans of a source: only those spans are fetched and decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import clipmill
from clipmill.schemas.errors import UsageError
from tests.download_helpers import add_youtube, make_video
from tests.http_server import Site, serve
from tests.pipeline.counting_stages import STAGES
from tests.pipeline.test_choice import World, counts, rows_of

VIDEOS = ("aaaaaaaaaa1", "bbbbbbbbbb2")


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as server:
        for number, name in enumerate(VIDEOS):
            server.file(f"/{name}.mp4", make_video(4.0, seed=number))
        yield server


@pytest.fixture
def world(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two videos of a platform with four spans each, in one shard."""
    add_youtube(monkeypatch.setattr).info = {"url": site.url("/ID.mp4"), "duration": 4.0}
    world = World(tmp_path, videos=0)
    (tmp_path / "list.csv").write_text(
        "url,start,end,caption\n"
        + "".join(
            f"https://www.youtube.com/watch?v={name},{start},{start + 1},{start} of {name}\n"
            for name in VIDEOS
            for start in range(4)
        )
    )
    given = {"min_duration_seconds": 1, "min_height": 16, "retries": 0}
    world.recipe.write_text(
        yaml.safe_dump(
            {
                "engine": "local",
                "sources": [{"path": "list.csv"}],
                "stages": {
                    "download_videos": given,
                    "split_clips": {},
                    **{name: {**stage, "log": str(world.log)} for name, stage in STAGES.items()},
                },
            },
            sort_keys=False,
        )
    )
    return world


def decoded(result: clipmill.RunResult) -> int:
    return result.status["totals"]["decoded_frames"]


@pytest.mark.slow
def test_chosen_spans_are_decoded_and_wider_choices_do_only_what_is_new(world, site):
    """From the first run on, and each file is requested once."""
    whole = world.run("whole")
    world.calls()
    requests = len(site.log)
    with pytest.raises(UsageError, match="true for none of 8 clips"):
        world.run(where="false")
    assert len(site.log) == requests

    one = f"video_id = 'youtube-{VIDEOS[0]}' AND caption_given LIKE '3 of%'"
    first = world.run(where=one)
    assert counts(first, "download_videos") == [2, 1, 0, 0, 1, 1, 0]
    joined = "SELECT clip_id FROM clips WHERE joined IS NOT NULL"
    assert first.dataset.sql(joined).fetchall() == [(f"youtube-{VIDEOS[0]}-3000-4000",)]
    assert len(world.calls()) == 3
    assert decoded(first) <= 12  # of the 40 of each video
    media = "SELECT media, count(*) FROM clips GROUP BY ALL ORDER BY ALL"
    assert first.dataset.sql(media).fetchall() == [("absent", 7), ("present", 1)]
    assert first.dataset.verify().faults == []
    assert not world.run(where=one).did_anything

    wider = world.run(where="start_seconds >= 2 AND media <> 'failed'")
    assert counts(wider, "join_words") == [4, 4, 0, 0, 0, 0, 0]
    assert len(calls := world.calls()) == 3 * 3
    assert set(calls.values()) == {1}
    assert wider.dataset.sql(media).fetchall() == [("absent", 4), ("present", 4)]

    last = world.run()
    assert counts(last, "join_words") == [8, 8, 0, 0, 0, 0, 0]
    assert len(calls := world.calls()) == 3 * 4
    assert set(calls.values()) == {1}
    assert len(site.log) == 2 * requests
    assert last.dataset.sql(media).fetchall() == [("present", 8)]
    assert last.dataset.verify().faults == []
    assert rows_of(last.dataset.path) == rows_of(whole.dataset.path)
    assert not world.run().did_anything
