"""The report's section on signals: clips at their ends, clusters with central clips, languages."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from clipmill.jobs.report.page import write_report
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.subsets.freeze import create_subset
from clipmill.pipeline.subsets.subset_recipe import load_subset_recipe
from clipmill.schemas import tables
from clipmill.stages.detect_language import VIDEO_LANGUAGES
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.scan_videos import FRAMES, SCANS
from clipmill.stages.split_clips import CLIPS
from tests.jobs.report.parsed_page import Element, numbers, parse
from tests.synthetic import START, run_record, write_run, write_shard

CLIPS_A_VIDEO = 8
LANGUAGES = {"a": ("en", None), "b": (None, "de"), "c": (None, None)}
TABLES = {
    "measure_text": tables.clip_table(("text_area", pa.float32()), ("text_area_max", pa.float32())),
    "detect_speech": tables.clip_table(
        ("speech_share", pa.float32()), ("speech_share_reason", pa.string())
    ),
    "detect_faces": tables.clip_table(("faces", pa.int32())),
    "score_nsfw": tables.clip_table(("nsfw", pa.float32())),
    "cluster_clips": tables.clip_table(("cluster", pa.int32()), ("cluster_distance", pa.float32())),
}


def picture(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (180, 320, 3), np.uint8)
    return cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of eight clips; the number of a clip determines its values.

    Two clips, of the videos a and b, are in cluster 1, the others in cluster 0.
    """
    folder = tmp_path_factory.mktemp("signals") / "dataset"
    videos, clips, frames = [], [], []
    rows: dict[str, list[dict]] = {name: [] for name in TABLES}
    for place, video in enumerate(LANGUAGES):
        videos.append(
            {
                "source_key": video,
                "video_id": video,
                "url": f"https://media.example/{video}",
                "title": f"Film {video}",
                "language": LANGUAGES[video][0],
                "duration_seconds": 16.0,
            }
        )
        for n in range(CLIPS_A_VIDEO):
            number, key = place * CLIPS_A_VIDEO + n, f"{video}-{2000 * n}-{2000 * n + 2000}"
            start = 2.0 * n
            clips.append(
                {
                    "video_id": video,
                    "clip_id": key,
                    "start_seconds": start,
                    "end_seconds": start + 2,
                    "duration_seconds": 2.0,
                }
            )
            values = {
                "measure_text": {"text_area": number / 100},
                "detect_speech": {"speech_share": None if video == "c" else n / 10},
                "detect_faces": {"faces": number % 3},
                "score_nsfw": {"nsfw": 0.9 if number == 10 else 0.01},
                "cluster_clips": {
                    "cluster": int(n == 3 and video != "c"),
                    "cluster_distance": 0.5 - number / 100,
                },
            }
            for name, columns in values.items():
                rows[name].append({"clip_id": key, **columns})
            frames.append({"video_id": video, "seconds": start + 1, "jpeg": picture(number)})
    shown = {"download_videos": (VIDEOS, videos), "split_clips": (CLIPS, clips)}
    shown |= {name: (table, rows[name]) for name, table in TABLES.items()}
    shown["scan_videos"] = (SCANS, [{"video_id": video} for video in LANGUAGES])
    shown["detect_language"] = (
        VIDEO_LANGUAGES,
        [{"video_id": v, "language_detected": found} for v, (_, found) in LANGUAGES.items()],
    )
    steps = {}
    for name, (table, found) in shown.items():
        write_shard(folder, name, "1", "000000", found, table)
        steps[name] = ("split_clips" if name == "scan_videos" else name, "1", table)
    write_shard(folder, "scan_videos", "1", "000000", frames, FRAMES, table="frames")
    record = run_record("r1", START, steps)
    next(s for s in record["stages"] if s["stage"] == "cluster_clips")["settings"] = {
        "embeddings": "embed_images"
    }
    write_run(folder, record)
    return folder


@pytest.fixture(scope="module")
def root(dataset: Path) -> Element:
    write_report(dataset, dataset.parent / "page.html")
    return parse(dataset.parent / "page.html")


def cards(root: Element) -> dict[str, list[Element]]:
    """By the title of a signal, the pictures at its ends."""
    found = root.one("section", id="signals").all("div", class_="card")
    return {
        card.one("h3").text: card.all("figure", class_="thumb") for card in found if card.all("h3")
    }


def test_clips_at_both_ends_of_each_signal_are_shown_with_their_values(root):
    shown = cards(root)
    assert list(shown) == ["Text on the picture", "Speech", "Faces", "NSFW"]
    text = [thumb.one("b").text for thumb in shown["Text on the picture"]]
    assert text == ["0.23", "0.22", "0.21", "0", "0.01", "0.02"]
    assert [thumb.one("b").text for thumb in shown["Speech"]][:2] == ["0.7", "0.7"]
    first = shown["Text on the picture"][0]
    assert first.attributes["title"] == "c-14000-16000"
    assert first.one("a").attributes["href"].startswith("https://media.example/c")
    assert sum(int(count) for count, _ in numbers(root, "signal-text_area").values()) == 24


def test_axis_of_a_single_value_does_not_go_below_zero(tmp_path):
    folder = tmp_path / "dataset"
    row = {"video_id": "a", "clip_id": "a-0-2000", "start_seconds": 0.0, "end_seconds": 2.0}
    write_shard(folder, "split_clips", "1", "000000", [row | {"duration_seconds": 2.0}], CLIPS)
    made = {"clip_id": "a-0-2000", "speech_share": 0.0}
    schema = TABLES["detect_speech"]
    write_shard(folder, "detect_speech", "1", "000000", [made], schema)
    steps = {
        "split_clips": ("split_clips", "1", CLIPS),
        "detect_speech": ("detect_speech", "1", schema),
    }
    write_run(folder, run_record("r1", START, steps))
    write_report(folder, tmp_path / "page.html")
    figure = parse(tmp_path / "page.html").one("figure", id="signal-speech_share")
    assert "-" not in figure.one("svg").text


def test_section_has_the_figures_that_distributions_would_have(root):
    section = root.one("section", id="distributions")
    titles = {card.one("h3").text for card in section.all("figure")}
    assert not titles & {"text_area", "nsfw", "cluster", "cluster_distance", "Languages"}
    assert "measure_text" in root.one("figure", id="signal-text_area").text
    assert root.one("section", id="signals").one("figure", id="language")
    assert not any("text_area" in one.text for one in root.one("section", id="samples").all("h3"))


def test_numbers_about_all_clips(root):
    tiles = {
        one.one("dt").text: [part.text for part in one.all("dd")]
        for one in root.one("section", id="signals").one("dl", class_="totals").all("div")
    }
    assert tiles["Text"][0] == "96%"
    assert tiles["Speech"] == ["35%", "of the time: 0.2 min; 8 clips without sound"]
    assert tiles["Faces"] == ["67%", "of 24 clips show one; at most 2 at a time"]
    assert tiles["NSFW"] == ["1", "clip scores 0.8 or more; the highest 0.9"]
    assert tiles["Clusters"] == ["2", "the largest has 22 clips"]
    assert tiles["Languages"] == ["2", "named or detected for 2 of 3 videos"]


def test_clusters_are_shown_by_size_with_central_clips_of_several_videos(root):
    first, second = root.all("div", class_="cluster")
    assert first.one("p", class_="about").text == "22 clips (92%) of 3 videos, 0.7 min"
    central = [thumb.attributes["title"] for thumb in first.all("figure", class_="thumb")]
    # The most central clip of each video, then the next of all.
    assert central == ["c-14000-16000", "c-12000-14000", "b-14000-16000", "a-14000-16000"]
    assert second.one("h4").text == "Cluster 1"
    assert len(second.all("figure", class_="thumb")) == 2
    assert "embed_images" in root.one("section", id="signals").text


def pixels(image: Element) -> np.ndarray:
    data = base64.b64decode(image.attributes["src"].partition(",")[2])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def test_pictures_with_a_high_nsfw_score_are_veiled_everywhere(root):
    for image in root.all("img"):
        veiled = "b-4000-6000" in image.attributes["alt"]
        # Of the noise, only large squares of grey are left.
        assert (pixels(image).std() < 20) == veiled, image.attributes["alt"]
    veiled = [one for one in root.all("img") if one.attributes["alt"].startswith("A veiled")]
    assert len(veiled) == 1
    assert "are veiled on this page" in root.text


def test_page_of_a_subset_shows_its_own_clips(dataset, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rules:\n  - where: text_area < 0.1\n")
    with open_catalog(dataset) as catalog:
        create_subset(catalog, load_subset_recipe(recipe), name="plain", code_version="0")
    write_report(dataset, tmp_path / "page.html", subset="plain")
    root = parse(tmp_path / "page.html")
    text = [thumb.one("b").text for thumb in cards(root)["Text on the picture"]]
    assert text == ["0.09", "0.08", "0.07", "0", "0.01", "0.02"]
    assert root.one("figure", id="signal-text_area").all("line", class_="threshold")
    assert root.all("div", class_="cluster")[0].one("p").text.startswith("9 clips (90%)")


def test_dataset_without_such_stages_has_no_section(tmp_path):
    steps = {"download_videos": ("download_videos", "1", VIDEOS)}
    write_shard(tmp_path / "d", "download_videos", "1", "000000", [], VIDEOS)
    write_run(tmp_path / "d", run_record("r1", START, steps))
    write_report(tmp_path / "d", tmp_path / "page.html")
    assert not parse(tmp_path / "page.html").all("section", id="signals")
