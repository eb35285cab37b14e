"""The one decode pass: reads a video once and keeps frames and statistics of it.

Users set it through split_clips, which runs it as its first step. It knows nothing of thresholds
or clip lengths, so its work stands when those change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import pyarrow as pa
from pydantic import Field

from schemas.errors import ErrorKind, RowFailed, RowRejected
from schemas.tables import FRAMES, SCANS
from stages.media import measures
from stages.media.decode import DecodedVideo, FastVideo
from stages.media.exact import ExactVideo
from stages.media.keeper import FrameKeeper
from stages.media.measures import Measures, Wanted
from stages.media.seek import SpannedVideo
from stages.protocol import Rows, Stage, Transform, Workspace, resource, strict_table


class ScanVideos(Stage):
    """Decodes a video and keeps, per frame, what split_clips needs.

    A video with given spans is read only inside them, unless `spans` is `ignore`; one without
    is rejected where `spans` is `require`.
    """

    name: ClassVar[str] = "scan_videos"
    key: ClassVar[str] = "video_id"
    reads: ClassVar[tuple[str, ...]] = (
        "download_videos.path", "download_videos.spans", "download_videos.starts_at_seconds?",
    )
    writes: ClassVar[pa.Schema] = SCANS
    more_tables: ClassVar[dict[str, pa.Schema]] = {"frames": FRAMES}
    error_kind: ClassVar[ErrorKind] = "bad_media"
    fragile: ClassVar[bool] = True

    exact: bool = Field(False, description="read and scale exactly as PySceneDetect's command")
    spans: Literal["use", "ignore", "require"] = Field(
        "use", description="whether given spans decide what is decoded"
    )
    keep_frames: bool = Field(True, description="keep frames for the stages below")
    frame_short_side: int = Field(384, ge=16, description="short side of kept frames, pixels")
    frame_quality: int = Field(90, ge=1, le=100, description="JPEG quality of kept frames")
    frames_per_second: float = Field(
        2.0, gt=0, le=8, description="kept frames a second that a long shot never falls below"
    )
    edges: bool = Field(False, description="keep edge differences")
    kernel_size: int | None = Field(None, ge=3, description="size that edges are widened to")
    histogram_bins: int | None = Field(None, ge=1, le=256, description="keep histogram changes")
    hash_size: int | None = Field(None, ge=1, le=256, description="keep hash distances")
    hash_lowpass: int | None = Field(None, ge=1, le=256, description="low-pass factor of hashes")
    cpus: float = resource(1.0, gt=0, description="CPUs that one worker takes")
    batch_rows: int = resource(1, ge=1, description="videos given to the stage at a time")

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        download = before.get("download_videos")
        if self.spans == "ignore" and getattr(download, "sections", False):
            raise ValueError("boundaries must be auto or given where download_videos.sections is "
                             "on: of the videos only the given spans are there")

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        threads = cv2.getNumThreads()
        # Small images are not worth a thread pool, and the decoder has the cores.
        cv2.setNumThreads(1)
        try:
            yield lambda table: self._transform(table, workspace)
        finally:
            cv2.setNumThreads(threads)

    def _transform(self, table: pa.Table, workspace: Workspace) -> dict[str, pa.Table]:
        rows = Rows(self)
        kept: list[dict[str, Any]] = []
        for row in table.to_pylist():
            try:
                scan, frames = self._scan(row, workspace)
            except (RowFailed, RowRejected) as problem:
                rows.record(row["video_id"], problem)
                continue
            rows.keep(row["video_id"], **scan)
            kept += [{"video_id": row["video_id"], **frame} for frame in frames]
        return {self.name: rows.table(), "frames": strict_table(kept, FRAMES)}

    def _scan(self, row: dict[str, Any], workspace: Workspace) -> tuple[dict, list[dict]]:
        video = self._video(workspace.resolve(row["path"]), row["spans"],
                            row.get("starts_at_seconds"))
        taken = Measures(
            Wanted(
                self.edges, self.kernel_size, self.histogram_bins,
                self.hash_size, self.hash_lowpass,
            )
        )
        numbers: list[int] = []
        seconds: list[float] = []
        positions: list[float] = []
        size = (0, 0)
        try:
            with FrameKeeper(self.frames_per_second, self.frame_quality) as keeper:
                for picture in video.pictures():
                    begins = not numbers or picture.number != numbers[-1] + 1
                    if begins:
                        taken.interrupt()
                        assert video.facts is not None
                        size = video.facts.frame_size(self.frame_short_side)
                    score = taken.add(picture.small)
                    if self.keep_frames:
                        keeper.add(picture, size, score, begins)
                    numbers.append(picture.number)
                    seconds.append(picture.seconds)
                    positions.append(float(picture.position_microseconds))
                frames = keeper.finish(size)
        finally:
            workspace.decoded_frames += video.decoded_frames
        return self._columns(video, taken, numbers, seconds, positions), frames

    def _video(
        self, path: Path, spans: list[dict[str, Any]] | None, starts_at: float | None
    ) -> DecodedVideo:
        if not path.is_file():
            raise RowFailed("bad_media", f"{path}: no such file; run download_videos again")
        if self.spans == "require" and not spans:
            raise RowRejected(
                "split_clips.boundaries", "set to `given`, but the source has no spans"
            )
        if spans and self.spans != "ignore":
            return SpannedVideo(
                path, [(span["start_seconds"], span["end_seconds"]) for span in spans], starts_at
            )
        return ExactVideo(path, starts_at) if self.exact else FastVideo(path, starts_at)

    @staticmethod
    def _columns(
        video: DecodedVideo,
        taken: Measures,
        numbers: list[int],
        seconds: list[float],
        positions: list[float],
    ) -> dict[str, Any]:
        facts = video.facts
        assert facts is not None
        statistics = dict(taken.statistics)
        statistics[measures.POSITION] = positions
        rate = facts.frame_rate
        statistics[measures.FRAME_RATE] = [float(rate.numerator), float(rate.denominator)]
        return {
            "width": facts.width,
            "height": facts.height,
            "fps": float(rate),
            "source_frames": video.source_frames,
            "decoded_frames": video.decoded_frames,
            "end_seconds": video.end_seconds,
            "frame_numbers": numbers,
            "seconds": seconds,
            "statistics": list(statistics.items()),
            "motion": taken.motion,
            "sharpness": taken.sharpness,
            "brightness": taken.brightness,
        }
