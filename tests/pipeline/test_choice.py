"""Runs of what was chosen: only that is done, and a wider choice does only what is new."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

import clipmill
from clipmill.pipeline.dataset.choices import choice_files
from clipmill.pipeline.dataset.shards import ShardWriter
from clipmill.pipeline.subsets.choosing import choose_sources
from clipmill.schemas.errors import UsageError
from tests.download_helpers import make_video
from tests.pipeline.counting_stages import STAGES

OWN_TIMES = {"downloaded_at", "at", "attempts"}


class World:
    """Local videos, three clips each, with stages that note what they are given."""

    def __init__(self, folder: Path, videos: int = 4) -> None:
        self.folder, self.log = folder, folder / "log.txt"
        for number in range(videos):
            (folder / f"{number}.mp4").write_bytes(make_video(3.0, seed=number))
        (folder / "list.txt").write_text("".join(f"{n}.mp4\n" for n in range(videos)))
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(
            yaml.safe_dump(
                {
                    "engine": "local",
                    "shard_videos": 2,
                    "sources": [{"path": "list.txt"}],
                    "stages": {
                        "download_videos": {"min_duration_seconds": 1, "min_height": 16},
                        "split_clips": {"boundaries": "whole", "max_clip_seconds": 1},
                        **{name: {**given, "log": str(self.log)} for name, given in STAGES.items()},
                    },
                },
                sort_keys=False,
            )
        )

    def run(self, name: str = "dataset", **asked: Any) -> clipmill.RunResult:
        return clipmill.run(self.recipe, dataset=self.folder / name, **asked)

    def calls(self) -> Counter[str]:
        """How often each stage was given each clip since the last call."""
        found = Counter(self.log.read_text().splitlines()) if self.log.exists() else Counter()
        self.log.unlink(missing_ok=True)
        return found


def rows_of(dataset: Path) -> dict[str, list[dict[str, Any]]]:
    """The newest rows of each table and fingerprint, without skipped rows and times of the run."""
    found: dict[str, dict[Any, dict[str, Any]]] = {}
    for path in sorted(dataset.glob("*/*/[0-9]*.parquet")):
        table = "/".join(path.parts[-3:-1])
        if table.startswith("frames/"):
            continue
        newest: dict[Any, list[dict[str, Any]]] = {}
        for row in pq.read_table(path).to_pylist():
            if (row.get("rejection") or {}).get("rule") != "skipped":
                plain = {name: value for name, value in row.items() if name not in OWN_TIMES}
                newest.setdefault(next(iter(row.values())), []).append(plain)
        found.setdefault(table, {}).update(newest)
    return {table: sorted(rows.items()) for table, rows in found.items()}


def counts(result: clipmill.RunResult, stage: str) -> list[int]:
    names = ("inputs", "kept", "rejected", "failed", "skipped", "not_asked", "pending")
    return [result[stage][name] for name in names]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """Datasets `whole`, from an undisturbed run, and `split`, which has only clips."""
    world = World(tmp_path_factory.mktemp("world"))
    world.run("whole")
    world.calls()
    world.run("split", until="split_clips")
    return world


@pytest.fixture
def split(world, tmp_path) -> str:
    """A copy of `split` that may be changed."""
    return str(shutil.copytree(world.folder / "split", tmp_path / "dataset"))


@pytest.mark.slow
def test_a_wider_choice_does_only_what_is_new(world, split):
    """Chosen clips, then more, then all: each clip once, and the rows of an undisturbed run."""
    first = world.run(split, where="start_seconds < 1 AND brightness IS NOT NULL")
    assert set(world.calls().values()) == {1}
    assert counts(first, "rate_clips") == [12, 4, 0, 0, 8, 8, 0]
    assert first.dataset.verify().faults == []
    said = first.dataset.sql("SELECT DISTINCT detail FROM skipped").fetchall()
    assert said == [("not asked for: --where start_seconds < 1 AND brightness IS NOT NULL",)]
    assert first.dataset.sql("SELECT count(joined) FROM clips").fetchall() == [(4,)]

    second = world.run(split, where="start_seconds < 2")
    assert len(calls := world.calls()) == 3 * 4
    assert set(calls.values()) == {1}
    assert counts(second, "join_words") == [8, 8, 0, 0, 0, 0, 0]
    again = world.run(split, where="start_seconds < 2")
    assert not again.did_anything
    assert not world.calls()

    last = world.run(split)
    assert len(calls := world.calls()) == 3 * 4
    assert set(calls.values()) == {1}
    assert counts(last, "join_words") == [12, 12, 0, 0, 0, 0, 0]
    assert last.dataset.verify().faults == []
    assert rows_of(last.dataset.path) == rows_of(world.folder / "whole")
    assert not world.run(split).did_anything


@pytest.mark.slow
def test_choice_also_holds_for_rows_that_an_earlier_run_let_in(world, tmp_path):
    """Most videos were let in after a sample, by a request, before there was a stage to choose
    for."""
    name = str(tmp_path / "dataset")
    world.run(name, until="split_clips", sample=1)
    world.run(name, until="split_clips")
    result = world.run(name, where="start_seconds < 1")
    assert len(world.calls()) == 3 * 4
    assert counts(result, "rate_clips") == [12, 4, 0, 0, 8, 8, 0]
    last = world.run(name)
    assert len(calls := world.calls()) == 3 * 8
    assert set(calls.values()) == {1}
    assert counts(last, "rate_clips") == [12, 12, 0, 0, 0, 0, 0]
    assert rows_of(last.dataset.path) == rows_of(world.folder / "whole")
    assert last.dataset.verify().faults == []


def test_shards_without_a_chosen_row_are_not_touched(world, split):
    videos = "SELECT DISTINCT video_id, url FROM clips ORDER BY url"
    [(video, _), *_] = clipmill.open(split).sql(videos).fetchall()
    result = world.run(split, where=f"video_id = '{video}'")
    assert counts(result, "rate_clips") == [12, 3, 0, 0, 9, 9, 0]
    assert result["rate_clips"]["shards_total"] == 1
    detail = f"not asked for: --where video_id = '{video}'"
    assert result.status["skipped"] == [
        {"stage": stage, "detail": detail, "count": 9} for stage in ("rate_clips", "title_clips")
    ]
    assert len(list(result.dataset.path.glob("rate_clips/*/*.parquet"))) == 1
    report = result.dataset.verify()
    assert (report.faults, report.pending) == ([], 0)
    world.calls()


@pytest.mark.slow
def test_gates_let_in_only_what_is_asked_for(world, split):
    gate = {"title_clips.where": "start_seconds >= 1"}
    first = world.run(split, where="start_seconds < 1", settings=gate)
    assert counts(first, "rate_clips") == [12, 4, 0, 0, 8, 8, 0]
    assert counts(first, "title_clips") == [12, 0, 0, 0, 12, 8, 0]
    second = world.run(split, where="start_seconds < 2", settings=gate)
    assert counts(second, "title_clips") == [12, 4, 0, 0, 8, 4, 0]
    third = world.run(split, where="start_seconds < 2")  # without the gate
    assert counts(third, "title_clips") == [12, 8, 0, 0, 4, 4, 0]
    assert third.dataset.verify().faults == []
    last = world.run(split)
    assert counts(last, "join_words") == [12, 12, 0, 0, 0, 0, 0]
    assert Counter(world.calls().values()) == {1: 3 * 12}
    assert rows_of(last.dataset.path) == rows_of(world.folder / "whole")
    assert last.dataset.verify().faults == []


@pytest.mark.slow
def test_a_sample_of_sources_is_part_of_the_dataset(world):
    """Drawn with a seed; a larger one holds the smaller one."""
    result = world.run("sampled", sample=1)
    assert counts(result, "download_videos") == [4, 1, 0, 0, 3, 3, 0]
    assert set(world.calls().values()) == {1}
    drawn = []
    for seed in (0, *range(20)):
        choice = choose_sources(result.dataset.path, 1, seed)
        drawn += [choice.of(shard).sources for shard in choice.shards]
    assert drawn[0] == drawn[1]
    assert len(set(map(frozenset, drawn))) > 1
    wider = world.run("sampled", sample=3)
    assert counts(wider, "download_videos") == [4, 3, 0, 0, 1, 1, 0]
    assert len(calls := world.calls()) == 3 * 3 * 2
    assert set(calls.values()) == {1}
    whole = world.run("sampled")
    assert len(world.calls()) == 3 * 3
    assert rows_of(whole.dataset.path) == rows_of(world.folder / "whole")
    with pytest.raises(UsageError, match="--sample 5: the dataset has only 4 sources"):
        world.run("sampled", sample=5)


def test_the_clips_of_a_frozen_subset(world, split):
    data = clipmill.open(split)
    data.create_subset(where="start_seconds >= 2", name="late")
    result = world.run(split, subset="late")
    assert counts(result, "rate_clips") == [12, 4, 0, 0, 8, 8, 0]
    world.calls()
    with pytest.raises(UsageError, match="no subset 'lata'; did you mean late"):
        world.run(split, subset="lata")


def test_a_retry_keeps_to_the_choice(world, split):
    """It adds only failed rows, not those that nobody has asked for."""
    world.run(split, where="start_seconds < 1")
    world.calls()
    assert not clipmill.retry(split).did_anything
    assert not world.calls()


def test_what_can_not_be_chosen_is_said(world, split):
    for asked, said in (
        ({"where": "start_seconds > 99"}, "true for none of 12 clips"),
        ({"where": "start_secs > 1"}, 'start_secs" not found.*start_seconds'),
        ({"where": "  "}, "--where is empty"),
        ({"where": "start_seconds"}, "is DOUBLE, not true or false"),
        ({"where": "true", "subset": "x"}, "--where and --subset: give one of them"),
        ({"where": "true", "sample": 3}, "--where and --sample: give one of them"),
        ({"where": "true", "limit": 3}, "--limit with --where true"),
        ({"subset": "x"}, "no subset 'x'"),
        (
            {"where": "true", "settings": {"split_clips.max_clip_seconds": 2}},
            "12 clips were made with other settings of split_clips",
        ),
    ):
        with pytest.raises(UsageError, match=rf"(?s){said}"):
            world.run(split, **asked)
    with pytest.raises(UsageError, match="no clips to choose from yet"):
        world.run("empty", where="true")
    assert choice_files(Path(split)) == []


class Killed(BaseException):
    """Simulates SIGKILL: no later code of the run does anything."""


def killed_after(monkeypatch: pytest.MonkeyPatch, commits: int, act: Callable[[], Any]) -> None:
    """Calls `act`, which dies when it would commit one file more."""
    done, show = [0], ShardWriter.show

    def die_later(self: ShardWriter) -> None:
        if done[0] == commits:
            raise Killed
        done[0] += 1
        show(self)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "show", die_later)
        with pytest.raises(Killed):
            act()


def test_killed_runs_of_choices_leave_the_same_rows(world, split, monkeypatch):
    """Killed in the middle of a choice, of a wider one, and of all that is left."""
    choices = ({"where": "start_seconds < 1"}, {"where": "start_seconds < 2"}, {})
    for number, asked in enumerate(choices):
        killed_after(monkeypatch, 1 + number, lambda asked=asked: world.run(split, **asked))
    assert world.run(split).did_anything
    assert not world.run(split).did_anything
    calls = world.calls()
    assert len(calls) == 3 * 12
    assert rows_of(Path(split)) == rows_of(world.folder / "whole")
    assert clipmill.open(split).verify().faults == []
