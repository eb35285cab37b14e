"""Measures the demo's models on films that they were not trained on, after real encoding."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import cv2
import numpy as np
import torch

from clipmill.jobs.demo import world
from clipmill.jobs.demo.render import render_film
from clipmill.jobs.demo.summary_prompt import render_summary_prompt
from clipmill.jobs.demo.train_text import summarize
from clipmill.jobs.demo.train_vision import (
    caption_images,
    embed_images,
    embed_texts,
    load_aesthetic_head,
    load_clip,
)
from clipmill.jobs.demo.training_data import IMAGE_SIZE, rate_appeal
from clipmill.jobs.demo.truth import rank_auc, read_caption
from clipmill.jobs.demo.world import BLACK_CAPTION, Film, Shot

_JPEG_QUALITY = 90
_FRAMES_PER_SHOT = 8
# A frame half-way into a fade may be classified either way.
_SURELY_LIT = 0.3


@dataclass(frozen=True, slots=True)
class ModelScores:
    frame_subject: float
    """Share of frame captions with the right colour and object."""
    frame_position: float
    summary_subject: float
    summary_motion: float
    similarity_auc: float
    """AUC of right against wrong summaries by cosine with the mean of the shot's frames."""
    caption_auc: float
    """The same for the captions of middle frames."""
    tags: float
    """Share of shots whose best colour tag and best shape tag are right."""
    aesthetic_correlation: float
    n_frames: int
    n_shots: int


@dataclass(frozen=True, slots=True)
class _SeenShot:
    shot: Shot
    frames: list[int]
    rows: list[int]
    """Indices of the shot's frames among all images."""


def evaluate_models(models: Path, films: Iterable[Film]) -> ModelScores:
    """Renders the films, decodes them, and runs every model in the folder on them."""
    seen, images = _see(films)
    shots = [each.shot for each in seen]
    frame_captions = caption_images(models / "captioner", images)
    clip = load_clip(models / "clip")
    embeddings = embed_images(clip, images).numpy()
    means = np.stack([_unit(embeddings[each.rows].mean(axis=0)) for each in seen])
    best_tags = _choose_tags(models, clip, means)
    prompts = [
        render_summary_prompt(
            frame_captions[each.rows[len(each.rows) // 2]],
            [frame_captions[row] for row in each.rows],
            tags,
        )
        for each, tags in zip(seen, best_tags, strict=True)
    ]
    summaries = [read_caption(text) for text in summarize(models / "summarizer", prompts)]
    truths, readings, appeal, lit_rows = [], [], [], []
    for each in seen:
        for frame, row in zip(each.frames, each.rows, strict=True):
            if each.shot.brightness_at(frame) >= _SURELY_LIT:
                truths.append(read_caption(each.shot.caption_at(frame)))
                readings.append(read_caption(frame_captions[row]))
                appeal.append(rate_appeal(*each.shot.centre_at(frame), each.shot.size))
                lit_rows.append(row)
    middles = [each.shot.caption_at(each.frames[len(each.frames) // 2]) for each in seen]
    return ModelScores(
        frame_subject=_share(
            (said.colour, said.object) == (true.colour, true.object)
            for said, true in zip(readings, truths, strict=True)
        ),
        frame_position=_share(
            said.position == true.position for said, true in zip(readings, truths, strict=True)
        ),
        summary_subject=_share(
            (said.colour, said.object) == (shot.colour, shot.object)
            for said, shot in zip(summaries, shots, strict=True)
        ),
        summary_motion=_share(
            said.motion == shot.motion for said, shot in zip(summaries, shots, strict=True)
        ),
        similarity_auc=_auc(models, clip, means, [shot.summary for shot in shots], shots),
        caption_auc=_auc(models, clip, means, middles, shots),
        tags=_share(
            shot.colour in tags and shot.object in tags
            for shot, tags in zip(shots, best_tags, strict=True)
        ),
        aesthetic_correlation=_correlate(models, embeddings[lit_rows], appeal),
        n_frames=len(truths),
        n_shots=len(seen),
    )


def _see(films: Iterable[Film]) -> tuple[list[_SeenShot], np.ndarray]:
    """Evenly spaced frames of every shot, as a pipeline would keep and prepare them."""
    seen: list[_SeenShot] = []
    images: list[np.ndarray] = []
    with TemporaryDirectory() as folder:
        for film in films:
            path = Path(folder) / f"{film.name}.mp4"
            render_film(film, path)
            wanted: dict[int, int] = {}
            for shot in film.shots:
                step = (shot.end_frame - shot.start_frame) / _FRAMES_PER_SHOT
                frames = [
                    int(shot.start_frame + (at + 0.5) * step) for at in range(_FRAMES_PER_SHOT)
                ]
                first_row = len(images) + len(wanted)
                rows = list(range(first_row, first_row + len(frames)))
                wanted.update(zip(frames, rows, strict=True))
                seen.append(_SeenShot(shot=shot, frames=frames, rows=rows))
            with av.open(str(path)) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted:
                        images.append(_prepare(frame.to_ndarray(format="rgb24")))
    return seen, np.stack(images).transpose(0, 3, 1, 2)


def _prepare(picture: np.ndarray) -> np.ndarray:
    """Encodes as JPEG, decodes, and resizes to the models' size."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    packed = cv2.imencode(".jpg", picture, quality)[1]
    unpacked = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    assert unpacked is not None  # it was packed just now
    return cv2.resize(unpacked, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)


def _choose_tags(models: Path, clip: torch.nn.Module, means: np.ndarray) -> list[list[str]]:
    """The best colour and the best shape of every shot, in one list."""
    chosen: list[list[str]] = [[] for _ in means]
    for group in (tuple(world.COLOURS), world.SHAPES):
        texts = embed_texts(clip, models / "clip", [f"a photo of a {tag}" for tag in group])
        for tags, best in zip(chosen, (means @ texts.numpy().T).argmax(axis=1), strict=True):
            tags.append(group[best])
    return chosen


def _auc(
    models: Path, clip: torch.nn.Module, means: np.ndarray, captions: list[str], shots: list[Shot]
) -> float:
    similarity = means @ embed_texts(clip, models / "clip", captions).numpy().T
    right = [similarity[row, row] for row, text in enumerate(captions) if text != BLACK_CAPTION]
    wrong = [
        similarity[row, column]
        for row, shot in enumerate(shots)
        for column, other in enumerate(shots)
        if (shot.colour, shot.object) != (other.colour, other.object)
    ]
    return rank_auc(right, wrong)


def _correlate(models: Path, embeddings: np.ndarray, appeal: list[float]) -> float:
    with torch.inference_mode():
        made = load_aesthetic_head(models / "aesthetic.safetensors")(torch.from_numpy(embeddings))
    return float(np.corrcoef(made[:, 0].numpy(), appeal)[0, 1])


def _unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))


def _share(outcomes: Iterable[bool]) -> float:
    counted = list(outcomes)
    return sum(counted) / len(counted)
