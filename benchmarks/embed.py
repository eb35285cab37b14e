"""Measures embed_clips against the bare model loop, and its preprocessing against PIL's.

    python -m benchmarks.embed

The model is CLIP ViT-B/32 as published, with random weights: its speed doesn't depend on them. The
stage takes JPEG frames and returns embeddings; the bare loop runs the same model on prepared
tensors. They are timed in turn, several times, and the median ratio counts, because a busy machine
slows both alike.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from clipmill.schemas.tables import FRAME
from clipmill.stages.embed_clips import EmbedClips
from clipmill.stages.models.embedders import ClipEmbedder, ImagePreparation
from clipmill.stages.models.torch_setup import prepare_torch
from clipmill.stages.protocol import Workspace

ARCHITECTURE = "ViT-B-32"
FRAMES_PER_CLIP = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=48, help="clips of 4 frames a round")
    parser.add_argument("--rounds", type=int, default=5, help="times that both are timed")
    arguments = parser.parse_args()
    prepare_torch()
    with tempfile.TemporaryDirectory() as folder:
        stage = EmbedClips(model=save_model(Path(folder)), frames_per_clip=FRAMES_PER_CLIP)
        against_the_bare_model(stage, arguments.clips, arguments.rounds)
        preprocessing(stage.load("image").prepare, arguments.rounds)


def save_model(folder: Path) -> Path:
    """The published configuration with random weights, as a folder that the stage can load."""
    import open_clip
    from safetensors.torch import save_file

    model = open_clip.create_model(ARCHITECTURE, pretrained=None)
    configuration = {"model_cfg": open_clip.get_model_config(ARCHITECTURE), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(configuration))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def picture(seed: int, height: int, width: int) -> bytes:
    """A JPEG with about as much detail as film: coarse shapes and grain."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(
        rng.integers(0, 256, (9, 16, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    grain = cv2.resize(rng.normal(0, 12, (height // 2, width // 2, 3)), (width, height))
    image = (coarse + grain).clip(0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def against_the_bare_model(stage: EmbedClips, clips: int, rounds: int) -> None:
    jpegs = [picture(seed, 384, 682) for seed in range(clips * FRAMES_PER_CLIP)]
    frames = [
        {"frame_number": i, "seconds": float(i), "jpeg": data} for i, data in enumerate(jpegs)
    ]
    batch = pa.table(
        {
            "clip_id": [f"clip-{i}" for i in range(clips)],
            "frames": pa.array(
                [frames[i * FRAMES_PER_CLIP : (i + 1) * FRAMES_PER_CLIP] for i in range(clips)],
                pa.list_(FRAME),
            ),
        }
    )
    embedder = stage.load("image")
    bare = bare_loop(embedder, jpegs)
    with stage.open(Workspace(Path(), Path())) as transform:

        def staged() -> object:
            return transform(batch)

        bare(), staged()
        times = [(seconds(bare), seconds(staged)) for _ in range(rounds)]
    n = len(jpegs)
    ratio = statistics.median(b / s for b, s in times)
    print(
        f"\n{ARCHITECTURE}, {embedder.dtype}, {embedder.device}, batches of "
        f"{embedder.batch_images}, {n} JPEG frames of 682 × 384, {rounds} rounds\n"
    )
    print("| | images/s | of the bare model |\n|---|---|---|")
    print(
        f"| bare model on ready tensors | {n / statistics.median(b for b, _ in times):.0f} | 1.00 |"
    )
    print(
        f"| embed_clips, JPEG to half floats | {n / statistics.median(s for _, s in times):.0f} "
        f"| {ratio:.2f} |"
    )
    share = cpu_seconds(lambda: embedder.prepare(jpegs)) / cpu_seconds(bare)
    print(f"\nDecoding and resizing take {share:.0%} of the CPU time that the model takes.")


def bare_loop(embedder: ClipEmbedder, jpegs: list[bytes]) -> Callable[[], object]:
    """Only the model's forward pass, over tensors of its dtype that are already on its device."""
    import torch

    size = embedder.batch_images
    tensors = [
        torch.from_numpy(embedder.prepare(jpegs[i : i + size])).to(embedder.device, embedder.dtype)
        for i in range(0, len(jpegs), size)
    ]
    model = embedder.image_model

    def run() -> object:
        with torch.inference_mode():
            return [model(tensor).float().cpu() for tensor in tensors]

    return run


def preprocessing(prepare: ImagePreparation, rounds: int) -> None:
    """One thread each: JPEG to the model's tensor, by open_clip's PIL transform and by ours."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    transform = image_transform_v2(PreprocessCfg(size=prepare.size), is_train=False)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    print("\n| preprocessing, images/s | PIL | OpenCV | ratio |\n|---|---|---|---|")
    for height, width in ((384, 682), (720, 1280)):
        jpegs = [picture(seed, height, width) for seed in range(16)]

        def by_pil(jpegs: list[bytes] = jpegs) -> object:
            return [transform(Image.open(io.BytesIO(data))) for data in jpegs]

        def by_opencv(jpegs: list[bytes] = jpegs) -> object:
            return prepare(jpegs)

        by_pil(), by_opencv()
        times = [(seconds(by_pil), seconds(by_opencv)) for _ in range(rounds)]
        pil, opencv = (
            len(jpegs) / statistics.median(column) for column in zip(*times, strict=True)
        )
        ratio = statistics.median(p / o for p, o in times)
        print(f"| {width} × {height} | {pil:.0f} | {opencv:.0f} | {ratio:.1f} |")
    cv2.setNumThreads(threads)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of all threads, which depends less on other work than wall time."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
