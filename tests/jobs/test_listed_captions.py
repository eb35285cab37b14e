"""From a list to clips: all spans and captions arrive, and the run's report is right."""

from __future__ import annotations

import json
import shutil

from clipmill.pipeline.catalog.catalog import open_catalog
from tests.media import THREE_SHOTS, cached

RECIPE = """
engine: local
stages:
  download_videos: {min_duration_seconds: null, min_height: null}
  split_clips: {min_clip_seconds: 0, keep_frames: false}
"""


def test_all_captions_are_in_the_views_and_all_list_rows_accounted_for(tmp_path, clipmill):
    film, _ = cached(THREE_SHOTS, audio=True)
    shutil.copy(film, tmp_path / "Caf\xe9.mp4")
    shutil.copy(film, tmp_path / "b.mp4")
    with open(tmp_path / "b.mp4", "ab") as file:
        file.write(b"other")
    rows = [
        "video,timestamp,caption",
        "Café.mp4,\"['0:00:00.5', '0:00:01.5']\",a walk",
        "Café.mp4,\"['0:00:00.5', '0:00:01.5']\",a stroll",
        "b.mp4,,one",
        "b.mp4,,two",
        'b.mp4,,"three',
        "",
    ]
    (tmp_path / "list.csv").write_bytes("\n".join(rows).encode("cp1252"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    dataset = tmp_path / "dataset"
    arguments = (
        "run",
        str(tmp_path / "recipe.yaml"),
        "--sources",
        str(tmp_path / "list.csv"),
        "--dataset",
        str(dataset),
    )
    said = clipmill(*arguments, "--set", "encoding=cp1252").stderr
    assert (
        "list.csv: 6 lines = 1 of the header + 5 rows; 5 rows = 2 sources + 2 gathered into "
        "them + 1 failed; read `timestamp` as spans." in " ".join(said.split())
    )
    with open_catalog(dataset) as catalog:
        [walk, *others] = catalog.execute(
            "SELECT start_seconds, end_seconds, caption_given, captions_given FROM clips "
            "ORDER BY caption_given"
        ).fetchall()
        videos = catalog.execute(
            "SELECT caption_given, captions_given FROM videos ORDER BY ALL"
        ).fetchall()
        [[message]] = catalog.execute("SELECT message FROM failures").fetchall()
    assert walk == (0.5, 1.5, "a walk", ["a walk", "a stroll"])
    assert others
    assert all(row[2:] == ("one", ["one", "two"]) for row in others)
    assert videos == [("one", ["one", "two"]), (None, None)]
    assert "list.csv:6: a quoted cell is never closed" in message
    [counts] = json.loads(clipmill("status", str(dataset), "--format", "json").stdout)["lists"]
    names = ("lines", "sources", "gathered", "failed")
    assert [counts[name] for name in names] == [6, 2, 2, 1]
