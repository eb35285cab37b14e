"""The catalog shows the newest run's results, whatever state the dataset is in."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.catalog import views
from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.status import status_report
from clipmill.schemas import tables
from clipmill.schemas.errors import UsageError
from clipmill.schemas.sql_text import duckdb_type
from clipmill.stages.embed_clips import EMBEDDINGS
from clipmill.stages.summarize_captions import SUMMARIES
from tests.synthetic import START, STEPS, Truth, build_dataset, run_record, write_run, write_shard

PROMISED = {
    "clips": "clip_id video_id start_seconds end_seconds duration_seconds start_frame end_frame "
    "fps width height caption caption_coarse captions_fine tags similarity aesthetic motion "
    "sharpness brightness",
    "videos": "video_id url extractor source_id title description uploader license language "
    "category query duration_seconds width height fps codec has_audio size_bytes sha256 path "
    "downloaded_at subtitles",
    "rejections": "stage key rule detail",
    "failures": "stage key kind message attempts at",
    "runs": "run_id started_at finished_at recipe code_version engine stages",
    "subsets": "name recipe created_at n_clips n_videos hours snapshot",
}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return build_dataset(tmp_path_factory.mktemp("catalog") / "dataset")


@pytest.fixture(scope="module")
def catalog(truth: Truth) -> Iterator[Catalog]:
    with open_catalog(truth.path) as opened:
        yield opened


def ask(dataset: Path | Catalog, query: str) -> list[dict]:
    if isinstance(dataset, Catalog):
        return dataset.ask(query).read_all().to_pylist()
    with open_catalog(dataset) as catalog:
        return ask(catalog, query)


def columns(catalog: Catalog, view: str) -> list[str]:
    return [row["column_name"] for row in ask(catalog, f"DESCRIBE {view}")]


@pytest.mark.parametrize("view", PROMISED)
def test_views_begin_with_the_promised_columns(catalog: Catalog, view: str):
    """Scripts may rely on names and order."""
    names = PROMISED[view].split()
    assert columns(catalog, view)[: len(names)] == names


def test_clips_end_with_scorers_own_columns_and_the_video(catalog: Catalog):
    """How texts ended comes before scores; a second scorer appears under its label, a custom stage
    under its column names."""
    further = columns(catalog, "clips")[len(PROMISED["clips"].split()) :]
    assert further == [
        "caption_finish_reason",
        "caption_prompt_tokens",
        "caption_new_tokens",
        "caption_cleaned_by",
        "coarse_finish_reason",
        "coarse_new_tokens",
        "coarse_cleaned_by",
        "fine_finish_reasons",
        "fine_new_tokens",
        "fine_cleaned_by",
        "similarity_coarse",
        "similarity_fine",
        "aesthetic_v1",
        "n_words",
        "n_words_reason",
        "url",
        "title",
        "language",
        "category",
        "query",
        "motion_max",
        "shot",
        "caption_given",
        "extra",
        "tone_mapped",
        "captions_given",
        "corrupt_frames",
        "media",
    ]


def test_every_clip_appears_once_with_its_own_captions_and_scores(truth: Truth, catalog: Catalog):
    """Rows of several tables and of retry shards are joined to the clip they were made from."""
    rows = ask(catalog, "SELECT * FROM clips")
    assert len(rows) == truth.clips == len({row["clip_id"] for row in rows})
    for row in rows:
        video = int(row["video_id"].removeprefix("generic-v"))
        number = video * 4 + int(row["start_seconds"] / 2)
        assert row["url"] == f"https://media.example/{video}.mp4"
        assert row["aesthetic"] == 4 + number % 3
        assert row["aesthetic_v1"] == 5 + number % 2
        if row["clip_id"] in truth.keys["uncaptioned"]:
            assert row["caption"] is row["caption_coarse"] is row["similarity"] is None
        else:
            assert row["caption"] == f"A dog, number {number}, runs."
            assert row["caption_coarse"] == f"a dog numbered {number}"
            assert row["n_words"] == 5 + number % 2
        assert row["tags"] == [{"tag": "dog", "score": 0.75}]


def test_failures_are_only_the_unresolved_ones(truth: Truth, catalog: Catalog):
    """A later success hides a failure, except in the history; inner steps count under the stage."""
    rows = ask(catalog, "SELECT * FROM failures")
    expected = {
        stage: counts["failed"] for stage, counts in truth.counts.items() if counts["failed"]
    }
    found = {stage: sum(row["stage"] == stage for row in rows) for stage in expected}
    assert found == expected
    assert len(rows) == sum(expected.values())
    again = [row for row in rows if row["key"] in truth.keys["failed_downloads"]]
    assert [(row["kind"], row["attempts"], row["shard"]) for row in again] == [
        ("permanent", 2, "000001.retry1")
    ]
    history = ask(catalog, "SELECT * FROM failures_all WHERE stage = 'download_videos'")
    assert sum(row["resolved"] for row in history) == len(truth.keys["retried_videos"]) > 0
    assert {row["key"] for row in history if row["resolved"]}.isdisjoint(
        truth.keys["failed_downloads"]
    )
    assert all(row["url"] for row in rows)
    assert all(row["video_id"] for row in rows if row["stage"] != "download_videos")


def test_rejections_have_rule_and_stage(truth: Truth, catalog: Catalog):
    """Including those at ingest."""
    rows = ask(catalog, "SELECT * FROM rejections")
    for stage in ("ingest", "download_videos", "split_clips"):
        assert sum(row["stage"] == stage for row in rows) == truth.counts[stage]["rejected"] > 0
    assert {row["rule"] for row in rows} == {
        "exclude_ids",
        "download_videos.min_duration_seconds",
        "split_clips.min_seconds",
    }


def test_newest_kept_row_of_a_key_counts(truth: Truth, tmp_path: Path):
    """A retry that captions a clip again, with more input, replaces the first caption."""
    dataset = _copy(truth, tmp_path)
    clip = "generic-v0-0-1000"
    write_shard(
        dataset,
        "summarize_captions",
        "m1",
        "000000.retry9",
        [{"clip_id": clip, "caption": "the better one"}],
        SUMMARIES,
    )
    found = ask(dataset, f"SELECT caption FROM clips WHERE clip_id = '{clip}'")
    assert found == [{"caption": "the better one"}]
    stage = _stage(status_report(dataset), "summarize_captions")
    assert stage["kept"] == truth.counts["summarize_captions"]["kept"]


def test_video_reached_from_two_sources_has_its_clips_once(truth: Truth, tmp_path: Path):
    """Two addresses of the same bytes in two shards do not duplicate the clips."""
    dataset = _copy(truth, tmp_path)
    for step, (stage, fingerprint, schema) in STEPS.items():
        if step == "download_videos" or "video_id" in schema.names or "clip_id" in schema.names:
            path = dataset / step / fingerprint / "000000.parquet"
            rows = pq.read_table(path).to_pylist()
            rows = [
                row
                for row in rows
                if (row.get("video_id") or row.get("clip_id") or "").startswith("generic-v0")
            ]
            if step == "download_videos":
                rows = [{**row, "source_key": "another", "url": "elsewhere"} for row in rows]
            write_shard(dataset, step, fingerprint, "000009", rows, schema, stage=stage)
    rows = ask(dataset, "SELECT * FROM clips WHERE video_id = 'generic-v0'")
    assert [row["url"] for row in rows] == ["https://media.example/0.mp4"] * 4
    assert len(ask(dataset, "SELECT * FROM videos WHERE video_id = 'generic-v0'")) == 1


def test_half_floats_are_read(catalog: Catalog):
    """Embeddings are half floats on disk and lists of floats in SQL."""
    assert EMBEDDINGS.field("embeddings").type == pa.list_(pa.list_(pa.float16()))
    (row,) = ask(
        catalog,
        "SELECT stage, embeddings, list_dot_product(embeddings[1], "
        "embeddings[1]) AS norm FROM embeddings WHERE clip_id = 'generic-v0-2000-3250'",
    )
    assert row == {
        "stage": "embed_clips",
        "norm": 1.3125,
        "embeddings": [[1.0, 0.5, -0.25, 0.0], [0.0, 1.0, 0.0, 0.125]],
    }


def test_other_views(truth: Truth, catalog: Catalog):
    """Shots, kept frames without their pixels, sources, and every step's raw rows."""
    assert ask(catalog, "SELECT count(*) AS n FROM shots") == [{"n": truth.clips}]
    assert columns(catalog, "frames_index") == ["video_id", "frame_number", "seconds"]
    assert ask(catalog, "SELECT count(*) AS n FROM sources") == [{"n": 27}]
    reasons = ask(
        catalog,
        "SELECT similarity_reason, shard FROM steps.score_similarity WHERE similarity IS NULL",
    )
    assert reasons
    assert {row["similarity_reason"] for row in reasons} == {"the caption has no words"}


def test_runs_have_models_and_prompts(catalog: Catalog):
    rows = ask(catalog, "SELECT * FROM runs ORDER BY started_at")
    assert [row["run_id"] for row in rows] == ["r1", "r2"]
    assert rows[1]["recipe"] == "synthetic"
    stage = next(s for s in rows[1]["stages"] if s["stage"] == "summarize_captions")
    assert dict(stage["prompts"]) == {"prompt": "Merge {coarse} and {fine}."}
    assert stage["fingerprint"] == "m1"
    assert stage["models"] == [
        {
            "setting": "model",
            "reference": "org/writer",
            "revision": "abc",
            "identity": "sha256:12",
            "places": None,
            "served": None,
        }
    ]
    assert json.loads(rows[1]["recipe_resolved"])["stages"]


def test_subsets_are_listed(truth: Truth, tmp_path: Path):
    assert ask(truth.path, "SELECT * FROM subsets") == []
    dataset = _copy(truth, tmp_path)
    (dataset / "subsets" / "best").mkdir(parents=True)
    (dataset / "subsets" / "best" / "subset.json").write_text(
        json.dumps({"recipe": "svd", "created_at": START.isoformat(), "n_clips": 3, "hours": 0.5})
    )
    assert ask(dataset, "SELECT name, n_clips, created_at FROM subsets") == [
        {"name": "best", "n_clips": 3, "created_at": START}
    ]


@pytest.mark.parametrize("state", ["no run", "nothing committed", "only split", "own stage only"])
def test_all_views_exist_in_every_state(truth: Truth, tmp_path: Path, state: str):
    """Columns of missing stages are typed nulls."""
    dataset = tmp_path / "dataset"
    if state == "no run":
        (dataset / "sources").mkdir(parents=True)
    elif state == "nothing committed":
        write_run(dataset, run_record("r1", START))
    else:
        dataset = _copy(truth, tmp_path)
        wanted = {"download_videos", "scan_videos", "split_clips"}
        wanted |= {"count_words"} if state == "own stage only" else set()
        write_run(
            dataset,
            run_record(
                "r3", START + timedelta(days=2), {k: v for k, v in STEPS.items() if k in wanted}
            ),
        )
    with open_catalog(dataset) as catalog:
        for name, promised in views.VIEWS.items():
            found = catalog.ask(f"DESCRIBE {name}").read_all().to_pylist()
            types = {row["column_name"]: row["column_type"].replace('"', "") for row in found}
            for column, kind in promised:
                assert types[column] == duckdb_type(kind).replace('"', ""), (name, column)
        rows = catalog.ask("SELECT * FROM clips").read_all()
    assert rows.num_rows == (truth.clips if state in ("only split", "own stage only") else 0)
    assert rows["caption"].null_count == rows.num_rows
    assert ("n_words" in rows.column_names) == (state in ("own stage only", "nothing committed"))
    stages = [s for s in status_report(dataset)["stages"] if s["stage"] != "count_words"]
    assert all(stage["accounted"] for stage in stages)


def test_custom_stage_fills_an_unused_column(truth: Truth, tmp_path: Path):
    """A custom captioner's `caption` is the caption if the recipe makes no summary."""
    dataset = _copy(truth, tmp_path)
    steps = {
        k: v for k, v in STEPS.items() if k in ("download_videos", "scan_videos", "split_clips")
    }
    schema = tables.clip_table(("caption", pa.string()), ("mood", pa.string()))
    steps["say_something"] = ("say_something", "y1", schema)
    write_shard(
        dataset,
        "say_something",
        "y1",
        "000000",
        [{"clip_id": "generic-v0-0-1000", "caption": "mine", "mood": "calm"}],
        schema,
    )
    write_run(dataset, run_record("r3", START + timedelta(days=2), steps))
    assert ask(dataset, "SELECT clip_id, caption, mood FROM clips WHERE caption IS NOT NULL") == [
        {"clip_id": "generic-v0-0-1000", "caption": "mine", "mood": "calm"}
    ]


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("measure_text", ("text_boxes", pa.float64())),
        ("embed_images", ("embeddings_reason", pa.string())),
        ("detect_language", ("language_confidence", pa.float32())),
        ("tag_clips", ("tags", pa.list_(tables.TAG))),
    ],
)
def test_custom_stage_with_a_built_in_name_keeps_its_columns(
    truth: Truth, tmp_path: Path, name: str, shared: tuple[str, pa.DataType]
):
    """Of a dataset that is older than the built-in stage, say; also where both have a column."""
    dataset = _copy(truth, tmp_path)
    steps = {
        k: v for k, v in STEPS.items() if k in ("download_videos", "scan_videos", "split_clips")
    }
    level = "video_id" if name == "detect_language" else "clip_id"
    key = {"video_id": "generic-v0", "clip_id": "generic-v0-0-1000"}[level]
    view = "videos" if level == "video_id" else "clips"
    for day, fields in ((2, []), (3, [shared])):
        schema = pa.schema(
            [pa.field(level, pa.string()), ("own", pa.int32()), *fields, *tables.OUTCOME]
        )
        row = {level: key, "own": day}
        write_shard(dataset, name, f"y{day}", "000000", [row], schema)
        steps[name] = (name, f"y{day}", schema)
        write_run(dataset, run_record(f"r{day}", START + timedelta(days=day), steps))
        assert ask(dataset, f"SELECT {level}, own FROM {view} WHERE own IS NOT NULL") == [row]
        assert ask(dataset, "SELECT count(*) AS n FROM clips")[0]["n"] == truth.clips
        assert ask(dataset, "SELECT language, * FROM clips LIMIT 1")
        ask(dataset, "SELECT * FROM embeddings")


def test_older_files_may_lack_columns_and_members(truth: Truth, tmp_path: Path):
    """Schemas grow: columns that an older shard lacks are null, even in reordered structs."""
    dataset = _copy(truth, tmp_path)
    path = dataset / "download_videos" / "d1" / "000000.parquet"
    table = pq.read_table(path)
    errors = [
        None if e is None else {"message": e["message"], "kind": e["kind"]}
        for e in table["error"].to_pylist()
    ]
    old = pa.struct([("message", pa.string()), ("kind", pa.string())])
    position = table.schema.get_field_index("error")
    table = table.set_column(position, "error", pa.array(errors, old)).drop_columns(["uploader"])
    pq.write_table(table, path)
    rows = ask(
        dataset,
        "SELECT kind, message, attempts FROM failures_all WHERE shard = '000000' "
        "AND stage = 'download_videos'",
    )
    assert rows == [
        {"kind": "transient", "message": "video number 5 would not work", "attempts": None}
    ]
    raw = ask(
        dataset,
        "SELECT error.kind AS kind, error.attempts AS attempts FROM "
        "steps.download_videos WHERE shard = '000000' AND error.kind IS NOT NULL",
    )
    assert raw == [{"kind": "transient", "attempts": None}]
    assert (
        len(ask(dataset, "SELECT uploader FROM videos")) == truth.counts["download_videos"]["kept"]
    )


def test_odd_folder_names_work(tmp_path: Path):
    """Characters with a meaning in globs, SQL or Hive paths are literal in a dataset's path."""
    truth = build_dataset(tmp_path / "it's [a] =b? *" / "set", shards=1)
    assert len(ask(truth.path, "SELECT * FROM clips")) == truth.clips
    assert status_report(truth.path)["totals"]["clips"] == truth.clips


def test_temporary_files_are_never_read(truth: Truth):
    """The synthetic dataset has one that is not Parquet at all."""
    assert list((truth.path / "split_clips" / "c1").glob(".*.tmp"))
    assert len(ask(truth.path, "SELECT * FROM clips")) == truth.clips


REFUSED = [
    "DROP VIEW clips",
    "CREATE TABLE x AS SELECT 1",
    "INSERT INTO runs (run_id) VALUES ('x')",
    "SET threads = 1",
    "PRAGMA database_list",
    "ATTACH '{other}/x.db'",
    "INSTALL httpfs",
    "COPY clips TO '{inside}/x.parquet'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{inside}/x.parquet'",
    "-- harmless\nEXPLAIN ANALYZE COPY (SELECT 1) TO '{inside}/x.parquet'",
    "EXPLAIN /* x */ ANALYZE COPY (SELECT 1) TO '{inside}/x.parquet'",
    "WITH x AS (COPY (SELECT 1) TO '{inside}/x.parquet') SELECT * FROM x",
    "EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO '{inside}/x.parquet') FROM x",
    "WITH x AS (COPY (SELECT 1) TO '{inside}/x.parquet' (RETURN_STATS)) PIVOT x ON filename",
    "WITH x AS (INSERT INTO runs (run_id) VALUES ('x') RETURNING run_id) FROM x",
    "SELECT 1; SELECT 2",
    "",
    "-- nothing",
    "SELECT * FROM read_csv('{other}/secret.csv')",
    "SELECT * FROM '{other}/secret.csv'",
    "SELECT * FROM read_text('{inside}/../../../other/secret.csv')",
    "SELECT * FROM glob('{other}/*')",
    "SELECT * FROM read_parquet('http://127.0.0.1:9/x.parquet')",
    "SELECT * FROM given_rows",
    "SELECT nope FROM clips",
    "SELECT at FROM failures",
]


@pytest.mark.parametrize("query", REFUSED)
def test_user_queries_are_read_only_and_confined(truth: Truth, catalog: Catalog, query: str):
    """They reach no other files and change nothing, by any detour."""
    other = truth.path.parent / "other"
    other.mkdir(exist_ok=True)
    (other / "secret.csv").write_text("a,b\n1,2\n")
    inside = truth.path / "split_clips" / "c1"
    before = sorted(path.name for path in inside.iterdir())
    with pytest.raises(UsageError):
        ask(catalog, query.format(other=other, inside=inside))
    assert sorted(path.name for path in inside.iterdir()) == before


@pytest.mark.parametrize(
    "query",
    [
        "DESCRIBE clips",
        "SHOW ALL TABLES",
        "SUMMARIZE videos",
        "EXPLAIN SELECT 1",
        "FROM clips",
        "EXPLAIN ANALYZE SELECT count(*) FROM clips",
        "WITH a AS (FROM clips) SELECT count(*) FROM a",
        "PIVOT clips ON width USING count(*) GROUP BY video_id",
        "-- a note\nVALUES (1);",
        'SELECT "at" FROM failures',
        "SELECT 'drop; insert' AS text",
        "EXPLAIN (FORMAT json) SELECT 1",
        "EXPLAIN (FROM clips)",
        "EXPLAIN ANALYZE (SELECT 1)",
        "/* a */ -- b\nEXPLAIN PIVOT clips ON width USING count(*) GROUP BY video_id",
    ],
)
def test_all_read_statements_are_allowed(catalog: Catalog, query: str):
    assert ask(catalog, query)


def test_errors_have_a_position_and_a_suggestion(truth: Truth):
    with pytest.raises(UsageError) as error:
        ask(truth.path, "SELECT clip_id,\n  simlarity FROM clips")
    assert "LINE 2" in str(error.value) or "^" in str(error.value)
    assert '"similarity"' in str(error.value)
    with pytest.raises(UsageError, match="Views: clips, videos"):
        ask(truth.path, "SELECT * FROM klips")


def test_external_files_can_be_allowed(truth: Truth, tmp_path: Path):
    """Still read-only."""
    (tmp_path / "list.csv").write_text("clip_id\ngeneric-v0-0-1000\n")
    with open_catalog(truth.path, allow_external=True) as catalog:
        query = f"SELECT caption FROM clips SEMI JOIN '{tmp_path}/list.csv' USING (clip_id)"
        assert catalog.ask(query).read_all().num_rows == 1
        with pytest.raises(UsageError):
            catalog.ask(f"COPY clips TO '{tmp_path}/x.csv'")


def test_memory_limit_is_enforced(truth: Truth):
    with (
        open_catalog(truth.path, memory_limit="40MB", threads=1) as catalog,
        pytest.raises(Exception, match=r"(?i)memory"),
    ):
        catalog.ask("SELECT list(range) FROM range(30000000)").read_all()


def test_several_results_can_be_read_at_once(truth: Truth):
    """A half-read result blocks no other."""
    with open_catalog(truth.path) as catalog:
        first = catalog.ask("SELECT clip_id FROM clips")
        first.read_next_batch()
        assert catalog.ask("SELECT count(*) AS n FROM videos").read_all().num_rows == 1


def test_folder_that_is_not_a_dataset_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="clipmill run"):
        open_catalog(tmp_path / "nowhere")


def test_opening_time_does_not_grow_with_shards(tmp_path: Path):
    """No shard is opened before a query needs it: 2000 of them open in well under a second.

    That is less than opening the shards of two of the eleven tables takes, on any machine.
    """
    truth = build_dataset(tmp_path / "dataset", shards=1)
    for step, (_, fingerprint, _) in STEPS.items():
        folder = truth.path / step / fingerprint
        for number in range(1, 2000):
            (folder / f"{number:06d}.parquet").hardlink_to(folder / "000000.parquet")
    fastest = min(_seconds_to_open(truth.path) for _ in range(3))
    started = time.process_time()
    for step in ("split_clips", "tag_clips"):
        for path in (truth.path / step / STEPS[step][1]).glob("*.parquet"):
            pq.read_metadata(path)
    assert fastest < time.process_time() - started


def _seconds_to_open(dataset: Path) -> float:
    started = time.process_time()
    open_catalog(dataset).close()
    return time.process_time() - started


def test_status_matches_the_written_rows(truth: Truth):
    """Inputs are kept, rejected or failed at every stage; keys count once, retried or not."""
    report = status_report(truth.path)
    assert [stage["stage"] for stage in report["stages"]] == list(truth.counts)[:-1]
    for stage in report["stages"]:
        counts = truth.counts[stage["stage"]]
        assert {n: stage[n] for n in ("kept", "rejected", "failed")} == {
            n: counts[n] for n in ("kept", "rejected", "failed")
        }, stage["stage"]
        assert stage["inputs"] == sum(counts.values())
        assert stage["pending"] == 0
        assert stage["accounted"]
        assert stage["shards_done"] == stage["shards_total"] > 0
    assert report["ingest"]["rejected"] == 3
    totals = report["totals"]
    assert totals["clips"] == truth.clips
    assert totals["videos"] == truth.counts["download_videos"]["kept"]
    assert totals["hours"] == pytest.approx(truth.clip_seconds / 3600, abs=1e-5)
    assert totals["source_frames"] == truth.source_frames
    assert totals["decoded_frames"] == truth.decoded_frames == truth.source_frames + 10


def test_seconds_count_only_current_fingerprints(truth: Truth):
    """The outdated run's shards are not counted; both steps of split_clips are."""
    shards = sum(
        len(list((truth.path / folder).glob("*.parquet")))
        for folder in ("scan_videos/s1", "split_clips/c1")
    )
    assert _stage(status_report(truth.path), "split_clips")["seconds"] == 2.0 * shards


def test_missing_shards_are_pending(truth: Truth, tmp_path: Path):
    """Pending keys are counted as far as the previous stage has got."""
    dataset = _copy(truth, tmp_path)
    path = dataset / "caption_frames" / "f1" / "000001.parquet"
    waiting = pq.read_metadata(path).num_rows
    path.unlink()
    stage = _stage(status_report(dataset), "caption_frames")
    assert stage["pending"] >= waiting - 3 > 0
    assert stage["shards_done"] == stage["shards_total"] - 1
    assert stage["accounted"]
    assert stage["inputs"] == truth.clips
    for shard in (dataset / "split_clips" / "c1").glob("*.parquet"):
        shard.unlink()
    report = status_report(dataset)
    split = _stage(report, "split_clips")
    assert (
        split["pending"]
        == truth.counts["split_clips"]["kept"] + truth.counts["split_clips"]["rejected"]
    )
    assert split["failed"] == truth.counts["split_clips"]["failed"]
    assert _stage(report, "tag_clips")["pending"] == 0


def test_requested_retry_adds_a_pending_shard(truth: Truth, tmp_path: Path):
    """It counts for its stage and the stages that depend on it, and for no other."""
    dataset = _copy(truth, tmp_path)
    (dataset / "retries").mkdir()
    (dataset / "retries" / "000000.retry7.json").write_text(
        json.dumps({"step": "caption_frames", "fingerprint": "f1", "keys": ["x"]})
    )
    stages = {s["stage"]: s for s in status_report(dataset)["stages"]}
    for name, open_shards in (
        ("caption_frames", 1),
        ("score_similarity", 1),
        ("tag_clips", 0),
        ("embed_clips", 0),
    ):
        stage = stages[name]
        assert stage["shards_total"] - stage["shards_done"] == open_shards, name


def test_lost_key_is_reported(truth: Truth, tmp_path: Path):
    """A key without a row in a committed shard breaks the accounting."""
    dataset = _copy(truth, tmp_path)
    path = dataset / "tag_clips" / "t1" / "000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    stage = _stage(status_report(dataset), "tag_clips")
    assert (stage["lost"], stage["accounted"]) == (1, False)
    assert stage["inputs"] == stage["kept"] + 1


def test_type_map_agrees_with_duckdb(tmp_path: Path):
    """Compared with DuckDB's own reading of a file."""
    schema = pa.schema(
        [
            ("a", pa.int8()),
            ("b", pa.uint16()),
            ("c", pa.float16()),
            ("d", pa.large_string()),
            ("e", pa.dictionary(pa.int32(), pa.string())),
            ("f", pa.date32()),
            ("g", pa.binary()),
            ("h", pa.timestamp("us")),
            ("i", pa.timestamp("us", tz="UTC")),
            ("j", pa.decimal128(9, 2)),
            (
                "k",
                pa.list_(pa.struct([("x y", pa.bool_()), ("z", pa.map_(pa.string(), pa.int64()))])),
            ),
            ("l", pa.list_(pa.float32(), 3)),
            ("m", pa.time64("us")),
        ]
    )
    pq.write_table(schema.empty_table(), tmp_path / "x.parquet")
    found = duckdb.sql(f"DESCRIBE SELECT * FROM '{tmp_path}/x.parquet'").fetchall()
    plain = [kind.replace('"', "") for _, kind, *_ in found]
    assert [duckdb_type(field.type).replace('"', "").replace(", ", ",") for field in schema] == [
        kind.replace(", ", ",") for kind in plain
    ]
    with pytest.raises(TypeError, match="no DuckDB type"):
        duckdb_type(pa.month_day_nano_interval())


def _copy(truth: Truth, folder: Path) -> Path:
    shutil.copytree(truth.path, folder / "copy")
    return folder / "copy"


def _stage(report: dict, name: str) -> dict:
    return next(stage for stage in report["stages"] if stage["stage"] == name)
