"""Ctrl-C and SIGTERM end a run cleanly: its exit status, its record, nothing broken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.faults.kill_world import ROOT, clipmill, command, environment
from tests.http_server import File, Trickle, serve
from tests.media import Scene, cached
from tests.pipeline.exports.small_dataset import write_small

OWN = Path(__file__).with_name("kill_stages.py")


def make_recipe(folder: Path, urls: list[str], pace_seconds: float) -> Path:
    (folder / "urls.txt").write_text("\n".join(urls) + "\n")
    path = folder / "stop.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "sources": ["urls.txt"],
                "shard_videos": 1,
                "engine": "local",
                "stages": {
                    "download_videos": {
                        "min_duration_seconds": 1,
                        "min_height": None,
                        "retries": 0,
                    },
                    "split_clips": {},
                    "describe_clips": {
                        "stage": f"{OWN}:DescribeClips",
                        "pace_seconds": pace_seconds,
                    },
                },
            },
            sort_keys=False,
        )
    )
    return path


@pytest.mark.parametrize(
    ("where", "how"),
    [
        pytest.param("download", signal.SIGTERM, marks=pytest.mark.slow),
        *(
            pytest.param(where, how, marks=pytest.mark.faults)
            for where, how in (
                ("download", signal.SIGINT),
                ("stage", signal.SIGTERM),
                ("stage", signal.SIGINT),
            )
        ),
    ],
)
def test_stopped_run_ends_immediately_and_cleanly(tmp_path, how, where):
    """Even during a download, whose thread would continue for minutes; the next run resumes."""
    film = cached((Scene("red", 3.0), Scene("blue", 3.0)), size=(320, 240), rate=10)[0]
    data = film.read_bytes()
    with serve() as site:
        urls = [
            site.script("/a.mp4", File(data)),
            site.script("/b.mp4", Trickle(File(data), 32, 1.0 if where == "download" else 0.0)),
        ]
        path = make_recipe(tmp_path, urls, 0.5 if where == "download" else 60.0)
        dataset = tmp_path / "dataset"
        with subprocess.Popen(
            command("run", path, "--dataset", dataset),
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            end = time.monotonic() + 100
            begun = (
                (lambda: (dataset / "media" / ".work").is_dir() and len(site.asked("/b.mp4")) > 0)
                if where == "download"
                else (lambda: list(dataset.glob(".scratch/describe*/*.bin")))
            )
            while not (dataset.exists() and begun()):
                assert time.monotonic() < end
                assert process.poll() is None
                time.sleep(0.05)
            time.sleep(0.3)
            os.kill(process.pid, how)
            stopped = time.monotonic()
            _, said = process.communicate(timeout=60)
            assert time.monotonic() - stopped < 30
        assert process.returncode == 128 + how
        assert said.endswith(
            "Stopped. What is committed stays; run the same command to continue.\n"
        )
        assert "Traceback" not in said
        (record,) = [json.loads(file.read_text()) for file in (dataset / "runs").glob("*.json")]
        assert record["state"] == "stopped"
        site.script("/b.mp4", File(data))
        done = clipmill("run", make_recipe(tmp_path, urls, 0.0), "--dataset", dataset)
        assert done.returncode == 0, done.stderr
        verified = clipmill("verify", dataset)
        assert verified.returncode == 0, verified.stdout


@pytest.mark.faults
def test_stopped_export_on_ray_reports_it(tmp_path):
    """Its message goes to standard error, where Ray's other output is filtered."""
    write_small(tmp_path / "dataset", 300)
    words = [
        "export",
        tmp_path / "dataset",
        "--format",
        "parquet",
        "--media",
        "exact",
        "--output",
        tmp_path / "out",
        "--engine",
        "ray",
    ]
    units = tmp_path / "out" / ".work" / "units" / "000000"
    with subprocess.Popen(
        command(*words),
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        end = time.monotonic() + 100
        while not list(units.glob("*.parquet")):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("Stopped. What is committed stays; run the same command to continue.\n")
    assert "Traceback" not in said
