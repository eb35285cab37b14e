"""take_given_score: a published number, unchanged, on the clip for which it was computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.split_clips import CLIPS
from clipmill.stages.take_given_score import TakeGivenScore
from tests.tiny_clip import transformed

SPAN = {"start_seconds": 10.0, "end_seconds": 14.5, "caption": "a dog", "extra": []}


def row(number: int, given: str | None, **changes: Any) -> dict[str, Any]:
    extra = [("Aesthetic_Score", "4.5"), ("UMT_Score", given)] if given is not None else []
    return {
        "clip_id": f"clip-{number}",
        "extra": extra,
        "start_seconds": 10.0,
        "end_seconds": 14.5,
        "spans": [SPAN],
        **changes,
    }


def batch(rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema(
        [
            ("clip_id", pa.string()),
            CLIPS.field("extra"),
            CLIPS.field("start_seconds"),
            CLIPS.field("end_seconds"),
            VIDEOS.field("spans"),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def scored(folder: Path, *rows: dict[str, Any], **settings: Any) -> list[tuple]:
    stage = TakeGivenScore(**{"column": "UMT_Score", "scorer": "UMT-SIM", **settings})
    made = transformed(stage, folder, batch(list(rows)))
    assert [one["clip_id"] for one in made] == [one["clip_id"] for one in rows]
    return [(one["given_score"], one["given_score_reason"]) for one in made]


def test_given_number_is_unchanged(tmp_path):
    """As a double: a threshold of 0.43 keeps what was published as 0.43."""
    said = ["0.43", "0.4300000667572022", "-0.89", "0", "1e-3", " 9.02 "]
    found = scored(tmp_path, *(row(i, text) for i, text in enumerate(said)))
    assert found == [(float(text), None) for text in said]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (None, "the source gives no UMT_Score with this clip"),
        ("high", "UMT_Score is 'high', which is not a number"),
        ("", "UMT_Score is '', which is not a number"),
        ("0,43", "not a number"),
        ("1_0", "not a number"),
        ("nan", "UMT_Score is 'nan', which is not finite"),
        ("Infinity", "not finite"),
        ("-inf", "not finite"),
        ("1e999", "not finite"),
    ],
)
def test_invalid_number_is_null_with_a_reason(tmp_path, given, reason):
    ((score, said),) = scored(tmp_path, row(0, given))
    assert score is None
    assert reason in said


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({"start_seconds": 10.04, "end_seconds": 14.48}, True),  # moved to the nearest frame
        ({"start_seconds": 10.0, "end_seconds": 12.0}, False),  # cut in two
        ({"start_seconds": 12.0, "end_seconds": 14.5}, False),
        ({"start_seconds": 10.0, "end_seconds": 13.9}, False),  # the video ends before the span
        ({"spans": []}, False),
        ({"spans": None}, False),
        ({"spans": [{**SPAN, "end_seconds": None}]}, True),  # to the end of the video
        ({"start_seconds": 0.0, "spans": [{**SPAN, "start_seconds": None}]}, True),
        ({"spans": [{**SPAN, "start_seconds": 0.0}, SPAN]}, True),
    ],
)
def test_score_belongs_to_its_own_span(tmp_path, changes, taken):
    ((score, reason),) = scored(tmp_path, row(0, "0.4", **changes))
    assert (score == 0.4) is taken
    assert (reason is None) is taken
    assert taken or "not the whole span" in reason


def test_tolerance_is_a_setting(tmp_path):
    clip = row(0, "0.4", end_seconds=13.9)
    assert scored(tmp_path, clip, tolerance_seconds=1)[0][0] == 0.4


def test_column_and_scorer_are_required():
    for settings in (
        {"column": "UMT_Score"},
        {"scorer": "UMT-SIM"},
        {"column": "", "scorer": "UMT-SIM"},
    ):
        with pytest.raises(ValidationError):
            TakeGivenScore(**settings)
