"""The one decode pass: reads a video once and keeps frames and statistics of it.

Users set it through split_clips, which runs it as its first step. It knows nothing of thresholds
or clip lengths, so its results stay valid when those change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from clipmill.schemas.clocks import CLOCK_COLUMNS, file_zero_seconds
from clipmill.schemas.errors import ErrorKind, RowFailed, RowRejected
from clipmill.schemas.tables import HOLE, OUTCOME
from clipmill.stages.media.isolation.isolated import Limits, collect_isolated
from clipmill.stages.protocol import Rows, Stage, Transform, Workspace, resource, strict_table
from clipmill.stages.reading_stage import ReadingStage, require_file

# What stayed the same between two pictures, given by their places among those decoded.
OVERLAY = pa.struct(
    [
        ("first", pa.int32()),
        ("last", pa.int32()),
        ("columns", pa.int32()),
        ("changed", pa.binary()),
        ("edges", pa.binary()),
    ]
)

THUMBNAILS = pa.struct([("frame_numbers", pa.list_(pa.int64())), ("jpeg", pa.binary())])

# How the camera moved between two pictures, % of the frame and degrees per second; null where they
# don't show it. `subject` is how fast things move apart from it, % of the longer side per second,
# `following` the share of what was followed that moves with it.
CAMERA_PAIR = pa.struct(
    [
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("pan", pa.float32()),
        ("tilt", pa.float32()),
        ("zoom", pa.float32()),
        ("roll", pa.float32()),
        ("subject", pa.float32()),
        ("following", pa.float32()),
    ]
)

# Uninterrupted sound in blocks of 0.1 s, the last may be shorter: loudness of the 0.4 s that end
# with a block, LUFS, null before and in digital silence; largest sample, where 1 is full scale;
# zero crossings, the mean of the channels. `silences` are quieter than -60 dBFS for 0.1 s.
SOUND = pa.struct(
    [
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("loudness", pa.list_(pa.float32())),
        ("peaks", pa.list_(pa.float32())),
        ("crossings", pa.list_(pa.float32())),
        ("silences", pa.list_(HOLE)),
    ]
)

# One row per video. The lists run parallel: one entry per frame, in presentation order.
# `frame_numbers` count from the file's first frame. A scan for shots may leave frames out where
# nothing happens: `motion`, `sharpness` and `brightness` then have values from their neighbours,
# and `statistics` one entry per picture that was decoded (`frame_number` and `seconds` say which).
# `holes` are times in which neither a picture nor a sound is there, null where there are none.
# Detector statistics are doubles so that cuts made from them equal cuts made from the pixels.
# `tone_mapped`: kept frames show ordinary dynamic range, the video has a high one.
# `signals`, `overlays` and `packet_bytes` are what the signals of clips are made from, null unless
# they are wanted: numbers of some or all pictures, bits of cells (see media/read/signals), and the
# bytes of the video's packets that are shown from a picture until the next. `camera` has pairs of
# pictures, a few per second, `sound` one or more stretches, `sound_problem` why it is null.
# `corrupt_seconds` are the times of pictures that were decoded with errors, or are lost, and
# `corrupt_frames` how many these are; null in exact mode, whose readers do not tell.
# `thumbnails` are pictures of 48x27 pixels around places at which shots may end, null unless the
# scan looks for shots: below each other in JPEG images (see `media/read/shots/thumbnails.py`).
SCANS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        ("source_frames", pa.int64()),
        ("decoded_frames", pa.int64()),
        ("end_seconds", pa.float64()),
        ("frame_numbers", pa.list_(pa.int64())),
        ("seconds", pa.list_(pa.float64())),
        ("statistics", pa.map_(pa.string(), pa.list_(pa.float64()))),
        ("motion", pa.list_(pa.float32())),
        ("sharpness", pa.list_(pa.float32())),
        ("brightness", pa.list_(pa.float32())),
        ("tone_mapped", pa.bool_()),
        ("holes", pa.list_(HOLE)),
        ("corrupt_seconds", pa.list_(pa.float64())),
        ("corrupt_frames", pa.int64()),
        ("signals", pa.map_(pa.string(), pa.list_(pa.float32()))),
        ("overlays", pa.list_(OVERLAY)),
        ("packet_bytes", pa.list_(pa.int64())),
        ("thumbnails", pa.list_(THUMBNAILS)),
        ("camera", pa.list_(CAMERA_PAIR)),
        ("sound", pa.list_(SOUND)),
        ("sound_problem", pa.string()),
        *OUTCOME,
    ]
)

# The frames that the decode pass kept: a cache, JPEG, one row group a video.
FRAMES = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        ("frame_number", pa.int64()),
        ("seconds", pa.float64()),
        ("jpeg", pa.binary()),
    ]
)


class ScanVideos(ReadingStage):
    """Decodes a video and keeps, per frame, what split_clips needs.

    A video with given spans is read only inside them, unless `spans` is `ignore`; a video without
    spans is rejected if `spans` is `require`.
    """

    name: ClassVar[str] = "scan_videos"
    # 2: decreasing timestamps, interlaced video in exact mode, spans of rotated video. 3: the
    # container's start time is second 0; mirrored pictures are shown mirrored; high dynamic range
    # is tone-mapped; borders are cropped, pixels square; holes; the right frames of files whose
    # key frames depend on others; damaged files.
    version: ClassVar[int] = 3
    key: ClassVar[str] = "video_id"
    reads: ClassVar[tuple[str, ...]] = (
        "download_videos.path",
        "download_videos.spans",
        "download_videos.extra?",
        *(f"download_videos.{name}?" for name in CLOCK_COLUMNS),
    )
    writes: ClassVar[pa.Schema] = SCANS
    more_tables: ClassVar[dict[str, pa.Schema]] = {"frames": FRAMES}
    error_kind: ClassVar[ErrorKind] = "bad_media"
    # The decoder has a separate process; this is for anything else that happens to the worker.
    fragile: ClassVar[bool] = True
    robust: ClassVar[bool] = True
    in_helpers: ClassVar[bool] = True

    exact: bool = Field(False, description="read and scale exactly as PySceneDetect's command")
    spans: Literal["use", "ignore", "require"] = Field(
        "use", description="whether given spans decide what is decoded"
    )
    keep_frames: bool = Field(True, description="keep frames for later stages")
    frame_short_side: int = Field(384, ge=16, description="short side of kept frames, pixels")
    frame_quality: int = Field(90, ge=1, le=100, description="JPEG quality of kept frames")
    frames_per_second: float = Field(
        2.0, gt=0, le=8, description="minimum kept frames per second in a long shot"
    )
    edges: bool = Field(False, description="keep edge differences")
    kernel_size: int | None = Field(None, ge=3, description="size that edges are widened to")
    histogram_bins: int | None = Field(None, ge=1, le=256, description="keep histogram changes")
    hash_size: int | None = Field(None, ge=1, le=256, description="keep hash distances")
    hash_lowpass: int | None = Field(None, ge=1, le=256, description="low-pass factor of hashes")
    shots: bool = Field(
        False, description="measure what finds shots in the decoder's planes, without BGR images"
    )
    decode: Literal["needed", "all"] = Field(
        "needed", description="with shots: decode only pictures that show something new, or all"
    )
    signals: bool = Field(False, description="keep what signals of clips are made from")
    cpus: float = resource(1.0, gt=0, description="CPUs per worker")
    batch_rows: int = resource(1, ge=1, description="videos passed to the stage at a time")

    @model_validator(mode="after")
    def _check_together(self) -> ScanVideos:
        if self.decode == "all" and not self.shots:
            raise ValueError("decode: all is the only way without shots; leave it out")
        if self.shots and (self.exact or self.edges or self.histogram_bins or self.hash_size):
            raise ValueError(
                "shots: exact, edges, histogram_bins and hash_size need BGR images, which a scan "
                "for shots doesn't make; turn one of them off"
            )
        return self

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        # 2: thumbnails around candidates by frame number, also of cuts two frames apart.
        return {**found, "thumbnails": 2} if self.shots else found

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        download = before.get("download_videos")
        if self.spans == "ignore" and getattr(download, "sections", False):
            raise ValueError(
                "boundaries must be auto or given if download_videos.sections is "
                "on: only the given spans of the videos are there"
            )

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        yield lambda table: self._transform(table, workspace)

    def _transform(self, table: pa.Table, workspace: Workspace) -> dict[str, pa.Table]:
        rows = Rows(self)
        kept: list[dict[str, Any]] = []
        for row in table.to_pylist():
            try:
                frames, scan = self._scan(row, workspace)
            except (RowFailed, RowRejected) as problem:
                rows.record(row["video_id"], problem)
                continue
            rows.keep(row["video_id"], **scan)
            kept += [{"video_id": row["video_id"], **frame} for frame in frames]
        return {self.name: rows.table(), "frames": strict_table(kept, FRAMES)}

    def _scan(
        self, row: dict[str, Any], workspace: Workspace
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        # Here, because the schemas above are read where PyAV is not installed.
        from clipmill.stages.media.read.measures import WantedMeasures
        from clipmill.stages.media.read.scan import ScanSettings, scan_video

        path, spans = workspace.resolve(row["path"]), row["spans"]
        require_file(path)
        if self.spans == "require" and not spans:
            raise RowRejected(
                "split_clips.boundaries", "set to `given`, but the source has no spans"
            )
        is_whole = not spans or self.spans == "ignore"
        settings = ScanSettings(
            exact=self.exact,
            spans=None if is_whole else [(s["start_seconds"], s["end_seconds"]) for s in spans],
            starts_at_seconds=file_zero_seconds(row),
            in_pieces="protocol" in dict(row.get("extra") or ()),
            keep_frames=self.keep_frames,
            frame_short_side=self.frame_short_side,
            frame_quality=self.frame_quality,
            frames_per_second=self.frames_per_second,
            wanted=WantedMeasures(
                self.edges, self.kernel_size, self.histogram_bins, self.hash_size, self.hash_lowpass
            ),
            lean=self.shots,
            decode_all=self.decode == "all",
            threads=workspace.decoder_threads,
            signals=self.signals,
        )

        return collect_isolated(
            scan_video, path, settings, limits=self.limits, counted=workspace.count_decoded
        )

    @property
    def limits(self) -> Limits:
        return replace(super().limits, settings_of="split_clips")
