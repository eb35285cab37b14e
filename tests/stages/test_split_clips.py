"""PySceneDetect's cuts, then the rules that make clips from shots."""

from __future__ import annotations

import csv
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.stages.media.read.decode import frame_rate_of
from clipmill.stages.protocol import Workspace
from clipmill.stages.split_clips import SplitClips
from tests.media import SHARED_VIDEOS, THREE_SHOTS, Scene, cached, cuts_of
from tests.scanning import run, scan, split

FADES = (Scene("red", 1.6, fade=True), Scene("blue", 1.6, fade=True), Scene("green", 1.6))
needs_footage = pytest.mark.skipif(
    not SHARED_VIDEOS.is_dir(), reason="real footage is not next to this checkout"
)
# OpenCV's wheel does not decode AV1, so the command needs its other backend there.
AV1 = {"llama_drama_30s_vfr.webm", "tears_of_steel_room_17s_av1.webm"}
# One of each container and codec; the slow test has all.
FEW = (
    "bbb_trailer_33s.webm",
    "googlework_short_35s.mp4",
    "llama_drama_30s_vfr.webm",
    "venus_transit_12s.mov",
)
# A whole frame rate times these: itself, NTSC's, and what is nearly either.
NEAR = (1.0, 1000 / 1001, 0.999, 0.99905, 1.00001, 0.9)
COMMANDS = {
    "content": (["detect-content"], {}),
    "content suppressed": (
        ["detect-content", "-t", "20", "-f", "suppress", "-m", "10"],
        {"threshold": 20, "filter_mode": "suppress", "min_scene_len": "10"},
    ),
    "content edges": (
        ["detect-content", "-w", "1.0", "0.5", "1.0", "0.2", "-k", "5"],
        {"weights": (1.0, 0.5, 1.0, 0.2), "kernel_size": 5},
    ),
    "adaptive": (["detect-adaptive"], {"detector": "adaptive"}),
    "threshold": (["detect-threshold"], {"detector": "threshold"}),
    "histogram": (["detect-hist"], {"detector": "histogram"}),
    "hash": (["detect-hash"], {"detector": "hash"}),
}


def command_starts(path: Path, folder: Path, arguments: list[str]) -> list[tuple[int, float]]:
    """First frame and time of each shot that PySceneDetect's own command lists."""
    backend = ["-b", "pyav"] if path.name in AV1 else []
    subprocess.run(
        [sys.executable, "-m", "scenedetect", "-q", "-i", str(path), "-o", str(folder), *backend,
         *arguments, "list-scenes", "-q", "-s", "-f", "list.csv"],
        stdin=subprocess.DEVNULL, check=True, capture_output=True,
    )  # fmt: skip
    with (folder / "list.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [(int(row["Start Frame"]) - 1, float(row["Start Time (seconds)"])) for row in rows]


def our_starts(tables: dict) -> list[tuple[int, float]]:
    """The same for our shots, with frames and times counted like the command's."""
    row = tables["scan_videos"][0]
    positions = dict(row["statistics"])["position_microseconds"]
    starts = []
    for shot in tables["shots"]:
        seconds = positions[row["frame_numbers"].index(shot["start_frame"])] / 1e6
        starts.append((round(seconds * row["fps"]), round(seconds, 3)))
    return starts


def assert_equal_starts(ours, theirs):
    assert [frame for frame, _ in ours] == [frame for frame, _ in theirs]
    for (_, mine), (_, other) in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, abs=0.0015)


@pytest.mark.parametrize("name", COMMANDS)
def test_exact_cuts_equal_the_commands(name, tmp_path):
    arguments, settings = COMMANDS[name]
    path, _ = cached(FADES + THREE_SHOTS)

    ours = our_starts(run(path, tmp_path, exact=True, **settings))

    assert len(ours) > 1
    assert_equal_starts(ours, command_starts(path, tmp_path, arguments))


def test_exact_cuts_equal_the_commands_for_uneven_frame_rate(tmp_path):
    path, _ = cached(uneven=True)

    ours = our_starts(run(path, tmp_path, exact=True))

    assert len(ours) == 3
    assert_equal_starts(ours, command_starts(path, tmp_path, ["detect-content"]))


def test_frame_rates_are_those_of_the_command():
    from scenedetect.common import framerate_to_fraction

    chance = random.Random(0)
    rates = [whole * share for whole in (1, 12, 15, 24, 25, 30, 48, 60, 120) for share in NEAR]
    rates += [chance.uniform(0.001, 1000) for _ in range(500)]
    rates += [round(chance.uniform(0.01, 240), places) for places in range(5) for _ in range(50)]
    rates = [rate for rate in rates if rate]
    assert [frame_rate_of(rate) for rate in rates] == [
        framerate_to_fraction(rate) for rate in rates
    ]


@pytest.mark.slow
@needs_footage
@pytest.mark.parametrize("name", FEW)
def test_exact_cuts_of_real_footage_equal_the_commands(name, tmp_path):
    path = SHARED_VIDEOS / name

    ours = our_starts(run(path, tmp_path, exact=True))

    assert_equal_starts(ours, command_starts(path, tmp_path, ["detect-content"]))


def real_files() -> list[Path]:
    if not SHARED_VIDEOS.is_dir():
        return []
    kinds = (".mp4", ".webm", ".mov", ".ts")
    return sorted(path for path in SHARED_VIDEOS.iterdir() if path.suffix in kinds)


def cut_frames(tables: dict) -> set[int]:
    return {shot["start_frame"] for shot in tables["shots"][1:]}


@needs_footage
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("command", ["content", "adaptive"])
def test_all_real_footage_gives_the_commands_cuts_in_both_modes(command, tmp_path):
    """At least 99% of the default's cuts agree with the exact ones, which equal the command's."""
    arguments, settings = COMMANDS[command]
    agreed = found = 0
    for path in real_files():
        exact = run(path, tmp_path, exact=True, **settings)
        default = run(path, tmp_path, **settings)
        assert_equal_starts(our_starts(exact), command_starts(path, tmp_path, arguments))
        agreed += len(cut_frames(exact) & cut_frames(default))
        found += len(cut_frames(exact) | cut_frames(default))
    assert found > 50
    assert agreed >= 0.99 * found


@needs_footage
@pytest.mark.parametrize(
    "name", ["bbb_trailer_33s.webm", pytest.param("sintel_trailer_52s.mp4", marks=pytest.mark.slow)]
)
def test_default_agrees_with_exact_and_finds_as_many_verified_cuts(name, tmp_path):
    path = SHARED_VIDEOS / name
    truth = json.loads((SHARED_VIDEOS / "cuts" / f"{name}.json").read_text())
    true_cuts = {cut["frame"] for cut in truth["hard_cuts"]}

    default, exact = (cut_frames(run(path, tmp_path, exact=way)) for way in (False, True))

    assert default == exact
    assert len(default & true_cuts) >= len(exact & true_cuts) > 0


@pytest.mark.parametrize("exact", [False, True], ids=["default", "exact"])
@pytest.mark.parametrize("detector", ["content", "adaptive", "histogram", "hash"])
def test_hard_cuts_are_found_to_the_frame(detector, exact, tmp_path):
    path, times = cached()

    tables = run(path, tmp_path, detector=detector, exact=exact)

    starts = [0, *cuts_of(THREE_SHOTS, 25)]
    assert [clip["start_frame"] for clip in tables["split_clips"]] == starts
    assert [clip["start_seconds"] for clip in tables["split_clips"]] == [times[i] for i in starts]


def test_clips_with_a_late_start_begin_late_and_end_with_the_last_frame(tmp_path):
    path, times = cached(start_seconds=1.5)

    clips = run(path, tmp_path)["split_clips"]

    assert clips[0]["start_seconds"] == 1.5
    assert clips[-1]["end_seconds"] == pytest.approx(times[-1] + 0.04)
    assert clips[0]["clip_id"] == "video-1500-3500"
    assert [c["end_frame"] for c in clips] == [50, 90, 150]


def test_new_threshold_needs_no_decode(tmp_path):
    """One scan serves all thresholds, including those of the adaptive detector."""
    path, _ = cached()
    workspace = Workspace(tmp_path, tmp_path)
    scanned = scan(path, workspace)
    decoded = workspace.decoded_frames

    many = split(scanned, workspace, threshold=0.5, min_scene_len="1")["shots"]
    none = split(scanned, workspace, threshold=255)["shots"]

    assert len(many) > 3
    assert len(none) == 1
    assert workspace.decoded_frames == decoded
    scans = {
        SplitClips(**settings).steps()[0].model_dump_json()
        for settings in ({}, {"threshold": 9}, {"detector": "adaptive"}, {"max_clip_seconds": 2})
    }
    assert len(scans) == 1


def test_motion_excludes_the_cut(tmp_path):
    path, _ = cached((Scene("black", 1.0, speed=0), Scene("white", 1.0, speed=0)))

    clips = run(path, tmp_path)["split_clips"]

    assert len(clips) == 2
    assert all(clip["motion_max"] < 2 for clip in clips)
    assert clips[1]["brightness"] > clips[0]["brightness"] + 100


def test_long_shots_are_divided_into_equal_parts(tmp_path):
    path, _ = cached()

    clips = run(path, tmp_path, max_clip_seconds=1.0)["split_clips"]

    assert [round(c["duration_seconds"], 2) for c in clips] == [1, 1, 0.8, 0.8, 0.8, 0.8, 0.8]
    for left, right in itertools.pairwise(clips):
        assert left["end_seconds"] == right["start_seconds"]
        assert left["end_frame"] == right["start_frame"]


def test_trimming_shortens_each_shot_at_both_ends(tmp_path):
    path, _ = cached()

    clips = run(path, tmp_path, trim_start_seconds=0.2, trim_end_seconds=0.4)["split_clips"]

    spans = [(c["start_seconds"], c["end_seconds"]) for c in clips]
    assert spans == [pytest.approx(s) for s in [(0.2, 1.6), (2.2, 3.2), (3.8, 5.6)]]


def test_short_shots_have_their_rule_and_a_video_of_only_those_is_rejected(tmp_path):
    path, _ = cached()

    some = run(path, tmp_path, min_clip_seconds=1.8)
    none = run(path, tmp_path, min_clip_seconds=9)

    assert [s["rule"] for s in some["shots"]] == [None, "split_clips.min_clip_seconds", None]
    assert [s["n_clips"] for s in some["shots"]] == [1, 0, 1]
    assert [c["shot"] for c in some["split_clips"]] == [0, 2]
    [row] = none["split_clips"]
    assert row["clip_id"] is None
    assert row["rejection"]["rule"] == "split_clips.min_clip_seconds"


def test_shot_trimmed_to_nothing_names_the_trimming(tmp_path):
    path, _ = cached()

    [row] = run(path, tmp_path, trim_start_seconds=5)["split_clips"]

    assert row["rejection"]["rule"] == "split_clips.trim_start_seconds"


def test_whole_makes_the_video_one_clip(tmp_path):
    path, _ = cached()

    [clip] = run(path, tmp_path, [(1, 2)], boundaries="whole")["split_clips"]

    assert (clip["start_seconds"], clip["end_seconds"]) == (0.0, 6.0)
    assert clip["caption_given"] == "as given"


def test_given_spans_become_clips_and_those_outside_the_video_do_not(tmp_path):
    path, _ = cached()
    spans = [(1.0, 2.5), (5.5, 9.0), (7.0, 8.0), (1.0, 2.5)]

    tables = run(path, tmp_path, spans)

    columns = ("start_seconds", "end_seconds", "caption_given")
    clips = [tuple(clip[name] for name in columns) for clip in tables["split_clips"]]
    assert clips == [(1.0, 2.5, "span 0"), (5.5, pytest.approx(6.0), "span 1")]
    rules = [shot["rule"] for shot in tables["shots"]]
    assert rules == [None, None, "split_clips.boundaries", "split_clips.boundaries"]


def test_video_with_all_spans_outside_is_rejected(tmp_path):
    path, _ = cached()

    [row] = run(path, tmp_path, [(7.0, 8.0)])["split_clips"]

    assert row["rejection"]["rule"] == "split_clips.boundaries"


@pytest.mark.parametrize("threshold", [1, 8, 27, 60])
def test_every_clip_of_half_a_second_has_a_kept_frame(threshold, tmp_path):
    """For any threshold of a later split, even in a shot that was thinned out."""
    path, _ = cached((Scene("red", 12.0), Scene("blue", 0.6), Scene("green", 3.0, fade=True)))

    tables = run(path, tmp_path, threshold=threshold, max_clip_seconds=0.5, min_clip_seconds=0.4)

    kept = [frame["seconds"] for frame in tables["frames"]]
    assert len(tables["split_clips"]) > 20
    for clip in tables["split_clips"]:
        if clip["duration_seconds"] >= 0.5:
            assert any(clip["start_seconds"] <= t < clip["end_seconds"] for t in kept)


@pytest.mark.parametrize(
    "settings",
    [
        {"min_scene_len": "soon"},
        {"min_scene_len": -1},
        {"min_scene_len": True},
        {"min_scene_len": float("nan")},
        {"min_scene_len": "00:99:00"},
        {"min_out_length": "15f"},
        {"detector": "hash", "threshold": 27},
        {"weights": (float("nan"), 1, 1, 0)},
        {"kernel_size": 4},
        {"weights": (0, 0, 0, 0)},
        {"max_clip_seconds": 0.1},
        {"threshold": -1},
        {"detector": "magic"},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        SplitClips(**settings)


# Frames or seconds

LENGTHS = [  # of at most 40 frames at 25 per second, and of one more
    ("40", "41"),
    (40, 41),
    ("1.6s", "1.64s"),
    ("1.6", "1.64"),
    (1.6, 1.64),
    ("00:00:01.6", "00:00:01.64"),
    ("0:01.6", "0:01.64"),
    ("1.6 s", " 41 "),
]


@pytest.mark.parametrize("detector", ["content", "adaptive", "histogram", "hash"])
def test_integer_is_frames_and_any_other_number_seconds(detector, tmp_path):
    """The second of three shots has 40 frames; anything closer than min_scene_len is not a cut."""
    path, _ = cached()
    workspace = Workspace(tmp_path, tmp_path)
    scanned = scan(path, workspace, detector=detector)
    for kept, dropped in LENGTHS:
        found = [
            len(split(scanned, workspace, detector=detector, min_scene_len=length)["shots"])
            for length in (kept, dropped)
        ]
        assert found == [3, 2], (kept, dropped)


def test_minimum_fade_length_is_respected(tmp_path):
    path, _ = cached((Scene("red", 2.0, fade=True), Scene("blue", 2.0, fade=True)))
    workspace = Workspace(tmp_path, tmp_path)
    scanned = scan(path, workspace, detector="threshold")

    def shots(length):
        return len(
            split(
                scanned,
                workspace,
                detector="threshold",
                min_out_length=length,
                add_final_scene=False,
            )["shots"]
        )

    assert [shots(length) for length in (3, "3", 0.1, "0.1s", "0:00.1")] == [2] * 5
    assert [shots(length) for length in (40, "40", 1.6, "1.6s", "0:01.6")] == [1] * 5


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("15", "15"),
        ("0.6", "0.6s"),
        ("0.6s", "0.6s"),
        ("'15'", "15"),
        ("00:00:30", "00:00:30"),
        ("1:30", "1:30"),
        ("00:00:00.6", "00:00:00.6"),
    ],
)
def test_lengths_in_recipes_mean_what_they_look_like(tmp_path, written, meant):
    """YAML 1.1 reads 1:30 as the number 90, which would be frames."""
    recipe = tmp_path / "run.yaml"
    text = "sources: [{path: a}]\nstages:\n  download_videos: {}\n  split_clips: {%s}\n"
    recipe.write_text(text % f"min_scene_len: {written}")
    assert load_recipe(recipe).stages["split_clips"].min_scene_len == meant
    recipe.write_text(text % "")
    given = load_recipe(recipe, overrides=[f"split_clips.min_scene_len={written}"])
    assert given.stages["split_clips"].min_scene_len == meant
