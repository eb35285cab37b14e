"""Choices of clips that are given spans of a source: only those spans are fetched and decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import clipmill
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


def test_only_the_chosen_spans_are_decoded_and_later_only_new_clips_go_on(world, site):
    """Other rules make the downloads new; the files are there, so nothing is requested again."""
    rules = {"download_videos.min_duration_seconds": 2}
    whole = world.run("whole", settings=rules)
    world.calls()
    before = decoded(world.run(until="split_clips"))
    requests = len(site.log)

    where = f"start_seconds >= 3 AND video_id = 'youtube-{VIDEOS[0]}'"
    first = world.run(where=where, settings=rules)
    assert counts(first, "download_videos") == [2, 1, 0, 0, 1, 1, 0]
    clips = "SELECT clip_id FROM clips WHERE joined IS NOT NULL"
    assert first.dataset.sql(clips).fetchall() == [(f"youtube-{VIDEOS[0]}-3000-4000",)]
    assert len(world.calls()) == 3
    assert decoded(first) - before <= 12  # of the 40 of each video
    assert first.dataset.verify().faults == []

    last = world.run(settings=rules)
    assert counts(last, "join_words") == [8, 8, 0, 0, 0, 0, 0]
    assert len(calls := world.calls()) == 3 * 7
    assert set(calls.values()) == {1}
    assert len(site.log) == requests
    assert last.dataset.verify().faults == []
    tables = rows_of(last.dataset.path)
    for name, rows in rows_of(whole.dataset.path).items():
        assert tables[name] == rows, name
    assert not world.run(settings=rules).did_anything
