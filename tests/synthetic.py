"""Datasets written straight to disk: the form of a finished run, without running one.

The number of the source or clip decides every outcome, so the true counts are known without
reading anything back. `build_dataset(path, shards=200, clips=5000)` is large enough to measure
queries on; the defaults are small enough for a test.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.schemas import tables
from clipmill.schemas.ids import clip_id, source_key
from clipmill.stages.caption_frames import CAPTIONS
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.embed_clips import EMBEDDINGS
from clipmill.stages.scan_videos import FRAMES, SCANS
from clipmill.stages.score_aesthetic import AESTHETIC
from clipmill.stages.score_similarity import SIMILARITY
from clipmill.stages.split_clips import CLIPS, SHOTS
from clipmill.stages.summarize_captions import SUMMARIES
from clipmill.stages.tag_clips import TAGS

START = datetime(2026, 1, 1, tzinfo=UTC)
WORDS_TABLE = tables.clip_table(("n_words", pa.int32()), ("n_words_reason", pa.string()))

# The steps of the recipe: label -> (stage label, fingerprint, schema).
STEPS: dict[str, tuple[str, str, pa.Schema]] = {
    "download_videos": ("download_videos", "d1", VIDEOS),
    "scan_videos": ("split_clips", "s1", SCANS),
    "split_clips": ("split_clips", "c1", CLIPS),
    "tag_clips": ("tag_clips", "t1", TAGS),
    "caption_frames": ("caption_frames", "f1", CAPTIONS),
    "summarize_captions": ("summarize_captions", "m1", SUMMARIES),
    "embed_clips": ("embed_clips", "e1", EMBEDDINGS),
    "score_similarity": ("score_similarity", "i1", SIMILARITY),
    "score_aesthetic": ("score_aesthetic", "a1", AESTHETIC),
    "aesthetic_v1": ("aesthetic_v1", "b1", AESTHETIC),
    "count_words": ("count_words", "w1", WORDS_TABLE),
}
STAGE_NAMES = {"aesthetic_v1": "score_aesthetic"}
SCORES = {
    "score_similarity": "similarity",
    "score_aesthetic": "aesthetic",
    "aesthetic_v1": "aesthetic",
    "count_words": "n_words",
}
READS = {
    "download_videos": ["sources.url"],
    "split_clips": ["download_videos.path"],
    "tag_clips": ["split_clips.clip_id"],
    "caption_frames": ["split_clips.start_seconds", "tag_clips.tags?"],
    "summarize_captions": ["caption_frames.caption_coarse", "caption_frames.captions_fine"],
    "embed_clips": ["split_clips.start_seconds"],
    "score_similarity": ["embed_clips.embeddings", "summarize_captions.caption"],
    "score_aesthetic": ["embed_clips.embeddings"],
    "aesthetic_v1": ["embed_clips.embeddings"],
    "count_words": ["summarize_captions.caption"],
}
UPSTREAM = {
    "scan_videos": ["download_videos"],
    "split_clips": ["scan_videos"],
    "tag_clips": ["split_clips"],
    "caption_frames": ["split_clips", "tag_clips", "scan_videos"],
    "summarize_captions": ["split_clips", "caption_frames"],
    "embed_clips": ["split_clips", "scan_videos"],
    "score_similarity": ["split_clips", "embed_clips", "summarize_captions"],
    "score_aesthetic": ["split_clips", "embed_clips"],
    "aesthetic_v1": ["split_clips", "embed_clips"],
    "count_words": ["split_clips", "summarize_captions"],
}


@dataclass
class Truth:
    """What was written: counts by stage and outcome, and a few useful keys."""

    path: Path
    counts: dict[str, Counter] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)
    decoded_frames: int = 0
    source_frames: int = 0
    clips: int = 0
    clip_seconds: float = 0.0


def _outcome(table: str, kind: str | None, attempts: int, g: int) -> dict[str, Any]:
    if kind is None:
        return {}
    if kind.startswith("rule:"):
        return {"rejection": {"rule": kind[5:], "detail": f"{table} number {g} is below the limit"}}
    at = START + timedelta(seconds=g, hours=attempts)
    message = f"{table} number {g} would not work"
    return {"error": {"kind": kind, "message": message, "attempts": attempts, "at": at}}


class _Writer:
    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.rows: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def add(self, step: str, shard: str, row: dict[str, Any]) -> None:
        self.rows.setdefault((step, shard), []).append(row)

    def write(self) -> None:
        for (step, shard), rows in self.rows.items():
            stage, fingerprint, schema = STEPS[step]
            write_shard(self.truth.path, step, fingerprint, shard, rows, schema, stage=stage)


def write_shard(
    dataset: Path,
    step: str,
    fingerprint: str,
    shard: str,
    rows: list[dict[str, Any]],
    schema: pa.Schema,
    *,
    stage: str = "",
    seconds: float = 2.0,
    table: str = "",
) -> Path:
    """Writes one shard of one step with the metadata of every committed file."""
    key = schema.names[0]
    outcome: dict[str, str] = {}
    for row in rows:
        kind = "rejected" if row.get("rejection") else "failed" if row.get("error") else "kept"
        outcome[row[key]] = kind
    counts = Counter(outcome.values())
    metadata = {
        "stage": stage or step,
        "step": step,
        "shard": shard,
        "fingerprint": fingerprint,
        "run_id": "r2",
        "inputs": len(outcome),
        "kept": counts["kept"],
        "rejected": counts["rejected"],
        "failed": counts["failed"],
        "outputs": sum(not (row.get("rejection") or row.get("error")) for row in rows),
        "seconds": seconds,
        "decoded_frames": sum(row.get("decoded_frames") or 0 for row in rows),
        "source_frames": sum(row.get("source_frames") or 0 for row in rows),
    }
    folder = dataset / (table or step) / fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    data = pa.Table.from_pylist(rows, schema=schema)
    data = data.replace_schema_metadata({b"clipmill": json.dumps(metadata).encode()})
    path = folder / f"{shard}.parquet"
    pq.write_table(data, path)
    return path


def run_record(
    run_id: str, started_at: datetime, steps: dict[str, tuple[str, str, pa.Schema]] | None = None
) -> dict[str, Any]:
    """A run record like the runner's, for the given steps (all by default)."""
    steps = STEPS if steps is None else steps
    stages: dict[str, dict[str, Any]] = {}
    for step, (label, fingerprint, schema) in steps.items():
        name = STAGE_NAMES.get(label, label)
        stage = stages.setdefault(
            label,
            {
                "stage": label,
                "name": name,
                "steps": [],
                "score": SCORES.get(label),
                "reads": READS.get(label, []),
                "settings": {"threshold": 27} if label == "split_clips" else {},
                "models": {},
                "prompts": {},
            },
        )
        folders = {step: f"{step}/{fingerprint}"}
        if step == "scan_videos":
            folders["frames"] = f"frames/{fingerprint}"
        if step == "split_clips":
            folders["shots"] = f"shots/{fingerprint}"
        stage["steps"].append(
            {
                "step": step,
                "key": schema.names[0],
                "fingerprint": fingerprint,
                "upstream": UPSTREAM.get(step, []),
                "tables": folders,
                "schema_columns": schema.names,
            }
        )
        if label == "summarize_captions":
            stage["prompts"] = {"prompt": "Merge {coarse} and {fine}."}
            stage["models"] = {
                "model": {"reference": "org/writer", "revision": "abc", "identity": "sha256:12"}
            }
    return {
        "run_id": run_id,
        "started_at": started_at.isoformat(),
        "finished_at": (started_at + timedelta(minutes=5)).isoformat(),
        "recipe": {"stages": {label: {} for label in stages}},
        "recipe_name": "synthetic",
        "code_version": "0.1.0",
        "engine": "local",
        "state": "done",
        "stages": list(stages.values()),
    }


def write_run(dataset: Path, record: dict[str, Any]) -> None:
    folder = dataset / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{record['run_id']}.json").write_text(json.dumps(record))


def _video_row(key: str, video: str, g: int) -> dict[str, Any]:
    return {
        "source_key": key,
        "video_id": video,
        "url": f"https://media.example/{g}.mp4",
        "extractor": "generic",
        "title": f"Film {g}",
        "language": ("en", "de", None)[g % 3],
        "category": ("sport", "travel")[g % 2],
        "query": "how to juggle" if g % 4 == 0 else None,
        "duration_seconds": 60.0 + g,
        "width": 1280,
        "height": 720,
        "fps": 25.0,
        "codec": "h264",
        "has_audio": g % 2 == 0,
        "path": f"media/{video}.mp4",
        "downloaded_at": START + timedelta(seconds=g),
        "subtitles": [
            {
                "start_seconds": 0.0,
                "end_seconds": 2.0,
                "text": "Hello",
                "language": "en",
                "automatic": g % 2 == 0,
            }
        ],
    }


def build_dataset(
    path: Path, *, shards: int = 3, videos: int = 8, clips: int = 4, embed: bool = True
) -> Truth:
    """Writes a dataset of `shards` × `videos` sources with `clips` clips per video.

    Of every 14 sources two fail to download: one succeeds on retry, one never does. One in 7 is
    rejected, one in 11 can't be decoded, one in 13 gives no clip. Of every 34 clips two fail to be
    captioned, and one of them succeeds on retry.
    """
    truth = Truth(path)
    for label in dict.fromkeys(stage for stage, _, _ in STEPS.values()):
        truth.counts[label] = Counter()
    truth.counts["ingest"] = Counter()
    for s in range(shards):
        shard = f"{s:06d}"
        writer = _Writer(truth)
        sources = []
        for v in range(videos):
            g = s * videos + v
            url = f"https://media.example/{g}.mp4"
            sources.append({"source_key": source_key(url), "position": g, "url": url})
            _add_video(writer, truth, shard, g, clips, embed)
        known = f"https://media.example/known{s}.mp4"
        sources.append(
            {
                "source_key": source_key(known),
                "position": -1,
                "url": known,
                "rejection": {"rule": "exclude_ids", "detail": "in known.txt"},
            }
        )
        truth.counts["ingest"].update(kept=videos, rejected=1)
        (path / "sources").mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(sources, schema=tables.SOURCES)
        pq.write_table(table, path / "sources" / f"{shard}.parquet")
        writer.write()
        _write_side_tables(path, writer)
    _write_stale_run(truth)
    write_run(path, run_record("r2", START + timedelta(days=1)))
    return truth


def _add_video(w: _Writer, truth: Truth, shard: str, g: int, clips: int, embed: bool) -> None:
    key = source_key(f"https://media.example/{g}.mp4")
    video = f"generic-v{g}"
    count = truth.counts["download_videos"]
    if g % 7 == 3:
        rule = "rule:download_videos.min_duration_seconds"
        row = _video_row(key, video, g) | _outcome("video", rule, 1, g)
        w.add("download_videos", shard, row)
        count["rejected"] += 1
        return
    if g % 7 == 5:
        first = {"source_key": key, **_outcome("video", "transient", 1, g)}
        w.add("download_videos", shard, first)
        shard = f"{shard}.retry1"
        if g % 14 == 12:
            again = {"source_key": key, **_outcome("video", "permanent", 2, g)}
            w.add("download_videos", shard, again)
            count["failed"] += 1
            truth.keys.setdefault("failed_downloads", []).append(key)
            return
        truth.keys.setdefault("retried_videos", []).append(video)
    w.add("download_videos", shard, _video_row(key, video, g))
    count["kept"] += 1
    _add_split(w, truth, shard, video, g, clips, embed)


def _add_split(
    w: _Writer, truth: Truth, shard: str, video: str, g: int, clips: int, embed: bool
) -> None:
    count = truth.counts["split_clips"]
    if g % 11 == 4:
        w.add("scan_videos", shard, {"video_id": video, **_outcome("scan", "bad_media", 1, g)})
        count["failed"] += 1
        return
    frames = 25 * (60 + g)
    w.add(
        "scan_videos",
        shard,
        {
            "video_id": video,
            "width": 1280,
            "height": 720,
            "fps": 25.0,
            "source_frames": frames,
            "decoded_frames": frames,
            "end_seconds": 60.0 + g,
        },
    )
    truth.source_frames += frames
    truth.decoded_frames += frames
    if g % 13 == 6:
        rule = "rule:split_clips.min_seconds"
        w.add("split_clips", shard, {"video_id": video, **_outcome("video", rule, 1, g)})
        count["rejected"] += 1
        return
    count["kept"] += 1
    for c in range(clips):
        _add_clip(w, truth, shard, video, g * clips + c, c, embed)


def _add_clip(
    w: _Writer, truth: Truth, shard: str, video: str, h: int, c: int, embed: bool
) -> None:
    start, end = 2.0 * c, 2.0 * c + 1.0 + (h % 4) / 4
    clip = clip_id(video, start, end)
    count = truth.counts
    truth.clips += 1
    truth.clip_seconds += end - start
    w.add(
        "split_clips",
        shard,
        {
            "video_id": video,
            "clip_id": clip,
            "shot": c,
            "start_seconds": start,
            "end_seconds": end,
            "duration_seconds": end - start,
            "start_frame": round(start * 25),
            "end_frame": round(end * 25),
            "fps": 25.0,
            "width": 1280,
            "height": 720,
            "motion": (h % 50) / 10,
            "motion_max": 5.0,
            "sharpness": 0.5,
            "brightness": 0.4,
        },
    )
    w.add("tag_clips", shard, {"clip_id": clip, "tags": [{"tag": "dog", "score": 0.75}]})
    count["tag_clips"]["kept"] += 1
    if embed:
        vectors = [[1.0, 0.5, -0.25, 0.0], [0.0, 1.0, 0.0, h % 8 / 8]]
        w.add(
            "embed_clips",
            shard,
            {"clip_id": clip, "embeddings": vectors, "embedding_seconds": [start, end]},
        )
        count["embed_clips"]["kept"] += 1
        for step, number in (("score_aesthetic", 4 + h % 3), ("aesthetic_v1", 5 + h % 2)):
            w.add(step, shard, {"clip_id": clip, "aesthetic": number})
            count[step]["kept"] += 1
    if h % 17 == 5:
        w.add("caption_frames", shard, {"clip_id": clip, **_outcome("clip", "model", 1, h)})
        if h % 34 == 22:
            count["caption_frames"]["failed"] += 1
            truth.keys.setdefault("uncaptioned", []).append(clip)
            return
        shard = f"{shard.split('.')[0]}.retry2"
    w.add(
        "caption_frames",
        shard,
        {
            "clip_id": clip,
            "caption_coarse": f"a dog numbered {h}",
            "coarse_seconds": start + 0.5,
            "captions_fine": [
                {"seconds": start, "text": "a dog"},
                {"seconds": end, "text": "runs"},
            ],
        },
    )
    count["caption_frames"]["kept"] += 1
    w.add("summarize_captions", shard, {"clip_id": clip, "caption": f"A dog, number {h}, runs."})
    count["summarize_captions"]["kept"] += 1
    w.add("count_words", shard, {"clip_id": clip, "n_words": 5 + h % 2})
    count["count_words"]["kept"] += 1
    if embed:
        missing = h % 23 == 1
        w.add(
            "score_similarity",
            shard,
            {
                "clip_id": clip,
                "similarity": None if missing else 0.1 + (h % 30) / 100,
                "similarity_reason": "the caption has no words" if missing else None,
            },
        )
        count["score_similarity"]["kept"] += 1


def _write_side_tables(path: Path, writer: _Writer) -> None:
    """The shots and frames of the clips; two frames per video are enough."""
    for (step, shard), rows in writer.rows.items():
        if step == "split_clips":
            found = [row for row in rows if row.get("clip_id")]
            shots = [
                {
                    "video_id": row["video_id"],
                    "shot": row["shot"],
                    "n_clips": 1,
                    "start_seconds": row["start_seconds"],
                    "end_seconds": row["end_seconds"],
                }
                for row in found
            ]
            write_shard(path, step, STEPS[step][1], shard, shots, SHOTS, table="shots")
        if step == "scan_videos":
            frames = [
                {
                    "video_id": row["video_id"],
                    "frame_number": n,
                    "seconds": n / 25,
                    "jpeg": b"\xff\xd8\xff\xd9",
                }
                for row in rows
                if row.get("source_frames")
                for n in (0, 25)
            ]
            write_shard(path, step, STEPS[step][1], shard, frames, FRAMES, table="frames")


def _write_stale_run(truth: Truth) -> None:
    """An earlier run with another threshold and one more decode, which no view may show."""
    stale = {
        "scan_videos": ("split_clips", "s0", SCANS),
        "split_clips": ("split_clips", "c0", CLIPS),
    }
    write_shard(
        truth.path,
        "scan_videos",
        "s0",
        "000000",
        [{"video_id": "generic-v0", "source_frames": 10, "decoded_frames": 10}],
        SCANS,
        stage="split_clips",
    )
    truth.decoded_frames += 10
    write_shard(
        truth.path,
        "split_clips",
        "c0",
        "000000",
        [
            {
                "video_id": "generic-v0",
                "clip_id": "generic-v0-0-999",
                "start_seconds": 0.0,
                "end_seconds": 0.999,
                "duration_seconds": 0.999,
            }
        ],
        CLIPS,
    )
    download = {"download_videos": STEPS["download_videos"]}
    write_run(truth.path, run_record("r1", START, download | stale))
    leftover = truth.path / "split_clips" / "c1" / ".000000.k3j2.tmp"
    leftover.write_bytes(b"half a file")
