"""`make bench-gpu` can be had where there is a GPU; here its dry run on a CPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks import gpu
from benchmarks.gpu_parts import beyond_tolerance


@pytest.mark.slow
def test_dry_run_on_a_cpu(capsys):
    assert gpu.main(["--device", "cpu", "--size", "dry", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert "Traceback" not in said
    for stage in ("embed_clips", "caption_frames", "summarize_captions"):
        assert f"| {stage} |" in said
    assert "equal texts | 16 of 16" in said
    assert "the device has nothing to do in" in said


def test_without_a_gpu_it_says_why(capsys, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")  # its figures are the benchmark's
    monkeypatch.setattr(torch.version, "cuda", None)
    assert gpu.main([]) == 1
    assert "is built for CPUs; install a build for CUDA" in capsys.readouterr().err
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert gpu.main([]) == 1
    assert "see nvidia-smi" in capsys.readouterr().err


def test_too_little_room_for_the_models_is_told_first(capsys, monkeypatch):
    monkeypatch.setattr(gpu.shutil, "disk_usage", lambda place: SimpleNamespace(free=5e9))
    assert gpu.main(["--device", "cpu"]) == 1
    assert "has 5.0 GB free, and the models take 6; set TMPDIR" in capsys.readouterr().err


def test_other_results_than_the_cpus_fail():
    assert beyond_tolerance(1e-4, {"caption_frames": (15, 16)}) == []
    assert beyond_tolerance(2e-3, {"caption_frames": (3, 16)}) == [
        "embeddings differ by 2.0e-03, by more than 5e-04",
        "only 3 of 16 texts of caption_frames are equal",
    ]
    assert beyond_tolerance(float("nan"), {})
