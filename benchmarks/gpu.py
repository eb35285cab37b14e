"""Measures on one GPU how much of the bare models' speed the stages reach, and that they are right.

    python -m benchmarks.gpu [--device cpu --size dry] [--vllm /path/to/python]

Made for a bare machine with one GPU and nothing but this package: models have their published sizes
and random weights, pictures are made up, and nothing is asked of the hub. A slow GPU gets less to
do, so that it takes less than ten minutes; each part that fails says so, and the others follow. In
order:

- embed_clips, caption_frames and summarize_captions against bare loops over prepared inputs;
- the same results on a CPU, in float32, within a tolerance;
- how much of the time the GPU has nothing to do in a whole run over many shards;
- with `--vllm`, summarize_captions by a server that the run starts, against transformers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks import gpu_models, gpu_parts
from benchmarks.embed import picture
from benchmarks.staged_calls import in_calls, seconds
from clipmill.pipeline.engine.parallel_map import usable_cpus
from clipmill.schemas.tables import FRAME, TEXT_AT
from clipmill.stages.caption_frames import CaptionFrames
from clipmill.stages.embed_clips import EmbedClips
from clipmill.stages.models.batch_size import free_memory
from clipmill.stages.models.prompts import render
from clipmill.stages.models.torch_setup import default_dtype, prepare_torch
from clipmill.stages.protocol import Stage
from clipmill.stages.summarize_captions import SummarizeCaptions

FRAMES_PER_CLIP = 4
SECONDS_A_TIMING = 6.0
TRIED = 128
SIZES = {"full": gpu_models.FULL, "small": gpu_models.SMALL, "dry": gpu_models.DRY}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--rounds", type=int, default=3, help="times that both are timed")
    parser.add_argument("--vllm", type=Path, help="the Python of an environment with vLLM")
    arguments = parser.parse_args(words)
    prepare_torch()
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    sizes = SIZES[arguments.size]
    if problem := why_not(arguments.device, sizes):
        print(problem, file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, sizes: {arguments.size}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.device, sizes, arguments.rounds)
        print(f"\n({time.monotonic() - began:.0f} s to make the models)", flush=True)
        parts = [
            *bench.comparisons(),
            partial(gpu_parts.correctness, bench),
            partial(gpu_parts.idle, bench),
        ]
        if arguments.vllm is not None:
            parts.append(partial(gpu_parts.served, bench, arguments.vllm.absolute()))
        failed = 0
        for part in parts:
            started = time.monotonic()
            try:
                part()
            except Exception:  # noqa: BLE001  (a machine is rented by the minute: the rest counts)
                failed += 1
                traceback.print_exc(file=sys.stdout)
            free_memory()  # the next part's, or another program's
            print(f"\n({time.monotonic() - started:.0f} s)", flush=True)
    print(f"\nIn all {time.monotonic() - began:.0f} s; parts that failed: {failed}")
    return min(failed, 1)


def why_not(device: str, sizes: gpu_models.Sizes) -> str | None:
    """Why nothing can be measured here; None if it can."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        why = (
            f"torch {torch.__version__} is built for CPUs; install a build for CUDA"
            if torch.version.cuda is None and torch.version.hip is None
            else f"torch {torch.__version__} finds none; see nvidia-smi, and whether its driver is "
            "new enough for this build of torch"
        )
        return f"no GPU: {why}. --device cpu measures on the CPU"
    place = Path(tempfile.gettempdir())
    free = shutil.disk_usage(place).free
    if free < sizes.disk_bytes:
        return (
            f"{place} has {free / 1e9:.1f} GB free, and the models take "
            f"{sizes.disk_bytes / 1e9:.0f}; set TMPDIR to a larger folder"
        )
    return None


class Bench:
    """The models and inputs on one device."""

    def __init__(self, place: Path, device: str, sizes: gpu_models.Sizes, rounds: int) -> None:
        self.place, self.device, self.sizes, self.rounds = place, device, sizes, rounds
        self.jpegs = [picture(seed, 384, 682) for seed in range(16)]
        self.clip = gpu_models.clip_model(place / "clip", sizes)
        self.blip = gpu_models.captioner(place / "blip", sizes)
        self.t5 = gpu_models.summariser(place / "t5", sizes)
        self.cpus = float(usable_cpus())
        self.rates: dict[str, float] = {}
        """What the bare models were measured to do per second, by stage."""

    # Inputs and stages

    def clips(self, count: int, frames: int) -> pa.Table:
        made = [
            [
                {
                    "frame_number": at,
                    "seconds": (at + 0.5) * 4 / frames,
                    "jpeg": self.jpegs[(clip + at) % len(self.jpegs)],
                }
                for at in range(frames)
            ]
            for clip in range(count)
        ]
        return pa.table(
            {
                "clip_id": [f"clip-{number}" for number in range(count)],
                "start_seconds": [0.0] * count,
                "end_seconds": [4.0] * count,
                "frames": pa.array(made, pa.list_(FRAME)),
            }
        )

    def captions(self, count: int) -> pa.Table:
        words = ["a red circle", "moves", "to the left", "slowly", "a blue square"]
        fine = [
            [
                {"seconds": float(at), "text": " ".join(words[: 1 + (clip + at) % 5])}
                for at in range(4)
            ]
            for clip in range(count)
        ]
        return pa.table(
            {
                "clip_id": [f"clip-{number}" for number in range(count)],
                "caption_coarse": [words[number % 5] for number in range(count)],
                "captions_fine": pa.array(fine, pa.list_(TEXT_AT)),
                "start_seconds": [0.0] * count,
            }
        )

    def embedding(self, **settings: Any) -> EmbedClips:
        return EmbedClips(model=self.clip, cpus=self.cpus, batch_images=128, **settings)

    def captioning(self, **settings: Any) -> CaptionFrames:
        tokens = self.sizes.new_tokens
        return CaptionFrames(
            model=self.blip,
            fine=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            batch_images=64,
            **settings,
        )

    def summarising(self, **settings: Any) -> SummarizeCaptions:
        tokens = self.sizes.new_tokens
        return SummarizeCaptions(
            model=self.t5, max_new_tokens=tokens, min_new_tokens=tokens, batch_texts=64, **settings
        )

    # Parts

    def comparisons(self) -> list[Callable[[], None]]:
        """Stages against bare loops."""
        sizes = self.sizes
        return [
            partial(
                self.compare,
                self.embedding(),
                lambda most: self.clips(most // FRAMES_PER_CLIP, FRAMES_PER_CLIP),
                self.bare_embedder,
                sizes.clips * FRAMES_PER_CLIP,
                "images/s",
            ),
            partial(
                self.compare,
                self.captioning(),
                lambda most: self.clips(most, 1),
                self.bare_captioner,
                sizes.captions,
                "captions/s",
            ),
            partial(
                self.compare,
                self.summarising(),
                self.captions,
                self.bare_summariser,
                sizes.texts,
                "texts/s",
            ),
        ]

    def compare(
        self,
        stage: Stage,
        table_of: Callable[[int], pa.Table],
        bare: Callable[[int], Callable[[int], object]],
        most: int,
        what: str,
    ) -> None:
        """A stage against a bare loop, in turn; the median ratio counts.

        Both get as many inputs as the bare model takes in a few seconds, at most `most`.
        """
        loop, few = bare(most), min(most, TRIED)
        loop(few)
        in_time = int(few * SECONDS_A_TIMING / seconds(lambda: loop(few)))
        n = min(most, max(in_time, 2 * TRIED))
        table = table_of(n)
        with in_calls(stage) as staged:
            loop(n), staged(table)
            times = [
                (seconds(lambda: loop(n)), seconds(lambda: staged(table)))
                for _ in range(self.rounds)
            ]
        ratio = statistics.median(b / s for b, s in times)
        left, right = (n / statistics.median(column) for column in zip(*times, strict=True))
        print("\n| stage | bare model | stage | of the bare model |\n|---|---|---|---|")
        print(f"| {stage.name} | {left:.0f} {what} | {right:.0f} {what} | {ratio:.2f} |")
        self.rates[stage.name] = left

    def bare_embedder(self, most: int) -> Callable[[int], object]:
        """A loop over so many images, at most `most`; so are those of the others."""
        import torch

        embedder = self.embedding().load("image")
        size = embedder.batch_images
        ready = [
            torch.from_numpy(embedder.prepare([self.jpegs[i % 16] for i in range(at, at + size)]))
            for at in range(0, min(most, 8 * size), size)
        ]
        inputs = [pixels.to(embedder.device, embedder.dtype) for pixels in ready]
        model = embedder.image_model

        def loop(count: int) -> object:
            with torch.inference_mode():
                return [
                    model(inputs[at // size % len(inputs)][: count - at]).float().cpu()
                    for at in range(0, count, size)
                ]

        return loop

    def bare_captioner(self, most: int) -> Callable[[int], object]:
        import torch
        import transformers

        stage: Any = self.captioning()
        model, device = self.loaded(transformers.BlipForConditionalGeneration, self.blip)
        side = self.sizes.picture_side
        dtype = model.dtype
        pixels = torch.rand((stage.batch_images, 3, side, side)).to(device, dtype)
        return self.generating(model, {"pixel_values": pixels}, stage.batch_images)

    def bare_summariser(self, most: int) -> Callable[[int], object]:
        import torch
        import transformers

        stage: Any = self.summarising()
        model, device = self.loaded(transformers.T5ForConditionalGeneration, self.t5)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(self.t5)
        row = self.captions(1).to_pylist()[0]
        fine = [entry["text"] for entry in row["captions_fine"]]
        text = render(stage.prompt, {"coarse": row["caption_coarse"], "fine": fine, "tags": []})
        ids = torch.tensor([tokenizer(text)["input_ids"]] * stage.batch_texts, device=device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return self.generating(model, inputs, stage.batch_texts)

    def loaded(self, kind: Any, folder: Path) -> tuple[Any, Any]:
        import torch

        device = torch.device(self.device)
        model = kind.from_pretrained(folder, dtype=default_dtype(device)).to(device).eval()
        return model, device

    def generating(self, model: Any, inputs: dict[str, Any], size: int) -> Callable[[int], object]:
        import torch

        tokens = self.sizes.new_tokens

        def loop(count: int) -> object:
            with torch.inference_mode():
                return [
                    model.generate(
                        **{name: value[: min(size, count - at)] for name, value in inputs.items()},
                        max_new_tokens=tokens,
                        min_new_tokens=tokens,
                        do_sample=False,
                    ).cpu()
                    for at in range(0, count, size)
                ]

        return loop


if __name__ == "__main__":
    # Where the hub can't be reached, asking it takes minutes. Its client reads this when imported.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
