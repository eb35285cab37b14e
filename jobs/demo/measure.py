"""Measures what a run over the demo's world got right, from its catalog alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from clipmill.jobs.demo.truth import CutCounts, count_cuts, mark_summary, rank_auc, read_caption
from clipmill.jobs.demo.world import Film
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.stages.references import ModelReference

MODELS = Path(__file__).resolve().parent / "models"
WRONG_CAPTIONS = 8


@dataclass(frozen=True)
class Figure:
    """One measurement, how it is shown, and whether it meets the demo's target."""

    name: str
    shown: str
    target: str
    reached: bool


def _share(name: str, value: float, least: float) -> Figure:
    return Figure(name, f"{value:.3f}", f"≥ {least:.2f}", value >= least)


def _count(name: str, value: int, wanted: int) -> Figure:
    return Figure(name, str(value), str(wanted), value == wanted)


def measure(dataset: Path, films: Sequence[Film], broken: dict[str, str]) -> list[Figure]:
    """Cuts, captions, similarity and accounting against the truth."""
    by_name = {film.name: film for film in films}
    with open_catalog(dataset) as catalog:

        def ask(query: str) -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = catalog.ask(query).read_all().to_pylist()
            return rows

        videos = {
            row["video_id"]: by_name[_file(row["url"])]
            for row in ask("SELECT video_id, url FROM videos")
        }
        clips = ask(
            "SELECT clip_id, video_id, start_seconds, end_seconds, start_frame, caption, "
            "caption_coarse, captions_fine, similarity, aesthetic FROM clips"
        )
        embeddings = {
            row["clip_id"]: np.array(row["embeddings"], np.float32)
            for row in ask("SELECT clip_id, embeddings FROM embeddings")
        }
        shots = ask("SELECT video_id, start_frame FROM shots")
        ended = ask(
            "SELECT key, kind AS ending FROM failures UNION ALL SELECT key, rule FROM rejections"
        )
        sources = ask("SELECT source_key, url FROM sources")
    return [
        *_cuts(videos, shots),
        *_captions(videos, clips),
        _similarity(videos, clips, embeddings),
        _count(
            "clips that lack a caption or score",
            sum(
                None in (c["caption"], c["caption_coarse"], c["similarity"], c["aesthetic"])
                or not c["captions_fine"]
                for c in clips
            ),
            0,
        ),
        _count("clips with another clip's captions", _misassigned(videos, clips), 0),
        _accounting(by_name, videos, sources, ended, broken),
    ]


def _file(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).stem


def _cuts(videos: dict[str, Film], shots: list[dict[str, Any]]) -> list[Figure]:
    counts = CutCounts()
    for video, film in videos.items():
        # The first shot's start is not a cut.
        found = [s["start_frame"] for s in shots if s["video_id"] == video and s["start_frame"]]
        counts += count_cuts(film, found)
    return [
        _share("hard cuts: precision", counts.precision, 0.98),
        _share("hard cuts: recall", counts.recall, 0.98),
    ]


def _captions(videos: dict[str, Film], clips: list[dict[str, Any]]) -> list[Figure]:
    marks = [
        mark_summary(
            videos[c["video_id"]], c["start_seconds"], c["end_seconds"], c["caption"] or ""
        )
        for c in clips
    ]
    return [
        _share(
            "captions: object and colour right", float(np.mean([m.subject for m in marks])), 0.95
        ),
        _share("captions: motion right", float(np.mean([m.motion for m in marks])), 0.80),
    ]


def _similarity(
    videos: dict[str, Film], clips: list[dict[str, Any]], embeddings: dict[str, np.ndarray]
) -> Figure:
    """AUC of each clip's own stored similarity against that of true captions of other shots."""
    from clipmill.stages.models.embedders import ClipEmbedder

    right, wrong = [], []
    subjects = [_subject(videos, clip) for clip in clips]
    embedder = ClipEmbedder(
        ModelReference(folder=str(MODELS / "clip")), setting="demo", towers=("text",)
    )
    texts = embedder.embed_texts([clip["caption"] or "" for clip in clips])
    rng = np.random.default_rng(0)
    for clip, subject in zip(clips, subjects, strict=True):
        if clip["similarity"] is None or clip["clip_id"] not in embeddings:
            continue
        right.append(clip["similarity"])
        mean = embeddings[clip["clip_id"]].mean(axis=0)
        mean /= np.linalg.norm(mean)
        others = [i for i, other in enumerate(subjects) if other != subject]
        for i in rng.choice(others, size=min(WRONG_CAPTIONS, len(others)), replace=False):
            wrong.append(float(mean @ texts[i]))
    return _share("similarity: right vs. wrong captions (AUC)", rank_auc(right, wrong), 0.95)


def _subject(videos: dict[str, Film], clip: dict[str, Any]) -> tuple[str, str]:
    film = videos[clip["video_id"]]
    shot = film.shot_overlapping(clip["start_seconds"], clip["end_seconds"])
    return shot.colour, shot.object


def _misassigned(videos: dict[str, Film], clips: list[dict[str, Any]]) -> int:
    """Clips whose captions all agree on another clip's subject instead of their own.

    A captioner's error affects one caption among many; a row on the wrong clip is consistent with
    itself.
    """
    subjects = [_subject(videos, clip) for clip in clips]
    wrong = 0
    for clip, subject in zip(clips, subjects, strict=True):
        texts = [clip["caption_coarse"], *(fine["text"] for fine in clip["captions_fine"] or ())]
        said = {(r.colour, r.object) for r in (read_caption(text or "") for text in texts)}
        wrong += len(said) == 1 and subject not in said and bool(said & set(subjects))
    return wrong


def _accounting(
    by_name: dict[str, Film],
    videos: dict[str, Film],
    sources: list[dict[str, Any]],
    ended: list[dict[str, Any]],
    broken: dict[str, str],
) -> Figure:
    """Whether every source is a kept film or has its expected outcome."""
    endings = {row["key"]: row["ending"] for row in ended}
    kept = {film.name for film in videos.values()}
    good = 0
    for source in sources:
        name = _file(source["url"])
        if name in by_name:
            good += name in kept and source["source_key"] not in endings
        else:
            good += endings.get(source["source_key"]) == broken[f"{name}.mp4"]
    wanted = len(by_name) + len(broken)
    return _count("sources with the expected outcome", good, wanted)
