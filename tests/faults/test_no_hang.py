"""Runs that can't continue exit with 1 and a reason, on real clusters that are lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.faults.kill_harness import Cluster
from tests.faults.kill_world import ROOT, clipmill, command, environment
from tests.pipeline.exports.small_dataset import contents, write_small

STAGES = Path(__file__).with_name("hang_stages.py")
WORDS = ROOT / "tests" / "pipeline" / "own_stages.py"


def ends(tmp_path: Path, seconds: float, stage: dict, ray: dict, **more: str) -> str:
    """Runs a recipe whose last stage can't run; checks when it ended, and returns its output.

    The time is counted from the end of the earlier stages.
    """
    (tmp_path / "urls.txt").write_text("https://a.test/\nhttps://b.test/\n")
    (tmp_path / "hang.yaml").write_text(
        yaml.safe_dump(
            {
                "sources": ["urls.txt"],
                "shard_videos": 1,
                "ray": ray,
                "stages": {
                    "fetch_words": {"stage": f"{WORDS}:FetchWords"},
                    "cut_words": {"stage": f"{WORDS}:CutWords"},
                    "last": stage,
                },
            },
            sort_keys=False,
        )
    )
    dataset = tmp_path / "dataset"
    said = tmp_path / "said.txt"
    with (
        open(said, "w") as output,
        subprocess.Popen(
            command("run", tmp_path / "hang.yaml", "--dataset", dataset, "--until", "cut_words"),
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment(**more),
            stdout=output,
            stderr=output,
        ) as process,
    ):
        assert process.wait(200) == 0, said.read_text()
    with (
        open(said, "w") as output,
        subprocess.Popen(
            command("run", tmp_path / "hang.yaml", "--dataset", dataset),
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment(**more),
            stdout=output,
            stderr=output,
        ) as process,
    ):
        began = time.monotonic()
        try:
            while "Plan for" not in said.read_text():
                assert time.monotonic() - began < 120
                time.sleep(0.2)
            planned = time.monotonic()
            assert process.wait(seconds + 60) == 1, said.read_text()
        finally:
            process.kill()
    assert time.monotonic() - planned < seconds, said.read_text()
    return said.read_text()


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_workers_that_die_at_start_end_the_run(tmp_path):
    said = ends(tmp_path, 120, {"stage": f"{STAGES}:DieAtOnce"}, {"num_cpus": 2})
    assert "Error: workers of last die again and again" in said


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_workers_that_fit_no_node_end_the_run(tmp_path):
    """The plan considers the cluster's six CPUs; each of its two nodes has three."""
    cluster = Cluster()
    try:
        said = ends(
            tmp_path,
            60,
            {"stage": f"{STAGES}:DieAtOnce", "cpus": 4.0},
            {},
            RAY_ADDRESS=cluster.address,
        )
    finally:
        cluster.end()
    assert "Error: no node has room for a worker of last (4 CPUs)" in said


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_lost_cluster_ends_the_run(tmp_path):
    (tmp_path / "urls.txt").write_text("https://a.test/\n")
    (tmp_path / "hang.yaml").write_text(
        yaml.safe_dump(
            {"sources": ["urls.txt"], "stages": {"fetch_words": {"stage": f"{WORDS}:FetchWords"}}}
        )
    )
    began = time.monotonic()
    done = subprocess.run(
        command("run", tmp_path / "hang.yaml", "--dataset", tmp_path / "ds"),
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment(RAY_ADDRESS="127.0.0.1:1"),
        text=True,
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Error: Ray could not be started on 127.0.0.1:1" in done.stderr
    assert time.monotonic() - began < 90


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("victim", "said", "seconds"),
    [
        # Its workers continue without it: either no more start, or the next step finds none.
        ("gcs", r"^Error: (the Ray cluster has not answered for|Ray could not be started on)", 60),
        ("head", r"^Error: this machine's Ray process", 30),
        ("node", None, 120),
    ],
)
def test_export_whose_cluster_is_lost_ends_and_can_be_resumed(tmp_path, victim, said, seconds):
    """With half of its nodes it completes; without the head it reports that, and blames no clip."""
    write_small(tmp_path / "dataset", 300)
    words = [
        "export",
        tmp_path / "dataset",
        "--format",
        "webdataset",
        "--media",
        "exact",
        "--shard-size",
        "300kB",
    ]
    cluster, heard = Cluster(), tmp_path / "said.txt"
    units = tmp_path / "a" / ".work" / "units" / "000000"
    try:
        with (
            open(heard, "w") as output,
            subprocess.Popen(
                command(*words, "--output", tmp_path / "a", "--engine", "ray"),
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=environment(RAY_ADDRESS=cluster.address),
                stdout=output,
                stderr=output,
            ) as process,
        ):
            try:
                while not list(units.glob("*.parquet")):
                    assert process.poll() is None, heard.read_text()
                    time.sleep(0.02)
                began = time.monotonic()
                os.kill(cluster.pids[victim], signal.SIGKILL)
                assert process.wait(200) == (0 if said is None else 1), heard.read_text()
                took = time.monotonic() - began
            finally:
                process.kill()
    finally:
        cluster.end()
    assert took < seconds
    assert re.search(said or "^900 clips: 899 exported", heard.read_text(), re.MULTILINE)
    assert "Traceback" not in heard.read_text()
    again = clipmill(*words, "--output", tmp_path / "a", "--engine", "local")
    whole = clipmill(*words, "--output", tmp_path / "b", "--engine", "local")
    assert (again.returncode, whole.returncode) == (0, 0), again.stderr + whole.stderr
    assert "900 clips: 899 exported, 1 left out (1 no caption), 0 failed" in again.stdout
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
