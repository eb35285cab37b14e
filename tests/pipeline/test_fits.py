"""What a stage finds once in the rows of all shards: kept, used by later shards, found anew."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from clipmill.pipeline.dataset import fits
from clipmill.pipeline.dataset.fits import fit_files, read_fit
from clipmill.pipeline.dataset.locks import Hold
from clipmill.pipeline.engine import fitting, gated_run
from clipmill.pipeline.removal.under_lock import remove_videos
from clipmill.pipeline.run import plan_run
from clipmill.pipeline.status import status_report
from clipmill.pipeline.subsets.wishes import Wish
from clipmill.pipeline.verify import verify
from clipmill.pipeline.verify.repair import verify_and_repair
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.folders import COMPARED
from tests.pipeline.conftest import Words
from tests.pipeline.test_gates import killed_after

OWN = Path(__file__).parent / "embedding_stages.py"
STAGES = (
    f"embed_words.stage={OWN}:EmbedWords",
    "cluster_clips.stage=cluster_clips",
    "cluster_clips.embeddings=embed_words",
)
SETTINGS = (*STAGES, "cluster_clips.clusters=3")


def clusters(data: Words, *settings: str) -> dict[str, tuple]:
    return {
        row["clip_id"]: (row["cluster"], row["cluster_distance"], row["cluster_reason"])
        for row in data.table("cluster_clips", *(settings or SETTINGS))
    }


def more(data: Words, *sources: str) -> Words:
    """The same dataset with further sources."""
    urls = [
        f"https://{source.partition('?')[0]}.test/?{source.partition('?')[2]}" for source in sources
    ]
    return dataclasses.replace(data, urls=[*data.urls, *urls])


def test_clusters_are_found_once_and_kept_for_later_shards(words, capfd):
    data = words(*(f"{name}?clips=6" for name in "abcd"), shard_videos=1)
    data.run(*SETTINGS)
    assert "cluster_clips begins when all shards have been through" in capfd.readouterr().err
    before = clusters(data)
    assert len(before) == 24
    by_topic = {(int(clip[-1]) % 3, cluster) for clip, (cluster, *_) in before.items()}
    assert len(by_topic) == 3
    assert {cluster for _, cluster in by_topic} == {0, 1, 2}
    assert all(0 < away < 0.1 and why is None for _, away, why in before.values())
    (file,) = fit_files(data.dataset)
    fit, table = read_fit(file)
    assert (fit.rows, table.num_rows, table["clips"].to_pylist()) == (24, 3, [8, 8, 8])
    (stage,) = [one for one in data.records()[-1]["stages"] if one["stage"] == "cluster_clips"]
    assert stage["fit"] == {"file": fit.file, "run_id": fit.run_id, "rows": 24, "found": 3}
    assert not data.run(*SETTINGS)

    # New shards are assigned to the same centres, without a phase of their own.
    later = more(data, "e?clips=3", "f?clips=3&none=embed", "g?clips=90&topic=1")
    later.run(*SETTINGS)
    said = capfd.readouterr().err
    assert "begins when" not in said
    assert "cluster_clips was fitted to 24 rows, and there are about 120 now" in said
    assert "--set cluster_clips.fit=2" in said
    after = clusters(later)
    assert {clip: after[clip] for clip in before} == before
    assert [after[f"v-e-{i}"][0] for i in range(3)] == [before[f"v-a-{i}"][0] for i in range(3)]
    assert after["v-f-0"] == (None, None, "the clip has no embedding")
    assert read_fit(file)[0] == fit
    assert verify(data.dataset).faults == []

    # A higher `fit` finds them again, among all clips.
    anew = (*SETTINGS, "cluster_clips.fit=2")
    later.run(*anew)
    assert clusters(later, *anew) != after
    assert sorted(read_fit(one)[0].rows for one in fit_files(data.dataset)) == [24, 120]
    assert verify(data.dataset).faults == []
    # And the former ones are still there.
    assert not later.run(*SETTINGS)


def test_fitting_is_progress_and_counts_for_the_budget(words, monkeypatch):
    data = words("a?clips=5", "b?clips=5", shard_videos=1)
    reported: list[tuple[str, float]] = []
    moves: list[Hold] = []
    monkeypatch.setattr(fitting, "_REPORT_SECONDS", 0)
    moved, fit_step = Hold.moved, gated_run.fit_step

    def counted(hold):
        moves.append(hold)
        moved(hold)

    def watched(*args):
        *others, report = args

        def noted(label, counts):
            reported.append((label, counts["cpu_seconds"]))
            before = len(moves)
            report(label, counts)
            assert len(moves) == before + 1

        return fit_step(*others, noted)

    monkeypatch.setattr(Hold, "moved", counted)
    monkeypatch.setattr(gated_run, "fit_step", watched)
    data.run(*SETTINGS)
    assert {label for label, _ in reported} == {"cluster_clips"}
    assert len(reported) > 2  # more than the shards that are read: what is computed, too
    assert all(spent >= 0 for _, spent in reported)
    assert sum(spent for _, spent in reported) > 0


@pytest.mark.slow
def test_kill_between_fit_and_shards_leaves_the_same_rows(words, monkeypatch, tmp_path):
    sources = ("a?clips=5", "b?clips=5", "c?clips=2&fail=embed")
    quiet = words(*sources, shard_videos=1)
    quiet.run(*SETTINGS)
    data = dataclasses.replace(quiet, folder=tmp_path / "killed")
    data.folder.mkdir()
    killed_after(monkeypatch, 19, lambda: data.run(*SETTINGS))
    assert len(fit_files(data.dataset)) == 1
    assert len(data.shards("cluster_clips", *SETTINGS)) == 1
    with monkeypatch.context() as patch:  # it is not found again
        patch.setattr(gated_run, "fit_step", None)
        data.run(*SETTINGS)
    assert clusters(data) == clusters(quiet)
    assert verify(data.dataset).faults == []
    # A kill before it is stored: nothing is left behind.
    other = dataclasses.replace(quiet, folder=tmp_path / "other")
    other.folder.mkdir()
    killed_after(monkeypatch, 0, lambda: other.run(*SETTINGS), fits, "_written")
    assert fit_files(other.dataset) == []
    other.run(*SETTINGS)
    assert clusters(other) == clusters(quiet)
    assert verify(other.dataset).faults == []
    # A retry's rows are assigned to the centres that are there.
    (tmp_path / "mend").touch()
    data.run(*SETTINGS, f"embed_words.mend_file={tmp_path / 'mend'}", retry_kinds=["model"])
    assert clusters(data)["v-c-1"][0] == clusters(data)["v-a-1"][0]
    assert verify(data.dataset).faults == []


@pytest.mark.slow
def test_lost_or_damaged_fit_is_named_and_made_again_with_its_shards(words):
    data = words("a?clips=5", "b?clips=5", shard_videos=1)
    data.run(*SETTINGS)
    before = clusters(data)
    (file,) = fit_files(data.dataset)
    later = more(data, "c?clips=3")
    for harm, check in ((Path.unlink, "missing"), (spoil, "unreadable")):
        harm(file)
        with pytest.raises(ClipmillError, match="cluster_clips") as caught:
            later.run(*SETTINGS)
        assert file.name in str(caught.value)
        (fault,) = verify(data.dataset).faults
        assert (fault.check, fault.where) == (check, file.relative_to(data.dataset).as_posix())
        assert len(verify_and_repair(data.dataset).repaired.awaited) >= 2
        later.run(*SETTINGS)
        assert verify(data.dataset).faults == []
    after = clusters(later)
    assert len({(before[clip][0], after[clip][0]) for clip in before}) == 3


def spoil(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[40:60] = bytes(20)
    file.write_bytes(data)


def test_clips_without_embeddings_have_no_cluster_and_fit_nothing(words):
    data = words("a?clips=2&none=embed")
    data.run(*STAGES)
    assert fit_files(data.dataset) == []
    assert set(clusters(data, *STAGES).values()) == {(None, None, "the clip has no embedding")}
    # The number of clusters depends on the clips that have embeddings.
    later = more(data, "b?clips=90", "c?clips=10")
    later.run(*STAGES)
    (file,) = fit_files(data.dataset)
    assert read_fit(file)[1].num_rows == 10
    assert verify(data.dataset).faults == []


def test_removed_videos_leave_no_centre_of_their_own(words):
    settings = (f"cut_words.stage={OWN}:CutClips", *SETTINGS)
    data = words("a?clips=4&topic=0", "b?clips=4&topic=1", "c?clips=1&topic=2", shard_videos=1)
    data.run(*settings)
    found = clusters(data, *settings)
    (alone,) = {cluster for clip, (cluster, *_) in found.items() if clip.startswith("v-c")}
    (data.dataset / COMPARED / "step").mkdir(parents=True)
    remove_videos(data.dataset, ["v-c"])
    assert not (data.dataset / COMPARED).exists()
    (file,) = fit_files(data.dataset)
    _, table = read_fit(file)
    assert [row["cluster"] for row in table.to_pylist() if row["centre"] is None] == [alone]
    # A clip that would be nearest to it goes to one that is left.
    later = more(data, "d?clips=1&topic=2")
    later.run(*settings)
    assert clusters(later, *settings)["v-d-0-1000"][0] not in (None, alone)
    assert verify(data.dataset).faults == []


def test_dry_run_fits_nothing_and_counts_what_is_pending(words):
    data = words("a?clips=2")
    data.run(*STAGES[:1])
    plan = plan_run(data.loaded(*SETTINGS), data.dataset)
    assert [stage.stage for stage in plan.stages if stage.rows][-1] == "cluster_clips"
    assert fit_files(data.dataset) == []
    status = {one["stage"]: one for one in status_report(data.dataset)["stages"]}
    assert "cluster_clips" not in status


@pytest.mark.slow
def test_sample_fits_to_its_rows_and_the_rest_of_the_run_keeps_to_it(words, capfd):
    data = words(*(f"{name}?clips=5" for name in "abcdef"), shard_videos=2)
    data.run(*SETTINGS, wish=Wish(sample=1))
    (file,) = fit_files(data.dataset)
    assert read_fit(file)[0].rows == 5
    before = {clip: found for clip, found in clusters(data).items() if found[0] is not None}
    assert len(before) == 5
    data.run(*SETTINGS)
    assert "was fitted to 5 rows, and there are about 30 now" in capfd.readouterr().err
    after = {clip: found for clip, found in clusters(data).items() if found[0] is not None}
    assert len(after) == 30
    assert {clip: after[clip] for clip in before} == before
    assert verify(data.dataset).faults == []


@pytest.mark.slow  # starts Ray, which opens stages in other processes
def test_clusters_do_not_depend_on_the_engine_or_the_order_of_shards(words, tmp_path):
    here = words(*(f"{name}?clips=5" for name in "abcdef"), shard_videos=2)
    there = dataclasses.replace(here, folder=tmp_path / "there")
    there.folder.mkdir()
    here.run(*SETTINGS)
    there.run(*SETTINGS, engine="ray")
    assert clusters(there) == clusters(here)
    assert verify(there.dataset).faults == []
