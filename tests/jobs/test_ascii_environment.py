"""An environment in which Python uses ASCII for everything, as in bare containers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.media import Scene, render

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def clipmill(*arguments: object) -> subprocess.CompletedProcess:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LC_", "LANG", "PYTHONIOENCODING"))
    }
    return subprocess.run(
        [sys.executable, "-m", "clipmill.jobs.cli", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        env=environment | ASCII,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )


def test_non_ascii_names_and_titles_work_in_a_run_and_a_query(tmp_path: Path):
    home = tmp_path / "Fundstücke 🎬"
    (home / "Filme").mkdir(parents=True)
    render(home / "Filme" / "Bär 🐻.mp4", [Scene("red", 1.0)], rate=10, size=(96, 64))
    (home / "liste.csv").write_text("path,title\nFilme/Bär 🐻.mp4,Der müde Bär\n", "utf-8")
    (home / "größe.yaml").write_text(
        yaml.safe_dump(
            {
                "description": "für alle",
                "sources": [{"path": "liste.csv"}],
                "engine": "local",
                "stages": {
                    "download_videos": {"min_duration_seconds": None, "min_height": None},
                    "split_clips": {},
                },
            },
            allow_unicode=True,
        ),
        "utf-8",
    )
    dataset = home / "Datensatz ü"
    done = clipmill("run", home / "größe.yaml", "--dataset", dataset)
    assert done.returncode == 0, done.stderr.decode()
    again = clipmill("run", "--dataset", dataset)
    assert again.returncode == 0, again.stderr.decode()
    asked = clipmill(
        "sql", dataset, "SELECT title FROM clips WHERE title LIKE '%müde%'", "--format", "json"
    )
    assert asked.returncode == 0, asked.stderr.decode()
    assert json.loads(asked.stdout.decode("utf-8")) == [{"title": "Der müde Bär"}]
    assert clipmill("verify", dataset).returncode == 0


def test_records_are_utf_8_in_any_environment(tmp_path: Path):
    """Even for a program that calls the pipeline, which is not restarted."""
    program = (
        "import sys; from pathlib import Path\n"
        "from clipmill.pipeline.dataset.shards import write_json\n"
        "from clipmill.pipeline.engine.retry import read_request\n"
        "from clipmill.stages.built_in import built_in_stage_names\n"
        "path = Path(sys.argv[1])\n"
        "write_json(path, {'step': 'f\\u00fcr', 'fingerprint': 'x', 'keys': ['\\U0001f3ac']})\n"
        "assert read_request(path)['keys'] == ['\\U0001f3ac']\n"
        "assert 'split_clips' in built_in_stage_names()\n"
    )
    path = tmp_path / "000000.retry1.json"
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        stdin=subprocess.DEVNULL,
        env=os.environ | ASCII,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(path.read_text("utf-8"))["step"] == "für"
