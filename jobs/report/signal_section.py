"""The section on signals: what the clips hold, those at the ends of each signal, and clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from clipmill.jobs.report.numbers import hours, number, percent
from clipmill.jobs.report.pictures import Strip, make_strips
from clipmill.jobs.report.report_tables import Column, ReportTables
from clipmill.jobs.report.sample_clips import by_chance, clock, rows_of, shortened, source_of
from clipmill.jobs.report.signal_kinds import VEILED_FROM, SignalKind
from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.catalog.kept_frames import ClipSpan
from clipmill.pipeline.catalog.links import clip_link
from clipmill.pipeline.catalog.views import primary
from clipmill.schemas.words import counted

AT_AN_END = 3
SHOWN_CLUSTERS = 12
CLIPS_A_CLUSTER = 4
# Of these the shown ones are taken, at first one per video.
_CENTRAL = 24
_TEXT_FROM = 0.01


@dataclass(frozen=True)
class Tile:
    """A number about all clips, with what it means."""

    title: str
    value: str
    says: str


@dataclass(frozen=True)
class Thumb:
    """One picture of a clip, and what it stands for."""

    clip_id: str
    picture: Strip | None
    value: str
    place: str
    link: str | None
    is_veiled: bool


@dataclass(frozen=True)
class End:
    """The clips with the highest, or lowest, values of a signal."""

    title: str
    thumbs: list[Thumb]


@dataclass(frozen=True)
class SignalCard:
    """A signal's distribution and the clips at its ends; `figure` is as in Distributions."""

    figure: Any
    ends: list[End]


@dataclass(frozen=True)
class Cluster:
    """A cluster, and its most central clips."""

    name: str
    says: str
    thumbs: list[Thumb]


@dataclass(frozen=True)
class SignalSection:
    """What the section shows; `languages` is a figure as in Distributions."""

    tiles: list[Tile]
    cards: list[SignalCard]
    languages: Any
    clusters: list[Cluster]
    about_clusters: str
    any_veiled: bool
    veiled_from: float = VEILED_FROM


Draw = Callable[[SignalKind, Column], Any]
"""Makes the figure of a signal."""


def signal_section(
    catalog: Catalog, selection: ReportTables, draw: Draw, languages: Any
) -> SignalSection | None:
    """None if the dataset has no such signals."""
    if not selection.signals:
        return None
    ends = {
        kind: _ends(catalog, selection, column) for kind, column in selection.signal_columns.items()
    }
    found = _find_clusters(catalog, selection)
    wanted = [clip for pair in ends.values() for _, clips in pair for clip, _ in clips]
    wanted += [clip for one in found for clip, _ in one.central]
    thumbs = _Thumbs(catalog, selection, wanted)
    cards = [
        SignalCard(
            draw(kind, column),
            [End(title, thumbs.of(clips)) for title, clips in ends[kind] if clips],
        )
        for kind, column in selection.signal_columns.items()
    ]
    return SignalSection(
        _tiles(catalog, selection),
        cards,
        languages if primary(catalog.layout.steps, "detect_language") else None,
        [
            Cluster(f"Cluster {one.number}", one.says(), thumbs.of(one.central))
            for one in found[:SHOWN_CLUSTERS]
        ],
        _about_clusters(selection, found),
        thumbs.any_veiled,
    )


def _ends(
    catalog: Catalog, selection: ReportTables, column: Column
) -> list[tuple[str, list[tuple[str, str]]]]:
    """The clips with the highest and the lowest values, each with its value in words."""
    found: list[tuple[str, list[tuple[str, str]]]] = []
    taken: set[str] = set()
    for title, direction in (("highest", "DESC"), ("lowest", "ASC")):
        rows = catalog.connection.execute(
            f"SELECT clip_id, {column.sql} FROM work.report_clips WHERE {selection.chosen} "
            f"AND {column.sql} IS NOT NULL "
            f"ORDER BY {column.sql} {direction}, {by_chance(0)} LIMIT {2 * AT_AN_END}"
        ).fetchall()
        # With few clips, one may be at both ends.
        rows = [(clip, _short(value)) for clip, value in rows if clip not in taken][:AT_AN_END]
        taken |= {clip for clip, _ in rows}
        found.append((title, rows))
    return found


@dataclass(frozen=True)
class _Found:
    """One cluster as counted, with its most central clips and their distances in words."""

    number: int
    clips: int
    videos: int
    seconds: float
    all_clips: int
    central: list[tuple[str, str]]

    def says(self) -> str:
        share = percent(self.clips, self.all_clips)
        videos = counted(self.videos, "video")
        return f"{counted(self.clips, 'clip')} ({share}) of {videos}, {hours(self.seconds)}"


def _find_clusters(catalog: Catalog, selection: ReportTables) -> list[_Found]:
    """All clusters, the largest first; the first SHOWN_CLUSTERS with clips."""
    if selection.signals.cluster is None:
        return []
    video = "regexp_replace(clip_id, '-[0-9]+-[0-9]+$', '')"
    rows = catalog.connection.execute(
        f"SELECT cluster, count(*) AS n, count(DISTINCT {video}), "
        f"coalesce(sum(duration_seconds), 0), sum(count(*)) OVER () FROM work.report_clips "
        f"WHERE {selection.chosen} AND cluster IS NOT NULL GROUP BY cluster "
        "ORDER BY n DESC, cluster"
    ).fetchall()
    shown = ", ".join(str(int(name)) for name, *_ in rows[:SHOWN_CLUSTERS]) or "NULL"
    central: dict[int, list[tuple[str, str, float]]] = {}
    for name, clip, source, away in catalog.connection.execute(
        f"SELECT cluster, clip_id, {video}, cluster_distance FROM work.report_clips "
        f"WHERE {selection.chosen} AND cluster IN ({shown}) QUALIFY row_number() OVER "
        f"(PARTITION BY cluster ORDER BY cluster_distance, {by_chance(0)}) <= {_CENTRAL} "
        f"ORDER BY cluster, cluster_distance, {by_chance(0)}"
    ).fetchall():
        central.setdefault(name, []).append((clip, source, away))
    return [
        _Found(name, clips, videos, seconds, int(whole), _spread(central.get(name, ())))
        for name, clips, videos, seconds, whole in rows
    ]


def _spread(clips: Sequence[tuple[str, str, float]]) -> list[tuple[str, str]]:
    """The most central clips, as far as possible of different videos."""
    seen: set[str] = set()
    first: list[tuple[str, float]] = []
    others: list[tuple[str, float]] = []
    for clip, video, away in clips:
        (others if video in seen else first).append((clip, away))
        seen.add(video)
    shown = sorted((first + others)[:CLIPS_A_CLUSTER], key=lambda one: one[1])
    return [(clip, _short(away)) for clip, away in shown]


def _short(value: float) -> str:
    return "< 0.001" if 0 < value < 0.001 else number(value)


def _about_clusters(selection: ReportTables, found: Sequence[_Found]) -> str:
    if not found:
        return ""
    of = selection.signals.clusters_of
    embeddings = f" of the embeddings that {of} made" if of else ""
    shown = min(SHOWN_CLUSTERS, len(found))
    which = f"The {shown} largest of {len(found):,}" if shown < len(found) else "All"
    return (
        f"{which} clusters{embeddings}, each with its most central clips, of different videos as "
        "far as there are some; the number is the distance to the centre, 1 minus the cosine."
    )


class _Thumbs:
    """Pictures of the clips that the section shows, read together."""

    def __init__(self, catalog: Catalog, selection: ReportTables, clips: Iterable[str]) -> None:
        self._rows = rows_of(catalog, sorted(set(clips)))
        self._veiled = {
            clip for clip, row in self._rows.items() if selection.signals.is_veiled(row)
        }
        self._pictures = make_strips(
            catalog,
            [
                ClipSpan(clip, row["video_id"], row["start_seconds"], row["end_seconds"])
                for clip, row in self._rows.items()
            ],
            count=1,
            veiled=self._veiled,
        )
        self.any_veiled = bool(self._veiled & set(self._pictures))

    def of(self, clips: Iterable[tuple[str, str]]) -> list[Thumb]:
        return [self._thumb(clip, value) for clip, value in clips if clip in self._rows]

    def _thumb(self, clip: str, value: str) -> Thumb:
        row = self._rows[clip]
        link, place = source_of(row["url"])
        return Thumb(
            clip,
            self._pictures.get(clip),
            value,
            f"{clock(row['start_seconds'])} "
            f"{shortened(row['title'], 60) or place or row['video_id']}",
            clip_link(link, row["start_seconds"], row["end_seconds"]),
            clip in self._veiled,
        )


def _tiles(catalog: Catalog, selection: ReportTables) -> list[Tile]:
    """One number for each of the section's stages."""
    columns = {kind.column: column.sql for kind, column in selection.signal_columns.items()}

    def ask(*expressions: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] = catalog.connection.execute(
            f"SELECT {', '.join(expressions)} FROM work.report_clips WHERE {selection.chosen}"
        ).fetchall()[0]
        return row

    tiles = []
    if text := columns.get("text_area"):
        clips, whole = ask(f"count(*) FILTER ({text} >= {_TEXT_FROM})", f"count({text})")
        says = f"of {whole:,} clips have text on {100 * _TEXT_FROM:g}% of the picture or more"
        tiles.append(Tile("Text", percent(clips, whole), says))
    if speech := columns.get("speech_share"):
        seconds = f"sum({speech} * duration_seconds)"
        spoken, heard, none = ask(
            f"coalesce({seconds}, 0)",
            f"coalesce(sum(duration_seconds) FILTER ({speech} IS NOT NULL), 0)",
            f"count(*) FILTER ({speech} IS NULL)",
        )
        silent = f"; {counted(none, 'clip')} without sound" if none else ""
        tiles.append(
            Tile("Speech", percent(spoken, heard), f"of the time: {hours(spoken)}{silent}")
        )
    if faces := columns.get("faces"):
        clips, whole, most = ask(
            f"count(*) FILTER ({faces} > 0)", f"count({faces})", f"max({faces})"
        )
        says = f"of {whole:,} clips show one" + (f"; at most {most:.0f} at a time" if most else "")
        tiles.append(Tile("Faces", percent(clips, whole), says))
    if nsfw := columns.get("nsfw"):
        clips, most = ask(f"count(*) FILTER ({nsfw} >= {VEILED_FROM})", f"max({nsfw})")
        says = f"{'clip scores' if clips == 1 else 'clips score'} {VEILED_FROM} or more"
        tiles.append(Tile("NSFW", f"{clips:,}", f"{says}; the highest {number(most)}"))
    if selection.signals.cluster is not None:
        ((count, largest),) = catalog.connection.execute(
            "SELECT count(*), max(n)::BIGINT FROM (SELECT count(*) AS n FROM work.report_clips "
            f"WHERE {selection.chosen} AND cluster IS NOT NULL GROUP BY cluster)"
        ).fetchall()
        says = f"the largest has {counted(largest, 'clip')}" if largest else "no clip is in one"
        tiles.append(Tile("Clusters", f"{count:,}", says))
    if primary(catalog.layout.steps, "detect_language") is not None:
        ((count, known, whole),) = catalog.connection.execute(
            "SELECT count(DISTINCT language), count(language), count(*) FROM work.report_videos "
            f"WHERE {selection.chosen}"
        ).fetchall()
        says = f"named or detected for {known:,} of {counted(whole, 'video')}"
        tiles.append(Tile("Languages", f"{count:,}", says))
    return tiles
