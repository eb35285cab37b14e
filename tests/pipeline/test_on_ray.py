"""How errors and standard error from Ray are shown."""

from __future__ import annotations

import pickle

import pytest
from ray.exceptions import RayTaskError

from clipmill.pipeline.engine.on_ray import _reason
from clipmill.pipeline.engine.ray_noise import FRAME, NOISE
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.storage import StorageError


@pytest.mark.parametrize("kind", [ClipmillError, UsageError, StorageError])
def test_workers_exception_is_shown_without_rays_wrapper(kind):
    """Ray's wrapper has the same class, and its text is the traceback; Ray Data adds advice."""
    raised = kind("the disk is full\nFailed to apply UDF transform after 1/1 attempts.\nTo change")
    sent = pickle.loads(pickle.dumps(RayTaskError("submit", "Traceback …\nClipmillError", raised)))
    found = _reason(sent.as_instanceof_cause())
    assert type(found) is kind
    assert str(found) == "the disk is full"


def test_unexpected_error_is_shown_shortened():
    found = _reason(RuntimeError("first line\n" + "x" * 100_000))
    assert type(found) is ClipmillError
    assert "RuntimeError: first line …" in str(found)
    assert len(str(found)) < 1000


@pytest.mark.parametrize(
    "line",
    [
        b"[2026-11-21 16:36:00,415 E 30811 30977] task_manager.cc:1545: Failed to push error\n",
        b"\x1b[36m(MapWorker pid=6831)\x1b[0m [2026-11-21 16:36:00,415 E 1 2] a_b.cc:15: x\n",
        b"[2026-11-21 16:36:00,415 E 30811 30977] actor.cc:9: has constructor arguments\n",
    ],
)
def test_ray_cores_messages_are_left_out(line):
    assert NOISE.match(line)


def test_only_backtrace_frames_are_left_out():
    assert FRAME.search(b"\x1b[36m(MapWorker(x) pid=6831)\x1b[0m /a/_raylet.so(+0xb1) [0x7f6e]\n")
    for line in (
        b"Error: cannot write to /data: No space left on device\n",
        b"(MapWorker(x) pid=6831) Loading weights [100%]\n",
        b"[2026-11-21 16:36:00,415 C 1 2] core_worker.cc:1: check failed\n",
    ):
        assert not NOISE.match(line)
        assert not FRAME.search(line)
