"""Unacceptable rows returned by a custom stage, and their outcomes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.jobs.run import run
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.dataset.shards import ShardMetadata, ShardWriter, shard_path
from clipmill.pipeline.recipes.recipe import LoadedRecipe
from clipmill.pipeline.status import status_report
from clipmill.pipeline.verify import verify
from clipmill.pipeline.verify.repair import repair

SCORERS = '''
from contextlib import contextmanager
from pathlib import Path
import pyarrow as pa
from clipmill.stages.protocol import Rows, Stage, resource

class Rate(Stage):
    """The scores that `scores_file` has, by the number at the end of the clip's id."""
    name = "rate"
    reads = ("cut_words.start_seconds",)
    writes = pa.schema([("quality", pa.float32()), ("remark", pa.string())])
    score = "quality"
    scores_file: str = resource("")

    @contextmanager
    def open(self, workspace):
        def transform(batch):
            said = Path(self.scores_file).read_text().split()
            clips = batch["clip_id"].to_pylist()
            scores = [said[int(clip.rpartition("-")[2])] for clip in clips]
            columns = {"clip_id": clips, "remark": clips}
            columns["quality"] = pa.array([None if score == "none" else float(score)
                                           for score in scores], pa.float64())
            return pa.table(self.more(columns, scores))
        yield transform

    def more(self, columns, scores):
        return columns

class RateAndSay(Rate):
    name = "rate_and_say"
    writes = pa.schema([("quality", pa.float32()), ("quality_reason", pa.string()),
                        ("remark", pa.string())])

    def more(self, columns, scores):
        reasons = {"none": "no frames", "-inf": "log of 0"}
        return {**columns, "quality_reason": pa.array(map(reasons.get, scores), pa.string())}

class RateRows(Rate):
    """Rejects and fails together with the odd score."""
    name = "rate_rows"

    @contextmanager
    def open(self, workspace):
        def transform(batch):
            rows = Rows(self)
            for clip in batch["clip_id"].to_pylist():
                if clip.endswith("0"):
                    rows.reject(clip, "rate_rows.rule", "as asked", quality=float("nan"))
                else:
                    rows.fail(clip, "transient", "as asked", quality=float("inf"))
            return rows.table()
        yield transform
'''
DOUBLERS = '''
from contextlib import contextmanager
from pathlib import Path
import pyarrow as pa
from clipmill.stages.protocol import Rows, Stage, resource

class SayTwice(Stage):
    """Two rows for the clips that `odd_file` names."""
    name = "say_twice"
    reads = ("cut_words.start_seconds",)
    writes = pa.schema([("said", pa.string())])
    odd_file: str = resource("")

    @contextmanager
    def open(self, workspace):
        def transform(batch):
            odd = Path(self.odd_file).read_text().split()
            clips = [clip for clip in batch["clip_id"].to_pylist()
                     for _ in range(1 + (clip in odd))]
            return pa.table({"clip_id": clips, "said": [str(n) for n, _ in enumerate(clips)]})
        yield transform

class Hear(Stage):
    """Fails as long as `odd_file` asks for it."""
    name = "hear"
    key = "video_id"
    reads = ("fetch_words.url",)
    writes = pa.schema([("heard", pa.string())])
    error_kind = "transient"
    odd_file: str = resource("")

    @contextmanager
    def open(self, workspace):
        def transform(batch):
            if "deaf" in Path(self.odd_file).read_text():
                raise OSError("heard nothing")
            return pa.table({"video_id": batch["video_id"], "heard": batch["video_id"]})
        yield transform

class CutOdd(Stage):
    """Makes the clips that `odd_file` says for a video: `v-a=x,y`."""
    name = "cut_odd"
    key = "video_id"
    reads = ("fetch_words.url", "hear.heard?")
    writes = pa.schema([("clip_id", pa.string()), ("start_seconds", pa.float64()),
                        ("end_seconds", pa.float64())])
    error_kind = "bad_media"
    odd_file: str = resource("")

    @contextmanager
    def open(self, workspace):
        def transform(batch):
            clips = dict(line.split("=") for line in Path(self.odd_file).read_text().split())
            rows = Rows(self)
            for video in batch["video_id"].to_pylist():
                for clip in clips[video].split(","):
                    rows.keep(video, clip_id=clip, start_seconds=0.0, end_seconds=1.0)
            return rows.table()
        yield transform
'''


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A file that tells the stages what to return."""
    (tmp_path / "scorers.py").write_text(SCORERS)
    (tmp_path / "doublers.py").write_text(DOUBLERS)
    return tmp_path / "told"


def ask(dataset: Path, text: str) -> list[tuple]:
    with open_catalog(dataset) as catalog:
        return catalog.execute(text).fetchall()


def counts(dataset: Path, stage: str) -> tuple[int, int, int]:
    (found,) = [row for row in status_report(dataset)["stages"] if row["stage"] == stage]
    assert found["accounted"]
    assert (found["lost"], found["pending"]) == (0, 0)
    return found["kept"], found["rejected"], found["failed"]


def faults(dataset: Path) -> list[str]:
    return [f"{fault.check} {fault.where}: {fault.what}" for fault in verify(dataset).faults]


def only(loaded: LoadedRecipe, *labels: str) -> LoadedRecipe:
    """A recipe of fetch_words and these stages, in this order."""
    stages = {label: loaded.stages[label] for label in ("fetch_words", *labels)}
    return dataclasses.replace(loaded, stages=stages)


def test_non_finite_score_is_a_failure(words, told):
    """No threshold sees it, a retry tries it again, and the other clips have their scores.

    1e300 is finite in 64 bits, but not in the stored type.
    """
    settings = (f"rate.stage={told.parent / 'scorers.py'}:Rate", f"rate.scores_file={told}")
    told.write_text("nan inf -inf 1e300 0.5 0.9 none")
    data = words("a?clips=7")
    data.run(*settings)
    assert counts(data.dataset, "rate") == (3, 0, 4)
    assert ask(data.dataset, "SELECT clip_id FROM steps.rate WHERE quality > 0.8") == [("v-a-5",)]
    assert ask(data.dataset, "SELECT clip_id FROM steps.rate WHERE quality < 0.8") == [("v-a-4",)]
    assert ask(
        data.dataset, "SELECT clip_id FROM steps.rate WHERE quality IS NULL AND error IS NULL"
    ) == [("v-a-6",)]
    failures = ask(data.dataset, "SELECT key, kind, message, attempts FROM failures ORDER BY key")
    ending = (
        ": the score is not finite, and the stage has no column quality_reason to say so "
        "next to a null"
    )
    assert failures == [
        (f"v-a-{number}", "model", f"quality is {value}{ending}", 1)
        for number, value in enumerate(("nan", "inf", "-inf", "inf"))
    ]
    assert faults(data.dataset) == []
    told.write_text("nan 0.1 0.2 0.3 9 9 9")
    assert data.run(*settings, retry_kinds=["model"])
    assert counts(data.dataset, "rate") == (6, 0, 1)
    assert ask(data.dataset, "SELECT key, attempts FROM failures") == [("v-a-0", 2)]
    assert ask(data.dataset, "SELECT max(quality) FROM steps.rate") == [(pytest.approx(0.9),)]


def test_stage_with_a_reason_column_keeps_the_row(words, told):
    """Like the built-in scorers: the score is null, and the stage's own reason stays."""
    label = "my_rating"  # a label that differs from the stage's name
    settings = (
        f"{label}.stage={told.parent / 'scorers.py'}:RateAndSay",
        f"{label}.scores_file={told}",
    )
    told.write_text("nan inf -inf 1e300 0.5 none")
    data = words("a?clips=6")
    data.run(*settings)
    assert counts(data.dataset, label) == (6, 0, 0)
    assert ask(
        data.dataset, "SELECT quality, quality_reason FROM steps.my_rating ORDER BY clip_id"
    ) == [
        (None, "the score is not finite"),
        (None, "the score is not finite"),
        (None, "log of 0"),
        (None, "the score is not finite"),
        (0.5, None),
        (None, "no frames"),
    ]
    assert ask(data.dataset, "SELECT count(*) FROM steps.my_rating WHERE remark = clip_id") == [
        (6,)
    ]
    assert faults(data.dataset) == []


def test_rows_that_are_not_kept_have_no_odd_score(words, told):
    data = words("a?clips=2")
    data.run(f"rate_rows.stage={told.parent / 'scorers.py'}:RateRows")
    assert counts(data.dataset, "rate_rows") == (0, 1, 1)
    assert ask(
        data.dataset,
        "SELECT quality, rejection.rule, error.kind FROM steps.rate_rows ORDER BY clip_id",
    ) == [(None, "rate_rows.rule", None), (None, None, "transient")]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_verify_finds_a_non_finite_score_of_an_earlier_version(words, told, value):
    """Rows that a repair sets aside are made again, with a failure instead."""
    settings = (f"rate.stage={told.parent / 'scorers.py'}:Rate", f"rate.scores_file={told}")
    told.write_text("0.25 0.5 none")
    data = words("a?clips=3")
    data.run(*settings)
    (folder,) = (data.dataset / "rate").iterdir()
    path = shard_path(folder, "000000")
    said, table = ShardMetadata.read(path), pq.read_table(path).replace_schema_metadata()
    table = table.set_column(
        1, table.schema.field("quality"), pa.array([0.25, value, None], pa.float32())
    )
    path.unlink()
    writer = ShardWriter(path, table.schema)
    writer.write(table)
    writer.seal(said)
    writer.show()
    found = verify(data.dataset)
    assert [f"{fault.check} {fault.what}" for fault in found.faults] == [
        "score quality is NaN or infinite in 1 row: v-a-1"
    ]
    repair(data.dataset, found)
    told.write_text(f"0.25 {value} none")
    data.run(*settings)
    assert counts(data.dataset, "rate") == (2, 0, 1)
    assert faults(data.dataset) == []


@pytest.mark.parametrize("batch_rows", [1, 3, 64])
def test_duplicate_key_is_a_failure(words, told, batch_rows):
    """Nobody knows which of its rows is right; as with a lost key, a retry tries again."""
    settings = (
        f"say_twice.stage={told.parent / 'doublers.py'}:SayTwice",
        f"say_twice.odd_file={told}",
        f"say_twice.batch_rows={batch_rows}",
    )
    told.write_text("v-a-1 v-b-0")
    data = words("a?clips=3", "b")
    data.run(*settings)
    assert counts(data.dataset, "say_twice") == (3, 0, 2)
    assert ask(data.dataset, "SELECT key, kind, message FROM failures ORDER BY key") == [
        (clip, "model", "the stage returned 2 rows for this key; expected one")
        for clip in ("v-a-1", "v-b-0")
    ]
    assert ask(
        data.dataset, "SELECT clip_id FROM steps.say_twice WHERE error IS NULL ORDER BY ALL"
    ) == [("v-a-0",), ("v-a-2",), ("v-b-1",)]
    assert faults(data.dataset) == []
    told.write_text("")
    assert data.run(*settings, retry_kinds=["model"])
    assert counts(data.dataset, "say_twice") == (5, 0, 0)
    assert faults(data.dataset) == []


@pytest.mark.parametrize("batch_rows", [1, 2, 64])
def test_duplicate_clip_fails_the_video_that_repeats_it(words, told, batch_rows):
    """A video has many clips, but the same clip twice in a shard is an error."""
    settings = (
        f"cut_odd.stage={told.parent / 'doublers.py'}:CutOdd",
        f"cut_odd.odd_file={told}",
        f"cut_odd.batch_rows={batch_rows}",
    )
    told.write_text("v-a=a-1,a-2,a-3 v-b=b-1,b-2,b-1 v-c=c-1,a-2 v-d=c-1,b-1")
    data = words("a", "b", "c", "d", shard_videos=4)
    loaded = only(data.loaded(*settings), "cut_odd")
    run(loaded, data.dataset)
    assert counts(data.dataset, "cut_odd") == (2, 0, 2)
    assert ask(data.dataset, "SELECT key, kind, message FROM failures ORDER BY key") == [
        ("v-b", "bad_media", "the stage made the clip b-1 2 times"),
        ("v-c", "bad_media", "the stage made the clip a-2, which another video_id already has"),
    ]
    assert ask(
        data.dataset, "SELECT video_id, clip_id FROM steps.cut_odd WHERE error IS NULL ORDER BY ALL"
    ) == [("v-a", "a-1"), ("v-a", "a-2"), ("v-a", "a-3"), ("v-d", "b-1"), ("v-d", "c-1")]
    assert faults(data.dataset) == []
    # When retried, one has its own clips, the other still has one that is v-a's.
    told.write_text("v-b=b-2,b-3 v-c=c-2,a-2")
    assert run(loaded, data.dataset, retry_kinds=["bad_media"])
    assert counts(data.dataset, "cut_odd") == (3, 0, 1)
    assert ask(data.dataset, "SELECT key, attempts FROM failures") == [("v-c", 2)]
    assert faults(data.dataset) == []


def test_video_that_is_cut_again_keeps_its_clips(words, told):
    """A retry of an optional input cuts it once more: its own clips don't count as another's."""
    settings = [
        f"{label}.{setting}"
        for label, name in (("cut_odd", "CutOdd"), ("hear", "Hear"))
        for setting in (f"stage={told.parent / 'doublers.py'}:{name}", f"odd_file={told}")
    ]
    told.write_text("v-a=a-1,a-2 v-b=b-1 deaf=yes")
    data = words("a", "b")
    loaded = only(data.loaded(*settings), "hear", "cut_odd")
    run(loaded, data.dataset)
    assert counts(data.dataset, "hear") == (0, 0, 2)
    told.write_text("v-a=a-1,a-2 v-b=b-1")
    assert run(loaded, data.dataset, retry_kinds=["transient"])
    assert counts(data.dataset, "cut_odd") == (2, 0, 0)
    assert ask(
        data.dataset, "SELECT shard, clip_id FROM steps.cut_odd WHERE error IS NULL ORDER BY ALL"
    ) == [(shard, clip) for shard in ("000000", "000000.retry1") for clip in ("a-1", "a-2", "b-1")]
    assert ask(data.dataset, "SELECT * FROM failures_all WHERE stage = 'cut_odd'") == []
    assert faults(data.dataset) == []
