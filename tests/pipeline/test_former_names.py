"""Compatibility with releases before 0.2, whose packages had other names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clipmill.pipeline.recipes.stage_classes import class_reference, stage_class
from clipmill.stages.download_videos import DownloadVideos
from clipmill.stages.references import DataFile, ModelReference


def test_run_records_use_the_names_of_built_in_stages():
    assert class_reference(DownloadVideos()) == "download_videos"
    assert stage_class("download_videos", Path()) is DownloadVideos


def test_import_path_in_an_older_record_means_the_built_in_stage():
    assert stage_class("stages.download_videos:DownloadVideos", Path()) is DownloadVideos


def test_demos_models_are_found_by_their_older_name():
    assert ModelReference.model_validate("package:jobs/demo/models/clip") == (
        ModelReference.model_validate("package:clipmill.jobs/demo/models/clip")
    )
    assert Path(DataFile.model_validate("package:jobs/demo/models/tags.txt").path).is_file()


def own_stage(folder: Path, first_lines: str) -> subprocess.CompletedProcess:
    """`clipmill run` of a recipe with a custom stage, outside the checkout, without sources."""
    (folder / "own.py").write_text(
        f"{first_lines}\nimport pyarrow as pa\n"
        "class Own(Stage):\n    name = 'own'\n    reads = ('split_clips.video_id',)\n"
        "    writes = pa.schema([('words', pa.string())])\n"
    )
    (folder / "own.yaml").write_text(
        "stages:\n  download_videos:\n  split_clips:\n  own: {stage: 'own.py:Own'}\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "clipmill.jobs.cli", "run", "own.yaml", "--dataset", "d"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("line", "now"),
    [
        ("from stages.protocol import Stage", "the line is: from clipmill import Stage"),
        (
            "from clipmill import Stage\nfrom schemas.errors import RowFailed",
            "it is clipmill.schemas",
        ),
        ("from clipmill import Stage\nimport pipeline.training", "it is clipmill.pipeline"),
    ],
)
def test_custom_stage_with_an_old_import_gets_the_new_line(tmp_path, line, now):
    said = own_stage(tmp_path, line)
    assert (said.returncode, now in said.stderr) == (2, True), said.stderr
    assert "Traceback" not in said.stderr


def test_users_own_package_may_have_an_old_name(tmp_path):
    (tmp_path / "schemas.py").write_text("WORDS = 3\n")
    said = own_stage(tmp_path, "from clipmill import Stage\nfrom schemas import WORDS")
    assert "names no sources" in said.stderr  # the stage was loaded by then
