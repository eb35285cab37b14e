"""The clips of a report, as narrow temporary tables from which every figure is counted.

`report_clips` has one row per clip: its id, whether it is in the subset, and numbers; the view
`clips` is read only once for it. `report_videos` has one row per video.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clipmill.jobs.report.caption_words import WORD
from clipmill.jobs.report.signal_kinds import FoundSignals, SignalKind, find_signals
from clipmill.pipeline.catalog import views
from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.subsets.expressions import Expressions, is_numeric
from clipmill.pipeline.subsets.freeze import FrozenSubset
from clipmill.schemas.errors import UsageError
from clipmill.schemas.safe_rectangles import IS_CROPPED, SAFE
from clipmill.schemas.sql_text import literal, quoted
from clipmill.stages.clip_signals import SIGNAL_UNITS

# Numbers that describe a clip's position, or its video.
_PLACES = {
    "fps",
    "start_seconds",
    "end_seconds",
    "duration_seconds",
    "start_frame",
    "end_frame",
    "shot",
    "width",
    "height",
}
_FIRST = ("similarity", "aesthetic")
_MEASURED = ("motion", "motion_max", "sharpness", "brightness", *SIGNAL_UNITS)
SHOWN_COLUMNS = 20


@dataclass(frozen=True)
class Column:
    """A number of `clips` that is plotted, and its column in `report_clips`."""

    name: str
    sql: str
    stage: str | None = None
    """The stage that made it; None for the split."""
    is_whole: bool = False
    is_switch: bool = False


@dataclass(frozen=True)
class RuleThreshold:
    """A comparison with a number in a rule of the subset's recipe."""

    rule: int
    says: str
    column: str
    operator: str
    value: float
    sql: str
    reaches: str
    """The SQL condition that a clip reaches the rule, considering only rules on single clips."""


@dataclass(frozen=True)
class ReportTables:
    """The contents of the temporary tables."""

    columns: list[Column]
    left_out: list[str]
    """Columns that did not fit."""
    thresholds: list[RuleThreshold]
    subset: FrozenSubset | None
    gone: int
    """Clips of the subset that are no longer in the catalog."""
    caption: str
    """SQL of a clip's caption."""
    signals: FoundSignals
    signal_columns: dict[SignalKind, Column]
    """Those that have a section of their own."""

    @property
    def chosen(self) -> str:
        """The SQL condition on `report_clips` and `report_videos` for the report's clips."""
        return "chosen" if self.subset else "true"

    def captions(self) -> str:
        """A relation of the captions in the report."""
        return self._of(f"{self.caption} AS caption")

    def tags(self) -> str:
        return self._of("tags")

    def _of(self, column: str) -> str:
        if self.subset is None:
            return f"SELECT {column} FROM clips"
        return f"SELECT {column} FROM clips SEMI JOIN ({_ids(self.subset)}) USING (clip_id)"


def select(catalog: Catalog, subset: FrozenSubset | None) -> ReportTables:
    """Fills the temporary tables."""
    catalog.make_work()
    thresholds: list[RuleThreshold] = []
    relation = "memory.main.clips"
    expressions: list[str] = []
    roles: dict[str, str] = {}
    if subset is not None:
        roles, seen = _as_seen(catalog, subset)
        relation = f"({seen}) AS clips"
        found, passes = _rules(catalog, subset, seen)
        expressions += [f"({rule}) AS p{n}" for n, rule in passes.items()]
        for n, (number, says, column, operator, value, sql) in enumerate(found):
            expressions.append(f"TRY(CAST(({sql}) AS DOUBLE)) AS t{n}")
            reached = " AND ".join(f"p{m}" for m in passes if m < number) or "true"
            # By the column's name in `clips`, not by its role.
            thresholds.append(
                RuleThreshold(
                    number, says, roles.get(column, column), operator, value, f"t{n}", reached
                )
            )
    signals = find_signals(catalog.layout)
    columns, left_out = _columns(catalog, roles, signals)
    expressions += [f"{column.sql} AS {_name(n)}" for n, column in enumerate(columns)]
    sections = signals.columns if signals else {}
    for n, (kind, name) in enumerate(sections.items()):
        place = _read(name, roles)
        expressions.append(f"{place if kind.whole else _finite(place)} AS s{n}")
    if signals.cluster is not None:
        expressions += [
            f"{_read(signals.cluster, roles)} AS cluster",
            f"{_read(str(signals.distance), roles)} AS cluster_distance",
        ]
    chosen, join = "true", ""
    if subset is not None:
        chosen = "s.clip_id IS NOT NULL"
        join = f" LEFT JOIN ({_ids(subset)}) AS s USING (clip_id)"
        catalog.make_views("subset_clips")
    caption = views.usual_caption(catalog.layout.steps)
    words = f"len(regexp_extract_all({caption}, {literal(WORD)}))"
    picked = ", ".join(
        [
            "clip_id",
            f"{chosen} AS chosen",
            "duration_seconds",
            f"{words} AS caption_words",
            *expressions,
        ]
    )
    catalog.make_views("clips")
    catalog.connection.execute(
        f"CREATE OR REPLACE TABLE work.report_clips AS SELECT {picked} FROM {relation}{join}"
    )
    _videos(catalog, subset)
    gone = 0
    if subset is not None:
        (there,) = catalog.connection.execute(
            "SELECT count(*) FROM work.report_clips WHERE chosen"
        ).fetchall()[0]
        gone = int(subset.info["n_clips"]) - there
    shown = [
        Column(column.name, _name(n), column.stage, column.is_whole, column.is_switch)
        for n, column in enumerate(columns)
    ]
    drawn = {
        kind: Column(name, f"s{n}", catalog.layout.clip_columns[name][0].stage, kind.whole)
        for n, (kind, name) in enumerate(sections.items())
    }
    return ReportTables(shown, left_out, thresholds, subset, gone, caption, signals, drawn)


def _name(number: int) -> str:
    return f"c{number}"


def _ids(subset: FrozenSubset) -> str:
    return f"SELECT clip_id FROM subset_clips WHERE name = {literal(subset.name)}"


def _read(name: str, roles: Mapping[str, str]) -> str:
    """SQL of a column of `clips` under its own name, which a role may have taken."""
    return quoted(_own(name) if name in roles else name)


def _finite(value: str) -> str:
    return f"if(isfinite({value}), {value}, NULL)"


def _columns(
    catalog: Catalog, roles: Mapping[str, str], signals: FoundSignals
) -> tuple[list[Column], list[str]]:
    """The numbers and switches of `clips`, scores first; `sql` reads them.

    Without those that have a section of their own.
    """
    described = catalog.execute("SELECT * FROM clips LIMIT 0").description
    made = catalog.layout.clip_columns
    promised = {name for name, _ in (*views.CLIPS_VIEW, *views.CLIPS_SPLIT_COLUMNS)}
    found = []
    for name, described_as, *_ in described:
        kind = str(described_as)
        number, switch = is_numeric(kind), kind == "BOOLEAN"
        if name in _PLACES or name in SAFE or not (number or switch):
            continue
        if (name not in made and name not in promised) or name in signals.names:
            continue
        value = _read(name, roles)
        whole = number and kind.partition("(")[0] not in ("FLOAT", "DOUBLE", "DECIMAL")
        if kind in ("FLOAT", "DOUBLE"):  # a value that can't be plotted counts as missing
            value = _finite(value)
        elif number and not whole:
            value = f"{value}::DOUBLE"
        is_signal = name in made and made[name][0].name == "split_clips"
        stage = made[name][0].stage if name in made and not is_signal else None
        found.append(Column(name, value, stage, whole, switch))
    order = {name: place for place, name in enumerate(_FIRST)}
    last = {name: place for place, name in enumerate(_MEASURED, start=1000)}
    last |= dict.fromkeys(signals.later, 500)
    found.sort(key=lambda column: order.get(column.name, last.get(column.name, 100)))
    return found[:SHOWN_COLUMNS], [column.name for column in found[SHOWN_COLUMNS:]]


def _rules(
    catalog: Catalog, subset: FrozenSubset, relation: str
) -> tuple[list[tuple[int, str, str, str, float, str]], dict[int, str]]:
    """The thresholds of the subset's rules, and each rule on single clips as a condition.

    The SQL comes from the subset's file: anything that is not an expression over `clips`, or no
    longer fits the clips, is left out.
    """
    catalog.make_views("clips")
    connection = catalog.connection
    connection.execute(f"CREATE TEMP TABLE clips AS {relation} LIMIT 0")
    thresholds: list[tuple[int, str, str, str, float, str]] = []
    passes: dict[int, str] = {}
    try:
        checker = Expressions(catalog)
        for rule in subset.info.get("funnel") or ():
            number, says = rule["number"], rule.get("name") or rule["says"]
            place = f"rule {number}"
            try:
                if rule["verb"] == "where":
                    predicate = rule["rule"]["where"]
                    checker.type_of(predicate, place)
                    found = [
                        (one.left, one.operator, _number(catalog, one.right), one.left)
                        for one in checker.comparisons(predicate, place)
                    ]
                    passes[number] = f"coalesce(({predicate}\n), false)"
                    if rule["rule"].get("crop"):
                        checker.type_of(IS_CROPPED, place)
                        passes[number] = f"({passes[number]} OR {IS_CROPPED})"
                else:
                    found = [
                        (one["column"], one["operator"], float(one["value"]), one["column"])
                        for one in rule["thresholds"]
                        if is_numeric(checker.type_of(one["column"], place))
                    ]
                    if found:
                        passes[number] = " AND ".join(
                            f"coalesce(({sql}) {operator} {value!r}, false)"
                            for _, operator, value, sql in found
                        )
            except UsageError:
                continue
            thresholds += [
                (number, says, shown.strip('"'), operator, value, sql)
                for shown, operator, value, sql in found
            ]
    finally:
        connection.execute("DROP TABLE temp.clips")
    return thresholds, passes


def _number(catalog: Catalog, constant: str) -> float:
    (value,) = catalog.connection.execute(f"SELECT CAST(({constant}) AS DOUBLE)").fetchall()[0]
    return float(value)


def _as_seen(catalog: Catalog, subset: FrozenSubset) -> tuple[dict[str, str], str]:
    """`clips` with each scorer's column under the name that the rules use.

    Returns the roles played by a column of another name, and the query.
    """
    columns = [name for name, *_ in catalog.execute("SELECT * FROM clips LIMIT 0").description]
    scorers = subset.info.get("scorers") or {}
    roles = {
        role: scorer["column"]
        for role, scorer in scorers.items()
        if scorer["column"] != role and scorer["column"] in columns
    }
    picked = [
        f"{quoted(name)} AS {quoted(_own(name))}" if name in roles else quoted(name)
        for name in columns
    ]
    picked += [f"{quoted(column)} AS {quoted(role)}" for role, column in roles.items()]
    return roles, f"SELECT {', '.join(picked)} FROM memory.main.clips"


def _own(role: str) -> str:
    """The new name of a column of `clips` whose own name was taken by a role."""
    return f"report_own_{role}"


def _videos(catalog: Catalog, subset: FrozenSubset | None) -> None:
    chosen, join = "true", ""
    if subset is not None:
        chosen = "s.video_id IS NOT NULL"
        join = (
            " LEFT JOIN (SELECT DISTINCT video_id FROM subset_clips "
            f"WHERE name = {literal(subset.name)}) AS s USING (video_id)"
        )
    catalog.make_views("videos")
    catalog.connection.execute(
        f"CREATE OR REPLACE TABLE work.report_videos AS SELECT {chosen} AS chosen, "
        "duration_seconds / 60 AS minutes, least(width, height) AS short_side, "
        "CAST(round(fps) AS INTEGER)::VARCHAR AS rate, "
        f"language, category, size_bytes, duration_seconds FROM videos{join}"
    )
