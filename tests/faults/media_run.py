"""Runs recipes over folders of bad media as users do, and reads each file's outcome."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow.parquet as pq

from clipmill.pipeline.catalog.catalog import open_catalog
from tests.faults.corpus import KEPT, NO_SOURCE, Case, Facts

ROOT = Path(__file__).resolve().parents[2]
SPLIT_ONLY = """
shard_videos: {shard_videos}
stages:
  download_videos: {{min_duration_seconds: null, min_height: null}}
  # The parts of a film of 2 s that is cut in a wrong place are clips, too; one frame is none.
  split_clips: {{frames_per_second: 8, min_clip_seconds: 0.2}}
"""


@dataclass(frozen=True)
class Ran:
    """A command's outcome, and the peak memory of any of its processes."""

    status: int
    seconds: float
    peak_bytes: int
    printed: str
    errors: str


def clipmill(*words: object, limit_seconds: float) -> Ran:
    """Runs the command in a separate process, and watches all its descendants."""
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "clipmill.jobs.cli", *map(str, words)],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        errors="backslashreplace",
    ) as process:
        peak = _Peak(process.pid)
        peak.start()
        try:
            printed, errors = process.communicate(timeout=limit_seconds)
        finally:
            peak.stop()
            if process.poll() is None:
                process.kill()
    return Ran(process.returncode, time.monotonic() - began, peak.bytes, printed, errors)


class _Peak(threading.Thread):
    """Samples a process and its descendants ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self._pid = pid
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.1):
            try:
                root = psutil.Process(self._pid)
                for process in (root, *root.children(recursive=True)):
                    self.bytes = max(self.bytes, _high_water(process))
            except psutil.Error:
                continue

    def stop(self) -> None:
        self._done.set()
        self.join()


def _high_water(process: psutil.Process) -> int:
    """A process's peak memory if the system reports it, else its current memory."""
    try:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return process.memory_info().rss


def run_recipe(
    recipe: str,
    sources: Sequence[Path],
    dataset: Path,
    *more: str,
    engine: str = "local",
    limit_seconds: float,
) -> Ran:
    """`clipmill run` of a recipe's text (or its name) over folders, lists or files."""
    if "\n" in recipe:
        file = dataset.with_suffix(".yaml")
        file.write_text(recipe)
        recipe = str(file)
    return clipmill(
        "run",
        recipe,
        "--dataset",
        dataset,
        *(word for path in sources for word in ("--sources", path)),
        "--engine",
        engine,
        *more,
        limit_seconds=limit_seconds,
    )


@dataclass
class Outcome:
    """A source's outcome and its rows."""

    ended: str
    message: str = ""
    video: dict[str, Any] = field(default_factory=dict)
    scan: dict[str, Any] = field(default_factory=dict)
    clips: list[dict[str, Any]] = field(default_factory=list)
    frames: list[dict[str, Any]] = field(default_factory=list)


def outcomes(dataset: Path) -> dict[str, Outcome]:
    """By URL (a local file's path), from the catalog; asserts that each has one outcome."""
    with open_catalog(dataset) as catalog:

        def ask(query: str) -> list[dict[str, Any]]:
            return catalog.ask(query).read_all().to_pylist()

        sources = ask("SELECT source_key, url, rejection, error FROM sources")
        steps = [
            ask(f"SELECT * FROM steps.{step}")
            for step in ("download_videos", "scan_videos", "split_clips")
        ]
    frames: dict[str, list[dict[str, Any]]] = {}
    for shard in sorted((dataset / "frames").glob("*/*.parquet")):
        for row in pq.read_table(shard).to_pylist():
            frames.setdefault(row["video_id"], []).append(row)
    downloads = _by(steps[0], "source_key")
    scans, splits = _by(steps[1], "video_id"), _by(steps[2], "video_id")
    found = {}
    for source in sources:
        outcome = Outcome("")
        rows = [source]
        if _ending(rows) == KEPT:
            rows = downloads[source["source_key"]]
            assert len(rows) == 1, source["url"]
            outcome.video = rows[0]
        if _ending(rows) == KEPT:
            video_id = outcome.video["video_id"]
            rows = scans[video_id]
            assert len(rows) == 1, source["url"]
            outcome.scan, outcome.frames = rows[0], frames.get(video_id, [])
            if _ending(rows) == KEPT:
                rows = outcome.clips = splits[video_id]
        outcome.ended = _ending(rows)
        problem = rows[0]["error"] or rows[0]["rejection"]
        outcome.message = str((problem or {}).get("message") or (problem or {}).get("detail") or "")
        name = source["url"] or f"no url {source['source_key']}"
        assert name not in found, name
        found[name] = outcome
    return found


def _by(rows: Iterable[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row[key], []).append(row)
    return grouped


def _ending(rows: list[dict[str, Any]]) -> str:
    endings = {
        f"failed {row['error']['kind']}"
        if row["error"]
        else f"rejected {row['rejection']['rule']}"
        if row["rejection"]
        else KEPT
        for row in rows
    }
    assert len(endings) == 1, endings
    return endings.pop()


def outcome_of(case: Case, folder: Path, found: dict[str, Outcome]) -> Outcome:
    """A case's outcome; a file that was never ingested has no row."""
    path = os.fsdecode(os.fsencode(folder / case.file))
    if path in found:
        return found[path]
    try:
        path.encode()
    except UnicodeEncodeError:
        # Such a name is in no table; there is one of them, and its row has no URL.
        nameless = [o for name, o in found.items() if name.startswith("no url ")]
        assert len(nameless) == 1
        return nameless[0]
    return Outcome(NO_SOURCE)


def wrong_facts(outcome: Outcome, facts: Facts) -> list[str]:
    """Errors in a kept file's rows."""
    wrong = []

    def check(what: str, found: object, wanted: object) -> None:
        if found != wanted:
            wrong.append(f"{what} {found}, not {wanted}")

    video, scan, clips = outcome.video, outcome.scan, outcome.clips
    seconds = scan["seconds"]
    if facts.frames is not None:
        check("frames", len(seconds), facts.frames)
        check("source_frames", scan["source_frames"], facts.frames)
    if facts.seconds is not None:
        frame = max(facts.slack_seconds, 1 / (video["fps"] or 25))
        for what, length in (
            ("duration", video["duration_seconds"]),
            ("scanned length", scan["end_seconds"] - seconds[0]),
            ("clips' length", sum(c["duration_seconds"] for c in clips)),
        ):
            if abs(length - facts.seconds) > frame:
                wrong.append(f"{what} {length:.3f} s, not {facts.seconds:.3f} s")
    if facts.first_seconds is not None and abs(seconds[0] - facts.first_seconds) > 0.05:
        wrong.append(f"first frame at {seconds[0]:.3f} s, not {facts.first_seconds:.3f} s")
    if facts.size is not None:
        check("size of the video", (video["width"], video["height"]), facts.size)
        check("size of the scan", (scan["width"], scan["height"]), facts.size)
    return wrong + wrong_pictures(outcome, facts)


def wrong_pictures(outcome: Outcome, facts: Facts, begins: float | None = None) -> list[str]:
    """Kept frames with a wrong colour, or not upright.

    `begins` is the time of the video's first frame: the outcome's, if it has all frames.
    """
    if facts.shots is None and facts.corner is None:
        return []
    if not outcome.frames:
        return ["no frame was kept"]
    begins = outcome.scan["seconds"][0] if begins is None else begins
    wrong = []
    for row in outcome.frames:
        image = cv2.imdecode(np.frombuffer(row["jpeg"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        wrong += wrong_picture(image, row["seconds"] - begins, facts)
    return wrong[:3]


def wrong_picture(image: np.ndarray, seconds: float, facts: Facts) -> list[str]:
    """What is wrong with a picture (RGB) at this many seconds after the first one."""
    wrong = []
    if facts.shots is not None:
        # A frame next to a cut may belong to either shot.
        right = {
            [c for at, c in facts.shots if seconds + off >= at or at == 0][-1]
            for off in (-facts.slack_seconds, 0.01, facts.slack_seconds)
        }
        ground = np.median(image.reshape(-1, 3), axis=0)
        if all(np.abs(ground - colour).max() > facts.slack_colour for colour in right):
            wrong.append(f"at {seconds:.2f} s the ground is {ground.tolist()}, not {sorted(right)}")
    if facts.corner is not None and bright_corner(image) != facts.corner:
        wrong.append(f"at {seconds:.2f} s the bright corner is {bright_corner(image)}")
    return wrong


def bright_corner(image: np.ndarray) -> str:
    """Which corner is the brightest."""
    down, across = (max(1, side // 10) for side in image.shape[:2])
    corners = {
        "upper left": image[:down, :across],
        "upper right": image[:down, -across:],
        "lower left": image[-down:, :across],
        "lower right": image[-down:, -across:],
    }
    return max(corners, key=lambda name: corners[name].mean())


def rows_of(outcome: Outcome) -> list[Any]:
    """A source's rows without names of runs and shards."""
    return [
        {name: value for name, value in row.items() if name not in ("shard", "downloaded_at")}
        for row in (outcome.video, outcome.scan, *outcome.clips, *outcome.frames)
    ]


def check_accounting(dataset: Path) -> None:
    """inputs = kept + rejected + failed, and nothing pending, in every stage."""
    ran = clipmill("status", dataset, "--format", "json", limit_seconds=60)
    assert ran.status == 0, ran.errors
    for stage in json.loads(ran.printed)["stages"]:
        assert stage["inputs"] == stage["kept"] + stage["rejected"] + stage["failed"], stage
        assert stage["pending"] == 0, stage
