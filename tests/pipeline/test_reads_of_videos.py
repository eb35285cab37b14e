"""Clip stages that read video-level columns of another stage: retries, status, verify."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.dataset.shards import ShardMetadata, ShardWriter, shard_path
from clipmill.pipeline.status import status_report
from clipmill.pipeline.verify import verify
from clipmill.pipeline.verify.repair import repair
from clipmill.schemas.errors import UsageError

STAGES = '''
from contextlib import contextmanager
from pathlib import Path
import pyarrow as pa
from clipmill.stages.protocol import Rows, Stage, resource

class HearVideo(Stage):
    """One text a video; the videos named in `down_file` fail."""
    name = "hear_video"
    key = "video_id"
    reads = ("fetch_words.url",)
    writes = pa.schema([("heard", pa.string())])
    down_file: str = resource("")

    @contextmanager
    def open(self, workspace):
        def transform(batch):
            rows = Rows(self)
            for video in batch["video_id"].to_pylist():
                if video in Path(self.down_file).read_text().split():
                    rows.fail(video, "transient", "503")
                else:
                    rows.keep(video, heard="hello " + video)
            return rows.table()
        yield transform

def copier(label, read, column):
    class Copier(Stage):
        name = label
        reads = (read,)
        writes = pa.schema([(column, pa.string())])
        @contextmanager
        def open(self, workspace):
            yield lambda batch: pa.table({"clip_id": batch["clip_id"], column: batch["heard"]})
    Copier.__name__ = Copier.__qualname__ = label.title().replace("_", "")
    return Copier

NeedIt = copier("need_it", "hear_video.heard", "needed")
MayUseIt = copier("may_use_it", "hear_video.heard? as heard", "used")
# After one whose row is there only once the video was heard.
FollowIt = copier("follow_it", "need_it.needed as heard", "followed")
# The clips' own table is read, and may be missing: still it is where the keys come from.
MayUseClips = copier("may_use_clips", "hear_video.heard", "beside")
MayUseClips.reads = ("cut_words.start_seconds?", "hear_video.heard")
'''
READERS = {
    "need_it": "needed",
    "may_use_it": "used",
    "follow_it": "followed",
    "may_use_clips": "beside",
}


@pytest.fixture
def heard(words, tmp_path: Path):
    """A dataset of three videos with two clips each, its stages' settings, and the file that names
    the videos that fail."""
    own, down = tmp_path / "hearing.py", tmp_path / "down"
    own.write_text(STAGES)
    down.write_text("v-b")
    settings = [f"hear_video.stage={own}:HearVideo", f"hear_video.down_file={down}"]
    settings += [f"{label}.stage={own}:{label.title().replace('_', '')}" for label in READERS]
    return words("a", "b", "c", shard_videos=2), settings, down


def clips(dataset: Path, column: str) -> dict[str, str | None]:
    """A reader's newest kept rows, as queries see them."""
    label = next(label for label, made in READERS.items() if made == column)
    with open_catalog(dataset) as catalog:
        rows = catalog.execute(
            f"SELECT clip_id, arg_max_null({column}, shard) FROM steps.{label} "
            "WHERE error IS NULL GROUP BY clip_id"
        ).fetchall()
    return dict(rows)


def stages(dataset: Path) -> dict[str, dict]:
    found = {stage["stage"]: stage for stage in status_report(dataset)["stages"]}
    assert all(stage["accounted"] and stage["lost"] == 0 for stage in found.values()), found
    return found


def faults(dataset: Path) -> list[tuple[str, str]]:
    report = verify(dataset)
    return [(fault.check, fault.where) for fault in report.faults]


ALL = {f"v-{video}-{number}": f"hello v-{video}" for video in "abc" for number in (0, 1)}
WITHOUT_B = {clip: text for clip, text in ALL.items() if not clip.startswith("v-b")}


def test_retry_of_a_video_passes_its_clips_to_all_readers(heard):
    """A reader that requires the video's row gets its clips then; others get them again."""
    data, settings, down = heard
    data.run(*settings)
    before = stages(data.dataset)
    assert {label: before[label]["inputs"] for label in READERS} == {
        "need_it": 4,
        "may_use_it": 6,
        "follow_it": 4,
        "may_use_clips": 4,
    }
    assert {stage["pending"] for stage in before.values()} == {0}
    assert clips(data.dataset, "needed") == WITHOUT_B
    assert clips(data.dataset, "used") == {**ALL, "v-b-0": None, "v-b-1": None}
    assert faults(data.dataset) == []

    down.write_text("")
    assert data.run(*settings, retry_kinds=["transient"])
    for column in READERS.values():
        assert clips(data.dataset, column) == ALL, column
    after = stages(data.dataset)
    assert {
        (after[label]["inputs"], after[label]["kept"], after[label]["pending"]) for label in READERS
    } == {(6, 6, 0)}
    with open_catalog(data.dataset) as catalog:
        assert catalog.execute("SELECT count(*) FROM failures").fetchone() == (0,)
    assert faults(data.dataset) == []
    # Nothing of the other videos was processed again.
    again = [row["clip_id"] for row in data.table("need_it", *settings)]
    assert sorted(again) == sorted(ALL)
    assert not data.run(*settings)


@pytest.mark.slow  # starts Ray, which runs the same code
def test_retry_on_ray_passes_them_too(heard):
    data, settings, down = heard
    few = [setting for setting in settings if not setting.startswith(("follow_it", "may_use_c"))]
    data.run(*few)
    down.write_text("")
    assert data.run(*few, engine="ray", retry_kinds=["transient"])
    assert clips(data.dataset, "needed") == clips(data.dataset, "used") == ALL
    assert stages(data.dataset)["need_it"]["kept"] == 6


def test_retry_that_fails_again_passes_nothing(heard):
    data, settings, _ = heard
    data.run(*settings)
    assert data.run(*settings, retry_kinds=["transient"])
    assert clips(data.dataset, "needed") == WITHOUT_B
    assert stages(data.dataset)["need_it"]["inputs"] == 4
    assert faults(data.dataset) == []


def test_clips_of_a_retried_video_are_pending_for_its_readers(heard):
    """Between the retry of the video and that of the clips they are pending, and not lost."""
    data, settings, down = heard
    data.run(*settings)
    down.write_text("")
    assert data.run(*settings, retry_kinds=["transient"], until="hear_video")
    found = stages(data.dataset)
    assert found["need_it"]["pending"] == 2
    assert found["may_use_clips"]["pending"] == 2
    assert faults(data.dataset) == []
    assert data.run(*settings)
    assert clips(data.dataset, "needed") == ALL
    assert stages(data.dataset)["need_it"]["pending"] == 0


def test_readers_added_after_the_retry_process_each_clip_once(heard):
    data, settings, down = heard
    data.run(*settings[:2])
    down.write_text("")
    data.run(*settings[:2], retry_kinds=["transient"])
    data.run(*settings)
    for column in READERS.values():
        assert clips(data.dataset, column) == ALL, column
    assert {stages(data.dataset)[label]["inputs"] for label in READERS} == {6}
    assert faults(data.dataset) == []


def test_clips_lost_by_an_earlier_version_are_found_and_repaired(heard):
    """It wrote a retry's shard without them; status and verify report it, a repair makes them."""
    data, settings, down = heard
    data.run(*settings)
    down.write_text("")
    data.run(*settings, retry_kinds=["transient"])
    for label in ("need_it", "follow_it", "may_use_clips"):
        (folder,) = (data.dataset / label).iterdir()
        path = shard_path(folder, "000000.retry1")
        said, schema = ShardMetadata.read(path), pq.read_schema(path).remove_metadata()
        path.unlink()
        writer = ShardWriter(path, schema)
        writer.seal(
            ShardMetadata(
                said.stage,
                said.step,
                said.shard,
                said.fingerprint,
                said.run_id,
                0,
                0,
                0,
                0,
                0,
                0.0,
                0,
                0,
            )
        )
        writer.show()
    report = {stage["stage"]: stage for stage in status_report(data.dataset)["stages"]}
    assert report["need_it"]["lost"] == report["may_use_clips"]["lost"] == 2
    assert not report["need_it"]["accounted"]
    found = verify(data.dataset)
    assert {fault.check for fault in found.faults} == {"accounting"}
    assert {fault.where.split("/")[0] for fault in found.faults} >= {"need_it", "may_use_clips"}
    repair(data.dataset, found)
    data.run(*settings)
    for column in READERS.values():
        assert clips(data.dataset, column) == ALL, column
    stages(data.dataset)
    assert faults(data.dataset) == []


@pytest.mark.parametrize(
    ("key", "reads", "said"),
    [
        (
            "clip_id",
            ["cut_words.start_seconds", "sources.url"],
            "reads sources.url, but its key is clip_id, and rows of sources can't be matched "
            "by clip_id or video_id",
        ),
        ("clip_id", ["sources.url?"], "reads sources.url, but its key is clip_id"),
        (
            "video_id",
            ["fetch_words.url", "name_words.word?"],
            "reads name_words.word, but its key is video_id, and rows of name_words can't be "
            "matched by video_id",
        ),
        (
            "source_key",
            ["fetch_words.url", "hear_video.heard"],
            "reads hear_video.heard, but its key is source_key",
        ),
        ("video_id", ["sources.url"], "reads sources.url, but its key is video_id"),
        ("video_id", [], "has the key video_id, but reads from no stage whose rows have it"),
        ("video_id", ["nothing.there?"], "has the key video_id, but reads from no stage"),
    ],
)
def test_stage_that_reads_rows_without_a_matching_key_is_refused(heard, key, reads, said):
    """Before, it got no rows at all, or null for each, or the run ended with a traceback."""
    data, settings, _ = heard
    own = data.folder / "lost.py"
    own.write_text(f"""
import pyarrow as pa
from clipmill.stages.protocol import Stage

class Lost(Stage):
    name = "lost"
    key = {key!r}
    reads = {tuple(reads)!r}
    writes = pa.schema([("found", pa.string())])
""")
    with pytest.raises(UsageError) as refused:
        data.run(*settings[:2], f"lost.stage={own}:Lost")
    assert f"stages.lost {said}" in str(refused.value)
