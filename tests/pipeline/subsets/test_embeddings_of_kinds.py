"""Rules and searches over embeddings of clips, images and texts in one dataset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import clipmill
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.schemas.errors import UsageError
from clipmill.stages.embed_images import EFFICIENTNET_LITE0, NEAR_DUPLICATES
from clipmill.stages.embed_texts import MINILM
from tests.in_process import heard
from tests.pipeline.subsets.test_rules import ids, taken
from tests.scored_catalog import Clip, Made, aesthetic, build, embeddings

WIDTH = 32


def images(label: str = "embed_images") -> Made:
    return Made(label, "embed_images", models={"weights": str(EFFICIENTNET_LITE0)})


def texts(label: str = "embed_texts") -> Made:
    return Made(label, "embed_texts", models={"model": str(MINILM)})


def with_identity(dataset: Path, stage: str, setting: str, identity: str, **settings) -> None:
    """Corrects what the run's record says of a stage's model."""
    path = dataset / "runs/r1.json"
    record = json.loads(path.read_text())
    for one in record["stages"]:
        if one["name"] == stage:
            one["models"][setting]["identity"] = identity
            one["settings"] |= settings
    path.write_text(json.dumps(record))


def turned(vector: np.ndarray, cosine: float, seed: int) -> list[list[float]]:
    """One vector with this cosine."""
    other = np.random.default_rng(seed).normal(size=len(vector))
    other -= other @ vector * vector
    other /= np.linalg.norm(other)
    return [(cosine * vector + (1 - cosine**2) ** 0.5 * other).tolist()]


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Pairs: each kind of embedding says of other pairs that they are near."""
    draw, found = np.random.default_rng(2), []
    for number in range(24):
        for copy in range(2):
            clip = Clip(f"generic-v{number}", copy * 2.0, copy * 2.0 + 1)
            clip.caption = f"caption {number} {copy}"
            clip.values["aesthetic"] = copy
            for kind, label in enumerate(("embed_clips", "embed_images", "embed_texts")):
                near = number % 3 == kind
                if copy and near:
                    before = np.array(found[-1].vectors_of[label][0])
                    clip.vectors_of[label] = turned(before, 0.97, number)
                else:
                    vector = draw.normal(size=WIDTH)
                    clip.vectors_of[label] = [(vector / np.linalg.norm(vector)).tolist()]
            found.append(clip)
    found[0].vectors_of["embed_texts"] = None
    return found


@pytest.fixture(scope="module")
def dataset(clips, tmp_path_factory) -> Path:
    folder = build(
        tmp_path_factory.mktemp("kinds") / "dataset",
        clips,
        [embeddings(), images(), texts(), aesthetic()],
    )
    with_identity(folder, "embed_images", "weights", EFFICIENTNET_LITE0.identity())
    with_identity(folder, "embed_texts", "model", MINILM.identity())
    return folder


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ({"by": "embedding", "min_cosine": 0.95}, 0),
        ({"by": "embedding", "min_cosine": 0.95, "embeddings": "embed_images"}, 1),
        ({"by": "embedding", "embeddings": "embed_images"}, 1),
        ({"by": "text", "min_cosine": 0.95}, 2),
        ({"by": "text"}, 2),
        ({"by": "embedding", "min_cosine": 0.95, "embeddings": "embed_texts"}, 2),
    ],
)
def test_near_duplicates_are_removed_by_each_kind(clips, dataset, tmp_path, rule, kind):
    """embed_clips comes first, and min_cosine may be left out where it was measured."""
    with open_catalog(dataset) as catalog:
        found = taken(catalog, tmp_path, {"deduplicate": {**rule, "prefer": "aesthetic"}})
    assert found == ids(
        clip for number, clip in enumerate(clips) if number % 2 == 0 or number // 2 % 3 != kind
    )


def test_a_threshold_that_was_not_measured_is_asked_for(dataset, tmp_path):
    with open_catalog(dataset) as catalog:
        with pytest.raises(UsageError, match=r"min_cosine is needed.*embed_clips depends"):
            taken(catalog, tmp_path, {"deduplicate": {"by": "embedding"}})
        with pytest.raises(UsageError, match="no step 'embed_x'; available: embed_texts"):
            taken(catalog, tmp_path, {"deduplicate": {"by": "text", "embeddings": "embed_x"}})


def test_the_measured_threshold_is_said(dataset):
    with clipmill.open(dataset) as opened:
        rules = [{"deduplicate": {"by": "embedding", "embeddings": "embed_images"}}]
        path = dataset.parent / "near.yaml"
        path.write_text(json.dumps({"rules": rules}))
        (rule,) = opened.explain(str(path))["funnel"]
    assert rule["notes"] == [
        f"min_cosine is {NEAR_DUPLICATES[EFFICIENTNET_LITE0.identity()]:g}, as measured for the "
        "model of embed_images"
    ]


def test_embeddings_have_a_view_of_their_own(dataset):
    with clipmill.open(dataset) as opened:
        rows = opened.sql("SELECT stage, count(*), count(embeddings) FROM embeddings GROUP BY ALL")
        assert sorted(rows.fetchall()) == [
            ("embed_clips", 48, 48),
            ("embed_images", 48, 48),
            ("embed_texts", 48, 47),
        ]
        columns = opened.sql("SELECT * FROM clips LIMIT 0").columns
    assert "embeddings_truncated" in columns
    assert not {"embeddings", "embed_texts_embeddings", "embedding_seconds"} & set(columns)


def test_clips_like_another_are_found(clips, dataset, capfd):
    """By any stage: its pair, then others in the order of their cosines."""
    with clipmill.open(dataset) as opened:
        for kind, label in enumerate(("embed_clips", "embed_images", "embed_texts")):
            one, other = clips[2 * (3 + kind)], clips[2 * (3 + kind) + 1]
            found = opened.search(like=one.id, by=label, limit=5)
            assert found[0]["clip_id"] == other.id
            assert found[0]["search_cosine"] == pytest.approx(0.97, abs=0.002)
            vectors = np.array([(c.vectors_of[label] or [[0.0] * WIDTH])[0] for c in clips])
            expected = np.sort(vectors @ vectors[clips.index(one)])[::-1][1:6]
            cosines = [row["search_cosine"] for row in found]
            np.testing.assert_allclose(cosines, expected, atol=2e-3)
    words = ("search", dataset, "--like", clips[6].id, "--by", "embed_clips", "--limit", 1)
    done = heard(capfd, *words, "--where", "aesthetic = 1", "--format", "json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["clip_id"], row["caption"]) == (clips[7].id, clips[7].caption)
    done = heard(capfd, *words)
    assert clips[7].id in done.stdout
    done = heard(capfd, *words, "--where", "false")
    assert done.returncode == 0
    assert "search_cosine" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give words to search for, or a clip's id with --like"),
        (("--like", "x"), "--like x: embed_clips has no embedding of a clip with this id"),
        (("a dog", "--by", "embed_images"), "embeddings of pictures alone"),
        (("a dog", "--by", "embed_x"), "no step 'embed_x'; available: embed_clips, embed_images"),
        (("--like", "generic-v1-0-1000", "--where", "aesthetic >"), "syntax error"),
        (("--like", "generic-v1-0-1000", "--where", "true; DROP TABLE runs"), "syntax error"),
    ],
)
def test_wrong_searches_say_what_to_do(dataset, capfd, words, said):
    done = heard(capfd, "search", dataset, *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_words_need_embeddings_that_have_words(clips, tmp_path):
    dataset = build(tmp_path / "dataset", clips[:2], [images()])
    with (
        clipmill.open(dataset) as opened,
        pytest.raises(UsageError, match=r"no embed_texts; add it with .*embed_texts\.stage"),
    ):
        opened.search("a dog")
