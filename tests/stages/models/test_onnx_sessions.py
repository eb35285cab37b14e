"""Models in ONNX files."""

from __future__ import annotations

import numpy as np
import pytest

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.models.onnx_sessions import OnnxModel
from clipmill.stages.references import DataFile

VOICE = DataFile.model_validate("package:silero_vad/data/silero_vad_16k_op15.onnx")


def test_a_model_says_its_inputs_and_runs_on_them():
    pytest.importorskip("onnxruntime", reason="needs clipmill[signals]")
    model = OnnxModel(local_file(VOICE, setting="a.b"), threads=1, setting="a.b")
    assert set(model.inputs) == {"input", "state", "sr"}
    given = {
        "input": np.zeros((2, 576), np.float32),
        "state": np.zeros((2, 2, 128), np.float32),
        "sr": np.array(16000, np.int64),
    }
    both = model.run(given)
    assert len(both) == len(model.outputs)
    assert model.run(given, model.outputs[:1])[0].shape == (2, 1)


def test_a_file_that_is_no_model_is_named_with_its_setting(tmp_path):
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"\x00" * 100)
    with pytest.raises(ClipmillError, match=rf"^a\.b: {file} can't be loaded as an ONNX model"):
        OnnxModel(file, threads=1, setting="a.b")
