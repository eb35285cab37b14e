"""The ready-made subset recipes apply the published rules, and only to the right scorers.

Expected results are computed in plain Python from the published rule, over clips with known
values; the catalog holds the same clips.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.exports.internvid_scores import internvid_scores
from clipmill.pipeline.recipes.ready_made import (
    SUBSET_FOLDER,
    names,
    recipe_path,
    subset_recipe_path,
)
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.subsets.freeze import create_subset
from clipmill.pipeline.subsets.subset_recipe import load_subset_recipe
from clipmill.schemas.errors import UsageError
from tests.scored_catalog import (
    HEAD_V1,
    Clip,
    Made,
    aesthetic,
    build,
    embeddings,
    given,
    own,
    random_clips,
    similarity,
)

ROOT = Path(__file__).resolve().parents[3]
B32 = "open_clip:ViT-B-32/openai"
AESTHETIC, SIMILARITY = (3.0, 7.0), (0.15, 0.6)


def frozen(dataset: Path, recipe: str, *overrides: str, seed: int | None = None) -> list[str]:
    """The ids of the clips that a recipe freezes, as stored on disk."""
    loaded = load_subset_recipe(
        subset_recipe_path(recipe), overrides=overrides, seed=seed, ready_made=SUBSET_FOLDER
    )
    with open_catalog(dataset, threads=2) as catalog:
        subset, _ = create_subset(catalog, loaded, name=f"{recipe}-{seed}", code_version="0")
    return [key for file in subset.files for key in pq.read_table(file)["clip_id"].to_pylist()]


def has(clips: Sequence[Clip], rule: Callable[..., bool], *columns: str) -> list[Clip]:
    """The clips whose values satisfy the rule; those without a value don't."""
    found = []
    for clip in clips:
        values = [clip.values[column] for column in columns]
        if None not in values and rule(*values):
            found.append(clip)
    return found


def lasting(clips: Sequence[Clip], shortest: float, longest: float) -> list[Clip]:
    return [clip for clip in clips if shortest <= clip.seconds <= longest]


def best(clips: Sequence[Clip], column: str, per_cent: float) -> list[Clip]:
    """This percentage of the clips with a value, the best ones; ties with the last one stay."""
    values = sorted(clip.values[column] for clip in clips if clip.values[column] is not None)
    limit = values[floor(len(values) * (100 - per_cent) / 100)]
    return has(clips, lambda value: value >= limit, column)


def three_best(clips: Sequence[Clip]) -> list[Clip]:
    found = []
    for video in dict.fromkeys(clip.video for clip in clips):
        mine = [clip for clip in clips if clip.video == video]
        found += sorted(mine, key=lambda clip: -clip.values["similarity"])[:3]
    return found


def internvid_aes(clips: Sequence[Clip]) -> list[Clip]:
    return has(clips, lambda score: score >= 4, "aesthetic")


def panda(clips: Sequence[Clip]) -> list[Clip]:
    return three_best(has(clips, lambda score: score > 0.43, "similarity"))


def open_sora(clips: Sequence[Clip]) -> list[Clip]:
    kept = lasting(clips, 2, 15)
    return has(kept, lambda score, flow: score >= 5 and flow >= 0.3, "aesthetic", "flow")


def svd(clips: Sequence[Clip]) -> list[Clip]:
    kept = has(clips, lambda area: area <= 0.07, "text")
    for column in ("flow", "similarity", "aesthetic"):
        kept = best(kept, column, 75)
    return kept


def easyanimate(clips: Sequence[Clip]) -> list[Clip]:
    kept = has(lasting(clips, 3, 10), lambda steady: steady >= 0.8, "steady")
    kept = has(kept, lambda score, area: score >= 4 and area <= 0.02, "aesthetic", "text")
    return has(kept, lambda flow, fits: 2 <= flow <= 20 and fits >= 0.2, "flow", "fits")


def data_juicer(clips: Sequence[Clip]) -> list[Clip]:
    kept = has(clips, lambda score: score <= 0.000195383, "nsfw")
    return has(kept, lambda score: score >= 0.306337, "similarity")


def nemo(clips: Sequence[Clip]) -> list[Clip]:
    kept = has(
        lasting(clips, 2, 60),
        lambda all_, patch: all_ >= 0.00098 and patch >= 1e-6,
        "motion",
        "patch",
    )
    kept = has(kept, lambda score: score >= 3.5, "aesthetic")
    gone = {
        clip.id
        for i, clip in enumerate(kept)
        for other in kept[:i] + kept[i + 1 :]
        if cosine(clip, other) >= 0.99
        and (other.values["aesthetic"], clip.id) > (clip.values["aesthetic"], other.id)
    }
    return [clip for clip in kept if clip.id not in gone]


def cosine(one: Clip, other: Clip) -> float:
    a, b = np.mean(one.vectors, axis=0), np.mean(other.vectors, axis=0)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def laion(clips: Sequence[Clip]) -> list[Clip]:
    kept = [clip for clip in clips if clip.caption is not None and len(clip.caption) >= 5]
    return has(kept, lambda score: score >= 0.28, "similarity")


def mug_v(clips: Sequence[Clip]) -> list[Clip]:
    kept = has(
        clips, lambda edges, score: 200 <= edges <= 2000 and score >= 4.5, "edges", "aesthetic"
    )
    return has(kept, lambda flow: 1 <= flow <= 20, "flow")


def measured(column: str, label: str) -> Made:
    """A custom stage under `label`, with the clips' values of `column`."""
    return Made(label, f"measure_{label}", column)


@dataclass(frozen=True)
class Case:
    """A recipe, a catalog that fits it, and the published rule."""

    recipe: str
    made: Sequence[Made]
    columns: dict[str, tuple[float, float]]
    expected: Callable[[Sequence[Clip]], list[Clip]]
    edge: dict[str, float]
    """Values of an additional clip exactly at the thresholds."""
    edge_stays: bool = True
    another: Sequence[Made] = ()
    """The same columns from another scorer."""
    command: str = ""
    """What the printed command must contain."""
    seconds: float = 5.0


CASES = [
    Case(
        "internvid-aes",
        [embeddings(), aesthetic()],
        {"aesthetic": AESTHETIC},
        internvid_aes,
        {"aesthetic": 4.0},
        another=[embeddings(), aesthetic(head=HEAD_V1)],
        command="--set aesthetic_v2.stage=score_aesthetic --set aesthetic_v2.embeddings="
        "embed_clips --set aesthetic_v2.over_frames=max --set "
        "'aesthetic_v2.head=https://raw.githubusercontent.com/",
    ),
    Case(
        "panda-10m",
        [given("matching", "Panda-70M matching score", "matching_score", "similarity")],
        {"similarity": SIMILARITY},
        panda,
        {"similarity": 0.43},
        edge_stays=False,
        another=[given("similarity", "UMT-SIM", "UMT_Score", "similarity")],
        command="--set 'panda_matching.scorer=Panda-70M matching score'",
    ),
    Case(
        "open-sora",
        [embeddings(frames=3), aesthetic(over="mean"), measured("flow", "flow_unimatch")],
        {"aesthetic": AESTHETIC, "flow": (0.0, 1.5)},
        open_sora,
        {"aesthetic": 5.0, "flow": 0.3},
        seconds=15.0,
        another=[embeddings(), aesthetic(), measured("flow", "flow_unimatch")],
        command="--set embed_l14_3.frames_per_clip=3",
    ),
    Case(
        "svd",
        [
            embeddings(frames=3),
            aesthetic(over="mean"),
            similarity(),
            measured("flow", "flow_farneback"),
            measured("text", "text_area"),
        ],
        {"aesthetic": AESTHETIC, "similarity": SIMILARITY, "flow": (0.0, 9.0), "text": (0.0, 0.1)},
        svd,
        {"aesthetic": 9.0, "similarity": 0.9, "flow": 9.5, "text": 0.07},
        another=[
            embeddings(frames=3),
            aesthetic(over="mean"),
            similarity(model="org/clip"),
            measured("flow", "flow_farneback"),
            measured("text", "text_area"),
        ],
        command="--set similarity_3.embeddings=embed_clips",
    ),
    Case(
        "easyanimate",
        [
            measured("aesthetic", "aesthetic_v2_5"),
            measured("text", "text_area"),
            measured("steady", "frame_similarity"),
            measured("flow", "flow_farneback"),
            measured("fits", "videoclip_xl"),
        ],
        {
            "aesthetic": AESTHETIC,
            "text": (0.0, 0.03),
            "steady": (0.7, 1.0),
            "flow": (1.0, 25.0),
            "fits": (0.1, 0.4),
        },
        easyanimate,
        {"aesthetic": 4.0, "text": 0.02, "steady": 0.8, "flow": 20.0, "fits": 0.2},
        seconds=10.0,
        another=[
            embeddings(),
            aesthetic("aesthetic_v2_5"),
            measured("text", "text_area"),
            measured("steady", "frame_similarity"),
            measured("flow", "flow_farneback"),
            measured("fits", "videoclip_xl"),
        ],
        command="--set aesthetic_v2_5.stage=./my_stage.py:MyStage",
    ),
    Case(
        "data-juicer-t2v",
        [
            embeddings("embed_b32", B32, 3),
            own("nsfw"),
            similarity(model=B32, over="cosine", reads="embed_b32"),
        ],
        {"nsfw": (0.0, 0.0004), "similarity": SIMILARITY},
        data_juicer,
        {"nsfw": 0.000195383, "similarity": 0.5},
        another=[
            embeddings("embed_b32", B32, 3),
            own("nsfw"),
            similarity(model=B32, reads="embed_b32"),
        ],
        command="--set similarity_b32.embeddings=embed_b32 --set similarity_b32.over_frames=cosine",
    ),
    Case(
        "nemo-curator",
        [
            embeddings(frames=8),
            aesthetic(over="min"),
            measured("motion", "motion_vectors_mean"),
            measured("patch", "motion_vectors_patch_min"),
        ],
        {"aesthetic": AESTHETIC, "motion": (0.0005, 0.003), "patch": (0.0, 1e-5)},
        nemo,
        {"aesthetic": 3.5, "motion": 0.00098, "patch": 1e-6},
        seconds=60.0,
        another=[
            embeddings(),
            aesthetic(over="min"),
            measured("motion", "motion_vectors_mean"),
            measured("patch", "motion_vectors_patch_min"),
        ],
        command="--set embed_l14_8.frames_per_clip=8",
    ),
    Case(
        "laion",
        [embeddings("middle", B32, 1), similarity(model=B32, reads="middle")],
        {"similarity": SIMILARITY},
        laion,
        {"similarity": 0.28125},
        another=[embeddings(), similarity()],
        command="--set similarity_b32_1.embeddings=embed_b32_1",
    ),
    Case(
        "mug-v",
        [
            embeddings(),
            aesthetic(over="mean"),
            measured("edges", "laplacian_variance"),
            measured("flow", "flow_raft"),
        ],
        {"aesthetic": AESTHETIC, "edges": (50.0, 2500.0), "flow": (0.2, 25.0)},
        mug_v,
        {"aesthetic": 4.5, "edges": 200.0, "flow": 20.0},
        another=[
            embeddings(),
            aesthetic(),
            measured("edges", "laplacian_variance"),
            measured("flow", "flow_raft"),
        ],
        command="--set aesthetic_v2_mean.over_frames=mean",
    ),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.recipe)
FLT = Case(
    "internvid-flt",
    [given("umt_sim", "UMT-SIM", "UMT_Score", "similarity")],
    {"similarity": SIMILARITY},
    lambda clips: best(clips, "similarity", 30),
    {},
    another=[embeddings(), similarity()],
    command="--set umt_sim.stage=take_given_score --set umt_sim.column=UMT_Score "
    "--set umt_sim.scorer=UMT-SIM",
)
STILL = Case(
    "finevideo",
    [own("static_share")],
    {"static_share": (0.0, 1.0)},
    list,
    {},
    another=[embeddings(), aesthetic("static_share", column="static_share")],
    command="--set split_clips.signals=true",
)
with_scorers = pytest.mark.parametrize("case", [*CASES, FLT, STILL], ids=lambda case: case.recipe)


WITHOUT_SCORERS = {"internvid-random", "internvid-div", "internvid-flt", "finevideo"}


def clips_of(case: Case) -> list[Clip]:
    """Random clips, some with nearly equal embeddings, and one exactly at the thresholds."""
    clips = random_clips(240, case.columns)
    draw = np.random.default_rng(1)
    for i, clip in enumerate(clips):
        vector = draw.normal(size=16)
        if i % 5 == 4:
            vector = np.asarray(clips[i - 1].vectors[0]) + draw.normal(size=16) * 0.02
        clip.vectors = [vector.tolist()]
        clip.caption = (None, "", "a dog runs", "dogs", "a cat")[i % 5]
    edge = Clip(
        "generic-edge", 0.0, case.seconds, values=dict(case.edge), vectors=[[1.0] + [0.0] * 15]
    )
    return [*clips, edge] if case.edge else clips


@each_case
def test_recipe_keeps_what_the_published_rule_keeps(case, tmp_path):
    clips = clips_of(case)
    build(tmp_path, clips, case.made)
    expected = {clip.id for clip in case.expected(clips)}
    assert 5 < len(expected) < len(clips) - 5
    kept = frozen(tmp_path, case.recipe)
    assert len(kept) == len(set(kept))
    assert set(kept) == expected
    assert (clips[-1].id in expected) is case.edge_stays


@with_scorers
def test_recipe_without_its_scorer_is_refused_with_a_command_to_add_it(case, tmp_path):
    build(tmp_path, random_clips(5, case.columns), [])
    with pytest.raises(UsageError) as caught:
        frozen(tmp_path, case.recipe)
    message = str(caught.value)
    assert message.startswith(f"{case.recipe} was made for ")
    assert message.count("the catalog has no such column") >= 1
    assert "Its scores: none" in message
    assert "clipmill run --dataset " in message
    assert list((tmp_path / "subsets").glob("*")) == []


@with_scorers
def test_another_scorer_in_the_column_is_refused_with_a_command(case, tmp_path):
    build(tmp_path, random_clips(5, case.columns), case.another)
    with pytest.raises(UsageError) as caught:
        frozen(tmp_path, case.recipe)
    message = str(caught.value)
    assert f"{case.recipe} was made for " in message
    assert "the catalog's column comes from " in message
    assert case.command in message


@pytest.mark.parametrize(("label", "frames"), [("measure_text", 4), ("text_middle", 1)])
def test_area_of_text_is_that_of_measure_text(tmp_path, label, frames):
    """EasyAnimate's is that of the middle frame."""
    (case,) = (one for one in CASES if one.recipe == "easyanimate")
    clips = clips_of(case)
    text = Made(label, "measure_text", "text", {"frames_per_clip": frames})
    build(tmp_path, clips, [text if one.column == "text" else one for one in case.made])
    if frames == 1:
        assert set(frozen(tmp_path, case.recipe)) == {clip.id for clip in case.expected(clips)}
    else:
        wanted = "--set text_middle.stage=measure_text --set text_middle.frames_per_clip=1"
        with pytest.raises(UsageError, match=wanted):
            frozen(tmp_path, case.recipe)


def test_refused_recipe_exits_with_2(tmp_path):
    build(tmp_path, random_clips(5, CASES[0].columns), CASES[0].another)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "clipmill.jobs.cli",
            "subset",
            "create",
            str(tmp_path),
            "internvid-aes",
        ],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: internvid-aes was made for LAION's")
    assert CASES[0].command in done.stderr
    assert "Traceback" not in done.stderr


def test_every_number_of_a_rule_is_a_parameter():
    """So --set reaches each of them; the loader ensures that each parameter is used."""
    for name in names(SUBSET_FOLDER):
        given = yaml.safe_load(subset_recipe_path(name).read_text())
        rules = str([*given.get("rules_before", []), *given.get("rules", [])])
        assert re.findall(r"[-\s(]\d[\d.]*[\s),}\]']", rules) == [], name


def test_open_soras_other_stage_is_selected_by_a_parameter(tmp_path):
    case = next(case for case in CASES if case.recipe == "open-sora")
    clips = clips_of(case)
    build(tmp_path, clips, case.made)
    expected = has(
        lasting(clips, 2, 15), lambda score, flow: score >= 4.5 and flow >= 0.3, "aesthetic", "flow"
    )
    kept = frozen(tmp_path, "open-sora", "min_aesthetic=4.5")
    assert set(kept) == {clip.id for clip in expected} > {clip.id for clip in open_sora(clips)}


def test_random_draws_the_requested_number(tmp_path):
    clips = random_clips(500, {})
    build(tmp_path, clips, [])
    kept = frozen(tmp_path, "internvid-random", "clips=120")
    assert len(set(kept)) == 120
    assert set(kept) <= {clip.id for clip in clips}
    assert kept == frozen(tmp_path, "internvid-random", "clips=120")
    assert set(kept) != set(frozen(tmp_path, "internvid-random", "clips=120", seed=7))


def test_flt_draws_among_the_best_by_umt_sim(tmp_path):
    clips = random_clips(600, FLT.columns)
    build(tmp_path, clips, FLT.made)
    able = {clip.id for clip in FLT.expected(clips)}
    kept = frozen(tmp_path, "internvid-flt", "clips=60")
    assert len(set(kept)) == 60
    assert set(kept) <= able
    # If more are requested than exist, all of them: only the share counts.
    assert set(frozen(tmp_path, "internvid-flt", "clips=100000", seed=1)) == able
    smaller = set(frozen(tmp_path, "internvid-flt", "clips=100000", "top=10", seed=2))
    assert smaller == {clip.id for clip in best(clips, "similarity", 10)}


def umt(model: str, frames: int) -> Made:
    settings = {"frames_per_clip": frames, "frame_choice": "middles", "long_text": "truncate"}
    return Made("umt_sim", "score_video_similarity", "similarity", settings, {"model": model})


def test_flt_takes_umt_sim_computed_here(tmp_path):
    """By UMT-L/16 on four frames; other models, and other numbers of frames, are refused."""
    clips = random_clips(90, FLT.columns)
    build(tmp_path / "own", clips, [umt("./models/umt-l16-25m", 4)])
    assert set(frozen(tmp_path / "own", "internvid-flt")) == {c.id for c in FLT.expected(clips)}
    with open_catalog(tmp_path / "own") as catalog:
        assert internvid_scores(catalog).columns["UMT_Score"] == '"umt_sim"'
    others = [
        ("./models/umt-l16-25m", 8, "umt-l16-25m, frames_per_clip 8"),
        ("OpenGVLab/ViCLIP-L-14-hf", 4, "model OpenGVLab/ViCLIP-L-14-hf, frames_per_clip 4"),
    ]
    for number, (model, frames, said) in enumerate(others):
        build(tmp_path / str(number), clips, [umt(model, frames)])
        with pytest.raises(UsageError, match=said):
            frozen(tmp_path / str(number), "internvid-flt")


@pytest.mark.parametrize(
    ("label", "recipe", "column"),
    [("umt_sim", "internvid-flt", "similarity"), ("aesthetic_given", "internvid-aes", "aesthetic")],
)
def test_published_scores_fit_the_import_recipe(tmp_path, label, recipe, column):
    stage = load_recipe(recipe_path("internvid-metadata")).stages[label]
    clips = random_clips(30, {column: AESTHETIC})
    build(tmp_path, clips, [given(label, stage.scorer, stage.column, column)])
    rules = {"internvid-flt": FLT.expected, "internvid-aes": internvid_aes}
    assert set(frozen(tmp_path, recipe)) == {clip.id for clip in rules[recipe](clips)}


SIZES = {1: 600, 3: 600, 12: 300}  # clips per video: number of videos


def test_div_is_weighted_sampling_without_replacement(tmp_path):
    """Compared with numpy's, which the published script calls: how many clips come from videos of
    each size, and how often one, two, three … clips of one large video are drawn together."""
    clips = [
        Clip(f"generic-{size}-{video}", float(i), i + 1.0)
        for size, videos in SIZES.items()
        for video in range(videos)
        for i in range(size)
    ]
    build(tmp_path, clips, [])
    drawn = 2500
    weights = np.array([1 / int(clip.video.split("-")[1]) for clip in clips])
    rng = np.random.default_rng(11)
    expected = np.array(
        [
            shape(clips, rng.choice(len(clips), drawn, replace=False, p=weights / weights.sum()))
            for _ in range(60)
        ]
    )
    mean, deviation = expected.mean(axis=0), expected.std(axis=0, ddof=1)
    number = {clip.id: i for i, clip in enumerate(clips)}
    found = np.array(
        [
            shape(
                clips,
                [
                    number[key]
                    for key in frozen(tmp_path, "internvid-div", f"clips={drawn}", seed=seed)
                ],
            )
            for seed in range(5)
        ]
    )
    assert (found.sum(axis=1)[:, None] >= 0).all()
    assert (np.abs(found - mean) < 4.5 * deviation + 1).all(), (found, mean, deviation)
    assert (np.abs(found.mean(axis=0) - mean) < 4.5 * deviation / np.sqrt(5) + 1).all()
    # A uniform draw would be far off: the test can distinguish them.
    uniform = shape(clips, rng.choice(len(clips), drawn, replace=False))
    assert (np.abs(uniform - mean) > 20 * deviation).any()


def shape(clips: Sequence[Clip], drawn: Sequence[int]) -> list[int]:
    """Clips from videos of each size, then numbers of large videos with 0, 1, 2, 3, 4+ drawn
    clips."""
    videos = Counter(clips[i].video for i in drawn)
    sizes = Counter(int(clips[i].video.split("-")[1]) for i in drawn)
    large = Counter(
        min(count, 4) for video, count in videos.items() if video.startswith("generic-12-")
    )
    large[0] = SIZES[12] - sum(large.values())
    return [*(sizes[size] for size in SIZES), *(large[count] for count in range(5))]


def test_finevideo_requires_speech_and_motion(tmp_path):
    def said(*texts: str, language: str = "en") -> list[dict[str, Any]]:
        return [
            {
                "start_seconds": 0.0,
                "end_seconds": 1.0,
                "text": text,
                "language": language,
                "automatic": True,
            }
            for text in texts
        ]

    videos = {
        "generic-speech": {
            "duration_seconds": 10.0,
            "subtitles": said("one two three", "four", " five  six "),
        },
        "generic-exactly": {"duration_seconds": 12.0, "subtitles": said("a b c d e f")},
        "generic-silent": {"duration_seconds": 10.0, "subtitles": []},
        "generic-unknown": {"duration_seconds": 10.0, "subtitles": None},
        # Six words, but three in each of two languages: the video has three.
        "generic-twice": {
            "duration_seconds": 10.0,
            "subtitles": [*said("one two three"), *said("eins zwei drei", language="de")],
        },
    }
    clips = [
        Clip(video, float(i), i + 1.0, values={"static_share": share})
        for video in videos
        for i, share in enumerate((0.0, 0.39, 0.4, 0.9, None))
    ]
    build(tmp_path, clips, STILL.made, videos=videos, shards=2)
    assert frozen(tmp_path, "finevideo") == ["generic-speech-0-1000", "generic-speech-1000-2000"]
    kept = frozen(
        tmp_path, "finevideo", "above_words_per_second=0.2", "below_static_share=0.1", seed=1
    )
    assert kept == ["generic-exactly-0-1000", "generic-speech-0-1000", "generic-twice-0-1000"]


def test_only_facts_missing_from_the_source_are_unverified():
    loaded = [
        load_subset_recipe(subset_recipe_path(name), ready_made=SUBSET_FOLDER)
        for name in names(SUBSET_FOLDER)
    ]
    assert {recipe.name for recipe in loaded if not recipe.verified} == {
        "svd",
        "openvid-1m",
        "goku-480",
        "goku-720",
        "goku-1080",
        "movie-gen",
        "ultravideo",
        "lvd-2m",
    }
    for recipe in loaded:
        assert recipe.source
        assert 20 < len(recipe.description) <= 82, recipe.name
        for spec in recipe.scorers.values():
            assert spec.name
            assert spec.means
