"""measure_text: drawn text is found, read and told apart, with the weights of the package."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError

from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.tables import FRAME
from clipmill.stages.check_captions import CheckCaptions
from clipmill.stages.measure_text import TEXT_MEASURES, MeasureText
from clipmill.stages.models.text_boxes import boxes_of, covered
from clipmill.stages.protocol import Workspace
from clipmill.stages.references import DataFile
from clipmill.stages.summarize_captions import SummarizeCaptions
from tests.media import SHARED_VIDEOS

pytest.importorskip("onnxruntime", reason="needs clipmill[signals]")
pytest.importorskip("rapidocr", reason="needs clipmill[signals]")

SIZE = (320, 192)
NOWHERE = Workspace(None, None)

Line = tuple[float, float, int, str]
"""Left and top, size of the letters, text."""


def picture(*lines: Line, seed: int = 0, degrees: float = 0) -> np.ndarray:
    """Soft colours, with lines of text on them."""
    random = np.random.default_rng(seed)
    ground = cv2.resize(
        random.integers(30, 120, (4, 6, 3), np.uint8), SIZE, interpolation=cv2.INTER_CUBIC
    )
    image = Image.fromarray(ground)
    draw = ImageDraw.Draw(image)
    for left, top, size, text in lines:
        draw.text((left, top), text, (250, 250, 245), ImageFont.load_default(size=size))
    return np.asarray(image.rotate(degrees) if degrees else image)


def box(line: Line) -> np.ndarray:
    """The corners of a line, from ascenders to descenders."""
    font = ImageFont.load_default(size=line[2])
    left, _, right, _ = font.getbbox(line[3])
    _, top, _, bottom = font.getbbox("dp")
    x, y = line[:2]
    return np.array(
        [
            [x + left, y + top],
            [x + right, y + top],
            [x + right, y + bottom],
            [x + left, y + bottom],
        ],
        np.float32,
    )


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def rows_of(clips: Mapping[str, Sequence[np.ndarray | bytes]]) -> pa.Table:
    frames = [
        [
            {
                "frame_number": at,
                "seconds": 2.0 * at,
                "jpeg": one if isinstance(one, bytes) else jpeg(one),
            }
            for at, one in enumerate(clip)
        ]
        for clip in clips.values()
    ]
    return pa.table({"clip_id": list(clips), "frames": pa.array(frames, pa.list_(FRAME))})


LOGO: Line = (10, 6, 18, "LIVE NEWS")
SAID = ("Where are you?", "Nobody knows it.", "Then we wait.")
SIGN = "Fresh bread"
EDGES: tuple[Line, ...] = ((0, 60, 20, "Left edge"), (225, 170, 20, "Down here"))
FLAT = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)


def staged(at: int) -> np.ndarray:
    width = ImageFont.load_default(size=16).getlength(SAID[at])
    return picture(
        LOGO,
        ((SIZE[0] - width) / 2, 166, 16, SAID[at]),
        (60 + 45 * at, 70 + 8 * at, 20, SIGN),
        seed=at,
    )


CLIPS: dict[str, list[np.ndarray | bytes]] = {
    "staged": [staged(at) for at in range(3)],
    "flat": [FLAT, np.zeros_like(FLAT)],
    "undecodable": [b"\xff\xd8 no picture"],
    "without frames": [],
    "edges": [picture(*EDGES)],
    "turned": [picture((70, 80, 24, "Upside down text"), degrees=180)],
    "steep": [picture((110, 80, 22, "Going up"), degrees=90)],
    "still": [picture(LOGO)] * 3,
}


@pytest.fixture(scope="module")
def asked() -> list[int]:
    """How many pictures each call of the detector's model had."""
    return []


@pytest.fixture(scope="module")
def measured(asked: list[int]) -> dict[str, dict[str, Any]]:
    """What the stage says about all of the clips, in one batch, reading them."""
    stage = MeasureText(read=True, short_side=192)
    with pytest.MonkeyPatch.context() as patch, stage.open(NOWHERE) as transform:
        from clipmill.stages.models import text_boxes

        plain = text_boxes.network_input
        patch.setattr(text_boxes, "network_input", lambda *given: asked.append(1) or plain(*given))
        made = transform(rows_of(CLIPS))
    assert isinstance(made, pa.Table)
    assert made.schema == TEXT_MEASURES
    return {row["clip_id"]: row for row in made.to_pylist()}


def by_kind(row: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in row["text_lines"]:
        found.setdefault(line["kind"], []).append(line["text"])
    return found


def test_overlay_subtitles_and_text_of_the_scene_are_told_apart_and_read(measured):
    row = measured["staged"]
    assert by_kind(row) == {"overlay": ["LIVE NEWS"], "scene": [SIGN], "subtitle": list(SAID)}
    assert row["text_read"] == ["LIVE NEWS", SIGN, *SAID] or set(row["text_read"]) == {
        "LIVE NEWS",
        SIGN,
        *SAID,
    }
    (logo,) = (line for line in row["text_lines"] if line["kind"] == "overlay")
    assert (logo["seconds"], logo["last_seconds"], logo["frames"]) == (0.0, 4.0, 3)
    assert logo["confidence"] > 0.9
    assert 0.8 < row["text_subtitle_top"] < 0.9 < row["text_subtitle_bottom"] <= 1


def test_areas_by_kind_add_up_and_are_near_those_of_the_drawn_lines(measured):
    row = measured["staged"]
    parts = [row[f"text_area_{kind}"] for kind in ("overlay", "subtitle", "scene")]
    assert all(part > 0.01 for part in parts)
    assert sum(parts) == pytest.approx(row["text_area"], abs=1e-6)
    logo = covered([box(LOGO)], SIZE[::-1]).mean()
    assert 0.8 < row["text_area_overlay"] / logo < 1.25
    assert row["text_boxes"] == row["text_boxes_max"] == 3


def test_text_at_the_very_edge_is_found_where_it_is(measured):
    row = measured["edges"]
    assert {"Left edge", "Down here"} <= set(row["text_read"])
    found = {line["text"]: line for line in row["text_lines"]}
    assert found["Left edge"]["left"] < 0.02
    assert found["Down here"]["bottom"] > 0.97
    assert all(0 <= line["left"] <= line["right"] <= 1 for line in row["text_lines"])


def test_turned_text_is_read(measured):
    assert measured["turned"]["text_read"] == ["Upside down text"]
    assert measured["steep"]["text_read"] == ["Going up"]


def test_a_picture_of_one_colour_has_no_text(measured):
    row = measured["flat"]
    assert row["error"] is None
    assert (row["text_area"], row["text_area_scene"], row["text_boxes_max"]) == (0, 0, 0)
    assert (row["text_lines"], row["text_read"]) == ([], [])


def test_kinds_of_a_single_frame_are_null_with_the_reason(measured):
    row = measured["edges"]
    assert row["text_area"] > 0.02
    assert row["text_area_overlay"] is row["text_area_scene"] is None
    assert "one frame" in row["text_area_scene_reason"]
    assert {line["kind"] for line in row["text_lines"]} == {None}


def test_a_clip_without_usable_frames_fails_alone(measured):
    assert measured["undecodable"]["error"]["kind"] == "bad_media"
    assert measured["without frames"]["error"]["message"] == "no frame of this clip can be read"


def test_frames_that_look_the_same_are_looked_at_once(measured, asked):
    """Of 10 frames with something on them, two are repeated; the flat ones aren't looked at."""
    assert measured["still"]["text_boxes"] == 1
    assert measured["still"]["text_lines"][0]["frames"] == 3
    assert len(asked) == 3 + 1 + 1 + 1 + 1


def test_without_reading_there_are_boxes_but_no_words():
    stage = MeasureText(short_side=96)
    with stage.open(NOWHERE) as transform:
        (row,) = transform(rows_of({"a": [picture((20, 70, 40, "BIG TEXT"))]})).to_pylist()
    assert row["text_area"] > 0.05
    assert (row["text_read"], row["text_lines"][0]["text"]) == (None, None)
    assert "read is false" in row["text_read_reason"]


@pytest.mark.slow  # RapidOCR imports 600 modules
def test_boxes_are_those_of_rapidocr_up_to_its_rounding():
    marks = np.zeros((96, 160), np.float32)
    for corners in (
        [[10, 10], [70, 10], [70, 18], [10, 18]],
        [[90, 30], [140, 50], [137, 58], [87, 38]],
    ):
        cv2.fillPoly(marks, [np.array(corners, np.int32)], 0.9)
    marks[86:, 100:] = 0.8  # at the edge
    utils = pytest.importorskip("rapidocr.ch_ppocr_det.utils", reason="needs clipmill[signals]")
    theirs, _ = utils.DBPostProcess(0.3, 0.5, 1000, 1.6, "fast", True)(marks[None, None], (96, 160))
    ours = boxes_of(marks, (96, 160), 0.5)
    assert len(ours) == len(theirs) == 3
    for one in ours:
        nearest = min(np.abs(other - one.wide).max() for other in theirs)
        assert nearest <= 2, one


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_VIDEOS.is_dir(), reason="needs the real footage next to the tree")
def test_a_burnt_in_time_code_is_overlay_and_says_when_its_frame_is_shown():
    with av.open(str(SHARED_VIDEOS / "bbb_timecode_0.mp4")) as container:
        begin = container.start_time / av.time_base
        frames = [
            (frame.time - begin, frame.reformat(682, 384, format="rgb24").to_ndarray())
            for number, frame in enumerate(container.decode(video=0))
            if number in (60, 100, 140)
        ]
    table = rows_of({"a": [image for _, image in frames]})
    with MeasureText(read=True).open(NOWHERE) as transform:
        (row,) = transform(table).to_pylist()
    assert row["text_read"] == [f"00:00:{seconds:06.3f}" for seconds, _ in frames]
    assert {line["kind"] for line in row["text_lines"]} == {"overlay"}
    assert row["text_area"] == row["text_area_overlay"] > 0.01


def test_reader_counts_only_where_text_is_read():
    other = DataFile(package="rapidocr/models/other.onnx", sha256="0" * 64)
    assert set(MeasureText().identity()) == {"detector"}
    assert set(MeasureText().references()) == {"detector"}
    assert set(MeasureText(read=True).identity()) == {"detector", "read", "reader"}
    with pytest.raises(ValidationError, match="reader is set, but read is not"):
        MeasureText(reader=other)


def test_text_that_is_not_read_cannot_be_compared_or_summarised(tmp_path):
    before = {"measure_text": MeasureText()}
    told = "text_read, which is there with measure_text.read: true"
    with pytest.raises(ValueError, match=told):
        CheckCaptions(text_read="measure_text.text_read").check_upstream(before)
    fuse = SummarizeCaptions(prompt="fuse", on_screen_text="measure_text.text_read")
    with pytest.raises(ValueError, match=told):
        fuse.check_upstream({"caption_frames": CheckCaptions(), **before})
    reads = {"measure_text": MeasureText(read=True)}
    CheckCaptions(text_read="measure_text.text_read").check_upstream(reads)
    (tmp_path / "r.yaml").write_text(
        "description: Text.\n"
        "stages: {download_videos: {}, split_clips: {}, measure_text: {read: true}}\n"
    )
    plan = build_plan(load_recipe(tmp_path / "r.yaml"))
    assert plan.by_label["measure_text"].stage == MeasureText(read=True)


def test_a_model_of_another_kind_is_refused_by_the_setting_that_names_it():
    swapped = MeasureText(read=True, detector=MeasureText().reader, reader=MeasureText().detector)
    checks = {check.setting: check for check in swapped.model_checks("measure_text", {})}
    with pytest.raises(ClipmillError, match=r"^measure_text\.detector: this is another kind"):
        checks["detector"].run()
    with pytest.raises(ClipmillError, match=r"^measure_text\.reader: "):
        checks["reader"].run()


def test_an_absent_package_and_other_weights_are_named():
    absent = DataFile(package="no_such_package/det.onnx", sha256="0" * 64)
    stage = MeasureText(detector=absent)
    with pytest.raises(ClipmillError, match=r"measure_text\.detector: .*no_such_package"):
        stage.open(NOWHERE).__enter__()
    other = MeasureText().detector.model_copy(update={"sha256": "1" * 64})
    with pytest.raises((ClipmillError, UsageError), match=re.escape("1" * 64)):
        MeasureText(detector=other).open(NOWHERE).__enter__()
