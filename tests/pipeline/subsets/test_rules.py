"""Each rule selects exactly what it describes, with the same result on every machine."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml

from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.subsets.candidates import CANDIDATES, read_candidates
from clipmill.pipeline.subsets.explain import explain_recipe
from clipmill.pipeline.subsets.freeze import create_subset
from clipmill.pipeline.subsets.rule_engine import RuleEngine
from clipmill.pipeline.subsets.shares import equal, proportional
from clipmill.pipeline.subsets.subset_recipe import load_subset_recipe
from clipmill.schemas.errors import UsageError
from clipmill.stages.hash_frames import FRAME_HASHES
from tests.scored_catalog import Clip, aesthetic, build, embeddings, random_clips, similarity
from tests.synthetic import write_shard

LANGUAGES = ("en", "de", None, "no")
CATEGORIES = ("sport", "travel", "news")


def videos_of(clips: list[Clip]) -> dict[str, dict]:
    names = dict.fromkeys(clip.video for clip in clips)
    return {
        name: {
            "language": LANGUAGES[i % 4],
            "category": CATEGORIES[i % 3],
            "license": "cc-by" if i % 5 == 0 else None,
            "sha256": f"{i % 40:064x}",
        }
        for i, name in enumerate(names)
    }


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    found = random_clips(600, {"similarity": (0.0, 0.5), "aesthetic": (2.0, 8.0)})
    for clip in found[::50]:
        clip.values["aesthetic"] = math.nan
    return found


@pytest.fixture(scope="module")
def dataset(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(
        tmp_path_factory.mktemp("rules") / "dataset",
        clips,
        [embeddings(), similarity(), aesthetic()],
        videos=videos_of(clips),
    )


def recipe_of(folder: Path, *rules: dict, **top):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"rules": list(rules), **top}))
    return load_subset_recipe(path)


@pytest.fixture(scope="module")
def catalog(dataset: Path):
    with open_catalog(dataset, threads=2) as opened:
        yield opened


def taken(catalog: Catalog, folder: Path, *rules: dict, **top) -> list[str]:
    """The ids of the clips that remain after applying the rules."""
    recipe = recipe_of(folder, *rules, **top)
    candidates = read_candidates(catalog, recipe, {})
    with RuleEngine(candidates) as engine:
        tables = [target for _, _, target in engine.funnel(recipe.rules)]
        rows = catalog.connection.execute(
            f"SELECT clip_id FROM {CANDIDATES} AS c SEMI JOIN {tables[-1]} AS t ON c.rowid = t.id"
        ).fetchall()
    return sorted(clip for (clip,) in rows)


def ids(clips) -> list[str]:
    return sorted(clip.id for clip in clips)


def chance(clip: str, seed: int, rule: int) -> int:
    """The lower half of the MD5 of id, seed and rule number, first byte first."""
    digest = hashlib.md5(f"{clip}:{seed}:{rule}".encode()).digest()
    return int.from_bytes(digest[8:], "little")


def has(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def test_where_treats_null_as_false(catalog, clips, tmp_path: Path):
    expected = [
        c
        for c in clips
        if has(c.values["similarity"]) and c.values["similarity"] >= 0.25 and c.seconds < 10
    ]
    assert taken(
        catalog, tmp_path, {"where": "similarity >= 0.25 AND duration_seconds < 10"}
    ) == ids(expected)


def test_where_can_query_other_views(catalog, clips, tmp_path: Path):
    """For example, a video's licence."""
    free = {name for name, video in videos_of(clips).items() if video["license"]}
    rule = "video_id IN (SELECT video_id FROM videos WHERE license = 'cc-by')"
    assert taken(catalog, tmp_path, {"where": rule}) == ids(c for c in clips if c.video in free)


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [
        ({"top": 30}, 70, 100),
        ({"bottom": 12.5}, 0, 12.5),
        ({"between": [5, 95]}, 5, 95),
        ({"top": 100}, 0, 100),
        ({"top": 0.1}, 99.9, 100),
    ],
)
def test_percentiles_are_exact(catalog, clips, tmp_path: Path, given, low, high):
    """Of N values, the lowest floor(low% of N) are removed, and those above the ceil(high% of
    N)th."""
    scored = sorted(
        (c for c in clips if has(c.values["aesthetic"])), key=lambda c: c.values["aesthetic"]
    )
    n = len(scored)
    first = math.floor(Fraction(str(low)) / 100 * n)
    last = math.ceil(Fraction(str(high)) / 100 * n)
    found = taken(catalog, tmp_path, {"percentile": {"column": "aesthetic", **given}})
    assert found == ids(scored[first:last])


def test_clips_tied_with_a_percentile_stay(catalog, clips, tmp_path: Path):
    rounded = "CAST(round(similarity * 10) AS INTEGER)"
    found = taken(catalog, tmp_path, {"percentile": {"column": rounded, "top": 1}})
    most = max(round(c.values["similarity"] * 10) for c in clips if has(c.values["similarity"]))
    expected = [
        c
        for c in clips
        if has(c.values["similarity"]) and round(np.float32(c.values["similarity"]) * 10) == most
    ]
    assert found == ids(expected)
    assert len(found) > 6


def test_cap_keeps_the_first_of_each_group(catalog, clips, tmp_path: Path):
    found = taken(
        catalog, tmp_path, {"cap": {"per": "video_id", "clips": 2, "by": "duration_seconds DESC"}}
    )
    by_video = defaultdict(list)
    for clip in clips:
        by_video[clip.video].append(clip)
    expected = [
        c
        for group in by_video.values()
        for c in sorted(group, key=lambda c: -round(c.seconds, 3))[:2]
    ]
    assert found == ids(expected)


def test_cap_without_an_order_draws_by_seed(catalog, clips, tmp_path: Path):
    found = taken(catalog, tmp_path, {"cap": {"per": "video_id", "clips": 1}}, seed=9)
    by_video = defaultdict(list)
    for clip in clips:
        by_video[clip.video].append(clip.id)
    assert found == sorted(
        min(group, key=lambda clip: chance(clip, 9, 1)) for group in by_video.values()
    )


def test_quotas_differ_by_group(catalog, clips, tmp_path: Path):
    """`*` applies to every other group; null is a group only if it is named."""
    videos = videos_of(clips)
    there = Counter(videos[c.video]["language"] for c in clips)
    for quota, expected in (
        ({"en": 30, "*": 5}, {"en": 30, "de": 5, "no": 5}),
        ({"en": 30, "no": 0, None: 7}, {"en": 30, None: 7}),
        (40, {"en": 40, "de": 40, "no": 40}),
        ({"*": 10_000}, {name: there[name] for name in ("en", "de", "no")}),
    ):
        found = taken(catalog, tmp_path, {"quota": {"per": "language", "clips": quota}})
        video_of = {c.id: c.video for c in clips}
        assert Counter(videos[video_of[clip]]["language"] for clip in found) == expected


def test_uniform_sample_has_the_smallest_hashes(catalog, clips, tmp_path: Path):
    """Anyone can reproduce it from the ids alone."""
    found = taken(catalog, tmp_path, {"sample": {"clips": 100}}, seed=3)
    assert found == sorted(sorted(ids(clips), key=lambda clip: chance(clip, 3, 1))[:100])
    part = taken(catalog, tmp_path, {"sample": {"fraction": 0.1}}, seed=3)
    assert len(part) == 60
    assert set(part) < set(found)


def test_one_per_video_samples_by_efraimidis_and_spirakis(catalog, clips, tmp_path: Path):
    """The weight is 1 / clips of the video, among the clips that reach the rule."""
    reaching = [c for c in clips if c.seconds > 4]
    of_video = Counter(c.video for c in reaching)

    def key(clip: Clip) -> float:
        u = ((chance(clip.id, 42, 2) >> 11) + 0.5) / 2**53
        return -math.log(u) * of_video[clip.video]

    found = taken(
        catalog,
        tmp_path,
        {"where": "duration_seconds > 4"},
        {"sample": {"clips": 150, "weight": "one_per_video"}},
    )
    assert found == ids(sorted(reaching, key=key)[:150])


def test_one_per_video_draws_as_numpy_does(catalog, clips, tmp_path: Path):
    """The share of clips from large videos equals weighted draws without replacement."""
    of_video = Counter(c.video for c in clips)
    sizes = np.array([of_video[c.video] for c in clips])
    weights = (1 / sizes) / (1 / sizes).sum()
    draw = np.random.default_rng(0)
    n, expected = 120, []
    for _ in range(400):
        chosen = draw.choice(len(clips), n, replace=False, p=weights)
        expected.append((sizes[chosen] >= 5).sum())
    size_of = {c.id: of_video[c.video] for c in clips}
    ours = [
        sum(
            size_of[clip] >= 5
            for clip in taken(
                catalog, tmp_path, {"sample": {"clips": n, "weight": "one_per_video"}}, seed=seed
            )
        )
        for seed in range(6)
    ]
    uniform = (sizes >= 5).mean() * n
    spread = np.std(expected)
    assert abs(np.mean(ours) - np.mean(expected)) < 4 * spread / math.sqrt(len(ours))
    assert abs(uniform - np.mean(expected)) > 6 * spread / math.sqrt(len(ours))


def test_any_expression_may_be_a_weight(catalog, clips, tmp_path: Path):
    """Clips without a weight are not drawn; a weight that is not positive is an error."""
    found = taken(catalog, tmp_path, {"sample": {"clips": 50, "weight": "similarity + 0.01"}})
    similarity_of = {c.id: c.values["similarity"] for c in clips}
    mean = np.mean([s for s in similarity_of.values() if has(s)])
    assert np.mean([similarity_of[clip] for clip in found]) > mean + 0.03
    with pytest.raises(UsageError, match=r"rule 1 \(sample\).*positive"):
        taken(catalog, tmp_path, {"sample": {"clips": 50, "weight": "similarity - 0.25"}})


def test_strata_get_their_shares(catalog, clips, tmp_path: Path):
    videos = videos_of(clips)
    group_of = {c.id: (videos[c.video]["category"], videos[c.video]["language"]) for c in clips}
    there = Counter(group_of.values())
    for allocation, limit in (("proportional", 1), ("equal", 1)):
        found = taken(
            catalog,
            tmp_path,
            {"stratify": {"by": ["category", "language"], "clips": 121, "allocation": allocation}},
        )
        counts = Counter(group_of[clip] for clip in found)
        assert len(found) == 121
        if allocation == "proportional":
            off = [abs(counts[group] - 121 * n / len(clips)) for group, n in there.items()]
            assert max(off) < limit
        else:
            large = [counts[group] for group, n in there.items() if n > counts[group]]
            assert max(counts.values()) - min(large) <= limit


@pytest.mark.parametrize("wanted", [0, 1, 5, 16, 17, 100])
def test_shares_add_up(wanted: int):
    """For any groups, the total is the requested number, or all clips if there are fewer."""
    draw = random.Random(wanted)
    for _ in range(50):
        sizes = np.array([draw.choice([0, 1, 3, 50]) for _ in range(draw.randint(1, 9))])
        for share in (equal, proportional):
            shares = share(sizes, wanted)
            assert shares.sum() == min(wanted, sizes.sum())
            assert (shares <= sizes).all()
            assert (shares >= 0).all()
    assert equal(np.array([1, 10, 4]), 11).tolist() == [1, 6, 4]
    assert equal(np.array([9, 9, 9]), 11).tolist() == [4, 4, 3]
    assert proportional(np.array([10, 30, 60]), 11).tolist() == [1, 3, 7]


def test_same_file_and_span_count_once(tmp_path: Path):
    """Two addresses can lead to the same bytes; unknown bytes are not duplicates."""
    clips = [
        Clip("generic-a", 0, 2),
        Clip("generic-b", 0, 2),
        Clip("generic-b", 2, 4),
        Clip("generic-c", 0, 2),
        Clip("generic-d", 0, 2),
    ]
    for number, clip in enumerate(clips):
        clip.values["aesthetic"] = number
    dataset = build(
        tmp_path / "dataset",
        clips,
        [embeddings(), aesthetic()],
        videos={"generic-a": {"sha256": "1" * 64}, "generic-b": {"sha256": "1" * 64}},
    )
    with open_catalog(dataset) as catalog:
        best = taken(
            catalog, tmp_path, {"deduplicate": {"by": "bytes", "prefer": "aesthetic DESC"}}
        )
        worst = taken(catalog, tmp_path, {"deduplicate": {"by": "bytes", "prefer": "aesthetic"}})
    assert best == ids(clips[1:])
    assert worst == ids([clips[0], *clips[2:]])


def test_near_embeddings_are_removed(tmp_path: Path):
    """The preferred clip of each group stays, and so does a clip without embedding."""
    draw = np.random.default_rng(1)
    clips = []
    for number in range(40):
        centre = draw.normal(size=32)
        for copy in range(3):
            clip = Clip(f"generic-v{number}", copy * 2.0, copy * 2.0 + 1)
            clip.vectors = [(centre + 0.01 * draw.normal(size=32)).tolist() for _ in range(2)]
            clip.values["aesthetic"] = copy
            clips.append(clip)
    dataset = build(tmp_path / "dataset", clips, [embeddings(), aesthetic()])
    with open_catalog(dataset) as catalog:
        found = taken(
            catalog,
            tmp_path,
            {"deduplicate": {"by": "embedding", "min_cosine": 0.95, "prefer": "aesthetic DESC"}},
        )
    assert found == ids(clip for clip in clips if clip.values["aesthetic"] == 2)


def test_near_frames_are_removed(tmp_path: Path):
    """Hashes that differ in few bits are the same picture; a clip without hashes stays."""
    draw = random.Random(3)
    clips, hashes = [], {}
    for number in range(20):
        first = [draw.getrandbits(64) for _ in range(4)]
        for copy in range(2):
            clip = Clip(f"generic-v{number}c{copy}", 0.0, 1.0, values={"aesthetic": copy})
            hashes[clip.id] = [value ^ copy for value in first]
            clips.append(clip)
    hashes[clips[0].id] = None
    dataset = build(tmp_path / "dataset", clips, [embeddings(), aesthetic()])
    write_shard(
        dataset,
        "hash_frames",
        "h1",
        "000000",
        [{"clip_id": clip, "frame_hashes": found} for clip, found in hashes.items()],
        FRAME_HASHES,
    )
    record = json.loads((dataset / "runs/r1.json").read_text())
    stage = json.loads(json.dumps(record["stages"][-1]).replace("score_aesthetic", "hash_frames"))
    stage["steps"][0].update(
        fingerprint="h1",
        tables={"hash_frames": "hash_frames/h1"},
        schema_columns=FRAME_HASHES.names,
    )
    record["stages"].append({**stage, "score": None})
    (dataset / "runs/r1.json").write_text(json.dumps(record))
    with open_catalog(dataset) as catalog:
        found = taken(
            catalog,
            tmp_path,
            {"deduplicate": {"by": "frames", "max_distance": 2, "prefer": "aesthetic DESC"}},
        )
    assert found == sorted([clips[0].id, *(clip.id for clip in clips[1::2])])


def test_clusters_are_sampled_equally(tmp_path: Path):
    """A cluster of a hundred clips contributes as many as one of ten."""
    draw = np.random.default_rng(2)
    clips = []
    for group, n in enumerate((100, 10, 10)):
        for number in range(n):
            clip = Clip(f"generic-g{group}n{number}", 0.0, 1.0)
            clip.vectors = [(np.eye(8)[group] * 5 + 0.05 * draw.normal(size=8)).tolist()]
            clips.append(clip)
    dataset = build(tmp_path / "dataset", clips, [embeddings()])
    with open_catalog(dataset) as catalog:
        found = taken(catalog, tmp_path, {"balance": {"clusters": 3, "clips": 24}})
    assert Counter(clip[len("generic-") :][:2] for clip in found) == {"g0": 8, "g1": 8, "g2": 8}


ALL_VERBS = [
    {"where": "duration_seconds > 1.2 AND caption IS NOT NULL"},
    {"percentile": {"column": "similarity", "top": 90}},
    {"quota": {"per": "language", "clips": {"en": 200, "*": 150}}},
    {"deduplicate": {"by": "bytes"}},
    {"cap": {"per": "video_id", "clips": 6, "by": "round(aesthetic)"}},
    {"stratify": {"by": ["category"], "clips": 220, "allocation": "equal"}},
    {"deduplicate": {"by": "embedding", "min_cosine": 0.9999, "prefer": "aesthetic"}},
    {"sample": {"clips": 90, "weight": "one_per_video"}},
    {"sample": {"fraction": 0.9, "weight": "duration_seconds"}},
]


def test_result_does_not_depend_on_threads_or_shards(clips, tmp_path: Path):
    """The same clips give the same hash, however they are stored and read."""
    draw = random.Random(4)
    for clip in clips:
        clip.vectors = [[draw.gauss(0, 1) for _ in range(8)]]
    recipe = recipe_of(tmp_path, *ALL_VERBS)
    hashes, snapshots, funnels = set(), set(), set()
    for number, (shards, threads) in enumerate([(1, 1), (4, 4), (7, 2)]):
        order = list(clips)
        if number:
            draw.shuffle(order)
        dataset = build(
            tmp_path / str(number),
            order,
            [embeddings(), similarity(), aesthetic()],
            videos=videos_of(clips),
            shards=shards,
        )
        with open_catalog(dataset, threads=threads) as catalog:
            subset, _ = create_subset(catalog, recipe, name="mine", code_version="1")
        hashes.add(subset.info["hash"])
        snapshots.add(subset.info["snapshot"])
        funnels.add(json.dumps(subset.info["funnel"]))
    assert len(hashes) == len(snapshots) == len(funnels) == 1
    assert 50 < subset.info["n_clips"] < 90


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"where": "similarty > 3"}, ["rule 1 (where)", "similarty", '"similarity"', "^"]),
        ({"where": "similarity >"}, ["rule 1 (where)", "syntax error"]),
        ({"where": "similarity"}, ["true or false", "FLOAT"]),
        ({"where": "true; DROP TABLE runs"}, ["2 statements"]),
        ({"where": "true FROM clips"}, ["more than one expression"]),
        ({"where": "true, false"}, ["more than one expression"]),
        ({"where": "true AS x"}, ["more than one expression"]),
        ({"where": "1) > (0"}, ["more than one expression", "syntax error"]),
        ({"where": "COLUMNS(*) IS NULL"}, ["columns; expected one"]),
        ({"where": "*"}, ["more than one expression"]),
        (
            {"where": "clip_id IN (SELECT * FROM read_csv('/etc/passwd'))"},
            ["rule 1 (where)", "no other files"],
        ),
        (
            {"where": "clip_id IN (SELECT content FROM read_text('https://example.com/'))"},
            ["rule 1 (where)"],
        ),
        ({"where": "clip_id IN (FROM query('SELECT 1'))"}, ["query()"]),
        ({"where": "random() > 0.5"}, ["random", "a different result each time"]),
        (
            {"where": "current_date > '2020-01-01'"},
            ["current_date", "a different result each time"],
        ),
        ({"where": "clip_id IN (SELECT clip_id FROM clips USING SAMPLE 5)"}, ["`sample` rule"]),
        ({"where": "row_number() OVER () < 5"}, ["clips other than"]),
        ({"where": "similarity > avg(similarity)"}, ["avg()", "clips other than"]),
        ({"where": "unnest(tags).score > 1"}, ["unnest()"]),
        ({"where": "similarity > ?"}, ["$name"]),
        ({"where": "clip_id = (WITH x AS (DELETE FROM runs RETURNING 1) SELECT 'a')"}, ["rule 1"]),
        ({"where": "clip_id IN (SELECT clip_id FROM clip)"}, ["rule 1 (where)", "clip"]),
        ({"where": "CAST(caption AS INTEGER) > 1"}, ["rule 1 (where)", "a dog runs"]),
        ({"percentile": {"column": "caption", "top": 5}}, ["rule 1 (percentile)", "VARCHAR"]),
        ({"cap": {"per": "video", "clips": 2}}, ["rule 1 (cap)", "video_id"]),
        ({"cap": {"per": "video_id", "clips": 2, "by": "similarity LIMIT 3"}}, ["is not an order"]),
        ({"cap": {"per": "video_id", "clips": 2, "by": "similarity DSC"}}, ["rule 1 (cap)"]),
        ({"sample": {"clips": 2, "weight": "one_per_clip"}}, ["rule 1 (sample)", "one_per_clip"]),
        (
            {"deduplicate": {"by": "embedding", "min_cosine": 0.9, "embeddings": "embed_all"}},
            ["rule 1 (deduplicate)", "embed_all", "embed_clips"],
        ),
        (
            {"deduplicate": {"by": "frames", "max_distance": 3}},
            ["rule 1 (deduplicate)", "hash_frames", "--set"],
        ),
    ],
)
def test_invalid_rules_are_refused(catalog, tmp_path: Path, rule: dict, told: list[str]):
    """SQL errors are DuckDB's, prefixed with recipe and rule; only reading is allowed."""
    with pytest.raises(UsageError) as error:
        taken(catalog, tmp_path, rule)
    said = str(error.value)
    assert said.startswith("mine.yaml")
    assert any(part in said for part in told)
    if len(told) > 1 and told[0].startswith("rule 1"):
        assert all(part in said for part in told)


def test_expression_may_end_in_a_comment(catalog, clips, tmp_path: Path):
    rules = [
        {"where": "similarity > 0.25 -- good"},
        {"percentile": {"column": "aesthetic -- nice", "top": 50}},
        {"cap": {"per": "language -- any", "clips": 9, "by": "aesthetic -- up"}},
    ]
    assert len(taken(catalog, tmp_path, *rules)) == 27


def test_rows_written_meanwhile_are_not_read(clips, tmp_path: Path):
    """All rules see the clips that existed when reading began, and the record notes it."""
    moving = build(tmp_path / "moving", clips, [embeddings(), similarity(), aesthetic()], shards=2)
    more = build(
        tmp_path / "more",
        [Clip("generic-new", 0, 5, values={"similarity": 0.4, "aesthetic": 7.0})],
        [embeddings(), similarity(), aesthetic()],
        shards=1,
    )

    def write(said: str) -> None:
        if said.startswith("rule 1"):
            for path in more.rglob("000000.parquet"):
                target = moving / path.relative_to(more)
                target.with_name("000009.parquet").write_bytes(path.read_bytes())

    recipe = recipe_of(tmp_path, {"where": "duration_seconds > 0"})
    with open_catalog(moving) as catalog:
        subset, _ = create_subset(catalog, recipe, name="a", code_version="1", on_step=write)
    assert subset.info["n_clips"] == len(clips) == subset.info["catalog"]["clips"]
    assert subset.info["catalog"]["written_meanwhile"] is True
    with open_catalog(moving) as catalog:
        after = explain_recipe(catalog, recipe)
    assert after.result.clips == len(clips) + 1
