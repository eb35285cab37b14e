"""`explain` says what rules are worth, how scores correlate, and where recipes agree."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipmill
from clipmill.pipeline.subsets import worth
from clipmill.schemas.errors import UsageError
from tests.scored_catalog import Clip, aesthetic, build, embeddings, own, random_clips, similarity

COLUMNS = {"aesthetic": (3.0, 7.0), "similarity": (0.15, 0.6), "flow": (0.0, 3.0)}
FILTERS = """
rules:
  - {name: length, where: duration_seconds >= 5}
  - {name: pretty, where: aesthetic >= 4.5}
  - {name: fits, where: similarity >= 0.3}
"""
MIXED = """
rules:
  - {name: length, where: duration_seconds >= 5}
  - percentile: {column: aesthetic, top: 60}
  - {name: fits, where: similarity >= 0.3}
  - cap: {per: video_id, clips: 2, by: aesthetic DESC}
"""


def clips_with_links() -> list[Clip]:
    """Clips whose similarity follows from their aesthetics, except for noise."""
    clips, draw = random_clips(300, COLUMNS), random.Random(3)
    for number, clip in enumerate(clips):
        if None not in (clip.values["aesthetic"], clip.values["similarity"]):
            clip.values["similarity"] = clip.values["aesthetic"] / 14 + draw.uniform(0, 0.1)
        angle = draw.uniform(0, 2 * math.pi)
        clip.vectors = [[math.cos(angle), math.sin(angle)]]
        if number % 10 == 9:
            clip.vectors = clips[number - 1].vectors
    return clips


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return clips_with_links()


@pytest.fixture(scope="module")
def dataset(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = [embeddings(), aesthetic(), similarity(), own("flow")]
    return build(tmp_path_factory.mktemp("worth") / "dataset", clips, made)


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    def written(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return written


def shapley(numbers: Sequence[int], loss: Any) -> dict[int, float]:
    """By definition: the mean contribution over all orders."""
    orders = list(itertools.permutations(numbers))
    return {
        number: sum(
            loss(order[: order.index(number) + 1]) - loss(order[: order.index(number)])
            for order in orders
        )
        / len(orders)
        for number in numbers
    }


def loss_of_mixed(clips: Sequence[Clip], numbers: Sequence[int]) -> int:
    left = list(clips)
    for number in sorted(numbers):
        if number == 1:
            left = [clip for clip in left if clip.seconds >= 5]
        elif number == 2:
            values = sorted(v for clip in left if (v := clip.values["aesthetic"]) is not None)
            limit = values[math.floor(len(values) * 0.4)]
            left = [clip for clip in left if (clip.values["aesthetic"] or 0) >= limit]
        elif number == 3:
            left = [clip for clip in left if (clip.values["similarity"] or 0) >= 0.3]
        else:
            best = sorted(left, key=lambda clip: -(clip.values["aesthetic"] or 0))
            seen: dict[str, int] = {}
            left = []
            for clip in best:
                seen[clip.video] = seen.get(clip.video, 0) + 1
                left += [clip] if seen[clip.video] <= 2 else []
    return len(clips) - len(left)


def loss_of_filters(clips: Sequence[Clip], numbers: Sequence[int]) -> int:
    return sum(
        (1 in numbers and clip.seconds < 5)
        or (2 in numbers and (clip.values["aesthetic"] or 0) < 4.5)
        or (3 in numbers and (clip.values["similarity"] or 0) < 0.3)
        for clip in clips
    )


@pytest.mark.parametrize(("text", "loss"), [(FILTERS, loss_of_filters), (MIXED, loss_of_mixed)])
def test_worth_is_the_mean_over_all_orders(text, loss, dataset, clips, recipe):
    with clipmill.open(dataset) as opened:
        found = opened.explain(recipe(text), near=0)
    numbers = [rule["number"] for rule in found["funnel"]]
    whole = loss(clips, numbers)
    assert found["worth"]["method"] == "exact"
    assert found["worth"]["loss"]["clips"] == whole == len(clips) - found["result"]["clips"]
    wanted = shapley(numbers, lambda some: loss(clips, some))
    for rule in found["funnel"]:
        number, mine = rule["number"], rule["worth"]
        assert mine["shapley"]["clips"] == pytest.approx(wanted[number], abs=0.006)
        assert mine["share_of_loss"] == pytest.approx(wanted[number] / whole, abs=1e-4)
        without = loss(clips, [other for other in numbers if other != number])
        assert mine["only"]["clips"] == whole - without
    assert sum(rule["worth"]["shapley"]["hours"] for rule in found["funnel"]) == pytest.approx(
        found["worth"]["loss"]["hours"], abs=0.001
    )


CONDITIONS = [
    "duration_seconds >= 5",
    "aesthetic BETWEEN 3.5 AND 6.5",
    "CASE WHEN similarity > 0.4 AND flow > 1 THEN aesthetic > 4 ELSE true END",
    "(flow > 0.5 OR aesthetic > 4 AND similarity > 0.2)",
    "clip_id NOT LIKE '%x AND y%' /* AND not this */",
    'coalesce("similarity", 1) /* null passes */ > 0.2',
]


@pytest.mark.parametrize(
    "where",
    [
        " AND ".join(CONDITIONS),
        f"({CONDITIONS[0]} and ({CONDITIONS[1]}\nAnd {CONDITIONS[2]})) AND "
        + " AND ".join(CONDITIONS[3:]),
    ],
)
def test_joined_conditions_are_worth_what_separate_rules_are(where, dataset, recipe):
    rules = "rules:\n" + "".join(f"  - where: {json.dumps(one)}\n" for one in CONDITIONS)
    with clipmill.open(dataset) as opened:
        apart = opened.explain(recipe(rules), near=0)
        [rule] = opened.explain(where=where, near=0)["funnel"]
    joined = rule["worth"]["conditions"]
    assert len(joined) == len(CONDITIONS)
    for one, other in zip(joined, apart["funnel"], strict=True):
        assert one["takes"] == other["alone"]["takes"]["clips"]
        for key in ("only", "shapley", "share_of_loss"):
            assert one[key] == other["worth"][key]
    assert rule["worth"]["only"]["clips"] == apart["worth"]["loss"]["clips"]
    assert rule["worth"]["share_of_loss"] == 1
    if "\n" not in where:
        assert [one["says"] for one in joined] == CONDITIONS


@pytest.mark.parametrize(
    "where",
    [
        "aesthetic BETWEEN 3 AND 5",
        "aesthetic > 5 AND flow > 1 OR similarity > 0.5",
        "NOT (aesthetic > 5 AND flow > 1)",
        "caption_coarse IS NULL OR caption_coarse = 'a AND b'",
    ],
)
def test_conditions_that_are_one_are_not_split(where, dataset):
    with clipmill.open(dataset) as opened:
        [rule] = opened.explain(where=where, near=0)["funnel"]
    assert rule["worth"]["conditions"] == []


def test_conditions_are_played_against_rules_that_depend_on_others(dataset, clips, recipe):
    """Shares of a rule's conditions add up to its own, which is that of both at any place."""
    text = """
rules:
  - where: duration_seconds >= 5 AND similarity >= 0.3
  - percentile: {column: aesthetic, top: 60}
"""
    with clipmill.open(dataset) as opened:
        found = opened.explain(recipe(text), near=0)
        printed = opened.explain(recipe(text.replace(" AND ", "\n  - where: ")), near=0)
    joined = found["funnel"][0]["worth"]
    split = [rule["worth"]["shapley"]["clips"] for rule in printed["funnel"]]
    assert [one["shapley"]["clips"] for one in joined["conditions"]] == split[:2]
    assert joined["shapley"]["clips"] == pytest.approx(sum(split[:2]), abs=0.02)
    assert found["funnel"][1]["worth"]["shapley"]["clips"] == split[2]


def test_many_combinations_are_sampled_with_the_recipes_seed(dataset, clips, recipe, monkeypatch):
    monkeypatch.setattr(worth, "_MOST_APPLIED", 8)
    with clipmill.open(dataset) as opened:
        found, again = (opened.explain(recipe(MIXED), near=0) for _ in range(2))
    assert found == again
    assert found["worth"]["method"] == "sampled"
    assert f"{found['worth']['orders']} random orders" in found["worth"]["notes"][0]
    assert "seed 42" in found["worth"]["notes"][0]
    shares = [rule["worth"]["shapley"]["clips"] for rule in found["funnel"]]
    assert sum(shares) == pytest.approx(found["worth"]["loss"]["clips"], abs=0.05)
    wanted = shapley(range(1, 5), lambda some: loss_of_mixed(clips, some))
    assert shares == pytest.approx(list(wanted.values()), abs=30)


def test_duplicates_are_judged_once(dataset, recipe):
    text = FILTERS + "  - deduplicate: {by: embedding, min_cosine: 0.999999}\n"
    with clipmill.open(dataset) as opened:
        found = opened.explain(recipe(text), near=0)
    assert found["worth"]["method"] == "exact"
    assert found["worth"]["notes"] == ["rule 4: judged once, among all clips of the catalog"]
    assert found["funnel"][3]["worth"]["shapley"]["clips"] > 0


def test_scores_correlate_by_rank_over_the_clips_that_have_both(dataset, clips):
    with clipmill.open(dataset) as opened:
        found = opened.explain(where="aesthetic > 5", near=0, scores=True)["correlations"]
    assert found["clips"] == found["of_clips"] == len(clips)
    pairs = {tuple(sorted(pair["columns"])): pair for pair in found["pairs"]}
    pair = pairs["aesthetic", "similarity"]
    values = [
        (clip.values["aesthetic"], clip.values["similarity"])
        for clip in clips
        if None not in (clip.values["aesthetic"], clip.values["similarity"])
    ]
    ranks = [np.argsort(np.argsort(column)) for column in zip(*values, strict=True)]
    assert pair["clips"] == len(values)
    assert pair["nulls"] == len(clips) - len(values) > 0
    assert pair["spearman"] > 0.8
    assert pair["spearman"] == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-4)
    assert abs(pairs["aesthetic", "flow"]["spearman"]) < 0.2
    # Every clip has the same motion.
    assert pairs["aesthetic", "motion"]["spearman"] is None


def test_recipes_that_can_be_applied_are_compared(dataset, clips):
    with clipmill.open(dataset) as opened:
        found = opened.explain("internvid-aes", near=0, recipes=True)["recipes"]
    applied = {one["recipe"]: one for one in found["applied"]}
    nice = sum((clip.values["aesthetic"] or 0) >= 4 for clip in clips)
    assert next(iter(applied)) == "internvid-aes"
    assert applied["internvid-aes"]["kept"]["clips"] == nice
    assert applied["internvid-random"]["kept"]["clips"] == len(clips)
    pairs = {tuple(pair["recipes"]): pair for pair in found["pairs"]}
    pair = pairs["internvid-aes", "internvid-random"]
    assert pair["both"] == nice
    assert pair["jaccard"] == pytest.approx(nice / len(clips), abs=1e-4)
    unable = {one["recipe"]: one["missing"] for one in found["unable"]}
    missing = {one["column"]: one["stage"] for one in unable["open-sora"]}
    assert missing == {"aesthetic": "score_aesthetic", "flow_unimatch": None}
    assert not set(unable) & set(applied)
    [funnel] = [one for one in found["applied"] if one["recipe"] == "internvid-div"]
    assert (funnel["published_share"], funnel["published_verified"]) == (4.55, True)


def test_changed_recipe_is_compared_with_the_published_one(dataset, clips):
    with clipmill.open(dataset) as opened:
        found = opened.explain("internvid-aes", near=0, recipes=True, min_aesthetic=6)["recipes"]
    kept = {one["recipe"]: one["kept"]["clips"] for one in found["applied"]}
    assert 0 < kept["internvid-aes"] < kept["internvid-aes (as published)"]


PUBLISHED = """
published:
  of: a million clips
  source: nowhere
  verified: false
  steps:
    - {step: long enough, kept: 60.5, rule: length}
    - {step: by hand, kept: 12}
"""


def test_published_funnel_stands_next_to_ones_own(dataset, clips, recipe):
    with clipmill.open(dataset) as opened:
        found = opened.explain(recipe(FILTERS + PUBLISHED), near=0)
        with pytest.raises(UsageError, match="no rule is called 'lenght'; did you mean length"):
            opened.explain(recipe(FILTERS + PUBLISHED.replace("rule: length", "rule: lenght")))
    long_enough = sum(clip.seconds >= 5 for clip in clips)
    assert found["published"]["steps"] == [
        {
            "step": "long enough",
            "rule": 1,
            "published_share": 60.5,
            "share": pytest.approx(100 * long_enough / len(clips), abs=1e-3),
        },
        {"step": "by hand", "rule": None, "published_share": 12.0, "share": None},
    ]


def test_published_funnel_is_on_the_data_card_and_in_the_report(dataset, clips, recipe, tmp_path):
    with clipmill.open(dataset) as opened:
        card = opened.create_subset(recipe(FILTERS + PUBLISHED), name="compared").card()
        opened.report(tmp_path / "report.html", subset="compared")
    own_share = f"{100 * sum(clip.seconds >= 5 for clip in clips) / len(clips):.3g}%"
    assert re.search(rf"\| long enough *\| *1 \| *60.5% \| *{own_share} \|", card)
    assert "nowhere, unverified" in card
    page = (tmp_path / "report.html").read_text()
    assert (
        f"here {own_share} of all are left; 60.5% where the recipe was published (unverified)"
        in page
    )
