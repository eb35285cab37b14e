"""Near-duplicates within groups: those of a full comparison, however clips were added."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.subsets import near_within
from clipmill.pipeline.subsets.explain import explain_recipe
from clipmill.schemas.errors import UsageError
from clipmill.schemas.folders import COMPARED
from clipmill.stages.models.integer_vectors import directions
from tests.pipeline.subsets.test_rules import recipe_of, taken
from tests.scored_catalog import Clip, build, embeddings, own, random_clips

GROUPS = 5


def rule(**more) -> dict:
    values = {"by": "embedding", "min_cosine": 0.95, "within": "cluster", "prefer": "quality"}
    return {"deduplicate": {**values, **more}}


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Half of the clips are near to another one, in its group or in another; some lack a value."""
    rng = np.random.default_rng(3)
    found = random_clips(300, {"quality": (0.0, 1.0)})
    for number, clip in enumerate(found):
        vector = rng.normal(size=24)
        if number % 2:
            near = np.array(found[int(rng.integers(number))].vectors[0])
            vector = near / np.linalg.norm(near) + 0.06 * rng.normal(size=24)
        clip.vectors = [vector.tolist()]
        clip.values["quality"] = float(number * 37 % 300)
        clip.values["cluster"] = None if number % 29 == 5 else float(number // 2 % GROUPS)
    return found


def expected(clips: list[Clip], min_cosine: float = 0.95) -> list[str]:
    """By comparing all with all."""
    vectors = directions(np.array([clip.vectors[0] for clip in clips], np.float16))
    lengths = np.linalg.norm(vectors, axis=1)
    near = vectors @ vectors.T >= min_cosine * lengths[:, None] * lengths
    groups = np.array([clip.values["cluster"] for clip in clips], float)
    quality = np.array([clip.values["quality"] for clip in clips])
    near &= groups[:, None] == groups  # nan equals nothing
    gone = (near & (quality < quality[:, None])).any(axis=1)
    return sorted(clip.id for clip, is_gone in zip(clips, gone, strict=True) if not is_gone)


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory) -> Path:
    made = [embeddings(), own("cluster"), own("quality")]
    return build(tmp_path_factory.mktemp("within") / "whole", clips, made, shards=3)


@pytest.fixture
def part(whole, tmp_path) -> Path:
    """The dataset without its last shard."""
    leave_out = shutil.ignore_patterns("000002.parquet", ".compared")
    return Path(shutil.copytree(whole, tmp_path / "dataset", ignore=leave_out))


def complete(part: Path, whole: Path) -> None:
    for path in whole.rglob("000002.parquet"):
        shutil.copy2(path, part / path.relative_to(whole))


def there(clips: list[Clip], shards: tuple[int, ...]) -> list[Clip]:
    names = list(dict.fromkeys(clip.video for clip in clips))
    return [clip for clip in clips if names.index(clip.video) % 3 in shards]


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """How many embeddings each comparison has read."""
    found: list[int] = []

    class Counting(near_within.VectorStore):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            found.append(len(self))

    monkeypatch.setattr(near_within, "VectorStore", Counting)
    return found


def left(dataset: Path, folder: Path, *rules: dict) -> list[str]:
    with open_catalog(dataset, threads=2) as catalog:
        return taken(catalog, folder, *rules)


def test_new_shard_is_compared_with_what_is_there(clips, whole, part, tmp_path, read):
    first, last = there(clips, (0, 1)), there(clips, (2,))
    grouped = [clip for clip in last if clip.values["cluster"] is not None]
    assert left(part, tmp_path, rule()) == expected(first)
    complete(part, whole)
    assert left(part, tmp_path, rule()) == expected(clips) != sorted(clip.id for clip in clips)
    assert read[1:] == [len(grouped)]
    # Nothing is new: with another order, a higher cosine, fewer clips.
    best = {"where": "quality < 150"}
    assert left(part, tmp_path, rule(min_cosine=0.97)) == expected(clips, 0.97)
    assert left(part, tmp_path, best, rule()) == expected(
        [clip for clip in clips if clip.values["quality"] < 150]
    )
    assert len(read) == 2
    # The same without what was kept, and for a lower cosine, for which it doesn't suffice.
    shutil.rmtree(part / COMPARED)
    assert left(part, tmp_path, rule()) == expected(clips)
    assert left(part, tmp_path, rule(min_cosine=0.9)) == expected(clips, 0.9)
    assert len(read) == 4
    assert read[2:] == [sum(clip.values["cluster"] is not None for clip in clips)] * 2


@pytest.mark.slow
def test_group_of_many_near_clips_is_compared_each_time(
    clips, whole, part, tmp_path, read, monkeypatch
):
    monkeypatch.setattr(near_within, "_PAIRS_PER_CLIP", 0.1)
    monkeypatch.setattr(near_within, "_ROWS_AT_A_TIME", 7)
    assert left(part, tmp_path, rule()) == expected(there(clips, (0, 1)))
    complete(part, whole)
    for _ in range(2):
        assert left(part, tmp_path, rule()) == expected(clips)
    assert len(read) == 2


@pytest.mark.slow
def test_what_was_kept_is_not_used_where_it_may_not_hold(clips, whole, part, tmp_path, read):
    left(part, tmp_path, rule())
    (place,) = (part / COMPARED).iterdir()
    shard = part / "embed_clips" / "embed_clips-1" / "000001.parquet"
    shutil.copyfile(shard, tmp_path / "other")
    shutil.move(tmp_path / "other", shard)  # the same, written again
    assert left(part, tmp_path, rule()) == expected(there(clips, (0, 1)))
    (place / "000000" / "segment.json").write_text("{")
    (place / ".000001~12345678.tmp").mkdir()
    complete(part, whole)
    assert left(part, tmp_path, rule()) == expected(clips)
    assert len(set(read)) == 2
    assert sorted(path.name for path in place.iterdir()) == [".lock", "000000"]
    # Another command is at it: nothing is kept.
    with (place / ".lock").open("a") as file:
        near_within_lock(file)
        assert left(part, tmp_path, rule(min_cosine=0.9)) == expected(clips, 0.9)
    assert left(part, tmp_path, rule()) == expected(clips)
    assert len(read) == 4


def near_within_lock(file) -> None:
    from clipmill.schemas.file_locks import try_lock

    assert try_lock(file)


def test_group_too_large_to_compare_is_refused(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(near_within, "_MOST_COMPARISONS", 100.0)
    with pytest.raises(UsageError, match=r"rule 1 \(deduplicate\).*make more clusters"):
        left(whole, tmp_path, rule())
    with open_catalog(whole) as catalog, pytest.raises(UsageError, match="within"):
        explain_recipe(
            catalog, recipe_of(tmp_path, {"deduplicate": {"by": "bytes", "within": "1"}})
        )
