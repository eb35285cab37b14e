"""The stage of docs/export.md finds black bars, and `--crop safe` cuts them off."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.exports.safe_rectangles import PINNED, rectangle_of
from clipmill.schemas.safe_rectangles import SAFE

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "export.md").read_text()


def jpeg(top: int, bottom: int, left: int, right: int, shift: int = 0) -> dict[str, bytes]:
    """A picture of noise of 90 × 160 pixels, with bars of black."""
    noise = np.random.default_rng(shift).integers(60, 255, (90, 160), np.uint8)
    noise[:top] = noise[90 - bottom :] = 0
    noise[:, :left] = noise[:, 160 - right :] = 0
    return {"jpeg": cv2.imencode(".jpg", noise)[1].tobytes()}


@pytest.fixture(scope="module")
def find_bars():
    space: dict = {}
    [code] = re.findall(r"```python\n(# find_bars.py\n.*?)```", TEXT, re.S)
    exec(code, space)
    return space["FindBars"]()


def test_documented_stage_finds_bars(find_bars):
    bars = {
        "none": (0, 0, 0, 0),
        "letterbox": (11, 11, 0, 0),
        "pillars": (0, 0, 20, 30),
        "black": (90, 0, 0, 0),
    }
    clips = pa.table(
        {
            "clip_id": list(bars),
            "frames": [[jpeg(*edges, shift=n) for n in range(3)] for edges in bars.values()],
        }
    )
    with find_bars.open(None) as transform:
        found = {row["clip_id"]: row for row in transform(clips).to_pylist()}
    assert found["none"]["bar_share"] == 0
    assert found["black"]["bar_share_reason"] == "all frames are black"
    rectangles = {
        name: rectangle_of({pinned: row[safe] for pinned, safe in zip(PINNED, SAFE, strict=True)})
        for name, row in found.items()
    }
    assert rectangles["none"] is rectangles["black"] is None
    letterbox, pillars = rectangles["letterbox"], rectangles["pillars"]
    # At most two pixels of the picture are lost at each edge, and no bar is left.
    assert 11 <= letterbox.top * 90 <= 13
    assert 77 <= letterbox.bottom * 90 <= 79
    assert 20 <= pillars.left * 160 <= 22
    assert 128 <= pillars.right * 160 <= 130
    assert found["letterbox"]["bar_share"] == pytest.approx(22 / 90, abs=4 / 90)
