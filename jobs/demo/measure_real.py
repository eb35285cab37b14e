"""Measures what the recipe `signals` found: in the films of `demo --real` against what they hold,
in any others whether every clip has its values, or the reason why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from clipmill.jobs.demo.measure import Figure
from clipmill.jobs.demo.real_films import FILMS, TAKE_SECONDS, RealFilm, Take, can_speak
from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.status import status_report

# Numbers per clip, and the column that says why one is null.
_MEASURED = {
    "text_area": "text_read_reason",
    "speech_share": "speech_share_reason",
    "faces": "faces_reason",
    "nsfw": "nsfw_reason",
    "cluster": "cluster_reason",
}
_TEXT_FROM = 0.002
_SPOKEN_FROM = 0.3
_SILENT_UP_TO = 0.05
_SAFE_BELOW = 0.5


def measure_real(dataset: Path, *, own_films: bool) -> list[Figure]:
    """The checklist; `own_films` says that nothing is known of the films."""
    with open_catalog(dataset) as catalog:
        clips = _rows(catalog, "SELECT * FROM clips ORDER BY clip_id")
        videos = _rows(catalog, "SELECT * FROM videos")
        found = list(_accounts(clips) if own_films else _against_films(catalog, clips, videos))
    failed = sum(stage["failed"] for stage in status_report(dataset)["stages"])
    return [*found, Figure("failed rows", str(failed), "0", failed == 0)]


def _rows(catalog: Catalog, query: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = catalog.ask(query).read_all().to_pylist()
    return rows


def _all(name: str, count: int, whole: int) -> Figure:
    return Figure(name, f"{count} of {whole}", "all", count == whole > 0)


def _accounts(clips: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    yield Figure("clips", str(len(clips)), "≥ 1", bool(clips))
    for column, reason in _MEASURED.items():
        if clips and column in clips[0]:
            told = sum(c[column] is not None or bool(c.get(reason)) for c in clips)
            yield _all(f"{column}: clips with a value or the reason", told, len(clips))


def _against_films(
    catalog: Catalog, clips: list[dict[str, Any]], videos: list[dict[str, Any]]
) -> Iterator[Figure]:
    films = {film.name: film for film in FILMS}
    # The dataset may hold films of the user's, too.
    names = {row["video_id"]: PurePosixPath(row["url"]).stem for row in videos}
    by_video = {video: films[name] for video, name in names.items() if name in films}
    videos = [row for row in videos if row["video_id"] in by_video]
    clips = [clip for clip in clips if clip["video_id"] in by_video]
    seen = [(clip, by_video[clip["video_id"]]) for clip in clips]
    takes = [(clip, film, _take(clip, film)) for clip, film in seen]
    yield _all("takes found as clips", len(clips), sum(len(film.takes) for film in FILMS))
    columns = set(clips[0]) if clips else set()
    if "text_area" in columns:
        yield from _text(takes)
    if "speech_share" in columns:
        yield from _speech(takes)
    if "nsfw" in columns:
        highest = max((clip["nsfw"] for clip in clips if clip["nsfw"] is not None), default=1.0)
        yield Figure(
            "NSFW score of harmless films, highest",
            f"{highest:.3f}",
            f"< {_SAFE_BELOW}",
            highest < _SAFE_BELOW,
        )
    right = sum(row["language"] == by_video[row["video_id"]].language for row in videos)
    yield _all("languages of titles right", right, len(FILMS))
    yield from _copies(catalog, takes)
    if "cluster" in columns:
        yield _all("clips in a cluster", sum(c["cluster"] is not None for c in clips), len(clips))


_Taken = Sequence[tuple[Mapping[str, Any], RealFilm, Take]]


def _take(clip: Mapping[str, Any], film: RealFilm) -> Take:
    middle = (clip["start_seconds"] + clip["end_seconds"]) / 2
    return film.takes[min(int(middle // TAKE_SECONDS), len(film.takes) - 1)]


def _text(takes: _Taken) -> Iterator[Figure]:
    areas = [(clip["text_area"] or 0.0, bool(take.lines)) for clip, _, take in takes]
    written = [area for area, has_text in areas if has_text]
    bare = [area for area, has_text in areas if not has_text]
    yield _all("clips with text: text found", sum(a >= _TEXT_FROM for a in written), len(written))
    yield _all("clips without text: none found", sum(a < _TEXT_FROM for a in bare), len(bare))
    if any(clip["text_read"] for clip, *_ in takes):
        words = right = 0
        for clip, _, take in takes:
            read = set(" ".join(clip["text_read"] or ()).casefold().split())
            words += len(take.words)
            right += sum(word.casefold() in read for word in take.words)
        share = right / max(words, 1)
        yield Figure("words read right", f"{share:.3f}", "≥ 0.90", share >= 0.9)


def _speech(takes: _Taken) -> Iterator[Figure]:
    with_sound = [(clip["speech_share"], take) for clip, film, take in takes if film.has_sound]
    spoken = [share for share, take in with_sound if take.sound == "speech"]
    if can_speak():
        heard = sum((share or 0.0) >= _SPOKEN_FROM for share in spoken)
        yield _all("clips with a voice: speech found", heard, len(spoken))
        still = [share for share, take in with_sound if take.sound != "speech"]
    else:
        still = [share for share, _ in with_sound]
    quiet = sum(share is not None and share <= _SILENT_UP_TO for share in still)
    yield _all("tones and silence: no speech found", quiet, len(still))
    mute = [clip for clip, film, _ in takes if not film.has_sound]
    null = sum(c["speech_share"] is None and bool(c["speech_share_reason"]) for c in mute)
    yield _all("clips without sound: null with the reason", null, len(mute))


def _copies(catalog: Catalog, takes: _Taken) -> Iterator[Figure]:
    """Whether the nearest clip of each take of a copied film is the same take of the original."""
    rows = _rows(catalog, "SELECT clip_id, embeddings FROM embeddings WHERE stage = 'embed_images'")
    means = {
        row["clip_id"]: np.mean(np.array(row["embeddings"], np.float32), axis=0) for row in rows
    }
    known = [one for one in takes if one[0]["clip_id"] in means]
    if not known:
        return
    vectors = np.stack([means[clip["clip_id"]] for clip, *_ in known])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors @ vectors.T
    np.fill_diagonal(near, -1)
    found = whole = 0
    for place, (_, film, take) in enumerate(known):
        if film.copy_of is not None:
            whole += 1
            _, other, same = known[int(near[place].argmax())]
            found += other.name == film.copy_of and same == take
    yield _all("clips of a re-encoded copy: original nearest", found, whole)
