"""detect_faces: faces of real films, where OpenCV's own detector finds them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.detect_faces import YUNET, DetectFaces
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.media.read.images import decode_jpeg
from tests.film_frames import clips_of, film_frame
from tests.tiny_clip import transformed

pytest.importorskip("onnxruntime", reason="needs clipmill[signals]")

# Looked at: faces that a person sees in these frames.
SEEN = {
    ("googlework_short_35s.mp4", 26.0): 1,
    ("sam2_dog_catch.mp4", 6.0): 1,
    ("tears_of_steel_room_17s_vp9.webm", 3.4): 2,
    ("flower_bloom.mp4", 2.0): 0,
    ("nasa_13013_17s.mp4", 5.0): 0,
    ("sam2_coffee_pour.mp4", 2.0): 0,
}


@pytest.fixture(scope="module")
def frames():
    return {f"{name} {seconds}": [film_frame(name, seconds)] for name, seconds in SEEN}


@pytest.fixture(scope="module")
def rows(frames, tmp_path_factory):
    clips = clips_of(
        **frames,
        plain=[cv2.imencode(".jpg", np.full((384, 512, 3), 90, np.uint8))[1].tobytes()],
        none=[],
    )
    made = transformed(DetectFaces(cpus=2), tmp_path_factory.mktemp("faces"), clips)
    return {row["clip_id"]: row for row in made}


def test_the_faces_that_a_person_sees_are_found(rows):
    found = {key: rows[f"{key[0]} {key[1]}"]["faces"] for key in SEEN}
    assert found == SEEN


def test_a_picture_of_one_colour_has_no_faces(rows):
    row = rows["plain"]
    assert (row["faces"], row["faces_mean"], row["face_area"]) == (0, 0, 0)
    assert row["face_boxes"] == []


def test_a_clip_without_frames_is_a_failure(rows):
    assert rows["none"]["error"]["kind"] == "bad_media"


def test_boxes_are_those_of_opencv(rows, frames):
    """Of FaceDetectorYN, on the picture as the network sees it."""
    if not hasattr(cv2, "FaceDetectorYN"):
        pytest.skip("this OpenCV has no FaceDetectorYN")
    path = local_file(YUNET, setting="a.b")
    theirs = cv2.FaceDetectorYN.create(str(path), "", (640, 640), 0.6, 0.3, 5000)
    compared = 0
    for key, (jpeg,) in frames.items():
        image = decode_jpeg(jpeg)
        height, width = image.shape[:2]
        size = round(640 * width / max(width, height)), round(640 * height / max(width, height))
        seen = np.zeros((640, 640, 3), np.uint8)
        fitted = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        seen[: size[1], : size[0]] = fitted[:, :, ::-1]
        _, expected = theirs.detect(seen)
        found = rows[key]["face_boxes"]
        for face, box in zip([] if expected is None else expected, found, strict=True):
            left, top, wide, high = face[:4] / np.tile(size, 2)
            sides = np.clip([left, top, left + wide, top + high], 0, 1)
            ours = [box[name] for name in ("left", "top", "right", "bottom")]
            np.testing.assert_allclose(ours, sides, atol=2e-3)
            assert box["confidence"] == pytest.approx(face[14], abs=2e-3)
            compared += 1
    assert compared == sum(SEEN.values())


def test_a_clips_columns_come_from_all_its_frames(tmp_path, rows):
    one, two = ("googlework_short_35s.mp4", 26.0), ("tears_of_steel_room_17s_vp9.webm", 3.4)
    clip = [film_frame(*one), film_frame("flower_bloom.mp4", 2.0), film_frame(*two)]
    [row] = transformed(DetectFaces(), tmp_path, clips_of(all=clip))
    assert (row["faces"], row["faces_mean"]) == (2, 1)
    assert [box["seconds"] for box in row["face_boxes"]] == [0.0, 1.0, 1.0]
    largest = max(rows[f"{film} {at}"]["face_area"] for film, at in (one, two))
    assert row["face_area"] == largest
    assert 0.001 < largest < 0.2


def test_confidence_decides(tmp_path, frames):
    key = "tears_of_steel_room_17s_vp9.webm 3.4"
    counts = [
        transformed(DetectFaces(min_confidence=least), tmp_path, clips_of(one=frames[key]))[0][
            "faces"
        ]
        for least in (0.3, 0.6, 0.95)
    ]
    assert counts[0] >= counts[1] > counts[2] == 0


def test_another_model_is_refused():
    stage = DetectFaces(weights="package:silero_vad/data/silero_vad_16k_op15.onnx")
    [check] = stage.model_checks("detect_faces", {})
    with pytest.raises(ClipmillError, match=r"^detect_faces\.weights: .*is not YuNet"):
        check.run()
    [check] = DetectFaces().model_checks("detect_faces", {})
    assert check.run() == "YuNet"
