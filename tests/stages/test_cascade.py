"""The detector cascade: cuts, transitions and what is neither, in a rendered film and real ones."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from clipmill.stages.protocol import Workspace
from clipmill.stages.split_clips import SplitClips
from tests.scanning import run, scan, split

SHARED = Path(__file__).resolve().parents[3] / "shared" / "videos"
RATE = 25
SIZE = (192, 108)
# Frames of the rendered film: [first, last] of each transition, and what is none.
CUT, SECOND_CUT = 40, 48
DISSOLVE, FADE_OUT, FADE_IN, WIPE = (80, 99), (140, 154), (165, 179), (220, 244)
FLASH, COUNT = 262, 300


def landscape(seed: int) -> np.ndarray:
    """A wide picture with coarse and fine structure."""
    chance = np.random.default_rng(seed)
    wide = np.zeros((SIZE[1], SIZE[0] * 3, 3), np.float32)
    for cells, strength in ((3, 90), (12, 50), (40, 25)):
        coarse = chance.normal(0, strength, (cells, cells * 4, 3)).astype(np.float32)
        wide += cv2.resize(coarse, wide.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(wide + chance.uniform(70, 180, 3).astype(np.float32), 0, 255)


def seen(wide: np.ndarray, number: int) -> np.ndarray:
    """What a camera sees that pans over it, fast in the first shot."""
    left = 4 * number if number < CUT else number // 4
    return wide[:, left : left + SIZE[0]]


def share(span: tuple[int, int], number: int) -> float:
    return float(np.clip((number - span[0] + 1) / (span[1] - span[0] + 2), 0, 1))


def picture(places: list[np.ndarray], number: int) -> np.ndarray:
    shown = [seen(place, number) for place in places]
    if number < CUT:
        return shown[0]
    if number < SECOND_CUT:
        return shown[5]
    if number <= FADE_OUT[1]:
        part = share(DISSOLVE, number)
        return ((1 - part) * shown[1] + part * shown[2]) * (1 - share(FADE_OUT, number))
    if number < WIPE[0]:
        return shown[3] * share(FADE_IN, number)
    edge = round(share(WIPE, number) * SIZE[0])
    both = np.concatenate([shown[4][:, :edge], shown[3][:, edge:]], 1)
    return np.minimum(both + 120, 255) if FLASH <= number < FLASH + 2 else both


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    places = [landscape(seed) for seed in range(6)]
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"crf": "18", "preset": "fast"})
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(COUNT):
            image = np.clip(picture(places, number), 0, 255).astype(np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        output.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    folder = tmp_path_factory.mktemp("work")
    return Workspace(folder, folder)


@pytest.fixture(scope="module")
def scanned(film, workspace):
    return scan(film, workspace, detector="cascade", keep_frames=False)


def found(scanned, workspace, **settings):
    tables = split(scanned, workspace, detector="cascade", **settings)
    return {name: table.to_pylist() for name, table in tables.items()}


def test_cuts_and_transitions_are_found_and_flashes_and_pans_are_not(scanned, workspace):
    shots = found(scanned, workspace)["shots"]
    spans = [(s["transition"], s["start_frame"], s["end_frame"]) for s in shots]
    assert [kind for kind, _, _ in spans] == [
        *[None] * 3, "dissolve", None, "fade", None, "wipe", None
    ]  # fmt: skip
    assert spans[:2] == [(None, 0, CUT), (None, CUT, SECOND_CUT)]
    for (_, first, end), (begin, last) in zip(
        spans[3::2], (DISSOLVE, (FADE_OUT[0], FADE_IN[1]), WIPE), strict=True
    ):
        assert abs(first - begin) <= 4, (first, begin)
        assert abs(end - 1 - last) <= 4, (end, last)
    assert [shot["rule"] for shot in shots[3::2]] == ["split_clips.transition"] * 3
    assert [shot["n_clips"] for shot in shots[3::2]] == [0] * 3


def test_untrimmed_shots_meet_in_the_middle_of_a_transition(scanned, workspace):
    tables = found(scanned, workspace, trim_transitions=False)
    shots = [shot for shot in tables["shots"] if shot["transition"] is None]
    edges = [shot["start_frame"] for shot in shots] + [shots[-1]["end_frame"]]
    assert [shot["end_frame"] for shot in shots] == edges[1:]
    assert (*edges[:3], edges[-1]) == (0, CUT, SECOND_CUT, COUNT)
    for edge, (first, last) in zip(
        edges[3:-1], (DISSOLVE, (FADE_OUT[0], FADE_IN[1]), WIPE), strict=True
    ):
        assert abs(edge - (first + last) / 2) <= 4, (edge, first, last)
    assert [s["transition"] for s in tables["shots"] if s["transition"]] == [
        "dissolve",
        "fade",
        "wipe",
    ]


def test_settings_that_need_no_new_scan(scanned, workspace):
    def cuts(**settings):
        shots = found(scanned, workspace, **settings)["shots"]
        return [s["start_frame"] for s in shots if s["transition"] is None]

    assert {CUT, SECOND_CUT} <= set(cuts())
    # No probability is 1.
    assert not {CUT, SECOND_CUT} & set(cuts(threshold=1))
    for length in ("10", "0.4s", "00:00:00.4"):
        assert len({CUT, SECOND_CUT} & set(cuts(min_scene_len=length))) == 1, length
    steps = [SplitClips(detector="cascade", **more).steps()[0] for more in ({}, {"threshold": 0.9})]
    assert steps[0].identity() == steps[1].identity()


@pytest.mark.parametrize("extra", [{"exact": True}, {"threshold": 27}])
def test_settings_that_do_not_fit_are_refused(extra):
    with pytest.raises(ValidationError, match="|".join(extra)):
        SplitClips(detector="cascade", **extra)


def test_identities_of_other_detectors_are_what_they_were():
    assert SplitClips().identity() == {}
    assert SplitClips(min_scene_len="0.6s").identity() == {}
    assert SplitClips(min_scene_len="0.2s").identity() == {"min_scene_len": "0.2s"}
    named = SplitClips(detector="cascade").identity()
    assert set(named) == {"detector", "weights"}
    assert SplitClips(detector="cascade", min_scene_len="0.6s").identity() != named


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real footage is not next to this checkout")
def test_real_cuts_and_transitions_are_found(tmp_path):
    """Of 51 hand-verified cuts PySceneDetect's content detector finds 43, of 30 fades and
    dissolves 17."""
    hits = false = all_cuts = seen_spans = all_spans = 0
    for path in sorted((SHARED / "cuts").glob("*.json")):
        truth = json.loads(path.read_text())
        name = truth["video"]
        shots = run(SHARED / name, tmp_path, detector="cascade", keep_frames=False)["shots"]
        cuts = [cut["frame"] for cut in truth["hard_cuts"]]
        gradual = [
            (g["start_frame"], g["end_frame"])
            for g in truth["gradual"]
            if g["type"].startswith(("fade", "dip", "dissolve"))
        ]
        ignored = [
            (g["start_frame"] - 3, g["end_frame"] + 3)
            for g in (*truth["gradual"], *truth["dont_care"])
        ]
        spans = [(s["start_frame"], s["end_frame"]) for s in shots if s["transition"]]
        begins = [s["start_frame"] for s in shots[1:] if s["transition"] is None]
        begins = [b for b in begins if b not in {end for _, end in spans}]
        edges = [s["start_frame"] for s in shots]
        hits += sum(any(abs(edge - cut) <= 2 for edge in edges) for cut in cuts)
        false += sum(
            not any(abs(b - cut) <= 2 for cut in cuts)
            and not any(first <= b <= last for first, last in ignored)
            for b in begins
        )
        all_cuts += len(cuts)
        seen_spans += sum(any(a <= last and first < b for a, b in spans) for first, last in gradual)
        all_spans += len(gradual)
    assert (all_cuts, all_spans) == (51, 31)
    assert hits >= 49, hits
    assert false <= 1, false
    assert seen_spans >= 28, seen_spans
