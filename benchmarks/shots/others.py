"""The detectors that the cascade is compared with, on the same films."""

from __future__ import annotations

import hashlib
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shots import footage
from clipmill.stages.media.read.detectors import DEFAULT_THRESHOLDS, DetectorSettings, find_cuts
from clipmill.stages.media.read.measures import WantedMeasures
from clipmill.stages.media.read.scan import ScanSettings, scan_video

# TransNetV2's authors run it on windows of 100 frames and use the 50 in the middle.
_WINDOW, _USED = 100, 50


def content_scan(path: Path) -> tuple[dict[str, Sequence[float]], float]:
    """What PySceneDetect's detectors see, and the processor time with decoding."""

    def scan() -> tuple[dict[str, Sequence[float]], float]:
        settings = ScanSettings(
            exact=False,
            spans=None,
            starts_at_seconds=None,
            keep_frames=False,
            frame_short_side=384,
            frame_quality=90,
            frames_per_second=2.0,
            wanted=WantedMeasures(),
        )
        started = time.process_time()
        steps = scan_video(path, settings)
        while True:
            try:
                next(steps)
            except StopIteration as ending:
                return dict(ending.value["statistics"]), time.process_time() - started

    found: tuple[dict[str, Sequence[float]], float] = _kept(path, "content", scan)
    return found


def pyscenedetect_cuts(
    statistics: dict[str, Sequence[float]],
    detector: Any = "content",
    threshold: float | None = None,
    min_scene_len: str = "0.6s",
    min_content_val: float = 15.0,
) -> list[int]:
    settings = DetectorSettings(
        detector=detector,
        threshold=DEFAULT_THRESHOLDS[detector] if threshold is None else threshold,
        min_scene_len=min_scene_len,
        filter_mode="merge",
        weights=(1.0, 1.0, 1.0, 0.0),
        luma_only=False,
        window_width=2,
        min_content_val=min_content_val,
        fade_bias=0.0,
        add_final_scene=True,
        min_out_length="0.1s",
    )
    return find_cuts(settings, statistics)


def tuned(films: Sequence[footage.Film], f1: Callable[[list[list[int]]], float]) -> dict[str, Any]:
    """The settings with the best F1 on these films."""
    tried: list[dict[str, Any]] = [
        {"detector": "content", "threshold": threshold, "min_scene_len": length}
        for threshold in (18, 21, 24, 27, 30, 34, 38, 44)
        for length in ("0.6s", "0.2s", "1")
    ]
    tried += [
        {
            "detector": "adaptive",
            "threshold": threshold,
            "min_scene_len": length,
            "min_content_val": least,
        }
        for threshold in (2.0, 2.5, 3.0, 4.0, 5.0)
        for length in ("0.6s", "0.2s")
        for least in (10.0, 15.0, 22.0)
    ]
    seen = [content_scan(film.path)[0] for film in films]
    return max(
        tried, key=lambda settings: f1([pyscenedetect_cuts(found, **settings) for found in seen])
    )


def network_answers(path: Path, pictures: np.ndarray) -> tuple[np.ndarray, float]:
    """TransNetV2's probability of each picture to be the last one of a shot, and the time."""
    from clipmill.stages.media.read.shots.judge import load_judge

    def run() -> tuple[np.ndarray, float]:
        judge = load_judge()
        beside = (_WINDOW - _USED) // 2
        missing = -len(pictures) % _USED
        padded = np.pad(pictures, ((beside, beside + missing), *[(0, 0)] * 3), mode="edge")
        started = time.process_time()
        answers = []
        for at in range(0, len(padded) - _WINDOW + 1, _USED):
            logits = judge.per_picture(padded[None, at : at + _WINDOW])[0]
            answers.append(logits[beside : beside + _USED])
        found = 1 / (1 + np.exp(-np.concatenate(answers)))
        return found[: len(pictures)], time.process_time() - started

    found: tuple[np.ndarray, float] = _kept(path, "transnetv2", run)
    return found


def _kept(path: Path, name: str, make: Callable[[], Any]) -> Any:
    """The result, read again from `build/` if the film hasn't changed."""
    key = hashlib.sha256(footage.state_of(path).encode()).hexdigest()[:16]
    place = footage.CACHE / f"{path.name}.{name}.{key}.pickle"
    if not place.exists():
        footage.CACHE.mkdir(parents=True, exist_ok=True)
        place.write_bytes(pickle.dumps(make()))
    return pickle.loads(place.read_bytes())
