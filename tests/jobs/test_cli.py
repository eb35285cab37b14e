"""The command line for scripts: exit statuses, messages, output streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipmill.jobs.cli import main
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "ray",
    "transformers",
    "duckdb",
    "pyarrow",
    "cv2",
    "av",
    "open_clip",
    "numpy",
    "pydantic",
    "yt_dlp",
    "scenedetect",
)


def test_help_imports_nothing_heavy():
    """`clipmill --help` answers immediately, because nothing heavy is imported."""
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv = ['clipmill', '--help']\n"
            "from clipmill.jobs.cli import main\n"
            "try: main()\nexcept SystemExit: pass\n"
            f"print('HEAVY', [m for m in {HEAVY} if m in sys.modules])",
        ],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    assert "Usage" in said.stdout
    assert said.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["run", "nope"], ["no recipe 'nope'", "ready-made ones are"]),
        (["run", "smal-cpu"], ["did you mean small-cpu"]),
        (["run", "svd"], ["svd is a recipe for `clipmill subset create`"]),
        (["subset", "recipes", "small-cpu"], ["small-cpu is a recipe for `clipmill run`"]),
        (["run", "demo", "--set", "split_clip.threshold=3"], ["did you mean split_clips"]),
        (
            ["run", "demo", "--set", "split_clips.treshold=3"],
            ["split_clips", "treshold", "did you mean threshold"],
        ),
        (
            ["run", "demo", "--set", "split_clips.threshold=high"],
            ["stages.split_clips", "threshold", "'high'"],
        ),
        (["run", "demo", "--set", "threshold"], ["expected label.setting=value"]),
        (["run", "demo", "--until", "export", "--sources", "x.mp4"], ["--until 'export'"]),
        (["status", "no-such-folder"], ["no-such-folder", "does not exist", "clipmill run"]),
        (["sql", "no-such-folder", "SELECT 1"], ["no-such-folder", "clipmill run"]),
        (["retry", "no-such-folder"], ["no-such-folder"]),
        (
            ["submit", "demo", "--address", "http://127.0.0.1:1", "--dataset", "relative"],
            ["absolute path"],
        ),
    ],
)
def test_usage_error_is_one_clear_message_and_status_2(words, parts, tmp_path, clipmill):
    if words[0] == "run":
        words = [*words, "--dataset", str(tmp_path / "dataset")]
    done = clipmill(*words)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
    assert not (tmp_path / "dataset").exists()


def test_debug_shows_the_traceback_at_any_position():
    for words in (["run", "nope", "--debug"], ["--debug", "run", "nope"]):
        done = subprocess.run(
            [sys.executable, "-m", "clipmill.jobs.cli", *words],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 1
        assert "Traceback" in done.stderr


def test_retry_names_the_allowed_kinds(tmp_path, clipmill):
    (tmp_path / "runs").mkdir()
    done = clipmill("retry", str(tmp_path), "--kind", "weather")
    assert done.returncode == 2
    assert "permanent, transient, blocked" in done.stderr


def test_ready_made_recipes_are_listed_and_load(clipmill):
    """Recipes of runs first, separate from those of subsets; `show` prints both."""
    runs, subsets = clipmill("recipe", "list").stdout.split("\n\n")
    listed = [line.split()[0] for line in runs.splitlines()[1:]]
    assert {"demo", "internvid", "small-cpu", "timestamps-only"} <= set(listed)
    for name in listed:
        assert load_recipe(ROOT / "jobs" / "recipes" / f"{name}.yaml").stages
    listed = [line.split()[0] for line in subsets.splitlines()[1:]]
    assert {"internvid-flt", "panda-10m", "svd"} <= set(listed)
    assert clipmill("subset", "recipes").stdout.splitlines() == subsets.splitlines()[1:]
    for folder, name in (("recipes", "small-cpu"), ("subset_recipes", "internvid-flt")):
        shown = clipmill("recipe", "show", name).stdout
        assert shown == (ROOT / "jobs" / folder / f"{name}.yaml").read_text()


@pytest.mark.slow
def test_unavailable_models_are_reported_before_anything_starts(tmp_path):
    """Once for all models: which, how to fetch them, and what needs none. Nothing is written."""
    (tmp_path / "list.txt").write_text("https://example.test/a.mp4\n")
    words = ["run", "small-cpu", "--dataset", tmp_path / "dataset", "--engine", "local"]
    done = subprocess.run(
        [sys.executable, "-m", "clipmill.jobs.cli", *words, "--sources", tmp_path / "list.txt"],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
        timeout=280,
        env={
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_"))
            },
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(tmp_path / "hub"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
    )
    assert done.returncode == 1, done.stderr
    assert "caption_frames.model" in done.stderr
    blip = "blip-image-captioning-base"
    assert done.stderr.count(f"hf download Salesforce/{blip} --local-dir ./models/{blip}\n") == 1
    assert "curl --location --output ./sa_0_4_vit_b_32_linear.pth https://raw." in done.stderr
    assert f"--set caption_frames.model=./models/{blip} " in done.stderr
    assert "--set score_aesthetic.head=./sa_0_4_vit_b_32_linear.pth" in done.stderr
    assert (
        "Recipes that download no models: demo, internvid-metadata, signals, timestamps-only."
        in done.stderr
    )
    assert done.stderr.count("does not answer") == 2  # the hub, and the server of the head
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    ("place", "said", "status"),
    [
        ("a.txt", "a.txt is a file, but a dataset is a folder", 2),
        ("a.txt/b", "a.txt is a file, not a folder", 2),
        ("gone/b", "gone is a link to nowhere, which does not exist; is its disk mounted?", 2),
        ("x" * 300, "File name too long (--debug shows more)", 1),
    ],
)
@pytest.mark.parametrize("words", [["run", "timestamps-only", "--dataset"], ["status"]])
def test_place_where_no_dataset_can_be(tmp_path, monkeypatch, capsys, words, place, said, status):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").touch()
    Path("gone").symlink_to("nowhere")
    sources = ["--sources", "a.txt"] if words[0] == "run" else []
    monkeypatch.setattr("sys.argv", ["clipmill", *words, place, *sources])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == status
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("Error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["run", "timestamps-only", "--sources", ""], "--sources"),
        (["run", "timestamps-only", "--dataset="], "--dataset"),
        (["status", ""], "status"),
        (["export", "a", "--format", "csv", "--output", ""], "--output"),
        (["", "status"], "clipmill"),
    ],
)
def test_empty_argument_is_not_the_working_folder(tmp_path, monkeypatch, capsys, words, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["clipmill", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert (
        capsys.readouterr().err == f"Error: what follows {name} is empty; is a variable not set?\n"
    )
    assert not list(tmp_path.iterdir())


def test_recipe_with_an_empty_source_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    for sources in ("['']", "[{path: ''}]", "[{url: ''}]"):
        path.write_text(f"sources: {sources}\nstages: {{download_videos: {{}}}}")
        with pytest.raises(UsageError, match="at least 1 character"):
            load_recipe(path)
    with pytest.raises(UsageError, match="an empty path or URL"):
        load_recipe(path, sources=[" "])
