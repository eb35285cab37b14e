"""Whatever happens in a helper process, this process gets one failure, in time."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from clipmill.schemas.errors import ClipmillError, RowFailed, RowRejected
from clipmill.stages.media.isolation import isolated
from clipmill.stages.media.isolation.isolated import (
    Limits,
    collect_isolated,
    run_isolated,
    stream_isolated,
)
from tests import isolated_functions as harm
from tests.media import THREE_SHOTS, cached

FILE = Path("film.mp4")
LIMITS = Limits(20, 60, 1 << 30, settings_of="split_clips")


@pytest.fixture(autouse=True)
def _fresh():
    """Each test begins and ends without helpers."""
    isolated.end_helpers()
    yield
    isolated.end_helpers()
    assert not helpers()


def helpers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # another test's, which has just ended
            if "clipmill.stages.media.isolation.isolated_process" in process.cmdline():
                found.append(process)
    return found


def crash(function, *args, limits: Limits = LIMITS) -> str:
    with pytest.raises(RowFailed) as caught:
        run_isolated(function, FILE, *args, limits=limits)
    assert caught.value.kind == "crash"
    assert caught.value.message.startswith("film.mp4: ")
    return caught.value.message


def test_arguments_and_values_are_passed():
    arguments = ("é\n", b"\0" * 3_000_000, {"a": [1.5, None]})
    assert run_isolated(harm.echo, FILE, *arguments, limits=LIMITS) == (FILE, *arguments)


def test_one_helper_serves_many_calls():
    first = run_isolated(harm.whose, FILE, limits=LIMITS)
    assert first != os.getpid()
    assert run_isolated(harm.whose, FILE, limits=LIMITS) == first


def test_helper_imports_only_decoders(tmp_path):
    from clipmill.stages.media.read.measures import WantedMeasures
    from clipmill.stages.media.read.probe import probe
    from clipmill.stages.media.read.scan import ScanSettings, scan_video

    with pytest.raises(RowFailed):
        run_isolated(probe, tmp_path / "none.mp4", limits=LIMITS)
    film, _ = cached(THREE_SHOTS)
    settings = ScanSettings(
        exact=False,
        spans=None,
        starts_at_seconds=None,
        keep_frames=True,
        frame_short_side=64,
        frame_quality=90,
        frames_per_second=2.0,
        wanted=WantedMeasures(),
        lean=True,
    )
    collect_isolated(scan_video, film, settings, limits=LIMITS)
    for name in ("read.scan", "read.seek", "cutting.cut", "fetch.sections"):
        run_isolated(harm.load, FILE, f"clipmill.stages.media.{name}", limits=LIMITS)
    loaded = set(run_isolated(harm.modules, FILE, limits=LIMITS))
    assert "av" in loaded
    assert not loaded & {
        "torch",
        "ray",
        "duckdb",
        "transformers",
        "pydantic",
        "pyarrow",
        "scenedetect",
        "clipmill.stages.models",
        "clipmill.stages.protocol",
        "clipmill.pipeline",
        "clipmill.jobs",
    }


@pytest.mark.parametrize(
    ("function", "args", "how"),
    [
        (harm.segfault, (), "by signal 11 (SIGSEGV)"),
        (harm.leave, (0,), "with exit status 0"),
        (harm.leave, (7,), "with exit status 7"),
        (harm.complain_and_abort, (), "by signal 6 (SIGABRT), saying 'Assertion x > 0 failed'"),
    ],
)
def test_dying_helper_is_a_crash_with_the_reason(function, args, how):
    message = crash(function, *args)
    assert f"it ended twice, the last time {how};" in message
    assert "ffprobe" in message


def test_call_that_dies_once_is_retried_in_a_new_process(tmp_path):
    marker = tmp_path / "died"
    assert run_isolated(harm.segfault_once, FILE, marker, limits=LIMITS) == "done"
    assert marker.exists()


def test_failed_attempt_returns_no_parts_but_its_frames_count(tmp_path):
    counted: list[int] = []
    parts, value = collect_isolated(
        harm.parts_and_then_segfault_once,
        FILE,
        tmp_path / "died",
        limits=LIMITS,
        counted=counted.append,
    )
    assert (parts, value) == ([1, 2, 3], None)
    assert counted == [7, 11]


@pytest.mark.parametrize("function", [harm.hang_with_the_interpreter_lock, harm.stop_itself])
def test_hanging_helper_is_killed_after_the_stall_limit(function):
    began = time.monotonic()
    message = crash(function, limits=replace(LIMITS, stall_seconds=0.5))
    assert time.monotonic() - began < 40
    assert "reading made no progress for 0.5 s" in message
    assert "split_clips.stall_seconds" in message
    assert not helpers()


def test_progress_is_not_a_stall_but_has_a_time_limit():
    short = replace(LIMITS, stall_seconds=4.0)
    assert run_isolated(harm.work_on, FILE, 5.0, limits=short) == "done"
    message = crash(harm.work_on, 200, limits=replace(short, time_limit_seconds=1.0))
    assert "was not read in 1 s" in message
    assert "split_clips.time_limit_seconds" in message


@pytest.mark.parametrize(
    ("function", "size"), [(harm.take_memory, 3 << 30), (harm.take_opencv_memory, 16_000)]
)
def test_exceeding_memory_is_a_crash_that_names_the_setting(function, size):
    message = crash(function, size)
    assert "takes more than 1,073,741,824 bytes of memory" in message
    assert "split_clips.memory_limit_bytes" in message
    assert run_isolated(harm.take_memory, FILE, 64 << 20, limits=LIMITS) == 64 << 20


def test_many_threads_count_only_for_memory_they_use():
    """Not for the 8 MB of address space of each, which would be 2 GB here."""
    assert run_isolated(harm.convert_with_many_threads, FILE, 16, 16, limits=LIMITS) > 200


def test_memory_of_an_earlier_file_does_not_count_against_the_next():
    """If a reused helper runs out of memory, a new one tries again."""
    large = run_isolated(harm.hold_memory, FILE, 400 << 20, limits=LIMITS)
    assert run_isolated(harm.whose, FILE, limits=LIMITS) == large
    assert run_isolated(harm.take_memory, FILE, 800 << 20, limits=LIMITS) == 800 << 20
    assert run_isolated(harm.whose, FILE, limits=LIMITS) != large


def test_helper_that_stays_large_is_not_kept():
    run_isolated(harm.hold_memory, FILE, 600 << 20, limits=LIMITS)
    assert not helpers()


def test_helpers_output_is_not_shown(capfd):
    assert run_isolated(harm.print_rubbish, FILE, limits=LIMITS) == "done"
    assert capfd.readouterr() == ("", "")


def test_invalid_answer_is_a_crash():
    assert "with an answer that can't be read" in crash(harm.write_rubbish_to_every_file)


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("failed", RowFailed, "not good"),
        ("rejected", RowRejected, "split_clips.boundaries: no"),
        ("ends", ClipmillError, "the disk is full"),
        ("other", KeyError, "'x'"),
        ("unpicklable", RuntimeError, "_Unpicklable: 1 and 2"),
        ("exit", RuntimeError, "SystemExit: 3"),
    ],
)
def test_exceptions_are_raised_and_the_helper_survives(how, kind, text):
    counted: list[int] = []
    pid = run_isolated(harm.whose, FILE, limits=LIMITS)
    with pytest.raises(kind) as caught:
        collect_isolated(harm.refuse, FILE, how, limits=LIMITS, counted=counted.append)
    assert str(caught.value) == text
    assert counted == [3]
    assert run_isolated(harm.whose, FILE, limits=LIMITS) == pid


def test_unexpected_exception_has_the_helpers_traceback():
    with pytest.raises(KeyError) as caught:
        run_isolated(harm.refuse, FILE, "other", limits=LIMITS)
    assert "in refuse" in caught.value.__notes__[0]


def test_parts_are_not_buffered():
    """The helper waits for its reader, so its memory doesn't grow with its results."""
    stream = stream_isolated(
        harm.many_parts,
        FILE,
        lambda: (600, 1 << 20),
        limits=replace(LIMITS, memory_limit_bytes=300 << 20),
    )
    next(stream)
    (helper,) = helpers()
    time.sleep(0.3)
    waiting = helper.memory_info().rss
    assert sum(len(part) for part in stream) == 599 << 20
    assert waiting < 200 << 20
    assert len(helpers()) == 1


def test_leaving_the_iteration_kills_the_helper():
    stream = stream_isolated(harm.many_parts, FILE, lambda: (600, 1 << 20), limits=LIMITS)
    next(stream)
    stream.close()
    assert not helpers()


def test_each_thread_has_its_own_helper_and_few_are_kept():
    together = threading.Barrier(8)

    def one(_: int) -> int:
        together.wait()
        return run_isolated(harm.echo, FILE, "x" * 100, limits=LIMITS)[1].count("x")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [100] * 8
    assert 1 <= len(helpers()) <= 4


def test_no_file_stays_open():
    run_isolated(harm.whose, FILE, limits=LIMITS)
    isolated.end_helpers()
    gc.collect()  # files left open by other tests may be closed at any time
    before = psutil.Process().num_fds()
    for _ in range(3):
        crash(harm.leave, 1)
    isolated.end_helpers()
    assert psutil.Process().num_fds() <= before


def test_killed_idle_helper_does_not_fail_the_next_file():
    pid = run_isolated(harm.whose, FILE, limits=LIMITS)
    os.kill(pid, signal.SIGKILL)
    assert run_isolated(harm.whose, FILE, limits=LIMITS) != pid


def test_machine_that_cannot_start_helpers_ends_the_command(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(ClipmillError, match="can't be started: No such file"):
        run_isolated(harm.whose, FILE, limits=LIMITS)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ClipmillError, match="does not start: it ended with exit status 1"):
        run_isolated(harm.whose, FILE, limits=LIMITS)


def test_helper_killed_while_starting_is_started_again(monkeypatch, tmp_path):
    """When memory is short, the system kills helpers first."""
    script, been_here = tmp_path / "python", tmp_path / "once"
    script.write_text(
        "#!/bin/sh\n"
        f"test -e '{been_here}' || {{ touch '{been_here}'; kill -9 $$; }}\n"
        f"exec '{sys.executable}' \"$@\"\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    run_isolated(harm.whose, FILE, limits=LIMITS)
    assert been_here.exists()


def test_forked_process_has_its_own_helpers():
    pid = run_isolated(harm.whose, FILE, limits=LIMITS)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            other = run_isolated(harm.whose, FILE, limits=LIMITS)
            os.write(writer, str(other).encode())
            isolated.end_helpers()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reader, 100)) != pid
    assert run_isolated(harm.whose, FILE, limits=LIMITS) == pid
    os.close(reader), os.close(writer)


_PARENT = """
import signal, sys
from pathlib import Path
from clipmill.stages.media.isolation.isolated import Limits, run_isolated
from tests import isolated_functions as harm
# Whoever started the tests in the background had them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
run_isolated(getattr(harm, sys.argv[1]), Path("film.mp4"), Path(sys.argv[2]), limits=Limits())
"""


@pytest.mark.parametrize("function", ["hang_with_the_interpreter_lock", "stop_itself"])
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
def test_hanging_helper_ends_with_its_parent(function, ending, tmp_path):
    told = tmp_path / "pid"
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, function, str(told)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_for(lambda: told.exists() and told.read_text())
    helper = psutil.Process(int(told.read_text()))
    parent.send_signal(ending)
    parent.wait(60)
    _wait_for(lambda: _is_gone(helper))


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _wait_for(condition, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_helper_leaves_no_core_file_and_is_killed_first_without_memory():
    pid = run_isolated(harm.whose, FILE, limits=LIMITS)
    assert psutil.Process(pid).rlimit(psutil.RLIMIT_CORE)[0] == 0
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"
