"""The Python interface: `import clipmill` offers what the commands do."""

from __future__ import annotations

import ast
import json
import logging
import os
import shutil
from pathlib import Path

import pytest

import clipmill

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def dataset(made, tmp_path: Path) -> Path:
    """The small dataset, which may be changed."""
    return Path(shutil.copytree(made.dataset, tmp_path / "dataset", symlinks=True))


def test_sql_returns_relations_that_other_libraries_read(made):
    with clipmill.open(made.dataset) as opened:
        found = opened.sql("SELECT clip_id, similarity FROM clips ORDER BY similarity DESC")
        frame = found.df()
        assert list(frame.columns) == ["clip_id", "similarity"]
        assert found.to_arrow_table().num_rows == len(frame) > 0
        assert frame["similarity"].is_monotonic_decreasing


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("DROP TABLE clips", "only"),
        ("SELECT no_such FROM clips", "no_such"),
        ("SELECT * FROM '/etc/passwd'", "passwd"),
    ],
)
def test_sql_that_writes_is_refused(made, query, said):
    with clipmill.open(made.dataset) as opened, pytest.raises(clipmill.ClipmillError, match=said):
        opened.sql(query).fetchall()


def test_damaged_file_is_named(dataset):
    [shard, *_] = sorted(dataset.glob("split_clips/*/*.parquet"))
    shard.write_bytes(b"not a table")
    shutil.rmtree(dataset / "index")
    with pytest.raises(clipmill.ClipmillError, match=shard.name):
        clipmill.open(dataset).clips()
    with pytest.raises(clipmill.ClipmillError, match=shard.name), clipmill.open(dataset) as opened:
        opened.sql("FROM steps.split_clips").fetchall()


def test_cells_run_again_leave_nothing_open(dataset):
    """The dataset changes between them, as it does while a run goes on."""
    opened = clipmill.open(dataset)
    counts = []
    for n in range(20):
        filtered = opened.sql("SELECT clip_id FROM clips").filter("clip_id IS NOT NULL")
        os.utime(dataset / "runs", ns=(n, n))
        opened.clips(limit=1)
        assert filtered.fetchall()  # of the catalog before, which is open until now
        counts.append(len(os.listdir("/proc/self/fd")))
        if n % 2:
            opened = clipmill.open(dataset)
    assert max(counts) <= counts[0] + 2


def test_what_a_run_commits_is_seen_before_it_ends(dataset):
    [shard, *_] = sorted(dataset.glob("summarize_captions/*/*.parquet"))
    shard.rename(dataset.parent / shard.name)
    with clipmill.open(dataset) as opened:
        assert opened.clips("caption IS NOT NULL", limit=None)[:].table.num_rows == 0
        (dataset.parent / shard.name).rename(shard)
        assert len(opened.clips("caption IS NOT NULL", limit=None)) > 0


def test_memory_and_files_are_opened_on_request(made, tmp_path):
    (tmp_path / "ids.csv").write_text("id\na\n")
    query = f"SELECT id FROM '{tmp_path}/ids.csv'"
    with clipmill.open(made.dataset, allow_external=True, memory_limit="200MB") as opened:
        assert opened.sql(query).fetchall() == [("a",)]
        assert opened.sql("SELECT current_setting('memory_limit')").fetchall() == [("190.7 MiB",)]
    with pytest.raises(clipmill.UsageError, match="memory-limit"):
        clipmill.open(made.dataset, memory_limit="much").sql("FROM clips")


def test_missing_dataset_is_a_clear_error(tmp_path):
    with pytest.raises(clipmill.UsageError, match="does not exist"):
        clipmill.open(tmp_path / "none")


def test_rows_come_in_batches_too(made):
    with clipmill.open(made.dataset) as opened:
        with opened.stream("SELECT clip_id FROM clips") as batches:
            count = sum(batch.num_rows for batch in batches)
        assert count == len(opened.clips(limit=None))
        with pytest.raises(clipmill.UsageError, match="no_such"), opened.stream("FROM no_such"):
            pass


def test_views_have_the_columns_that_sql_may_name(made):
    with clipmill.open(made.dataset) as opened:
        views = opened.views()
        assert {"clips", "videos", "failures", "steps.split_clips"} <= set(views)
        assert views["clips"] == opened.sql("FROM clips").columns


def test_clips_have_rows_and_pictures(made):
    with clipmill.open(made.dataset) as opened:
        clips = opened.clips("aesthetic > 0", limit=3)
        assert len(clips) == len(list(clips)) == 3
        assert clips[0] == next(iter(clips))
        assert clips[-1] == next(iter(clips[2:]))
        assert clips[0]["caption"]
        shown = clips._repr_html_()
        assert shown.count("<img") == shown.count("data:image/jpeg;base64,") == 3
        assert len(clips.df()) == 3
        assert opened.clips("false")._repr_html_() == "<table></table>"


def test_sample_depends_only_on_the_seed(made):
    with clipmill.open(made.dataset) as opened:

        def ids(seed):
            return [clip["clip_id"] for clip in opened.clips(limit=5, sample_seed=seed)]

        assert ids(1) == ids(1) != ids(2)


def test_status_and_failures_equal_the_commands(made):
    with clipmill.open(made.dataset) as opened:
        stages = {stage["stage"]: stage for stage in opened.status()["stages"]}
        assert stages["download_videos"]["kept"] == len(made.films)
        assert opened.failures().fetchall() == []
        with pytest.raises(clipmill.UsageError, match="allowed: "):
            opened.failures("weather")
        assert opened.failures(["model", "crash"], history=True).fetchall() == []


def test_subset_is_frozen_found_again_and_exported(dataset, tmp_path):
    with clipmill.open(dataset) as opened:
        subset = opened.subset(where="aesthetic > 0", name="good", seed=7)
        assert opened.subsets == ["good"]
        assert opened.subset("good").hash == subset.hash
        assert len(subset) == subset.info["n_clips"]
        assert "good" in subset.card()
        assert opened.sql("SELECT name FROM subsets").fetchall() == [("good",)]
        manifest = subset.export(tmp_path / "out", "parquet")
        assert manifest["counts"]["exported"] == len(subset)
        assert not manifest.was_finished
        assert subset.export(tmp_path / "out", "parquet").was_finished
        found = opened.explain(where="aesthetic > 0")
        assert found["funnel"]
        with pytest.raises(clipmill.UsageError, match="one of both"):
            opened.subset()
    random = clipmill.open(dataset).subset("internvid-random", seed=1, clips=2)
    assert (len(random), random.info["seed"]) == (2, 1)


def test_subset_is_created_or_loaded_on_request(dataset):
    steps: list[str] = []
    with clipmill.open(dataset) as opened:
        made = opened.create_subset(
            "internvid-random", seed=1, settings=["clips=2"], on_step=steps.append
        )
        assert made.is_new
        assert steps[-1] == "writing the clips"
        again = opened.create_subset("internvid-random", seed=1, settings={"clips": 2})
        assert (again.is_new, again.hash) == (False, made.hash)
        assert opened.load_subset("internvid-random").hash == made.hash
        assert made.folder == dataset / "subsets" / "internvid-random"
        opened.remove(videos=[opened.clips(limit=None)[0]["video_id"]])
        changes = opened.load_subset("internvid-random").changes()
        assert changes["removed"] + changes["not_in_catalog"] <= 2
        with pytest.raises(clipmill.UsageError, match="no subset"):
            opened.load_subset("internvid-div")
        found = opened.explain(where="aesthetic > 4", near=1)
        assert len(found["funnel"][0]["near"][0]["inside"]) <= 1


def test_export_reports_progress(made, tmp_path):
    begun: list[str] = []
    counts: list[int] = []
    with clipmill.open(made.dataset, memory_limit="500MB") as opened:
        done = opened.export(
            tmp_path / "out",
            "csv",
            watcher=clipmill.ExportWatcher(
                lambda step, clips: begun.append(step), lambda clips, failed: counts.append(clips)
            ),
        )
    assert begun == ["select", "write"]
    assert sum(counts) >= done["counts"]["exported"] > 0
    assert (tmp_path / "out" / done["files"][0]["name"]).is_file()


def test_verify_finds_faults_and_sets_aside_what_can_be_made_again(dataset):
    with clipmill.open(dataset) as opened:
        steps: list[str] = []
        assert opened.verify(media=False, on_step=steps.append).faults == []
        assert steps[0] == "listing"
        (dataset / "clutter.parquet.tmp").write_bytes(b"")
        [shard, *_] = sorted(dataset.glob("caption_frames/*/*.parquet"))
        shard.write_bytes(b"not a table")
        found = opened.verify(media=False)
        assert found.repaired is None
        [fault, *_] = [fault for fault in found.faults if shard.name in fault.where]
        assert isinstance(fault, clipmill.Finding)
        assert "--repair" in fault.next_step
        mended = opened.verify(media=False, repair=True)
        assert mended.repaired is not None
        assert str(shard.relative_to(dataset)) in mended.repaired.moved
        assert not shard.exists()


def test_removed_videos_are_gone_at_once(dataset):
    with clipmill.open(dataset) as opened:
        video = opened.clips()[0]["video_id"]
        planned = opened.remove(videos=[video], dry_run=True)
        assert planned.is_dry_run
        assert opened.clips(f"video_id = '{video}'")
        done = opened.remove(videos=[video], reason="asked to")
        assert isinstance(done, clipmill.Removal)
        assert done.removed is not None
        assert planned.removed is not None
        assert (done.removed.clips, done.removed.rows) == (
            planned.removed.clips,
            planned.removed.rows,
        )
        assert done.left == {}
        assert not opened.clips(f"video_id = '{video}'")
        assert opened.sql("SELECT reason FROM removed").fetchall() == [("asked to",)]
        again = opened.remove(videos=[video])
        assert (again.removed, again.removed_before) == (None, (video,))
        with pytest.raises(clipmill.UsageError, match="no such video"):
            opened.remove(videos=["generic-none"])


def test_index_is_built_on_request(dataset):
    shutil.rmtree(dataset / "index")
    with clipmill.open(dataset) as opened:
        report = opened.index()
        assert report is not None
        assert report.n_clips == len(opened.clips(limit=None))
        assert report.n_new == report.n_parts > 0


def test_published_metadata_makes_a_new_dataset(tmp_path):
    row = {
        "YoutubeID": "abcdefghijk",
        "Start_timestamp": "00:00:01.000",
        "End_timestamp": "00:00:03.000",
        "Caption": "someone walks",
    }
    (tmp_path / "published.jsonl").write_text(json.dumps(row) + "\n")
    read: list[int] = []
    report = clipmill.import_internvid(
        tmp_path / "new", [tmp_path / "published.jsonl"], shard_videos=2, on_bytes=read.append
    )
    assert (report.rows, report.kept, report.new_videos, report.note) == (1, 1, 1, None)
    assert sum(read) > 0
    with clipmill.open(tmp_path / "new") as opened:
        assert opened.status()["ingest"]["kept"] == 1
        built = opened.index()
    assert (built.n_parts, built.n_clips, built.n_published) == (0, 0, 1)


def test_report_is_a_page(made, tmp_path):
    page = clipmill.open(made.dataset).report(tmp_path / "report.html")
    assert page.read_text("utf-8").startswith("<!doctype html>")


def test_run_returns_counts_reports_progress_and_is_then_complete(made, tmp_path, caplog, capfd):
    films = made.loaded.recipe.sources[0].path
    seen: list[clipmill.StageProgress] = []
    asked = {
        "sources": films,
        "dataset": tmp_path / "new",
        "engine": "local",
        "settings": {"split_clips.threshold": 0.4},
    }
    with caplog.at_level(logging.INFO, "clipmill.run"):
        result = clipmill.run("timestamps-only", progress=seen.append, **asked)
    assert result.did_anything
    assert result["download_videos"]["kept"] == len(made.films)
    assert {"download_videos", "split_clips"} <= {one.stage for one in seen}
    assert max(one.kept for one in seen if one.stage == "download_videos") == len(made.films)
    assert any("Done in" in message for message in result.messages)
    assert any("Done in" in record.message for record in caplog.records)
    assert capfd.readouterr() == ("", "")
    assert not clipmill.run("timestamps-only", **asked).did_anything
    assert not clipmill.run(dataset=tmp_path / "new").did_anything
    clips = result.dataset.sql("SELECT count(*) FROM clips").fetchall()
    more = clipmill.run(
        dataset=tmp_path / "new", settings={"split_clips.threshold": 1}, engine="local"
    )
    assert more.did_anything
    # visible immediately
    assert result.dataset.sql("SELECT count(*) FROM clips").fetchall() != clips


def test_retry_tries_what_failed(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"no video" * 100)
    result = clipmill.run(
        "timestamps-only", sources=tmp_path / "videos", dataset=tmp_path / "new", engine="local"
    )
    assert result["download_videos"]["failed"] == 1
    again = clipmill.retry(result.dataset, ["bad_media"])
    [(attempts,)] = again.dataset.sql("SELECT attempts FROM failures").fetchall()
    assert attempts == 2
    assert not clipmill.retry(tmp_path / "new", ["transient"]).did_anything
    with pytest.raises(clipmill.UsageError, match="allowed"):
        clipmill.retry(tmp_path / "new", ["weather"])


def cells_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_notebook_runs(dataset, tmp_path, monkeypatch):
    """Each cell, as in a notebook; the value of its last line is displayed."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    shown = []
    for source in cells_of(ROOT / "docs" / "explore.ipynb"):
        tree = ast.parse(source.replace('"demo-dataset"', repr(str(dataset))))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            show = getattr(value, "_repr_html_", None) or (lambda value=value: repr(value))
            shown.append(show() or repr(value))
    assert any("<img" in one for one in shown)
