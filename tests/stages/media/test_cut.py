"""Cut clips have exactly the frames that they should, for any source."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.media.cutting import clip_files, cut, encoders, reencode
from clipmill.stages.media.cutting.cut import check_encoder, cut_clips, cut_clips_isolated
from clipmill.stages.media.cutting.requests import CutOptions, CutRequest
from tests import isolated_functions
from tests.media import SHARED_VIDEOS
from tests.numbered import bursts_of, frames_of, number_in, numbers_of, render_numbered

COUNT = 110
# First and last frame (exclusive) of the clips: at the start, away from key frames, inside another
# clip, and at the end.
SPANS = ((0, 20), (37, 80), (41, 55), (99, 110))
SOURCES = {
    "b-frames.mp4": {"audio": "aac"},
    "uneven.mp4": {"uneven": True, "audio": "aac"},
    "rotated.mp4": {"rotation": 90},
    "upside-down.mp4": {"rotation": 180},
    "odd-rotated.mp4": {"size": (201, 121), "pixels": "yuv444p", "rotation": 270},
    "full-range.mp4": {"pixels": "yuvj420p"},
    "late.mp4": {"start_seconds": 2.3, "audio": "aac"},
    "late.ts": {"start_seconds": 1.0, "audio": "aac"},
    "vp8.webm": {"codec": "libvpx", "audio": "libopus"},
    "vp9-uneven.webm": {"codec": "libvpx-vp9", "audio": "libopus", "uneven": True},
    # Pictures stored after a key frame and shown before it.
    "open-groups.mkv": {
        "options": {"x264-params": "open-gop=1:b-adapt=0:scenecut=0:keyint=31:min-keyint=31"},
        "audio": "flac",
    },
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}, "audio": "libmp3lame"},
    "ten-bit.mkv": {"codec": "ffv1", "pixels": "yuv422p10le"},
    "close-keys.mov": {"keyframes": 2, "audio": "pcm_s16le"},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple[Path, list[float]]]:
    """Each numbered source, and its frames' times as read from it."""
    folder = tmp_path_factory.mktemp("sources")
    found = {}
    for name, settings in SOURCES.items():
        render_numbered(folder / name, COUNT, **settings)
        frames = frames_of(folder / name)
        assert [number_in(image) for _, image in frames] == list(range(COUNT))
        found[name] = (folder / name, [seconds for seconds, _ in frames])
    return found


def requests_of(times: list[float], spans, folder: Path) -> list[CutRequest]:
    ends = [*times, times[-1] + (times[-1] - times[-2])]
    return [
        CutRequest(f"c{i}", ends[a], ends[b], folder / f"c{i}.mp4")
        for i, (a, b) in enumerate(spans)
    ]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def check_times(path: Path, times: list[float], numbers: list[int]) -> None:
    """The clip's frames keep the source's distances, and the first one is at zero."""
    own = [seconds for seconds, _ in frames_of(path)]
    expected = [times[number] - times[numbers[0]] for number in numbers]
    assert own == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("name", SOURCES)
def test_exact_clip_has_exactly_the_frames_of_its_span(name, sources, tmp_path):
    source, times = sources[name]
    requests = requests_of(times, SPANS, tmp_path)
    results = {r.clip_id: r for r in cut_clips(source, requests, CutOptions("exact"))}
    for request, (first, last) in zip(requests, SPANS, strict=True):
        result = results[request.clip_id]
        assert result.problem is None
        assert result.path == request.target
        numbers = numbers_of(result.path)
        assert numbers == list(range(first, last))
        assert result.n_frames == last - first
        check_times(result.path, times, numbers)
        assert result.start_seconds == pytest.approx(times[first], abs=1e-6)
        assert result.end_seconds == pytest.approx(request.end_seconds, abs=0.05)
        assert (result.width, result.height) == (200, 120)
        assert result.size_bytes == result.path.stat().st_size
        assert result.has_audio == ("audio" in SOURCES[name])
        with av.open(str(result.path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            length = float(stream.duration * stream.time_base)
        assert length == pytest.approx(result.end_seconds - result.start_seconds, abs=0.002)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", SOURCES)
def test_copied_clip_matches_its_recorded_span(name, sources, tmp_path):
    """It begins at the previous key frame, has no gap, and its pictures are the source's own."""
    source, times = sources[name]
    requests = requests_of(times, SPANS, tmp_path)
    results = {r.clip_id: r for r in cut_clips(source, requests, CutOptions("copy"))}
    keys = SOURCES[name].get("keyframes", 30)
    for request, (first, last) in zip(requests, SPANS, strict=True):
        result = results[request.clip_id]
        assert result.problem is None
        suffix = ".webm" if SOURCES[name].get("codec") == "libvpx" else ".mp4"
        assert result.path == request.target.with_suffix(suffix)
        numbers = numbers_of(result.path)
        inside = [
            n
            for n, seconds in enumerate(times)
            if result.start_seconds - 1e-6 <= seconds < result.end_seconds - 1e-6
        ]
        assert numbers == inside
        assert numbers[0] <= first
        assert first - numbers[0] <= keys + 6
        assert numbers[-1] >= last - 1
        assert numbers[-1] - last < 4, "no more than a picture that others depend on stays in"
        check_times(result.path, times, numbers)
        assert result.has_audio == ("audio" in SOURCES[name])
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", [name for name in SOURCES if "audio" in SOURCES[name]])
@pytest.mark.parametrize(("media", "slack"), [("exact", 0.004), ("copy", 0.03)])
def test_sound_stays_in_sync(name, media, slack, sources, tmp_path):
    """To a few samples when re-encoded, to a packet when copied."""
    source, times = sources[name]
    heard = bursts_of(source)
    requests = requests_of(times, [(5, 110)], tmp_path)
    (result,) = cut_clips(source, requests, CutOptions(media))
    found = [seconds + result.start_seconds for seconds in bursts_of(result.path)]
    expected = [
        seconds
        for seconds in heard
        if result.start_seconds + 0.2 < seconds < result.end_seconds - 0.1
    ]
    for seconds in expected:
        assert min(abs(seconds - other) for other in found) < slack, (seconds, found)
    (silent,) = cut_clips(source, requests, CutOptions(media, audio=False))
    assert silent.has_audio is False
    assert bursts_of_or_none(silent.path) is None


def bursts_of_or_none(path: Path) -> list[float] | None:
    with av.open(str(path)) as container:
        return bursts_of(path) if container.streams.audio else None


def test_file_with_an_edit_list_is_cut_as_displayed(sources, tmp_path):
    import imageio_ffmpeg

    edited = tmp_path / "edited.mp4"
    subprocess.run(
        [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-v",
            "error",
            "-ss",
            "0.7",
            "-i",
            str(sources["b-frames.mp4"][0]),
            "-c",
            "copy",
            str(edited),
        ],
        stdin=subprocess.DEVNULL,
        check=True,
    )
    shown = numbers_of(edited)
    assert shown[0] > 0, "the edit list hides nothing"
    times = [seconds for seconds, _ in frames_of(edited)]
    requests = requests_of(times, [(0, 8), (5, 20)], tmp_path)
    for result, (a, b) in zip(
        cut_clips(edited, requests, CutOptions("exact")), [(0, 8), (5, 20)], strict=True
    ):
        assert numbers_of(result.path) == shown[a:b]
    copied = list(cut_clips(edited, requests, CutOptions("copy")))
    assert [r.start_seconds < 0 for r in copied] == [True, True], "the hidden key frame is needed"
    assert numbers_of(copied[0].path)[0] == 0


def test_nearest_key_frame_may_cut_off_the_beginning(sources, tmp_path):
    source, times = sources["ten-bit.mkv"]
    requests = requests_of(times, [(55, 80), (62, 80), (50, 58)], tmp_path)
    near = {
        r.clip_id: numbers_of(r.path)[0]
        for r in cut_clips(source, requests, CutOptions("copy", start="nearest"))
    }
    # Key frames are at 30, 60, 90; the last clip ends before the next one.
    assert near == {"c0": 60, "c1": 60, "c2": 30}


def test_span_rounded_to_milliseconds_excludes_the_next_shot(tmp_path):
    """At 30 frames/s frame 20 is at 0.66667 s, which is published as 0.667."""
    source = tmp_path / "thirty.mp4"
    times = render_numbered(source, 60, rate=30)
    request = CutRequest("c", round(times[10], 3), round(times[20], 3), tmp_path / "c.mp4")
    (result,) = cut_clips(source, [request], CutOptions("exact"))
    assert numbers_of(result.path) == list(range(10, 20))
    assert result.end_seconds == pytest.approx(times[20], abs=1e-6)


def test_file_that_begins_late_is_cut_by_the_videos_time(sources, tmp_path):
    source, times = sources["b-frames.mp4"]
    request = CutRequest("c", 100 + times[40], 100 + times[50], tmp_path / "c.mp4")
    (result,) = cut_clips(source, [request], CutOptions("exact"), starts_at_seconds=100.0)
    assert numbers_of(result.path) == list(range(40, 50))
    assert result.start_seconds == pytest.approx(100 + times[40])


def test_pictures_are_scaled_to_even_sides_and_keep_their_colours(sources, tmp_path):
    """Even if the source has full range, or is rotated."""
    for name in ("full-range.mp4", "b-frames.mp4", "rotated.mp4"):
        source, times = sources[name]
        request = requests_of(times, [(3, 6)], tmp_path)
        (result,) = cut_clips(source, request, CutOptions("exact", short_side=71, crf=5))
        assert (result.width, result.height) == (118, 70) or (result.width, result.height) == (
            118,
            72,
        )
        with av.open(str(result.path)) as container:
            frame = next(container.decode(video=0))
            image = frame.to_ndarray(format="rgb24")
        middle = image[int(image.shape[0] * 0.4), int(image.shape[1] * 0.3)]
        assert np.abs(middle.astype(int) - (90, 120, 60)).max() <= 6, (name, middle)


def test_any_number_of_overlapping_clips_can_be_cut(sources, tmp_path, monkeypatch):
    """At most `MAX_OPEN_CLIPS` encoders are open at once, but every clip is cut."""
    opened, most = set(), []
    start, stop = reencode._Writing._open, reencode._Writing.finish

    def began(self, *details):
        opened.add(self)
        most.append(len(opened))
        return start(self, *details)

    def ended(self, *details):
        opened.discard(self)
        return stop(self, *details)

    monkeypatch.setattr(reencode._Writing, "_open", began)
    monkeypatch.setattr(reencode._Writing, "finish", ended)
    source, times = sources["b-frames.mp4"]
    spans = [(10 + i, 40 + i) for i in range(12)]
    requests = requests_of(times, spans, tmp_path)
    results = {r.clip_id: r for r in cut_clips(source, requests, CutOptions("exact"))}
    assert len(results) == 12
    for request, (first, last) in zip(requests, spans, strict=True):
        assert numbers_of(results[request.clip_id].path) == list(range(first, last))
    assert max(most) == reencode.MAX_OPEN_CLIPS


@pytest.mark.parametrize("media", ["copy", "exact"])
@pytest.mark.parametrize(
    "name", ["-leading.mp4", "quo'te\" $(x).mp4", "new\nline.mp4", "a:b%d.mp4"]
)
def test_any_file_name_works(name, media, sources, tmp_path):
    source, times = sources["b-frames.mp4"]
    odd = tmp_path / name
    odd.write_bytes(source.read_bytes())
    request = CutRequest("c", times[40], times[45], tmp_path / f"cut{name}")
    (result,) = cut_clips(odd, [request], CutOptions(media))
    assert result.problem is None
    assert result.path == tmp_path / f"cut{name}"
    assert 40 in numbers_of(result.path)


@pytest.mark.parametrize("media", ["copy", "exact"])
def test_uncuttable_clip_has_a_problem_and_leaves_no_file(media, sources, tmp_path):
    source, times = sources["late.ts"]
    whole = source.read_bytes()
    cut_off = tmp_path / "cut-off.ts"
    cut_off.write_bytes(whole[: len(whole) // 2])
    spans = [(times[10], times[20]), (times[100], times[109]), (500.0, 501.0), (0.0, 0.5)]
    requests = [CutRequest(f"c{i}", a, b, tmp_path / f"c{i}.mp4") for i, (a, b) in enumerate(spans)]
    results = {r.clip_id: r for r in cut_clips(cut_off, requests, CutOptions(media))}
    assert len(results) == 4
    assert results["c0"].problem is None
    for name in ("c1", "c2", "c3"):
        assert results[name].problem.kind == "bad_media"
        assert results[name].path is None
    assert "truncated" in results["c1"].problem.message
    assert "no frame" in results["c3"].problem.message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c0.mp4", "cut-off.ts"]
    rubbish = tmp_path / "rubbish.mp4"
    rubbish.write_bytes(b"<html>" * 200)
    for file in (rubbish, tmp_path / "missing.mp4"):
        problems = [r.problem.kind for r in cut_clips(file, requests, CutOptions(media))]
        assert problems == ["bad_media"] * 4


@pytest.mark.parametrize("media", ["copy", "exact"])
def test_incomplete_clip_is_discarded(media, sources, tmp_path, monkeypatch):
    """The check after the cut works: packets are lost on their way into the file."""
    source, times = sources["ten-bit.mkv"]
    mux = av.container.OutputContainer.mux

    class Leaky:
        def __init__(self, output):
            self._output = output
            self._seen = 0

        def __getattr__(self, name):
            return getattr(self._output, name)

        def mux(self, packets):
            for packet in packets if isinstance(packets, list) else [packets]:
                self._seen += 1
                if self._seen != 7:
                    mux(self._output, packet)

    began = clip_files.ClipFile.__init__

    def leaky(self, *details):
        began(self, *details)
        self.output = Leaky(self.output)

    monkeypatch.setattr(clip_files.ClipFile, "__init__", leaky)
    requests = requests_of(times, [(30, 50)], tmp_path)
    (result,) = cut_clips(source, requests, CutOptions(media))
    assert result.problem.kind == ("crash" if media == "exact" else "bad_media")
    assert re.search(r"\d+ frames, not \d+", result.problem.message)
    assert ("--media exact" in result.problem.message) == (media == "copy")
    assert list(tmp_path.iterdir()) == []


def test_remains_of_a_killed_cut_are_removed_by_the_next_one(sources, tmp_path):
    source, times = sources["b-frames.mp4"]
    (tmp_path / ".c0.mp4.0123abcd.part").write_bytes(b"half a clip")
    (tmp_path / "c0.mp4").write_bytes(b"an older cut")
    (result,) = cut_clips(source, requests_of(times, [(0, 9)], tmp_path), CutOptions("exact"))
    assert [path.name for path in tmp_path.iterdir()] == ["c0.mp4"]
    assert numbers_of(result.path) == list(range(9))


@pytest.mark.parametrize("media", ["copy", "exact"])
def test_unwritable_folder_is_an_error_of_the_command(media, sources, tmp_path):
    """No clip could be written, so it isn't the failure of one row."""
    source, times = sources["b-frames.mp4"]
    requests = requests_of(times, [(0, 9)], tmp_path / "missing")
    with pytest.raises(ClipmillError, match="clips can't be written here"):
        list(cut_clips(source, requests, CutOptions(media)))


def test_abandoned_cutting_leaves_no_partial_file(sources, tmp_path):
    source, times = sources["b-frames.mp4"]
    results = cut_clips(source, requests_of(times, SPANS, tmp_path), CutOptions("exact"))
    next(results)
    results.close()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"encoder": "libnothing"}, UsageError, "no encoder 'libnothing'"),
        ({"encoder": "aac"}, UsageError, "encodes audio"),
        ({"encoder": "mpeg4", "crf": 20}, UsageError, "no constant quality"),
        ({"encoder": "libvpx-vp9", "preset": "fast"}, UsageError, "no presets"),
        ({"crf": 99}, UsageError, "between 0"),
        ({"preset": "hasty"}, ClipmillError, "preset=hasty"),
        ({"encoder": "libvpx"}, ClipmillError, "mp4 can't hold"),
    ],
)
def test_unusable_encoder_is_refused_before_anything_is_cut(options, error, words):
    with pytest.raises(error, match=words):
        check_encoder(CutOptions("exact", **options))


def test_encoders_are_tried_until_one_works(monkeypatch):
    """One that is listed but has no hardware is skipped; if none is left, the reasons are
    reported."""
    monkeypatch.setattr(encoders, "H264_ENCODERS", ("libnothing", "libvpx", "libx264"))
    for cached in (encoders._find, encoders._first_that_works):
        monkeypatch.setattr(encoders, cached.__name__, cached.__wrapped__)
    assert check_encoder(CutOptions("exact")) == "libx264"
    monkeypatch.setattr(encoders, "H264_ENCODERS", ("libnothing", "libvpx"))
    with pytest.raises(ClipmillError) as told:
        check_encoder(CutOptions("exact"))
    assert "libnothing: not in PyAV's FFmpeg" in str(told.value)
    assert "libvpx: mp4 can't hold" in str(told.value)
    assert "--encoder mpeg4" in str(told.value)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="asks Linux's scheduler")
def test_encoder_threads_have_no_real_time_priority(tmp_path):
    """SVT-AV1 sets real-time priority if permitted; everything else would then stall."""
    encoder = encoders.find_encoder("libsvtav1", None, None)
    with av.open(str(tmp_path / "out.mp4"), "w") as output:
        stream = encoder.add_stream(output, (320, 180), Fraction(25), Fraction(1, 25), 2)
        encoders.open_encoder(stream)
        threads = [int(thread) for thread in os.listdir("/proc/self/task")]
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_OTHER}
        output.mux(stream.encode())


@pytest.mark.parametrize("encoder", ["mpeg4", "libvpx-vp9"])
def test_named_encoder_is_used(encoder, sources, tmp_path):
    source, times = sources["uneven.mp4"] if encoder != "mpeg4" else sources["b-frames.mp4"]
    requests = requests_of(times, [(10, 25)], tmp_path)
    (result,) = cut_clips(source, requests, CutOptions("exact", encoder=encoder))
    assert result.problem is None
    assert numbers_of(result.path) == list(range(10, 25))
    check_times(result.path, times, list(range(10, 25)))


FOOTAGE = (
    sorted(
        path for path in SHARED_VIDEOS.glob("*") if path.suffix in (".mp4", ".webm", ".mov", ".ts")
    )
    if SHARED_VIDEOS.is_dir()
    else []
)


def _grey(path: Path) -> list[tuple[float, np.ndarray]]:
    from clipmill.stages.media.read.decode import open_container, video_stream

    with open_container(path) as container:
        stream = video_stream(container, path)
        stream.thread_type = "AUTO"
        return [
            (
                float(frame.pts * frame.time_base),
                frame.reformat(160, 90, "gray", interpolation="AREA").to_ndarray().astype(float),
            )
            for frame in container.decode(stream)
            if frame.pts is not None
        ]


@pytest.mark.slow
@pytest.mark.skipif(not FOOTAGE, reason="the real footage is not next to this checkout")
@pytest.mark.parametrize("source", FOOTAGE, ids=lambda path: path.stem)
def test_real_footage_is_cut_to_the_frame(source, tmp_path):
    """First and last frame are the span's: every picture is closer to its own source frame than to
    the neighbours, if these differ at all."""
    frames = _grey(source)
    times = [seconds for seconds, _ in frames]
    n = len(frames)
    spans = [
        (0, 5),
        (n // 4, n // 4 + 40),
        (n // 4 + 10, n // 4 + 50),
        (n // 2 + 7, n // 2 + 33),
        (n - 12, n - 1),
    ]
    for media in ("copy", "exact"):
        requests = requests_of(times, spans, tmp_path)
        for result in cut_clips(source, requests, CutOptions(media, threads=0)):
            first, last = spans[int(result.clip_id[1:])]
            assert result.problem is None
            inside = [
                i
                for i, seconds in enumerate(times)
                if result.start_seconds - 1e-6 <= seconds < result.end_seconds - 1e-6
            ]
            if media == "exact":
                assert inside == list(range(first, last))
            cut = _grey(result.path)
            assert len(cut) == len(inside) == result.n_frames
            for (seconds, image), number in zip(cut, inside, strict=True):
                at = times[number] - times[inside[0]]
                assert seconds - cut[0][0] == pytest.approx(at, abs=0.002)
                own = np.abs(image - frames[number][1]).mean()
                assert own < (5.0 if media == "exact" else 0.01)
                for other in {max(0, number - 1), min(n - 1, number + 1)} - {number}:
                    # Neighbours that differ less than encoding does prove nothing.
                    if np.abs(frames[other][1] - frames[number][1]).mean() > 2 * own + 0.1:
                        assert own < np.abs(image - frames[other][1]).mean()


@pytest.mark.parametrize("is_once", [True, False])
def test_dying_helper_fails_only_clips_not_cut_yet(is_once, sources, tmp_path, monkeypatch):
    """Finished clips are not cut again; the unfinished file is removed."""
    source, times = sources["b-frames.mp4"]
    if is_once:
        (tmp_path / "once").touch()
    monkeypatch.setattr(cut, "_cut_in_helper", isolated_functions.cut_and_die)
    requests = requests_of(times, [(0, 10), (20, 30), (40, 50), (60, 70)], tmp_path)
    results = {r.clip_id: r for r in cut_clips_isolated(source, requests, CutOptions("exact"))}
    assert set(results) == {"c0", "c1", "c2", "c3"}
    assert (tmp_path / "asked").read_text() == "c0 c1 c2 c3\nc2 c3\n"
    failed = {clip: r.problem.kind for clip, r in results.items() if r.problem}
    assert failed == ({} if is_once else {"c2": "crash", "c3": "crash"})
    for number, clip in enumerate(sorted(set(results) - set(failed))):
        assert numbers_of(results[clip].path) == list(range(number * 20, number * 20 + 10))
    assert not list(tmp_path.glob(".*"))


def test_fewer_encoders_are_open_for_large_pictures(sources, tmp_path, monkeypatch):
    """Each holds dozens of pictures: eight of 8K would take 16 GB."""
    asked = []

    def passes(wanted, open_at_once):
        asked.append(open_at_once)
        return iter(())

    monkeypatch.setattr(reencode, "passes", passes)
    source, times = sources["b-frames.mp4"]
    for pixels in (1280 * 720, 4096 * 2160, 7680 * 4320, 8192 * 8192):
        index = replace(reencode.read_packets(source), pixels=pixels)
        with monkeypatch.context() as patched:
            patched.setattr(reencode, "read_packets", lambda path, index=index: index)
            list(cut_clips(source, requests_of(times, [(0, 9)], tmp_path), CutOptions("exact")))
    assert asked == [8, 8, 2, 1]


def test_codec_without_a_clip_container_is_permanent_with_advice(tmp_path):
    source = tmp_path / "film.gif"
    times = render_numbered(source, 20, codec="gif", pixels="rgb8")
    (result,) = cut_clips(source, requests_of(times, [(0, 9)], tmp_path), CutOptions("copy"))
    assert result.problem.kind == "permanent"
    assert result.problem.message == (
        "gif can't be copied into mp4, webm or mkv; export with --media exact"
    )
    assert leftovers(tmp_path) == []
