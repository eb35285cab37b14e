"""Small generated videos, and the download stage with settings that fit them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from clipmill.stages.download_videos import DownloadVideos
from tests.ytdlp_changes import change_ytdlp_process


def make_video(
    seconds: float = 2.0,
    size: tuple[int, int] = (64, 48),
    *,
    seed: int = 0,
    container: str = "mp4",
    codec: str = "mpeg4",
    rotation: int = 0,
    options: dict | None = None,
) -> bytes:
    """A small video of noise, so that its file isn't tiny; 10 frames per second."""
    with tempfile.NamedTemporaryFile() as file:
        write_video(file.name, seconds, size, seed, container, codec, rotation, options or {})
        return Path(file.name).read_bytes()


def write_video(path, seconds, size, seed, container, codec, rotation, options) -> None:
    width, height = size
    noise = np.random.default_rng(seed)
    with av.open(path, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 200_000
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(round(seconds * 10)):
            pixels = noise.integers(0, 255, (height, width, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def make_audio() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def add_extractor(extractor: type, put: Callable[..., None] = setattr) -> None:
    """Has yt-dlp know a site before all others; `put` is monkeypatch.setattr in a test."""

    def add_first(put: Callable[..., None]) -> None:
        from yt_dlp.YoutubeDL import YoutubeDL

        add_all = YoutubeDL.add_default_info_extractors

        def add(self) -> None:
            self.add_info_extractor(extractor())
            add_all(self)

        put(YoutubeDL, "add_default_info_extractors", add)

    change_ytdlp_process(add_first, put)


def add_home(put: Callable[..., None]) -> type:
    """A site at /home/ID for yt-dlp: it returns `info` for every video, `infos[ID]` for one."""
    from yt_dlp.extractor.common import InfoExtractor

    class HomeIE(InfoExtractor):
        _VALID_URL = r"https?://127\.0\.0\.1:\d+/home/(?P<id>\w+)"
        info: dict = {}
        infos: dict[str, dict] = {}

        def _real_extract(self, url):
            video_id = self._match_id(url)
            said = {**self.info, **self.infos.get(video_id, {})}
            if "error" in said:
                raise said["error"]
            return {"id": video_id, "title": "A film", **said}

    add_extractor(HomeIE, put)
    return HomeIE


def add_youtube(put: Callable[..., None]) -> type:
    """YouTube for yt-dlp, without YouTube: it returns `info` for every video."""
    from yt_dlp.extractor.common import InfoExtractor

    class YoutubeIE(InfoExtractor):
        IE_NAME = "youtube"
        _VALID_URL = r"https://www\.youtube\.com/watch\?v=(?P<id>[\w-]{11})"
        info: dict = {}

        def _real_extract(self, url):
            video_id = self._match_id(url)
            said = {
                name: said.replace("ID", video_id) if name == "url" else said
                for name, said in self.info.items()
            }
            return {"id": video_id, "title": "A film", **said}

    add_extractor(YoutubeIE, put)
    return YoutubeIE


def stage(**settings) -> DownloadVideos:
    """The stage with settings for small videos, and no waiting."""
    return DownloadVideos(
        **{
            "min_duration_seconds": 1,
            "min_height": 16,
            "backoff_seconds": 0.01,
            "retries": 2,
            "timeout_seconds": 20,
            **settings,
        }
    )


def outcome(row: dict) -> str:
    if row["error"] is not None:
        return row["error"]["kind"]
    return row["rejection"]["rule"] if row["rejection"] is not None else "kept"


def assert_distance(times: Iterable[float], began: float, seconds: float) -> None:
    """Asserts that the nth of these requests did not arrive earlier than this distance allows.

    On a busy machine a request may be late and so close to the next: gaps prove nothing.
    """
    for number, at in enumerate(sorted(times)):
        assert at - began > number * seconds - 0.02, f"request {number} came too early"
