"""Videos that are on disk already: found by their published ids, and not downloaded again."""

from __future__ import annotations

from pathlib import Path

import pytest

import clipmill
from clipmill.schemas.errors import UsageError
from clipmill.stages.media.fetch.files_on_disk import FilesOnDisk
from tests.download_helpers import add_youtube, make_video

RECIPE = """
engine: local
stages:
  download_videos: {min_duration_seconds: 1, min_height: 16, retries: 0}
"""


@pytest.mark.parametrize(
    "name",
    [
        "dQw4w9WgXcQ.mp4",
        "dQw4w9WgXcQ.WEBM",
        "v_dQw4w9WgXcQ.mkv",
        "youtube-dQw4w9WgXcQ.mp4",
        "A film [1080p] [dQw4w9WgXcQ].mp4",
        "A film-dQw4w9WgXcQ.mp4",
        "deep/down/dQw4w9WgXcQ.mp4",
    ],
)
def test_names_of_whole_videos_give_their_ids(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    found = FilesOnDisk([tmp_path]).find("youtube", "dQw4w9WgXcQ")
    assert found is not None
    assert found.path == path


@pytest.mark.parametrize(
    "name",
    [
        "dQw4w9WgXcQ_000010_000020.mp4",
        "dQw4w9WgXcQ_10.5_20.5.mp4",
        "dQw4w9WgXcQ-10-20.mp4",
        "dQw4w9WgXcQ.f137.mp4",
        "dQw4w9WgXcQ.mp4.part",
        "dQw4w9WgXcQ.info.json",
        "dqw4w9wgxcq.mp4",
        ".work/dQw4w9WgXcQ.mp4",
        "dQw4w9WgXcQ [another].mp4",
    ],
)
def test_other_names_do_not(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert FilesOnDisk([tmp_path]).find("youtube", "dQw4w9WgXcQ") is None


def test_parts_are_counted_and_ids_that_look_like_parts_are_not(tmp_path):
    for name in ("dQw4w9WgXcQ_10_20.mp4", "dQw4w9WgX_3.mp4", "a_film-dQw4w9W_10_.mp4"):
        (tmp_path / name).touch()
    assert FilesOnDisk([tmp_path]).parts() == 1


def test_nothing_is_requested_for_videos_on_disk(tmp_path, site, monkeypatch):
    """A broken file, and one that ends before its spans, are downloaded after all."""
    had = tmp_path / "had"
    had.mkdir()
    (had / "film [aaaaaaaaaa1].mp4").write_bytes(make_video(3.0, seed=1))
    (had / "aaaaaaaaaa2.mp4").write_bytes(b"not a video" * 1000)
    (had / "aaaaaaaaaa3.mp4").write_bytes(make_video(0.5, seed=3))
    (had / "aaaaaaaaaa3_0_10.mp4").write_bytes(b"")
    for number in (2, 3):
        site.file(f"/aaaaaaaaaa{number}.mp4", make_video(3.0, seed=number))
    add_youtube(monkeypatch.setattr).info = {"url": site.url("/ID.mp4"), "duration": 3.0}
    rows = "".join(
        f"https://www.youtube.com/watch?v=aaaaaaaaaa{number},0,2.9\n" for number in (1, 2, 3)
    )
    (tmp_path / "list.csv").write_text("url,start,end\n" + rows)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("seconds: 1", "seconds: 0"))
    result = clipmill.run(
        tmp_path / "recipe.yaml",
        sources=tmp_path / "list.csv",
        dataset=tmp_path / "dataset",
        have=had,
    )
    assert result["download_videos"]["kept"] == 3, result.dataset.failures().fetchall()
    assert {asked.path for asked in site.log} == {"/aaaaaaaaaa2.mp4", "/aaaaaaaaaa3.mp4"}
    found = result.dataset.sql("SELECT video_id, path, extra FROM videos ORDER BY 1").fetchall()
    assert [row[0] for row in found] == [f"youtube-aaaaaaaaaa{n}" for n in (1, 2, 3)]
    assert found[0][1] == str(had / "film [aaaaaaaaaa1].mp4")
    assert found[0][2]["have_matched_by"] == "Title [ID].mp4"
    assert str(had / "aaaaaaaaaa2.mp4") in found[1][2]["have_refused"]
    assert "ends before the given spans" in found[2][2]["have_refused"]
    assert any("1 more file named as parts of videos" in said for said in result.messages)
    assert result.dataset.verify().faults == []


def test_of_two_files_the_one_in_the_first_folder_is_used(tmp_path):
    paths = [tmp_path / "b" / "abcdefghi_1.mp4", tmp_path / "a" / "abcdefghi_1.webm"]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        path.write_bytes(bytes(number))
    found = FilesOnDisk([path.parent for path in paths]).find("youtube", "abcdefghi_1")
    assert (found.path, found.others) == (paths[0], (paths[1],))
    same = FilesOnDisk([tmp_path]).find("youtube", "abcdefghi_1")
    assert same.path == paths[1]  # the larger one


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_text(""), "a file; give the folder that it is in"),
    ],
)
def test_what_is_no_folder_is_refused_before_anything_is_written(tmp_path, make, said):
    make(tmp_path / "had")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(UsageError, match=f"had: {said}"):
        clipmill.run(
            tmp_path / "recipe.yaml",
            sources="https://www.youtube.com/watch?v=dQw4w9WgXcQ",
            dataset=tmp_path / "dataset",
            have=tmp_path / "had",
        )
    assert not (tmp_path / "dataset").exists()


def test_folders_in_a_recipe_are_relative_to_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    recipe = Path("sub/recipe.yaml")
    recipe.write_text(RECIPE.replace("retries: 0", "retries: 0, have: had"))
    with pytest.raises(UsageError, match="sub/had: no such folder"):
        clipmill.run(recipe, sources="https://youtu.be/dQw4w9WgXcQ", dataset="dataset")
