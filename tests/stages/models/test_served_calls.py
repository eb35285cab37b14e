"""Calls of stages that ask servers: how many rows each has, and that servers are kept busy."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from clipmill.stages.protocol import Workspace
from clipmill.stages.summarize_captions import SummarizeCaptions
from tests.openai_stand_in import openai_server, text_of

CONCURRENCY = 32


def stage(url: str, **settings) -> SummarizeCaptions:
    return SummarizeCaptions(model=f"{url}#m", prompt="Sum up: {{ coarse }}", **settings)


def said_by(asking: SummarizeCaptions, folder, clips: int) -> dict[str, str]:
    """The summaries of clips, by calls as the runner makes them."""
    table = pa.table(
        {
            "clip_id": [f"c{i}" for i in range(clips)],
            "caption_coarse": [f"clip {i}" for i in range(clips)],
        }
    )
    size = asking.rows_at_once
    with (
        asking.open(Workspace(folder, folder)) as transform,
        ThreadPoolExecutor(asking.calls_at_once) as pool,
    ):
        parts = pool.map(transform, [table.slice(at, size) for at in range(0, clips, size)])
        rows = [row for part in parts for row in part.to_pylist()]
    return {row["clip_id"]: row["caption"] for row in rows}


@pytest.mark.parametrize(
    ("settings", "calls", "rows"),
    [
        ({}, 16, 1),
        ({"server_concurrency": 1}, 2, 1),
        ({"server_concurrency": 31}, 62, 1),
        ({"server_concurrency": 64}, 48, 4),
        ({"server_concurrency": 256}, 192, 4),
        ({"server_concurrency": 64, "batch_rows": 1}, 128, 1),
    ],
)
def test_rows_in_flight_are_more_than_requests(settings, calls, rows):
    asking = stage("http://127.0.0.1:1/v1", **settings)
    assert (asking.calls_at_once, asking.rows_at_once) == (calls, rows)


def test_server_always_has_as_many_requests_as_it_may(tmp_path):
    """It answers only when all have arrived, three times."""
    all_there = threading.Barrier(CONCURRENCY, timeout=60)

    def answer(request):
        all_there.wait()
        return f"a caption of {text_of(request)}"

    with openai_server(answer) as stand_in:
        asking = stage(stand_in.url, server_concurrency=CONCURRENCY)
        found = said_by(asking, tmp_path, 3 * CONCURRENCY)
    assert found == {f"c{i}": f"a caption of Sum up: clip {i}" for i in range(3 * CONCURRENCY)}
    assert stand_in.most_at_once == CONCURRENCY


def test_slow_answer_keeps_only_the_rows_of_its_call_waiting(tmp_path):
    """The first clip is answered when all others have been."""
    left = threading.Semaphore(0)
    clips = 6 * CONCURRENCY

    def answer(request):
        if text_of(request).endswith("clip 0"):
            for _ in range(clips - 1):
                assert left.acquire(timeout=60)
        left.release()
        return "a caption"

    with openai_server(answer) as stand_in:
        found = said_by(stage(stand_in.url, server_concurrency=CONCURRENCY), tmp_path, clips)
    assert len(found) == clips
    assert set(found.values()) == {"a caption"}
