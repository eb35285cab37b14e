"""A small dataset with real films, written straight to disk, for exports.

Every video is the same film of three shots, so each has three clips. Some are YouTube's, and all
have a title, a description and an uploader that are easy to search for.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.exports.request import ExportRequest
from clipmill.pipeline.exports.run_export import Exported, run_export
from clipmill.schemas.ids import clip_id
from clipmill.stages.caption_frames import CAPTIONS
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.score_aesthetic import AESTHETIC
from clipmill.stages.score_similarity import SIMILARITY
from clipmill.stages.split_clips import CLIPS
from clipmill.stages.summarize_captions import SUMMARIES
from clipmill.stages.tag_clips import TAGS
from clipmill.stages.take_given_score import GIVEN_SCORE
from tests.media import THREE_SHOTS, cached
from tests.synthetic import START, run_record, write_run, write_shard

PLANTED = {
    "title": "PLANTEDTITLE",
    "description": "PLANTEDDESCRIPTION",
    "uploader": "PLANTEDUPLOADER",
    "extra": "PLANTEDEXTRA",
}
SPANS = ((0.0, 2.0), (2.0, 3.6), (3.6, 6.0))
COLOURS = ("red", "blue", "yellow")
STEPS: dict[str, tuple[str, str, pa.Schema]] = {
    "download_videos": ("download_videos", "d1", VIDEOS),
    "split_clips": ("split_clips", "c1", CLIPS),
    "tag_clips": ("tag_clips", "t1", TAGS),
    "caption_frames": ("caption_frames", "f1", CAPTIONS),
    "summarize_captions": ("summarize_captions", "m1", SUMMARIES),
    "score_similarity": ("score_similarity", "i1", SIMILARITY),
    "score_aesthetic": ("score_aesthetic", "a1", AESTHETIC),
    "umt_sim": ("umt_sim", "u1", GIVEN_SCORE),
}
STAGE_NAMES = {"umt_sim": "take_given_score"}


@dataclass
class Small:
    """The dataset's folder and its rows by step."""

    path: Path
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def clip_ids(self) -> list[str]:
        return [row["clip_id"] for row in self.rows["split_clips"]]


def youtube_id(number: int) -> str:
    return f"{number:03d}-abc_DEF"


def write_small(
    path: Path,
    videos: int = 4,
    *,
    steps: Sequence[str] = tuple(STEPS),
    change: Callable[[str, dict[str, Any]], None] = lambda step, row: None,
    settings: dict[str, dict[str, Any]] | None = None,
    models: dict[str, dict[str, Any]] | None = None,
) -> Small:
    """Writes the dataset; `change` may alter rows before a step is written.

    The second clip of the second video has no caption. Videos with odd numbers are files, not
    YouTube's.
    """
    small = Small(path)
    (path / "media").mkdir(parents=True)
    film, _ = cached(THREE_SHOTS)
    shutil.copy(film, path / "media" / "film.mp4")
    for number in range(videos):
        _add_video(small, number)
    for step, rows in small.rows.items():
        for row in rows:
            change(step, row)
    chosen = {step: STEPS[step] for step in steps}
    for step, (label, fingerprint, schema) in chosen.items():
        write_shard(path, step, fingerprint, "000000", small.rows[step], schema, stage=label)
    record = run_record("r1", START, chosen)
    for stage in record["stages"]:
        stage["name"] = STAGE_NAMES.get(stage["stage"], stage["stage"])
        stage["score"] = {"umt_sim": "given_score"}.get(stage["stage"], stage["score"])
        stage["settings"] = _SETTINGS.get(stage["stage"], {}) | (settings or {}).get(
            stage["stage"], {}
        )
        stage["models"] = (models or _MODELS).get(stage["stage"], {})
    write_run(path, record)
    return small


_SETTINGS = {
    "umt_sim": {"column": "UMT_Score", "scorer": "UMT-SIM"},
    "score_aesthetic": {"over_frames": "max"},
}
_MODELS = {
    "score_aesthetic": {
        "head": {
            "reference": "/home/someone/heads/sac+logos+ava1-l14-linearMSE.pth",
            "revision": None,
            "identity": "sha256:12",
        }
    }
}


def _add_video(small: Small, number: int) -> None:
    def add(step: str, **row: Any) -> None:
        small.rows.setdefault(step, []).append(row)

    is_youtube = number % 2 == 0
    source = youtube_id(number)
    video = f"youtube-{source}" if is_youtube else f"file-{number:03d}"
    url = (
        f"https://www.youtube.com/watch?v={source}"
        if is_youtube
        else f"https://videos.example/{PLANTED['uploader'].lower()}/{number}.mp4"
    )
    add(
        "download_videos",
        source_key=f"k{number:03d}",
        video_id=video,
        url=url,
        extractor="youtube" if is_youtube else None,
        source_id=source if is_youtube else None,
        title=f"{PLANTED['title']} {number}",
        description=f"{PLANTED['description']} {number}",
        uploader=PLANTED["uploader"],
        license="CC-BY" if is_youtube else None,
        language="de",
        category="sport",
        duration_seconds=6.0,
        width=320,
        height=180,
        fps=25.0,
        codec="h264",
        has_audio=False,
        path="media/film.mp4",
        downloaded_at=START + timedelta(seconds=number),
        extra=[("note", PLANTED["extra"])],
        subtitles=[
            _cue(0.5, 1.5, "Guten Tag", "de"),
            _cue(1.9, 3.4, "zusammen", "de"),
            _cue(0.5, 1.5, "Good day", "en"),
            _cue(0.5, 1.5, "guten tach", "de", True),
        ],
    )
    for at, (start, end) in enumerate(SPANS):
        clip = clip_id(video, start, end)
        add(
            "split_clips",
            video_id=video,
            clip_id=clip,
            shot=at,
            start_seconds=start,
            end_seconds=end,
            duration_seconds=end - start,
            start_frame=round(start * 25),
            end_frame=round(end * 25),
            fps=25.0,
            width=320,
            height=180,
            motion=0.3,
            extra=[("title", PLANTED["extra"])],
        )
        add("tag_clips", clip_id=clip, tags=[{"tag": COLOURS[at], "score": 0.3}])
        add(
            "caption_frames",
            clip_id=clip,
            caption_coarse=f"{COLOURS[at]} ground",
            captions_fine=[{"seconds": start, "text": f"a {COLOURS[at]} frame"}],
        )
        without = number == 1 and at == 1
        add(
            "summarize_captions",
            clip_id=clip,
            caption=None if without else f"a bar on {COLOURS[at]}, video {number}",
        )
        add("score_similarity", clip_id=clip, similarity=0.3)
        add("score_aesthetic", clip_id=clip, aesthetic=4.3 + at)
        add("umt_sim", clip_id=clip, given_score=0.4176532)


def _cue(
    start: float, end: float, text: str, language: str, automatic: bool = False
) -> dict[str, Any]:
    return {
        "start_seconds": start,
        "end_seconds": end,
        "text": text,
        "language": language,
        "automatic": automatic,
    }


def freeze(dataset: Path, name: str, clips: Sequence[str]) -> None:
    """A frozen subset of these clips, as stored on disk."""
    folder = dataset / "subsets" / name
    folder.mkdir(parents=True)
    ids = sorted(clips)
    rows = pa.table(
        {
            "clip_id": ids,
            "video_id": ["-".join(one.split("-")[:-2]) for one in ids],
            "position": list(range(len(ids))),
        }
    )
    pq.write_table(rows, folder / "clips-000000.parquet")
    digest = hashlib.sha256("".join(f"{one}\n" for one in ids).encode()).hexdigest()
    (folder / "subset.json").write_text(
        json.dumps(
            {
                "name": name,
                "recipe": "by hand",
                "created_at": START.isoformat(),
                "n_clips": len(ids),
                "n_videos": len(set(rows["video_id"].to_pylist())),
                "hours": 0.1,
                "snapshot": "abc",
                "hash": f"sha256:{digest}",
                "seed": 42,
                "source": None,
                "verified": True,
                "description": "",
                "parameters": {"who": PLANTED["uploader"]},
                "code_version": "0.1.0",
                "rules": [{"where": f"title = '{PLANTED['title']}'"}],
                "scorers": {},
                "catalog": {"steps": {}},
                "files": [{"name": "clips-000000.parquet", "clips": len(ids)}],
            }
        )
    )


def export(small: Small, output: Path, format: str, **asked: Any) -> Exported:
    """Exports in this process."""
    request = ExportRequest(small.path, output, format, engine="local", **asked)
    return run_export(request, code_version="test")


def contents(folder: Path) -> dict[str, bytes]:
    """The contents of all files in a folder, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
