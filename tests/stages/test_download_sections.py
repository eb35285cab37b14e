"""A section of a video has the video's own times, verified with numbered frames."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import ValidationError

from clipmill.pipeline.dataset.locks import dataset_lock
from clipmill.pipeline.engine.runner import Worker
from clipmill.pipeline.engine.step_inputs import KeptFrameReader
from clipmill.pipeline.ingest.source_shards import NewShards
from clipmill.pipeline.recipes.plan import ShardList, build_plan
from clipmill.pipeline.recipes.recipe import LoadedRecipe, Recipe
from clipmill.schemas.errors import UsageError
from clipmill.schemas.ids import source_key
from clipmill.schemas.tables import SOURCES
from clipmill.stages.download_videos import DownloadVideos
from clipmill.stages.media.fetch.section_files import take
from clipmill.stages.media.fetch.sections import NoSection, Section
from clipmill.stages.media.isolation.isolated import Limits
from clipmill.stages.protocol import PerSecond
from clipmill.stages.split_clips import SplitClips
from tests.download_helpers import add_extractor, outcome
from tests.http_server import Busy, File, serve

RATE, FRAMES, KEY_DISTANCE = 25, 300, 50
SPANS = [(5.3, 6.12), (7.0, 8.02)]
FIRST_FRAME = 100  # the key frame before 5.3 - 0.5
BITS = 9


def numbered(number: int) -> np.ndarray:
    """A picture with its number as white and black squares."""
    image = np.full((90, 160, 3), 90, np.uint8)
    for bit in range(BITS):
        image[20:70, bit * 16 + 4 : bit * 16 + 16] = 245 if number >> bit & 1 else 10
    return image


def number_in(image: np.ndarray) -> int:
    height, width = image.shape[:2]
    return sum(
        int(image[height // 2, round((bit * 16 + 10) * width / 160)].mean() > 128) << bit
        for bit in range(BITS)
    )


def render(
    path: Path,
    *,
    codec: str = "libx264",
    sound: str | None = None,
    container: str | None = None,
    late: int = 0,
    **options: str,
) -> None:
    with av.open(str(path), "w", format=container, options=options) as output:
        own = (
            {"g": str(KEY_DISTANCE), "preset": "veryfast"}
            if codec == "libx264"
            else {"g": str(KEY_DISTANCE), "deadline": "realtime", "cpu-used": "8"}
        )
        stream = output.add_stream(codec, rate=RATE, options=own)
        stream.width, stream.height, stream.pix_fmt = 160, 90, "yuv420p"
        tone = output.add_stream(sound, rate=48000) if sound else None
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered(number), "rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = number + late, Fraction(1, RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if tone is not None:
            add_silence(output, tone)


def add_silence(output, tone) -> None:
    for start in range(0, FRAMES // RATE * 48000 - 959, 960):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 48000, start
        output.mux(tone.encode(frame))
    output.mux(tone.encode())


def render_sound(path: Path, codec: str) -> None:
    with av.open(str(path), "w") as output:
        add_silence(output, output.add_stream(codec, rate=48000))


@functools.cache
def files() -> dict[str, bytes]:
    """The site's files, by path."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        render(folder / "both.mp4", sound="aac")
        render(folder / "video.mp4")
        render(folder / "video.webm", codec="libvpx-vp9")
        render(folder / "late.mkv", late=113)
        render_sound(folder / "sound.m4a", "aac")
        render_sound(folder / "sound.webm", "libopus")
        for kind in ("mpegts", "fmp4"):
            (folder / kind).mkdir()
            render(
                folder / kind / "list.m3u8",
                sound="aac",
                container="hls",
                hls_time="2",
                hls_list_size="0",
                hls_segment_type=kind,
            )
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


VIDEO = {"acodec": "none", "vcodec": "avc1"}
SOUND = {"vcodec": "none", "acodec": "aac"}
OFFERS = {
    "late clock": [("late.mkv", {})],
    "one file": [("both.mp4", {})],
    "video and sound": [("video.mp4", VIDEO), ("sound.m4a", SOUND)],
    "webm": [("video.webm", {**VIDEO, "vcodec": "vp9"}), ("sound.webm", SOUND)],
    "mixed": [("video.mp4", VIDEO), ("sound.webm", SOUND)],
    "hls": [("mpegts/list.m3u8", {"ext": "mp4", "protocol": "m3u8_native"})],
    "hls fmp4": [("fmp4/list.m3u8", {"ext": "mp4", "protocol": "m3u8_native"})],
}


@pytest.fixture
def site():
    with serve() as server:
        for path, data in files().items():
            server.file(f"/{path}", data)
        yield server


@pytest.fixture
def platform(monkeypatch, site):
    """A site with its own yt-dlp extractor, which offers what the test says."""
    from yt_dlp.extractor.common import InfoExtractor

    class HomeIE(InfoExtractor):
        _VALID_URL = r"https?://127\.0\.0\.1:\d+/home/(?P<id>\w+)"
        offer = "one file"
        home = site.url("/")
        info: dict = {"duration": FRAMES / RATE}

        def _real_extract(self, url):
            formats = [
                {
                    "format_id": str(at),
                    "url": self.home + path,
                    "ext": path.rpartition(".")[2],
                    **more,
                }
                for at, (path, more) in enumerate(OFFERS[self.offer])
            ]
            return {"id": self._match_id(url), "title": "A film", "formats": formats, **self.info}

    add_extractor(HomeIE, monkeypatch.setattr)
    return HomeIE


def made(
    dataset: Path, url: str, *, spans=SPANS, keep_frames: bool = True, extractor="home", **settings
):
    """The plan, and the rows of download and split for one source."""
    settings = {
        "min_duration_seconds": 10,
        "min_height": None,
        "retries": 0,
        "sections": True,
        "section_padding_seconds": 0.5,
        **settings,
    }
    stages = {
        "download_videos": DownloadVideos(**settings),
        "split_clips": SplitClips(keep_frames=keep_frames),
    }
    recipe = Recipe(stages={"download_videos": {}})
    plan = build_plan(LoadedRecipe("sections", dataset, recipe, stages))
    listed = [{"start_seconds": start, "end_seconds": end} for start, end in spans]
    NewShards(dataset / "sources").commit(
        pa.Table.from_pylist(
            [{"source_key": source_key(url), "url": url, "extractor": extractor, "spans": listed}],
            SOURCES,
        )
    )
    with dataset_lock(dataset) as hold:
        hold.begin("run")
        worker = Worker(plan, plan.steps, dataset, "run", ShardList(("000000",), {}))
        worker.run("000000")
        worker.close()

    def rows(label: str, table: str | None = None) -> list[dict]:
        import pyarrow.parquet as pq

        folder = plan.by_label[label].folder(dataset, table)
        return pq.read_table(folder / "000000.parquet").to_pylist()

    return plan, rows


def frames_of(path: Path) -> list[tuple[Fraction, int]]:
    """Time in the file and number of every decodable frame."""
    with av.open(str(path)) as container:
        return [
            (frame.pts * Fraction(frame.time_base), number_in(frame.to_ndarray(format="rgb24")))
            for frame in container.decode(video=0)
        ]


def number_of_jpeg(jpeg: bytes) -> int:
    return number_in(np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")))


@pytest.mark.parametrize("offer", OFFERS)
def test_section_begins_at_a_key_frame_and_has_the_videos_times(tmp_path, site, platform, offer):
    platform.offer = offer
    url = site.url("/home/film1")
    _, whole = made(tmp_path / "whole", url, sections=False)
    path = tmp_path / "whole" / whole("download_videos")[0]["path"]
    [video] = whole("download_videos")
    clock = Fraction(str(video["clock_starts_at_seconds"]))
    [late] = {time - clock - Fraction(number, RATE) for time, number in frames_of(path)}
    assert 0 <= late < Fraction(1, RATE)  # sound may begin before the pictures
    _, rows = made(tmp_path / "part", url)
    [video] = rows("download_videos")
    assert outcome(video) == "kept", video
    assert dict(video["extra"]) == {}
    assert video["duration_seconds"] == FRAMES / RATE
    found = frames_of(tmp_path / "part" / video["path"])
    assert found[0] == (0, FIRST_FRAME)
    assert 200 <= found[-1][1] < FRAMES - 50
    starts = Fraction(video["starts_at_seconds"])
    assert all(abs(time + starts - Fraction(number, RATE) - late) < 1e-9 for time, number in found)
    assert [(clip["start_seconds"], clip["end_seconds"]) for clip in rows("split_clips")] == SPANS
    frames = rows("scan_videos", "frames")
    numbers = [number_of_jpeg(frame["jpeg"]) for frame in frames]
    assert [frame["seconds"] for frame in frames] == pytest.approx(
        [number / RATE + float(late) for number in numbers], abs=1e-9
    )
    assert (min(numbers), max(numbers) <= 200) == (133 if not late else 132, True)


def test_clips_of_a_section_equal_those_of_the_whole_video(tmp_path, site, platform):
    url = site.url("/home/film1")
    _, part = made(tmp_path / "part", url)
    _, whole = made(tmp_path / "whole", url, sections=False)
    assert whole("download_videos")[0]["starts_at_seconds"] is None
    differing = ("start_frame", "end_frame")  # these are relative to the file
    for name in differing:
        assert {clip[name] - FIRST_FRAME for clip in whole("split_clips")} == {
            clip[name] for clip in part("split_clips")
        }
    assert [
        {k: v for k, v in clip.items() if k not in differing} for clip in part("split_clips")
    ] == [{k: v for k, v in clip.items() if k not in differing} for clip in whole("split_clips")]
    assert [(frame["seconds"], frame["jpeg"]) for frame in part("scan_videos", "frames")] == [
        (frame["seconds"], frame["jpeg"]) for frame in whole("scan_videos", "frames")
    ]


def test_frames_are_reread_at_the_videos_times(tmp_path, site, platform):
    plan, rows = made(tmp_path, site.url("/home/film1"), keep_frames=False)
    clips = rows("split_clips")
    batch = pa.table(
        {
            "clip_id": [clip["clip_id"] for clip in clips],
            "_video_id": [clip["video_id"] for clip in clips],
            "_start_seconds": [clip["start_seconds"] for clip in clips],
            "_end_seconds": [clip["end_seconds"] for clip in clips],
        }
    )
    table, failed = KeptFrameReader(plan, tmp_path, ["000000"]).attach(batch, (PerSecond(4.0),))
    assert not failed
    for frames, (start, end) in zip(table["frames"].to_pylist(), SPANS, strict=True):
        assert len(frames) >= 3
        for frame in frames:
            assert start <= frame["seconds"] < end
            assert frame["seconds"] == number_of_jpeg(frame["jpeg"]) / RATE


def test_rules_apply_to_the_whole_videos_duration(tmp_path, site, platform):
    _, rows = made(tmp_path, site.url("/home/film1"), max_duration_seconds=11.0)
    [video] = rows("download_videos")
    assert outcome(video) == "download_videos.max_duration_seconds"


def whole_for(video: dict, why: str) -> None:
    assert outcome(video) == "kept", video
    assert why in dict(video["extra"])["section_refused"]
    assert video["starts_at_seconds"] is None


def test_whole_file_is_downloaded_if_the_site_refuses_the_section(tmp_path, site, platform):
    site.script("/both.mp4", Busy(403), File(files()["both.mp4"]))
    _, rows = made(tmp_path, site.url("/home/film1"))
    [video] = rows("download_videos")
    whole_for(video, "ffmpeg")
    assert len(frames_of(tmp_path / video["path"])) == FRAMES
    assert [clip["start_seconds"] for clip in rows("split_clips")] == [5.3, 7.0]


def test_whole_picture_is_downloaded_if_a_sections_sound_is_refused(tmp_path, site, platform):
    """ffmpeg fetches a section's picture and sound at once, and can't tell which was refused."""
    platform.offer = "video and sound"
    site.status("/sound.m4a", 403)
    _, rows = made(tmp_path, site.url("/home/film1"))
    [video] = rows("download_videos")
    whole_for(video, "ffmpeg")
    assert [(part["part"], part["kind"]) for part in video["failed_parts"]] == [
        ("sound", "blocked")
    ]
    assert [clip["start_seconds"] for clip in rows("split_clips")] == [5.3, 7.0]


def test_whole_file_is_downloaded_if_the_duration_is_unknown(tmp_path, site, platform):
    platform.info = {}
    _, rows = made(tmp_path, site.url("/home/film1"))
    whole_for(rows("download_videos")[0], "how long")


def test_whole_file_is_downloaded_for_a_span_beyond_the_duration(tmp_path, site, platform):
    platform.info = {"duration": 7.5}
    _, rows = made(tmp_path, site.url("/home/film1"), min_duration_seconds=1)
    whole_for(rows("download_videos")[0], "the part ends at")
    assert rows("split_clips")[-1]["end_seconds"] == 8.02


def test_whole_file_is_downloaded_if_spans_cover_the_video(tmp_path, site, platform):
    _, rows = made(tmp_path, site.url("/home/film1"), spans=[(0.2, 1.0), (11.0, 11.9)])
    [video] = rows("download_videos")
    assert (video["starts_at_seconds"], dict(video["extra"])) == (None, {})


def test_section_from_the_beginning_starts_at_zero(tmp_path, site, platform):
    _, rows = made(tmp_path, site.url("/home/film1"), spans=[(0.2, 1.0)])
    [video] = rows("download_videos")
    assert video["starts_at_seconds"] == 0.0
    assert len(frames_of(tmp_path / video["path"])) < FRAMES


def test_direct_file_is_downloaded_completely(tmp_path, site):
    _, rows = made(tmp_path, site.url("/both.mp4"), extractor=None)
    whole_for(rows("download_videos")[0], "directly linked")


def test_section_that_lacks_a_span_is_refused(tmp_path):
    (tmp_path / "both.mp4").write_bytes(files()["both.mp4"])

    def section(first: float, last: float) -> Section:
        return Section(first, last, 0.0, 1.0, is_identified=True, reading=Limits())

    assert take(section(1.0, 12.0), tmp_path / "both.mp4", tmp_path / "a.mp4") == 0.0
    with pytest.raises(NoSection, match="ends at"):
        take(section(1.0, 12.1), tmp_path / "both.mp4", tmp_path / "b.mp4")


def test_downloaded_sections_are_not_downloaded_again(tmp_path, site, platform):
    """Nor for some of the spans, or for others in the same section."""
    from clipmill.stages.protocol import Workspace

    url = site.url("/home/film1")
    made(tmp_path, url)
    # Another rule, hence another fingerprint, over the same source.
    stage = DownloadVideos(
        min_duration_seconds=9, min_height=None, sections=True, section_padding_seconds=0.5
    )
    with stage.open(Workspace(tmp_path, tmp_path / "scratch")) as transform:
        for spans, is_there in (
            (SPANS, True),
            (SPANS[1:], True),
            ([(5.0, 6.0), (7.5, 8.02)], True),
            ([*SPANS, (9.0, 10.0)], False),
            (SPANS, True),
        ):
            asked = len(site.log)
            row = {
                "source_key": source_key(url),
                "url": url,
                "extractor": "home",
                "spans": [{"start_seconds": start, "end_seconds": end} for start, end in spans],
            }
            [video] = transform(pa.Table.from_pylist([row], SOURCES)).to_pylist()
            assert (len(site.log) == asked) is is_there
            assert (video["starts_at_seconds"], video["duration_seconds"]) == (4.0, 12.0)


def test_sections_are_off_by_default_and_do_not_change_fingerprints():
    assert "sections" not in DownloadVideos().identity()
    assert DownloadVideos(sections=True).identity() == {"sections": True}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"yt_dlp": {"download_ranges": None}}, "is set by `sections`"),
        ({"proxy": "socks5://127.0.0.1:1"}, "support SOCKS"),
    ],
)
def test_settings_incompatible_with_sections_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        DownloadVideos(sections=True, **settings)


@pytest.mark.parametrize("boundaries", ["detect", "whole"])
def test_cuts_cannot_be_detected_in_sections(tmp_path, boundaries):
    stages = {
        "download_videos": DownloadVideos(sections=True),
        "split_clips": SplitClips(boundaries=boundaries),
    }
    recipe = Recipe(stages={"download_videos": {}})
    with pytest.raises(UsageError, match="boundaries must be auto or given"):
        build_plan(LoadedRecipe("sections", tmp_path, recipe, stages))


@pytest.mark.parametrize("offer", ["video and sound", "hls"])
def test_only_the_installed_ffmpeg_is_started(tmp_path, site, platform, monkeypatch, offer):
    """For sections, merging, probing and cutting; and not by importing PySceneDetect.

    In a thread, which has its own context, and in the helper processes.
    """
    programs, started = tmp_path / "programs", tmp_path / "started"
    programs.mkdir()
    for name in ("ffmpeg", "ffprobe", "avconv", "avprobe"):
        (programs / name).write_text(f"#!/bin/sh\necho {name} >> {started}\nexit 1\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    platform.offer = offer
    subprocess.run(
        [sys.executable, "-c", "import clipmill.stages.media.read.detectors"],
        check=True,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    with ThreadPoolExecutor(1) as threads:
        for sections in (True, False):
            _, rows = threads.submit(
                made, tmp_path / str(sections), site.url("/home/film1"), sections=sections
            ).result()
            [video] = rows("download_videos")
            assert outcome(video) == "kept", video
            assert (video["starts_at_seconds"] is not None) == sections, dict(video["extra"])
    assert not started.exists()
