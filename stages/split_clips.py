"""Splits videos into clips: finds the cuts, then applies the length rules.

Runs as two steps. scan_videos decodes each video once and keeps frames and statistics; this one
runs PySceneDetect's detectors, or Clipmill's own, over the statistics, and so never opens a video.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Final, Literal

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from clipmill.schemas.errors import ErrorKind, RowFailed, RowRejected
from clipmill.schemas.tables import OUTCOME
from clipmill.stages.cascade_shots import (
    CASCADE_MIN_SCENE_LEN,
    TRANSITION_RULE,
    CascadeSettings,
    Transition,
    cascade_cuts,
    judge_named,
    with_transitions,
)
from clipmill.stages.clip_parts import (
    SMALLEST_SECONDS,
    Part,
    early_ends,
    equal_parts,
    given_shot,
    times_inside,
    trimmed,
    without_repeats,
)
from clipmill.stages.clip_rows import clip_row, shot_row
from clipmill.stages.clip_signals import CLIP_SIGNALS, KEPT, VideoSignals
from clipmill.stages.protocol import Rows, Stage, Transform, Workspace, resource, strict_table
from clipmill.stages.reading_stage import ReadingStage
from clipmill.stages.scan_videos import ScanVideos

# The key is the video; a video that was rejected or failed is one row
# whose clip_id is null. `end_frame` is exclusive, as `end_seconds` is. `corrupt_frames` counts the
# clip's pictures that were decoded with errors, or are lost.
CLIPS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        ("clip_id", pa.string()),
        ("shot", pa.int32()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("duration_seconds", pa.float64()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("motion", pa.float32()),
        ("motion_max", pa.float32()),
        ("sharpness", pa.float32()),
        ("brightness", pa.float32()),
        ("caption_given", pa.string()),
        ("extra", pa.map_(pa.string(), pa.string())),
        ("tone_mapped", pa.bool_()),
        ("captions_given", pa.list_(pa.string())),
        ("corrupt_frames", pa.int32()),
        *OUTCOME,
    ]
)

# Every shot that was found, also those that gave no clip (`rule` says why). A row with a
# `transition` (`fade`, `dissolve`, `wipe`) is a gradual one, which gives no clip.
SHOTS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        ("shot", pa.int32()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("n_clips", pa.int32()),
        ("rule", pa.string()),
        ("transition", pa.string()),
    ]
)

Detector = Literal["content", "adaptive", "threshold", "histogram", "hash", "cascade"]
CASCADE: Final = "cascade"
_LENGTH_OF_TIME = re.compile(
    r"(?P<frames>\d+)|(?P<seconds>\d+(\.\d+)?)\s?s?"
    r"|(\d+:)?[0-5]?\d:[0-5]?\d(\.\d+)?"
)
# The largest possible score of each detector, so the largest useful threshold.
_MOST = {
    "content": 255.0,
    "adaptive": 255.0,
    "threshold": 255.0,
    "histogram": 1.0,
    "hash": 1.0,
    CASCADE: 1.0,
}
_CASCADE_THRESHOLD = 0.5
_MIN_SCENE_LEN = "0.6s"


class SplitClips(ReadingStage):
    """Cuts every video into clips and measures each clip.

    PySceneDetect's settings keep their names. `motion` is the mean and `motion_max` the largest
    absolute difference of luma between neighbouring frames of the clip (0 to 255), `sharpness`
    the mean variance of luma's Laplacian, `brightness` mean luma (0 to 255), all on frames
    scaled to a long side of 256 pixels. `corrupt_frames` counts pictures of the clip that were
    decoded with errors or are lost.
    """

    name: ClassVar[str] = "split_clips"
    # 2: shots end at holes; clips of mostly corrupt pictures are dropped.
    version: ClassVar[int] = 2
    key: ClassVar[str] = "video_id"
    reads: ClassVar[tuple[str, ...]] = (
        "scan_videos.width",
        "scan_videos.height",
        "scan_videos.fps",
        "scan_videos.end_seconds",
        "scan_videos.frame_numbers",
        "scan_videos.seconds",
        "scan_videos.statistics",
        "scan_videos.motion",
        "scan_videos.sharpness",
        "scan_videos.brightness",
        "scan_videos.tone_mapped?",
        "scan_videos.holes?",
        "scan_videos.corrupt_seconds?",
        "scan_videos.thumbnails?",
        "download_videos.spans",
        "download_videos.caption_given",
        "download_videos.captions_given?",
    )
    writes: ClassVar[pa.Schema] = CLIPS
    more_tables: ClassVar[dict[str, pa.Schema]] = {"shots": SHOTS}
    error_kind: ClassVar[ErrorKind] = "bad_media"
    robust: ClassVar[bool] = True

    boundaries: Literal["auto", "detect", "given", "whole"] = Field(
        "auto",
        description="where shots come from: detected cuts, the source's given spans, the whole "
        "video as one; auto: given spans if the source has them, otherwise detected cuts",
    )
    detector: Detector = Field(
        "content",
        description="one of PySceneDetect's detectors, or cascade: Clipmill's own, which also "
        "finds gradual transitions",
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=255,
        description="the detector's threshold; by default content 27, adaptive 3, "
        "threshold 12, histogram 0.2, hash 0.35, cascade 0.5 (the probability of a cut). At most "
        "255, or 1 for histogram, hash and cascade",
    )
    min_scene_len: str | None = Field(
        None,
        description="shortest shot that the detector finds: frames (`15`), seconds (`0.6s`, "
        "`0.6`) or `HH:MM:SS.nnn`; by default 0.6s, for cascade 0.07s",
    )
    filter_mode: Literal["merge", "suppress"] = Field(
        "merge", description="content: what to do with cuts closer than min_scene_len"
    )
    weights: tuple[float, float, float, float] = Field(
        (1.0, 1.0, 1.0, 0.0),
        description="content, adaptive: weights of hue, saturation, luma and edge differences",
    )
    luma_only: bool = Field(False, description="content, adaptive: compare only luma")
    kernel_size: int | None = Field(
        None, ge=3, description="content, adaptive: size that edges are widened to, odd, pixels"
    )
    window_width: int = Field(
        2, ge=1, description="adaptive: number of frames before and after to average"
    )
    min_content_val: float = Field(
        15.0, ge=0, le=255, description="adaptive: minimum content score of a cut"
    )
    fade_bias: float = Field(
        0.0, ge=-1, le=1, description="threshold: position of the cut in a fade, -1 first, 1 last"
    )
    add_final_scene: bool = Field(
        True, description="threshold: cut if the video ends in a fade-out"
    )
    min_out_length: str = Field(
        "0.1s",
        description="threshold: shortest faded-out time that counts, in the form of min_scene_len",
    )
    bins: int = Field(128, ge=1, le=256, description="histogram: bins")
    size: int = Field(8, ge=1, le=256, description="hash: side of the hash")
    lowpass: int = Field(2, ge=1, le=256, description="hash: how much high frequency is dropped")
    trim_transitions: bool = Field(
        True,
        description="cascade: clips end where a fade, dissolve or wipe begins; otherwise the "
        "shots meet in its middle",
    )
    judge: Literal["none", "transnetv2"] = Field(
        "none",
        description="cascade: a network that is asked where it is unclear whether there is a cut; "
        "needs `clipmill[shots]`",
    )
    decode: Literal["needed", "all"] = Field(
        "needed",
        description="cascade: decode only the pictures that others need or that may show something "
        "new, or all; other detectors see all",
    )
    exact: bool = Field(
        False,
        description="make cuts equal to those of PySceneDetect's own command, to the frame; slower",
    )
    min_clip_seconds: float = Field(0.5, ge=0, description="shortest clip, seconds")
    max_clip_seconds: float | None = Field(
        None, gt=0, description="longest clip, seconds; longer ones are cut into equal parts"
    )
    max_hold_seconds: float | None = Field(
        None,
        gt=0,
        description="a picture that stays longer than this ends its shot, seconds; "
        "null lets pictures stay, as in screen recordings. A period with neither picture nor "
        "sound always ends a shot",
    )
    max_corrupt_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="largest share of a clip's pictures that may be damaged or "
        "lost, as in a broken or encrypted file; not known in exact mode",
    )
    trim_start_seconds: float = Field(0.0, ge=0, description="cut off each shot's start, seconds")
    trim_end_seconds: float = Field(0.0, ge=0, description="cut off each shot's end, seconds")
    keep_frames: bool = Field(
        True,
        description="keep frames for later stages; without them those stages seek in the videos",
    )
    frame_short_side: int = Field(384, ge=16, description="short side of kept frames, pixels")
    frame_quality: int = Field(90, ge=1, le=100, description="JPEG quality of kept frames")
    frames_per_second: float = Field(
        2.0, gt=0, le=8, description="minimum kept frames per second in a long shot"
    )
    signals: bool = Field(
        False,
        description="measure motion, light, colours, bars and more of each clip without a model: "
        "further columns of `clips`, see docs/signals.md",
    )
    scan_cpus: float = resource(1.0, gt=0, description="CPUs per decoding worker")
    scan_workers: int | None = resource(
        None, ge=1, description="decoding workers; by default as many as fit"
    )
    batch_rows: int = resource(8, ge=1, description="videos passed to the stage at a time")

    @field_validator("min_scene_len", "min_out_length", mode="before")
    @classmethod
    def _one_spelling(cls, value: Any) -> Any:
        """An integer is frames, any other number seconds, as in PySceneDetect."""
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        found = _LENGTH_OF_TIME.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None:
            raise ValueError("expected frames (15), seconds (0.6s) or HH:MM:SS.nnn")
        if found["seconds"]:
            return f"{found['seconds']}s"
        return found[0]

    @field_validator("kernel_size")
    @classmethod
    def _check_odd(cls, value: int | None) -> int | None:
        if value is not None and value % 2 == 0:
            raise ValueError("expected an odd number of pixels")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> SplitClips:
        if not any(self.weights) or not all(map(math.isfinite, self.weights)):
            raise ValueError("weights: expected numbers, at least one of them not 0")
        if self.threshold is not None and self.threshold > _MOST[self.detector]:
            hint = "; 27 is one of `detector: content`" if self.detector == CASCADE else ""
            raise ValueError(
                f"threshold of {self.detector}: at most {_MOST[self.detector]:g}, "
                f"not {self.threshold:g}{hint}"
            )
        if self.detector == CASCADE and self.exact:
            raise ValueError(
                "exact makes cuts as PySceneDetect's command does, which has no detector cascade; "
                "turn exact off or choose another detector"
            )
        if self.detector != CASCADE and self.decode == "all":
            raise ValueError(
                f"decode: the detector {self.detector} sees all pictures anyway; leave it out, or "
                "set detector to cascade"
            )
        if self.max_clip_seconds is not None and self.max_clip_seconds < self.min_clip_seconds:
            raise ValueError("max_clip_seconds must not be below min_clip_seconds")
        return self

    def steps(self) -> tuple[Stage, ...]:
        """The decode pass, with only the settings that change what it keeps, and this stage."""
        edges = self.detector in ("content", "adaptive") and self._edges_count
        scan = ScanVideos(
            exact=self.exact,
            spans={"auto": "use", "given": "require"}.get(self.boundaries, "ignore"),
            keep_frames=self.keep_frames,
            frame_short_side=self.frame_short_side,
            frame_quality=self.frame_quality,
            frames_per_second=self.frames_per_second,
            edges=edges,
            kernel_size=self.kernel_size if edges else None,
            histogram_bins=self.bins if self.detector == "histogram" else None,
            hash_size=self.size if self.detector == "hash" else None,
            hash_lowpass=self.lowpass if self.detector == "hash" else None,
            signals=self.signals,
            shots=self.detector == CASCADE,
            decode=self.decode if self.detector == CASCADE else "needed",
            cpus=self.scan_cpus,
            workers=self.scan_workers,
            stall_seconds=self.stall_seconds,
            time_limit_seconds=self.time_limit_seconds,
            memory_limit_bytes=self.memory_limit_bytes,
        )
        return (scan, self)

    def columns_read(self) -> tuple[str, ...]:
        kept = (f"scan_videos.{name}?" for name in KEPT)
        return (*self.reads, *kept) if self.signals else self.reads

    def columns_written(self) -> pa.Schema:
        return pa.schema([*self.writes, *CLIP_SIGNALS]) if self.signals else self.writes

    @classmethod
    def table_of(cls, settings: Mapping[str, Any]) -> pa.Schema:
        return cls.model_construct(signals=bool(settings.get("signals"))).table_schema

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        if self.detector == CASCADE:
            from clipmill.stages.media.read.shots.weights import weights_digest

            return {**found, "weights": weights_digest()}
        # What it was before there was a detector with another default.
        if found.get("min_scene_len") == _MIN_SCENE_LEN:
            del found["min_scene_len"]
        return found

    @property
    def _edges_count(self) -> bool:
        return self.weights[3] != 0 and not self.luma_only

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        if self.detector == CASCADE:
            judge_named(self.judge)  # if it isn't there, nothing needs to be decoded
        yield self._transform

    def _transform(self, table: pa.Table) -> dict[str, pa.Table]:
        rows = Rows(self)
        shot_rows: list[dict[str, Any]] = []
        kept_columns = [name for name in KEPT if name in table.column_names]
        for place, row in enumerate(table.drop_columns(kept_columns).to_pylist()):
            try:
                if not row["statistics"] or row["seconds"] is None:
                    raise RowFailed("bad_media", f"the scan of {row['video_id']} kept no frames")
                row["statistics"] = dict(row["statistics"])
                shots = self._shots(row)
                clips = [self._clips(shot, row["seconds"]) for shot in shots]
                clips = [self._without_corrupt(parts, row) for parts in clips]
            except (RowFailed, RowRejected) as problem:
                rows.record(row["video_id"], problem)
                continue
            clips = without_repeats(row["video_id"], clips)
            shot_rows += [
                shot_row(row, number, shot, parts)
                for number, (shot, parts) in enumerate(zip(shots, clips, strict=True))
            ]
            kept = [
                (number, part)
                for number, parts in enumerate(clips)
                for part in parts
                if part.rule is None
            ]
            signals = self._signals(row, {name: table[name][place] for name in kept_columns}, shots)
            for number, part in kept:
                more = signals.of(part) if signals else {}
                rows.keep(row["video_id"], **clip_row(row, number, part), **more)
            if not kept:
                rules = [part.rule for parts in clips for part in parts if part.rule]
                rules = [rule for rule in rules if rule != TRANSITION_RULE] or rules
                rule = max(set(rules), key=rules.count)
                rows.reject(
                    row["video_id"],
                    rule,
                    "its only shot gives no clip"
                    if len(shots) == 1
                    else f"none of {len(shots)} shots gives a clip",
                )
        return {self.name: rows.table(), "shots": strict_table(shot_rows, SHOTS)}

    def _signals(
        self, row: dict[str, Any], kept: dict[str, pa.Scalar], shots: list[Part]
    ) -> VideoSignals | None:
        """What was kept of a video for signals; None if they aren't wanted."""
        if not self.signals or not kept or not kept["signals"].is_valid:
            return None
        is_given = bool(row["spans"]) and self.boundaries in ("auto", "given")
        were_detected = not is_given and self.boundaries != "whole"
        cuts = [shot.first for shot in shots] if were_detected else self._cuts(row)[0]
        return VideoSignals(row, kept, cuts, is_whole=not is_given)

    def _shots(self, row: dict[str, Any]) -> list[Part]:
        spans = row["spans"] or []
        if self.boundaries == "given" and not spans:
            raise RowRejected(
                "split_clips.boundaries", "set to `given`, but the source has no spans"
            )
        if spans and self.boundaries in ("auto", "given"):
            return [given_shot(row, span) for span in spans]
        seconds = row["seconds"]
        cuts, transitions = ([], []) if self.boundaries == "whole" else self._cuts(row)
        ends = early_ends(row, self.max_hold_seconds)
        edges = [0, *sorted({*cuts, *(i for i in ends if 0 < i < len(seconds))}), len(seconds)]
        times = [*(seconds[i] for i in edges[:-1]), row["end_seconds"]]
        shots = [
            Part(
                times[i],
                ends.get(edges[i + 1], times[i + 1]),
                edges[i],
                edges[i + 1],
                row["caption_given"],
                captions=row.get("captions_given"),
            )
            for i in range(len(edges) - 1)
        ]
        return with_transitions(shots, transitions, row) if transitions else shots

    def _cuts(self, row: dict[str, Any]) -> tuple[list[int], list[Transition]]:
        if self.detector == CASCADE:
            return cascade_cuts(
                row,
                CascadeSettings(
                    threshold=_CASCADE_THRESHOLD if self.threshold is None else self.threshold,
                    min_scene_len=self.min_scene_len or CASCADE_MIN_SCENE_LEN,
                    trim_transitions=self.trim_transitions,
                    judge=self.judge,
                ),
            )
        # Imported here, because PySceneDetect takes half a second.
        from clipmill.stages.media.read.detectors import (
            DEFAULT_THRESHOLDS,
            DetectorSettings,
            find_cuts,
        )

        threshold = self.threshold
        settings = DetectorSettings(
            detector=self.detector,
            threshold=DEFAULT_THRESHOLDS[self.detector] if threshold is None else threshold,
            min_scene_len=self.min_scene_len or _MIN_SCENE_LEN,
            filter_mode=self.filter_mode,
            weights=self.weights,
            luma_only=self.luma_only,
            window_width=self.window_width,
            min_content_val=self.min_content_val,
            fade_bias=self.fade_bias,
            add_final_scene=self.add_final_scene,
            min_out_length=self.min_out_length,
        )
        return find_cuts(settings, row["statistics"]), []

    def _clips(self, shot: Part, seconds: Sequence[float]) -> list[Part]:
        """The clips of a shot; a piece that a rule drops is returned with the rule."""
        if shot.rule:
            return [shot]
        part = trimmed(shot, seconds, self.trim_start_seconds, self.trim_end_seconds)
        duration = part.end_seconds - part.start_seconds
        if part.first >= part.last:
            setting = "trim_end_seconds" if self.trim_end_seconds else "trim_start_seconds"
            rule = setting if shot.first < shot.last else "boundaries"
            return [replace(part, rule=f"split_clips.{rule}")]
        pieces = [part]
        if self.max_clip_seconds and duration > self.max_clip_seconds + SMALLEST_SECONDS:
            count = math.ceil(duration / self.max_clip_seconds - SMALLEST_SECONDS)
            pieces = equal_parts(part, count, seconds)
        return [
            replace(piece, rule="split_clips.min_clip_seconds")
            if piece.end_seconds - piece.start_seconds < self.min_clip_seconds - SMALLEST_SECONDS
            else piece
            for piece in pieces
        ]

    def _without_corrupt(self, parts: list[Part], row: dict[str, Any]) -> list[Part]:
        """The clips with their corrupt pictures counted; those with too many get the rule."""
        times = row.get("corrupt_seconds")
        if not times:
            return parts
        given = set(row["seconds"])
        counted = []
        for part in parts:
            inside = times_inside(times, part)
            lost = sum(seconds not in given for seconds in inside)
            pictures = part.last - part.first + lost
            share = len(inside) / pictures if pictures else 0.0
            rule = part.rule or (
                "split_clips.max_corrupt_share" if share > self.max_corrupt_share else None
            )
            counted.append(replace(part, rule=rule))
        return counted
