"""Models in ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.extras import extras_explained
from clipmill.stages.models.places import note_place

_GPU = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_ERRORS_ONLY = 3


class OnnxModel:
    """One loaded model. Several threads may run it at a time; each call uses up to `threads`.

    On a GPU if ONNX Runtime was built for one and finds it, unless `on_gpu` is false. Raises
    MissingExtra without ONNX Runtime, ClipmillError if the file is not a model that it can load;
    both name the setting.
    """

    def __init__(self, path: Path, *, threads: int, setting: str, on_gpu: bool = True) -> None:
        with extras_explained("signals"):
            import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, threads)
        options.inter_op_num_threads = 1
        # Threads that spin between calls take processor time from other workers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _ERRORS_ONLY
        wanted = (_GPU, _CPU) if on_gpu else (_CPU,)
        providers = [one for one in wanted if one in onnxruntime.get_available_providers()]
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=providers
            )
        # Its errors share no class but Exception.
        except Exception as error:
            raise ClipmillError(
                f"{setting}: {path} can't be loaded as an ONNX model: {str(error).splitlines()[0]}"
            ) from error
        self.inputs = {one.name: one.shape for one in self._session.get_inputs()}
        """Shapes by name; a dimension that may vary has a name or None instead of a number."""
        self.outputs = [one.name for one in self._session.get_outputs()]
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        """What its file says about it, by name."""
        used = self._session.get_providers()
        self.is_on_gpu = used[0] == _GPU
        note_place(setting, "cuda" if self.is_on_gpu else "cpu", "float32")

    def run(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> list[np.ndarray]:
        """Arrays of the named outputs, by default of all in the model's order."""
        found: list[np.ndarray] = self._session.run(outputs, dict(inputs))
        return found
