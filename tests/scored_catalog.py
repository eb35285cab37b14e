"""A finished dataset with the scorers that a test needs, and clips with known values."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.schemas import tables
from clipmill.schemas.ids import clip_id, source_key
from clipmill.stages.classify_frames import CLASSES
from clipmill.stages.cluster_clips import CLUSTERS
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.embed_clips import EMBEDDINGS
from clipmill.stages.embed_images import EMBEDDED_IMAGES
from clipmill.stages.embed_texts import EMBEDDED_TEXTS
from clipmill.stages.measure_text import TEXT_MEASURES
from clipmill.stages.score_aesthetic import AESTHETIC
from clipmill.stages.score_nsfw import NSFW
from clipmill.stages.score_similarity import SIMILARITY
from clipmill.stages.score_video_similarity import VIDEO_SIMILARITY
from clipmill.stages.split_clips import CLIPS
from clipmill.stages.summarize_captions import SUMMARIES
from clipmill.stages.take_given_score import GIVEN_SCORE
from tests.synthetic import START, write_run, write_shard

HEAD_V2 = "/models/sac+logos+ava1-l14-linearMSE.pth"
HEAD_V1 = "/models/sa_0_4_vit_l_14_linear.pth"


@dataclass(frozen=True)
class Made:
    """A stage of the run: its name, its settings, and the column of `values` that it wrote."""

    label: str
    stage: str
    column: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    reads: str = ""
    """Label of a stage that it reads from, in addition to split_clips."""

    @property
    def schema(self) -> pa.Schema:
        built_in = {
            "score_aesthetic": AESTHETIC,
            "score_similarity": SIMILARITY,
            "take_given_score": GIVEN_SCORE,
            "embed_clips": EMBEDDINGS,
            "embed_images": EMBEDDED_IMAGES,
            "embed_texts": EMBEDDED_TEXTS,
            "score_video_similarity": VIDEO_SIMILARITY,
            "cluster_clips": CLUSTERS,
            "measure_text": TEXT_MEASURES,
            "score_nsfw": NSFW,
            "classify_frames": CLASSES,
        }
        return built_in.get(self.stage, tables.clip_table((self.score or "x", pa.float64())))

    @property
    def score(self) -> str | None:
        known = {
            "score_aesthetic": "aesthetic",
            "score_similarity": "similarity",
            "take_given_score": "given_score",
            **dict.fromkeys(tables.EMBEDDERS),
            "cluster_clips": None,
            "measure_text": None,
            "score_video_similarity": "video_similarity",
            "score_nsfw": "nsfw",
            "classify_frames": "class_score",
        }
        return known.get(self.stage, "measured")


def embeddings(
    label: str = "embed_clips", model: str = "open_clip:ViT-L-14/openai", frames: int = 4
) -> Made:
    return Made(label, "embed_clips", settings={"frames_per_clip": frames}, models={"model": model})


def aesthetic(
    label: str = "score_aesthetic",
    *,
    head: str = HEAD_V2,
    over: str = "max",
    reads: str = "embed_clips",
    column: str = "aesthetic",
) -> Made:
    return Made(
        label,
        "score_aesthetic",
        column,
        {"over_frames": over, "embeddings": reads},
        {"head": head},
        reads,
    )


def similarity(
    label: str = "score_similarity",
    *,
    model: str = "open_clip:ViT-L-14/openai",
    over: str = "direction",
    reads: str = "embed_clips",
    column: str = "similarity",
) -> Made:
    settings = {"over_frames": over, "embeddings": reads, "caption": "summarize_captions.caption"}
    return Made(label, "score_similarity", column, settings, {"model": model}, reads)


def classified(label: str, model: str, class_: str | int, *, over: str = "mean") -> Made:
    settings = {"label": [class_], "over_frames": over, "frames_per_clip": 3}
    return Made(label, "classify_frames", label, settings, {"model": model})


def given(label: str, scorer: str, source: str, column: str) -> Made:
    return Made(label, "take_given_score", column, {"scorer": scorer, "column": source})


def own(label: str) -> Made:
    """A custom stage, whose score is shown under its label."""
    return Made(label, f"measure_{label}", label)


@dataclass
class Clip:
    """One clip: its position, and its values by the stages' `column`."""

    video: str
    start: float
    end: float
    caption: str | None = "a dog runs"
    values: dict[str, float | None] = field(default_factory=dict)
    vectors: list[list[float]] | None = None
    vectors_of: dict[str, list[list[float]] | None] = field(default_factory=dict)
    """Those of stages other than embed_clips, by label."""

    @property
    def id(self) -> str:
        return clip_id(self.video, self.start, self.end)

    @property
    def seconds(self) -> float:
        return self.end - self.start


def random_clips(
    count: int,
    columns: Mapping[str, tuple[float, float]],
    *,
    seed: int = 5,
    seconds: tuple[float, float] = (1.0, 20.0),
) -> list[Clip]:
    """Clips of videos of very different sizes; one in 9 values of each column is missing."""
    draw = random.Random(seed)
    clips, number = [], 0
    while len(clips) < count:
        video, start = f"generic-v{number}", 0.0
        for _ in range(min(draw.choice([1, 1, 2, 3, 5, 12]), count - len(clips))):
            end = round(start + draw.uniform(*seconds), 3)
            values = {
                name: None if draw.random() < 1 / 9 else round(draw.uniform(*span), 6)
                for name, span in columns.items()
            }
            clips.append(Clip(video, start, end, values=values))
            start = end
        number += 1
    return clips


def build(
    dataset: Path,
    clips: Sequence[Clip],
    made: Sequence[Made],
    *,
    videos: Mapping[str, Mapping[str, Any]] | None = None,
    shards: int = 3,
) -> Path:
    """Writes the dataset; `videos` has additional columns of some videos by id."""
    names = list(dict.fromkeys(clip.video for clip in clips))
    for number in range(shards):
        shard, own_videos = f"{number:06d}", set(names[number::shards])
        here = [clip for clip in clips if clip.video in own_videos]
        _write(
            dataset,
            "download_videos",
            shard,
            VIDEOS,
            [
                {
                    "source_key": source_key(f"https://media.example/{name}"),
                    "video_id": name,
                    "url": f"https://media.example/{name}",
                    "duration_seconds": 60.0,
                    "width": 1280,
                    "height": 720,
                    "fps": 25.0,
                    **(videos or {}).get(name, {}),
                }
                for name in names[number::shards]
            ],
        )
        _write(
            dataset,
            "split_clips",
            shard,
            CLIPS,
            [
                {
                    "video_id": clip.video,
                    "clip_id": clip.id,
                    "start_seconds": clip.start,
                    "end_seconds": clip.end,
                    "duration_seconds": clip.seconds,
                    "fps": 25.0,
                    "width": 1280,
                    "height": 720,
                    "motion": 1.0,
                    "sharpness": 1.0,
                    "brightness": 1.0,
                }
                for clip in here
            ],
        )
        _write(
            dataset,
            "summarize_captions",
            shard,
            SUMMARIES,
            [{"clip_id": clip.id, "caption": clip.caption} for clip in here],
        )
        for stage in made:
            rows = [{"clip_id": clip.id, **_values(stage, clip)} for clip in here]
            _write(dataset, stage.label, shard, stage.schema, rows)
    write_run(
        dataset,
        {
            "run_id": "r1",
            "started_at": START.isoformat(),
            "finished_at": START.isoformat(),
            "recipe": {"stages": {}},
            "recipe_name": "built",
            "code_version": "0",
            "state": "done",
            "engine": "local",
            "stages": [
                _record(Made("download_videos", "download_videos"), VIDEOS, []),
                _record(Made("split_clips", "split_clips"), CLIPS, ["download_videos"]),
                _record(
                    Made("summarize_captions", "summarize_captions"), SUMMARIES, ["split_clips"]
                ),
                *(
                    _record(
                        stage, stage.schema, ["split_clips", *([stage.reads] * bool(stage.reads))]
                    )
                    for stage in made
                ),
            ],
        },
    )
    return dataset


def _values(stage: Made, clip: Clip) -> dict[str, Any]:
    if stage.stage in tables.EMBEDDERS:
        return {"embeddings": clip.vectors_of.get(stage.label, clip.vectors or [[1.0, 0.0]])}
    if stage.stage == "cluster_clips":
        return {name: clip.values[name] for name in ("cluster", "cluster_distance")}
    name = "text_area" if stage.stage == "measure_text" else stage.score
    return {name: clip.values[stage.column]}


def _write(dataset: Path, label: str, shard: str, schema: pa.Schema, rows: list[dict]) -> None:
    write_shard(dataset, label, f"{label}-1", shard, rows, schema)


def _record(stage: Made, schema: pa.Schema, upstream: list[str]) -> dict[str, Any]:
    step = {
        "step": stage.label,
        "key": schema.names[0],
        "fingerprint": f"{stage.label}-1",
        "upstream": upstream,
        "tables": {stage.label: f"{stage.label}/{stage.label}-1"},
        "schema_columns": schema.names,
    }
    models = {
        name: {"reference": place, "revision": None, "identity": f"sha256:{place[-6:]}"}
        for name, place in stage.models.items()
    }
    is_scorer = stage.label not in ("download_videos", "split_clips", "summarize_captions")
    return {
        "stage": stage.label,
        "name": stage.stage,
        "key": schema.names[0],
        "steps": [step],
        "score": stage.score if is_scorer else None,
        "reads": [],
        "prompts": {},
        "settings": dict(stage.settings),
        "models": models,
    }
