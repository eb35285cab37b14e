"""Writes lists in published layouts, with rows of random videos, for `benchmarks/published.py`."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pyarrow as pa

CLIPS_A_VIDEO = 33
_SENTENCE = "a man is walking his dog on the street while two women play guitar in red"
_WATCH = "https://www.youtube.com/watch?v="


class _Dice(random.Random):
    """Draws what rows consist of."""

    def span(self) -> tuple[float, float]:
        start = self.random() * 900
        return start, start + min(60, self.lognormvariate(2, 0.8))

    def caption(self, words: int = 12) -> str:
        return " ".join(self.choices(_SENTENCE.split(), k=words))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours:02d}:{minutes:02d}:{rest:06.3f}"


def _internvid(dice: _Dice, video: str, _: int) -> str:
    start, end = dice.span()
    return (
        f'{{"YoutubeID": "{video}", "Start_timestamp": "{_clock(start)}", '
        f'"End_timestamp": "{_clock(end)}", "Caption": "{dice.caption()}", "Aesthetic_Score": '
        f'{dice.gauss(4.7, 0.8):.6f}, "UMT_Score": {dice.gauss(0.35, 0.04):.16f}}}'
    )


def _koala(dice: _Dice, video: str, number: int) -> str:
    start, end = map(_clock, dice.span())
    return (
        f"{video}_{number},{_WATCH}{video},\"['{start}', '{end}']\",\"{dice.caption(6)}, "
        f'{dice.caption(6)}.",{dice.random():.6f},{dice.gauss(4.7, 0.8):.6f},'
        f"{dice.random() * 30:.4f},{dice.gauss(3, 1):.6f}"
    )


def _openvid(dice: _Dice, video: str, number: int) -> str:
    start, end = dice.span()
    return (
        f'{video}_{number}.mp4,"{dice.caption(6)}, {dice.caption(6)}.",{dice.gauss(5, 0.5):.6f},'
        f"{dice.random() * 30:.6f},{dice.random():.6f},static,120,24.0,{end - start:.3f}"
    )


def _miradata(dice: _Dice, video: str, number: int) -> str:
    start, end = map(_clock, dice.span())
    return (
        f"{number}.0,youtube,{_WATCH}{video},{video},1280,720,30.0,60.0,\"['{start}', '{end}']\","
        f'1800,"[300, 2100]",clip/{number}.mp4,"{dice.caption(6)}.","{dice.caption(8)}, '
        f'{dice.caption(4)}."'
    )


def _spatialvid(dice: _Dice, video: str, number: int) -> str:
    start, end = map(_clock, dice.span())
    return (
        f"{number:08x},1,{video},{start},{end},{dice.random() * 200:.4f},"
        f"{dice.gauss(5, 0.5):.6f},{dice.random() * 20:.6f}"
    )


_HEADERS: dict[str, tuple[str, Callable[[_Dice, str, int], str]]] = {
    "internvid": ("", _internvid),
    "koala-36m": (
        "videoID,url,timestamp,caption,clarity_score,aesthetic_score,motion_score,"
        "video_training_suitability_score",
        _koala,
    ),
    "openvid-1m": (
        "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,"
        "frame,fps,seconds",
        _openvid,
    ),
    "miradata": (
        "clip_id,source,video_url,video_id,width,height,fps,seconds,timestamp,frame_number,"
        "framestamp,file_path,short_caption,dense_caption",
        _miradata,
    ),
    "spatialvid": (
        "id,group id,YouTube id,timestamp_start,timestamp_end,luminance score,aesthetic score,"
        "motion score",
        _spatialvid,
    ),
}
LAYOUTS = tuple(_HEADERS)


def list_name(layout: str, rows: int, *, grouped: bool) -> str:
    """The file of such a list; all but InternVid's are compressed."""
    order = "-grouped" if grouped else ""
    return f"{layout}-{rows}{order}.{'jsonl' if layout == 'internvid' else 'csv.zst'}"


def write_rows(path: Path, layout: str, rows: int, *, grouped: bool) -> None:
    """Rows of random videos, each among its video's other rows if `grouped`, else anywhere."""
    with open(path, "wb") as file:
        if path.suffix != ".zst":
            _write(file, layout, rows, grouped)
            return
        with pa.CompressedOutputStream(pa.PythonFile(file, mode="w"), "zstd") as packed:
            _write(packed, layout, rows, grouped)


def _write(file: IO[bytes], layout: str, rows: int, grouped: bool) -> None:
    dice = _Dice(1)
    letters = string.ascii_letters + string.digits + "-_"
    videos = ["".join(dice.choices(letters, k=11)) for _ in range(max(1, rows // CLIPS_A_VIDEO))]
    header, line_of = _HEADERS[layout]
    lines = [header] if header else []
    for number in range(rows):
        at = number // CLIPS_A_VIDEO if grouped else int(dice.random() * len(videos))
        lines.append(line_of(dice, videos[min(at, len(videos) - 1)], number))
        if len(lines) >= 10_000 or number == rows - 1:
            file.write(("\n".join(lines) + "\n").encode())
            lines = []
