"""Measures detect_faces against the bare network, and lists what it finds in real films.

    python -m benchmarks.signal_models --stage detect_faces [--videos FOLDER ...] [--rounds 5]

Both run on one thread; the bare network gets inputs that are ready.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.signal_models._frames import as_clips, compare, film_frames, parsed
from clipmill.stages.detect_faces import DetectFaces
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.models.onnx_sessions import OnnxModel
from clipmill.stages.protocol import Workspace


def main(options: Sequence[str]) -> None:
    given = parsed("detect_faces", __doc__, options)
    frames = film_frames(given.videos)
    stage = DetectFaces()
    path = local_file(stage.weights, setting="weights")
    model = OnnxModel(path, threads=1, setting="weights")
    some = list(frames.values())[: given.frames]
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, 640, 640)).astype(np.float32)
    loops = {"the network, inputs ready": lambda: [model.run({"input": noise}) for _ in some]}
    compare(stage, as_clips(some), loops, given.rounds)
    table = as_clips(list(frames.values()), per_clip=1)
    with stage.open(Workspace(given.videos[0], given.videos[0])) as transform:
        rows = transform(table).to_pylist()
    found = {name: row["faces"] for name, row in zip(frames, rows, strict=True) if row["faces"]}
    print(f"\n{sum(found.values())} boxes in {len(found)} of {len(frames)} frames:")
    for name, count in found.items():
        print(f"{count} {name}")
