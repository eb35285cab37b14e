"""Rules that weigh and cap clips by the size of their group, as clusters are balanced."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.subsets.explain import explain_recipe
from clipmill.schemas.errors import UsageError
from tests.pipeline.subsets.test_rules import chance, ids, recipe_of, taken
from tests.scored_catalog import Clip, build, own, random_clips

SQRT = {"per": "cluster", "weight": "inverse_sqrt"}


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Clips in clusters of 1, 2, 4, 8 … clips, some in none."""
    found = random_clips(400, {"distance": (0.0, 1.0)})
    for number, clip in enumerate(found):
        clip.values["cluster"] = None if number % 40 == 7 else float((number + 1).bit_length())
    return found


@pytest.fixture(scope="module")
def catalog(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups") / "dataset"
    build(folder, clips, [own("cluster"), own("distance")])
    with open_catalog(folder, threads=2) as opened:
        yield opened


def sizes(clips: list[Clip]) -> Counter:
    return Counter(c.values["cluster"] for c in clips if c.values["cluster"] is not None)


@pytest.mark.parametrize("weight", ["inverse", "inverse_sqrt"])
def test_clips_of_large_groups_are_drawn_more_rarely(catalog, clips, tmp_path: Path, weight):
    """By 1 / n or 1 / √n of the clips that reach the rule; without a group, never."""
    reaching = [c for c in clips if c.seconds > 4]
    of_group = sizes(reaching)
    grouped = [c for c in reaching if c.values["cluster"] is not None]

    def key(clip: Clip) -> float:
        u = ((chance(clip.id, 42, 2) >> 11) + 0.5) / 2**53
        n = of_group[clip.values["cluster"]]
        return -math.log(u) * (math.sqrt(n) if weight == "inverse_sqrt" else n)

    rules = (
        {"where": "duration_seconds > 4"},
        {"sample": {"fraction": 0.4, **SQRT, "weight": weight}},
    )
    found = taken(catalog, tmp_path, *rules)
    assert found == ids(sorted(grouped, key=key)[: round(0.4 * len(grouped))])
    assert found == taken(catalog, tmp_path, *rules)
    assert found != taken(catalog, tmp_path, *rules, seed=43)


def test_share_of_the_largest_group_is_told(catalog, clips, tmp_path: Path):
    recipe = recipe_of(tmp_path, {"sample": {"clips": 60, **SQRT}})
    outcome = explain_recipe(catalog, recipe).outcomes[0]
    (note,) = outcome.notes
    of_group = sizes(clips)
    share = max(of_group.values()) / sum(of_group.values())
    assert note.startswith(f"{len(of_group)} groups by cluster: the largest had {share:.1%} of")
    assert float(note.rpartition(" ")[2].rstrip("%")) < 100 * share - 10
    assert outcome.nulls == len(clips) - sum(of_group.values())
    assert outcome.rule.describe() == "60 clips, weighted by 1 / √ clips per cluster"
    nobody = recipe_of(tmp_path, {"where": "cluster IS NULL"}, {"sample": {"clips": 1, **SQRT}})
    assert explain_recipe(catalog, nobody).outcomes[1].notes[-1] == "no clip has a cluster"


@pytest.mark.parametrize("descends", [False, True])
def test_share_of_each_group_is_kept_from_the_middle_or_the_edge(
    catalog, clips, tmp_path: Path, descends
):
    order = "distance DESC" if descends else "distance"
    found = taken(catalog, tmp_path, {"cap": {"per": "cluster", "fraction": 0.3, "by": order}})
    expected = []
    for group, n in sizes(clips).items():
        own_clips = [c for c in clips if c.values["cluster"] == group]
        known = [c for c in own_clips if c.values["distance"] is not None]
        known.sort(key=lambda c: c.values["distance"], reverse=descends)
        expected += known[: -(-3 * n // 10)]
    assert found == ids(expected)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"sample": {"clips": 5, "per": "cluster"}}, "belong together"),
        ({"sample": {"clips": 5, "weight": "inverse_sqrt"}}, "belong together"),
        ({"sample": {"clips": 5, "per": "clutser", "weight": "inverse"}}, "clutser"),
        ({"cap": {"per": "cluster"}}, "one of clips and fraction"),
        ({"cap": {"per": "cluster", "clips": 5, "fraction": 0.5}}, "one of clips and fraction"),
        ({"cap": {"per": "cluster", "fraction": 1.5}}, "fraction"),
    ],
)
def test_incomplete_group_rules_are_refused(catalog, tmp_path: Path, rule, told):
    with pytest.raises(UsageError, match=told):
        taken(catalog, tmp_path, rule)
