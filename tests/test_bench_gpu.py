"""`make bench-gpu` can be had where there is a GPU; here its dry run on a CPU."""

from __future__ import annotations

import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_dry_run_on_a_cpu(capsys):
    assert gpu.main(["--device", "cpu", "--size", "dry", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert "Traceback" not in said
    for stage in ("embed_clips", "caption_frames", "summarize_captions"):
        assert f"| {stage} |" in said
    assert "equal texts | 16 of 16" in said
    assert "the device has nothing to do in" in said


def test_without_a_gpu_it_says_so(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")  # its figures are the benchmark's
    assert gpu.main([]) == 1
    assert "torch finds none" in capsys.readouterr().err
