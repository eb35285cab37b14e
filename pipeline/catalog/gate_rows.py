"""The rows that a gate chooses from, with the columns that earlier steps made.

They have the names and values of the views: `clips` for stages over clips, `videos` for stages over
videos, `sources` for those over sources. So a gate means the same as `clipmill sql`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from clipmill.pipeline.catalog import languages, views
from clipmill.schemas import tables
from clipmill.schemas.sql_text import quoted
from clipmill.schemas.step_tables import StepTable, kept

VIEW_OF = {"clip_id": "clips", "video_id": "videos", "source_key": "sources"}
"""The view whose rows a stage gets, by its key."""


@dataclass(frozen=True)
class GateRows:
    """Rows with `key`, `_base` and the `columns` that a gate may name; the step behind each."""

    key: str
    query: str
    columns: dict[str, str]

    def where(self, predicate: str) -> str:
        """`key, _base` of the rows for which the predicate is true; null is not."""
        return self._select(f"{self._key} AS key, _base", f"coalesce(({predicate}\n), false)")

    def ranked(self, expression: str, among: str | None) -> str:
        """`score`: the finite values of an expression, of rows for which `among` is true."""
        condition = f"coalesce(({among}\n), false)" if among else "true"
        score = f"CAST(({expression}\n) AS DOUBLE)"
        return (
            f"SELECT score FROM ({self._select(f'{score} AS score', condition)}) "
            "WHERE score IS NOT NULL AND isfinite(score)"
        )

    @property
    def _key(self) -> str:
        return f"{quoted(VIEW_OF[self.key])}.{quoted(self.key)}"

    def _select(self, picked: str, condition: str) -> str:
        view = quoted(VIEW_OF[self.key])
        return f"SELECT {picked} FROM ({self.query}) AS {view} WHERE {condition}"


def rows_before(
    key: str, before: Sequence[StepTable], sources: StepTable, only: Collection[str] | None = None
) -> GateRows:
    """The rows that a stage with this key gets from earlier tables.

    Tables of which `only` names no column are left out.
    """
    if key == "source_key":
        names = tables.SOURCES.names
        columns = dict.fromkeys(names, sources.stage)
        return GateRows(key, kept(sources, names), columns)
    if key == "video_id":
        return _videos(before)
    return _clips(before, None if only is None else {name.lower() for name in only})


def _videos(before: Sequence[StepTable]) -> GateRows:
    download = views.primary(before, "download_videos")
    if download is not None:
        columns = views.video_columns(before)
        return GateRows("video_id", views.video_rows(before), columns)
    maker = next(
        table for table in before if "video_id" in table.schema.names and table.key == "source_key"
    )
    names = [name for name in maker.schema.names if name not in ("rejection", "error")]
    return GateRows("video_id", kept(maker, names), dict.fromkeys(names, maker.stage))


def _clips(before: Sequence[StepTable], only: Collection[str] | None) -> GateRows:
    maker = views.primary(before, "split_clips") or next(
        table for table in before if "clip_id" in table.schema.names and table.key != "clip_id"
    )
    download = views.primary(before, "download_videos")
    if maker.name == "split_clips":
        shown = [name for name, _ in (*views.CLIPS_VIEW, *views.CLIPS_SPLIT_COLUMNS)]
        own = [name for name in shown if name in maker.schema.names]
    else:
        own = [name for name in maker.schema.names if name not in ("rejection", "error")]
    columns = dict.fromkeys(own, maker.stage)
    picked = [f"base.{quoted(name)}" for name in own]
    signals = views.signal_columns(before)
    columns |= dict.fromkeys(signals, maker.stage)
    picked += [f"base.{quoted(c)} AS {quoted(name)}" for name, (_, c) in signals.items()]
    own += [column for _, column in signals.values()]
    joins = []
    made = {
        name: place for name, place in views.clip_columns(before).items() if name not in columns
    }
    columns.update((name, table.stage) for name, (table, _) in made.items())
    used = {name: place for name, place in made.items() if only is None or name.lower() in only}
    read: dict[str, tuple[StepTable, dict[str, str]]] = {}
    for name, (table, column) in used.items():
        read.setdefault(table.step, (table, {}))[1][name] = column
    for number, (table, names) in enumerate(read.values()):
        joins.append(
            f" LEFT JOIN ({kept(table, ['clip_id', *names.values()])}) AS t{number} "
            f"ON t{number}.clip_id = base.clip_id AND t{number}._base = base._base"
        )
        picked += [f"t{number}.{quoted(c)} AS {quoted(name)}" for name, c in names.items()]
    if download is not None and "video_id" in own:
        of_video = [name for name, _ in views.CLIPS_VIDEO_COLUMNS]
        columns.update(dict.fromkeys(of_video, download.stage))
        about = {name: f"v.{quoted(name)}" for name in of_video}
        if (detected := views.primary(before, "detect_language")) is not None:
            place = f"d.{quoted(languages.DETECTED)}"
            about["language"] = languages.filled(about["language"], place)
            found = views.language_columns(before)
            about |= {name: f"d.{quoted(name)}" for name in found}
            # It reads what the source says, too.
            columns |= dict.fromkeys(("language", *found), detected.stage)
        if only is None or any(name in only for name in about):
            videos = kept(download, ["source_key", "video_id", *of_video])
            joins.append(
                f" LEFT JOIN (SELECT * FROM ({videos}) QUALIFY row_number() OVER "
                "(PARTITION BY video_id, _base ORDER BY _retry, source_key) = 1) AS v "
                "ON v.video_id = base.video_id AND v._base = base._base"
            )
            if detected is not None:
                rows = languages.of_videos(detected)
                joins.append(f" LEFT JOIN ({rows}) AS d ON d.video_id = base.video_id")
            picked += [f"{place} AS {quoted(name)}" for name, place in about.items()]
    rows = kept(maker, dict.fromkeys([maker.key, "clip_id", *own]))
    needed = [] if "clip_id" in own else ['base."clip_id"']
    query = f"SELECT {', '.join([*needed, *picked, 'base._base'])} FROM ({rows}) AS base"
    return GateRows("clip_id", query + "".join(joins), columns)
