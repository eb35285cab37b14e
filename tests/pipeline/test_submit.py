"""`clipmill submit` against a real Ray head, started on this machine for the test."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipmill.jobs.submit import submit as jobs_submit
from clipmill.schemas.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).parent / "ray"
START_SECONDS = 90


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Address of our own head's job server, and the environment that may access it."""
    # Ray's sockets have long names below this folder, so its path must be short.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as short:
        token = tmp_path_factory.mktemp("token") / "token"
        token.write_text("0123456789abcdef0123456789abcdef")
        dashboard = free_port()
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ADDRESS": "",
            # As in an activated environment: jobs run `python`.
            "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        }
        head = subprocess.Popen(
            [
                RAY,
                "start",
                "--head",
                "--block",
                "--num-cpus=2",
                f"--port={free_port()}",
                f"--dashboard-port={dashboard}",
                "--dashboard-host=127.0.0.1",
                # Not the default ports, which another Ray on this machine may use.
                f"--dashboard-agent-listen-port={free_port()}",
                f"--ray-client-server-port={free_port()}",
                f"--temp-dir={short}",
                "--object-store-memory=100000000",
            ],
            stdin=subprocess.DEVNULL,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(dashboard, head)
            yield f"http://127.0.0.1:{dashboard}", environment
        finally:
            # The head and its children are one process group, and ours.
            os.killpg(head.pid, signal.SIGTERM)
            try:
                head.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
                head.wait(30)


def wait_for(port: int, head: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert head.poll() is None, "the Ray head ended while it was starting"
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError(f"no job server on port {port} after {START_SECONDS} s")


def submit(words, address: str, environment: dict[str, str], *more: str):
    words.loaded()
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "clipmill.jobs.cli",
            "submit",
            str(words.folder / "words.yaml"),
            "--address",
            address,
            "--dataset",
            str(words.dataset),
            "--wait",
            *more,
        ],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
        timeout=280,
    )


@pytest.mark.slow
def test_submit_runs_the_recipe_on_the_cluster_and_follows_its_log(words, head):
    """The list of sources and the stage's file are sent; the rows equal those of a local run."""
    address, environment = head
    data = words("a?clips=3", "b", "x?fail=cut")
    done = submit(data, address, environment, "--environment", "cluster")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cut_words" in done.stdout
    letters = {row["clip_id"] for row in rows_of(data, "count_letters")}
    assert letters == {"v-a-0", "v-a-1", "v-a-2", "v-b-0", "v-b-1"}


@pytest.mark.slow
def test_submitted_runs_do_only_what_is_asked_for(words, head):
    """The clips of a sample, then their further stages, with a budget that isn't spent."""
    address, environment = head
    data = words("a?clips=3", "b", "c", "d", shard_videos=1)
    asked = ["--environment", "cluster", "--sample", "2", "--seed", "1"]
    done = submit(data, address, environment, *asked, "--until", "cut_words")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Asked for: 2 sources (--sample 2 --seed 1)." in done.stdout
    cut = {row["clip_id"] for row in rows_of(data, "cut_words")}
    assert 0 < len(cut) < 6
    done = submit(data, address, environment, *asked, "--budget", "1 hour")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["clip_id"] for row in rows_of(data, "count_letters")} == cut


@pytest.mark.slow
def test_submit_installs_the_locked_versions(words, head):
    address, environment = head
    data = words("a")
    done = submit(data, address, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows_of(data, "count_letters")) == 2


@pytest.mark.slow
def test_failed_job_exits_with_1_and_its_message(words, head):
    address, environment = head
    data = words("a")
    done = submit(data, address, environment, "--environment", "cluster", "--until", "nope")
    assert done.returncode == 1
    assert "--until 'nope'" in done.stdout + done.stderr


def test_unreachable_cluster_is_reported(words):
    data = words("a")
    done = submit(data, "http://127.0.0.1:9", dict(os.environ), "--environment", "cluster")
    assert done.returncode == 1
    assert "http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def rows_of(data, label: str) -> list[dict]:
    """Rows of a step under any fingerprint, because the recipe had another path in the job."""
    import pyarrow.parquet as pq

    return [
        row
        for path in (data.dataset / label).rglob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]


@pytest.fixture
def sent(monkeypatch) -> list[str]:
    """The arguments of the command on the cluster."""
    import clipmill.pipeline.engine.ray_jobs

    class Job:
        id = "job-1"
        address = "http://127.0.0.1:9"

    words: list[str] = []

    def submit_job(address, command, folder, constraints):
        words.extend(shlex.split(command))
        return Job()

    monkeypatch.setattr(clipmill.pipeline.engine.ray_jobs, "submit_job", submit_job)
    return words


def send(folder: Path, settings: str, *overrides: str, **asked: Any) -> None:
    recipe = folder / "films.yaml"
    recipe.write_text(
        "sources: [{path: films.csv}]\nstages:\n"
        f"  download_videos: {{{settings}}}\n  take: {{stage: download_videos}}\n"
    )
    jobs_submit(
        str(recipe),
        "http://127.0.0.1:9",
        dataset=folder / "dataset",
        sources=[],
        overrides=overrides,
        until=None,
        limit=asked.pop("limit", None),
        locked=False,
        wait=False,
        **asked,
    )


@pytest.mark.parametrize(
    ("settings", "override", "refused"),
    [
        ("", None, ["download_videos", "take"]),
        ("private_addresses: allow", None, ["take"]),
        ("private_addresses: refuse", None, ["take"]),
        ("", "download_videos.private_addresses=allow", ["take"]),
        ("sections: true, private_addresses: allow", None, ["take"]),
    ],
)
def test_submit_refuses_private_addresses_by_default(tmp_path, sent, settings, override, refused):
    send(tmp_path, settings, *([override] if override else []))
    assert [word for word in sent if word.endswith("private_addresses=refuse")] == [
        f"{label}.private_addresses=refuse" for label in refused
    ]
    assert (override is None) or override in sent


def test_submit_names_settings_that_conflict_with_refused_addresses(tmp_path, sent):
    with pytest.raises(UsageError, match=r"--set download_videos\.private_addresses=allow"):
        send(tmp_path, "sections: true")
    assert sent == []


def options_of(sent: list[str]) -> list[tuple[str, str]]:
    """Pairs of what was sent after `python -m clipmill.jobs.cli run RECIPE`."""
    assert sent[3] == "run"
    return list(zip(sent[5::2], sent[6::2], strict=True))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (
            {"where": "motion > 2 AND caption = 'a \"b\"'"},
            [("--where", "motion > 2 AND caption = 'a \"b\"'")],
        ),
        ({"subset": "best"}, [("--subset", "best")]),
        ({"sample": 20}, [("--sample", "20")]),
        ({"sample": 20, "seed": 3}, [("--sample", "20"), ("--seed", "3")]),
        (
            {"have": [Path("/a b"), Path("/c")], "budget": ["8 hours", "2 gigabytes"]},
            [
                ("--have", "/a b"),
                ("--have", "/c"),
                ("--budget", "8 hours"),
                ("--budget", "2 gigabytes"),
            ],
        ),
    ],
)
def test_submit_asks_for_what_run_would_be_asked_for(tmp_path, sent, asked, expected):
    send(tmp_path, "", **asked)
    known = {"--where", "--subset", "--sample", "--seed", "--have", "--budget"}
    assert [pair for pair in options_of(sent) if pair[0] in known] == expected


def test_submitted_folders_are_absolute(tmp_path, sent, monkeypatch):
    monkeypatch.chdir(tmp_path)
    send(tmp_path, "", have=[Path("videos")])
    assert ("--have", str(tmp_path / "videos")) in options_of(sent)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"where": "motion > 2", "sample": 3}, "--where and --sample: give one of them"),
        ({"sample": 3, "limit": 3}, "--limit with --sample 3"),
        ({"where": " "}, "--where is empty"),
        ({"budget": ["9 cpu_huors"]}, "did you mean cpu_hours?"),
        ({"budget": ["9 USD"]}, "needs prices"),
    ],
)
def test_submit_refuses_what_run_would_refuse(tmp_path, sent, asked, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        send(tmp_path, "", **asked)
    assert sent == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"where": "motoin > 2"}, "motoin"),
        ({"where": "motion"}, "is FLOAT, not true or false"),
        ({"subset": "best"}, "has no subset 'best'"),
        ({"have": [Path("/no/such/folder")]}, "--have /no/such/folder: no such folder"),
    ],
)
def test_submit_looks_into_a_dataset_that_is_mounted_here(tmp_path, sent, asked, said):
    (tmp_path / "dataset" / "runs").mkdir(parents=True)
    with pytest.raises(UsageError, match=re.escape(said)):
        send(tmp_path, "", **asked)
    assert sent == []
