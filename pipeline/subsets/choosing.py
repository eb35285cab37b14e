"""Computes what a run is asked for: clips of a predicate or a subset, or a sample of the sources.

Clips are those of the `clips` view: the dataset's own, and published ones whose videos are not
there yet. A published clip is one of its source's given spans, found by the id that it will have.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.catalog.published import known_video_id, milliseconds
from clipmill.pipeline.catalog.user_sql import readable_errors
from clipmill.pipeline.catalog.views import primary
from clipmill.pipeline.dataset.choices import CHOSEN, Choice, store_choice
from clipmill.pipeline.dataset.steps import fingerprints
from clipmill.pipeline.recipes.plan import Plan
from clipmill.pipeline.subsets.expressions import Expressions
from clipmill.pipeline.subsets.freeze import load_subset
from clipmill.pipeline.subsets.wishes import Wish
from clipmill.schemas.errors import UsageError
from clipmill.schemas.sql_text import escaped_for_glob, literal
from clipmill.schemas.step_tables import CLIP_ID_PATTERN, kept
from clipmill.schemas.words import counted

_ROWS = 50_000
_WHERE = "--where"


def check_wish(dataset: Path, wish: Wish) -> None:
    """UsageError if a dataset can't fulfil a wish, whatever sources a run adds to it first."""
    if wish.subset is not None:
        load_subset(dataset, wish.subset)
    if wish.where is not None:
        with open_catalog(dataset) as catalog, catalog.damage_named():
            _check_predicate(catalog, wish.where)


def choose(dataset: Path, plan: Plan, wish: Wish) -> Choice:
    """Computes and stores a choice; UsageError if it is empty or can't be computed."""
    if wish.sample is not None:
        return choose_sources(dataset, wish.sample, wish.seed)
    with open_catalog(dataset) as catalog, catalog.damage_named():
        connection = catalog.connection
        catalog.make_work()
        if wish.where is not None:
            _match(catalog, wish.where)
        else:
            assert wish.subset is not None  # one of the three is given
            files = load_subset(dataset, wish.subset).files
            names = ", ".join(literal(escaped_for_glob(str(path))) for path in files)
            connection.execute(
                f"CREATE TABLE work.wished AS SELECT clip_id FROM read_parquet([{names}])"
            )
        return store_choice(dataset, str(wish), _located(catalog, plan, wish))


def choose_sources(dataset: Path, count: int, seed: int = 0) -> Choice:
    """`count` random sources. A larger sample with the same seed holds a smaller one."""
    wish = Wish(sample=count, seed=seed)
    with open_catalog(dataset) as catalog, catalog.damage_named():
        connection = catalog.connection
        sources = kept(catalog.layout.ingest, ["source_key"])
        ((total,),) = connection.execute(
            f"SELECT count(DISTINCT source_key) FROM ({sources})"
        ).fetchall()
        if count > total:
            raise UsageError(
                f"--sample {count}: the dataset has only {counted(total, 'source')}; give at most "
                "that, or leave --sample out to process all"
            )
        draw = f"md5(source_key || {literal(f' {seed}')})"
        rows = connection.sql(
            "SELECT printf('%06d', _base) AS shard, source_key, NULL::VARCHAR AS clip_id, "
            f"NULL::INTEGER AS span FROM (SELECT source_key, min(_base) AS _base FROM ({sources}) "
            f"GROUP BY source_key ORDER BY {draw} LIMIT {count}) ORDER BY shard, source_key"
        )
        return store_choice(dataset, str(wish), _batches(rows))


def describe(choice: Choice) -> str:
    """What a run is asked for, in a sentence."""
    sources = counted(choice.record["sources"], "source")
    if not (clips := choice.record["clips"]):
        return f"Asked for: {sources} ({choice.said})."
    return f"Asked for: {counted(clips, 'clip')} of {sources} ({choice.said})."


def _check_predicate(catalog: Catalog, where: str) -> None:
    kind = Expressions(catalog).type_of(where, _WHERE)
    if kind != "BOOLEAN":
        raise UsageError(f"{_WHERE}: {where!r} is {kind}, not true or false")


def _match(catalog: Catalog, where: str) -> None:
    """Makes a table of the clips for which a predicate is true."""
    _check_predicate(catalog, where)
    with readable_errors():
        reader = catalog.ask(f"SELECT clip_id FROM clips WHERE ({where}\n)")
        catalog.connection.register("matching", reader)
        catalog.connection.execute("CREATE TABLE work.wished AS SELECT clip_id FROM matching")
        catalog.connection.unregister("matching")
    if _count(catalog, "SELECT count(*) FROM work.wished"):
        return
    clips = _count(catalog, "SELECT count(*) FROM clips")
    if not clips:
        raise UsageError(
            f"{_WHERE} {where}: the dataset has no clips to choose from yet; make them first, with "
            "a run `--until split_clips`, or import published ones (`clipmill import`)"
        )
    raise UsageError(
        f"{_WHERE} {where}: true for none of {counted(clips, 'clip')}; `clipmill subset explain` "
        "with the same --where shows what each part of it leaves"
    )


def _count(catalog: Catalog, query: str) -> int:
    ((count,),) = catalog.execute(query).fetchall()
    return int(count)


def _located(catalog: Catalog, plan: Plan, wish: Wish) -> Iterator[pa.RecordBatch]:
    """The wished clips with their shards, sources and spans, in the order of CHOSEN."""
    connection = catalog.connection
    connection.execute(
        "CREATE TABLE work.videos AS SELECT DISTINCT "
        f"regexp_extract(clip_id, {literal(CLIP_ID_PATTERN)}, 1) AS video_id FROM work.wished"
    )
    connection.execute(f"CREATE TABLE work.of_spans AS {_of_spans(catalog)}")
    located, own = "FROM work.of_spans", _own_clips(catalog)
    if own is not None:
        has_spans = _count(catalog, "SELECT count(*) FROM work.of_spans")
        located = (
            "SELECT _base, source_key, clip_id, max(span) AS span "
            f"FROM ({located} UNION ALL {own}) GROUP BY ALL"
            if has_spans
            else own
        )
    connection.execute(f"CREATE TABLE work.located AS {located}")
    _check_all_were_found(catalog, plan, wish)
    picked = "printf('%06d', _base) AS shard, source_key, clip_id, span"
    if not _uses_spans(plan):
        # Such a recipe finds other clips in the videos of published ones: these can't be chosen.
        connection.execute(
            "UPDATE work.located SET clip_id = NULL, span = NULL WHERE span IS NOT NULL"
        )
    rows = connection.sql(
        f"SELECT DISTINCT {picked} FROM work.located "
        "ORDER BY shard, source_key, clip_id NULLS FIRST, span"
    )
    yield from _batches(rows)


def _batches(rows: duckdb.DuckDBPyRelation) -> Iterator[pa.RecordBatch]:
    for batch in rows.to_arrow_reader(_ROWS):
        yield batch.cast(CHOSEN)


def _uses_spans(plan: Plan) -> bool:
    return all(getattr(s.stage, "boundaries", "auto") in ("auto", "given") for s in plan.steps)


def _of_spans(catalog: Catalog) -> str:
    """The wished clips that are given spans: `_base, source_key, clip_id, span`."""
    start, end = milliseconds("coalesce(s.start_seconds, 0.0)"), milliseconds("s.end_seconds")
    columns = ["source_key", "video_id", "extractor", "platform_id", "url", "spans"]
    rows = kept(catalog.layout.ingest, columns)
    return (
        "SELECT _base, source_key, w.clip_id, CAST(place - 1 AS INTEGER) AS span FROM ("
        f"SELECT *, video || '-' || {start} || '-' || {end} AS clip_id FROM ("
        "SELECT _base, source_key, video, unnest(spans) AS s, "
        "generate_subscripts(spans, 1) AS place "
        f"FROM (SELECT *, {known_video_id()} AS video FROM ({rows})) "
        "SEMI JOIN work.videos AS v ON v.video_id = video)) "
        "JOIN work.wished AS w USING (clip_id)"
    )


def _own_clips(catalog: Catalog) -> str | None:
    """The wished clips that the dataset has made, in the same form."""
    download = primary(catalog.layout.steps, "download_videos")
    split = primary(catalog.layout.steps, "split_clips")
    if download is None or split is None:
        return None
    return (
        "SELECT d._base, d.source_key, c.clip_id, CAST(NULL AS INTEGER) AS span "
        f"FROM ({kept(split, ['video_id', 'clip_id'])}) AS c "
        "SEMI JOIN work.wished AS w ON w.clip_id = c.clip_id "
        f"JOIN ({kept(download, ['source_key', 'video_id'])}) AS d "
        "ON d.video_id = c.video_id AND d._base = c._base"
    )


def _check_all_were_found(catalog: Catalog, plan: Plan, wish: Wish) -> None:
    """UsageError if no clip was found, or if this recipe would make other clips."""
    if not _count(catalog, "SELECT count(*) FROM work.located"):
        raise UsageError(f"{wish}: the videos of its clips are no longer in the dataset")
    split = primary(catalog.layout.steps, "split_clips")
    if split is None:
        return
    made = fingerprints(catalog.layout.record).get(split.step)
    step = plan.by_label.get(split.step)
    if step is not None and step.fingerprint == made:
        return
    if own := _count(catalog, "SELECT count(*) FROM work.located WHERE span IS NULL"):
        raise UsageError(
            f"{wish}: {counted(own, 'clip')} "
            f"{'was' if own == 1 else 'were'} made with other settings of {split.step} than this "
            "recipe has, so it would make others; leave the changed settings out, or run with "
            f"--until {split.step} first, without the choice"
        )
