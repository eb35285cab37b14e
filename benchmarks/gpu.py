"""Measures on one GPU how much of the bare models' speed the stages reach, and that they are right.

    python -m benchmarks.gpu [--device cpu --size dry] [--vllm /path/to/python]

Made for a bare machine with one GPU and nothing but this package: models have their published sizes
and random weights, pictures are made up. It takes less than ten minutes; each part that fails says
so, and the others follow. In order:

- embed_clips, caption_frames and summarize_captions against bare loops over prepared inputs;
- the same results on a CPU, in float32;
- how much of the time the GPU has nothing to do in a whole run over many shards;
- with `--vllm`, summarize_captions by a server that the run starts, against transformers.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import clipmill
from benchmarks import feed, gpu_models
from benchmarks.embed import picture
from clipmill.pipeline.engine.parallel_map import usable_cpus
from clipmill.schemas.tables import FRAME, TEXT_AT
from clipmill.stages.caption_frames import CaptionFrames
from clipmill.stages.embed_clips import EmbedClips
from clipmill.stages.models.embedders import ClipEmbedder
from clipmill.stages.models.prompts import render
from clipmill.stages.models.torch_setup import default_dtype, prepare_torch
from clipmill.stages.protocol import Stage, Workspace
from clipmill.stages.summarize_captions import SummarizeCaptions

FRAMES_PER_CLIP = 4
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
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: torch finds none; --device cpu measures on the CPU", file=sys.stderr)
        return 1
    sizes = SIZES[arguments.size]
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, sizes: {arguments.size}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.device, sizes, arguments.rounds)
        parts = [bench.speeds, bench.correctness, bench.idle]
        if arguments.vllm is not None:
            parts.append(lambda: bench.served(arguments.vllm))
        failed = 0
        for part in parts:
            began = time.monotonic()
            try:
                part()
            except Exception:  # noqa: BLE001  (a machine is rented by the minute: the rest counts)
                failed += 1
                traceback.print_exc(file=sys.stdout)
            print(f"\n({time.monotonic() - began:.0f} s)", flush=True)
    return min(failed, 1)


class Bench:
    """The models and inputs on one device."""

    def __init__(self, place: Path, device: str, sizes: gpu_models.Sizes, rounds: int) -> None:
        self.place, self.device, self.sizes, self.rounds = place, device, sizes, rounds
        self.jpegs = [picture(seed, 384, 682) for seed in range(16)]
        self.clip = gpu_models.clip_model(place / "clip", sizes)
        self.blip = gpu_models.captioner(place / "blip", sizes)
        self.t5 = gpu_models.summariser(place / "t5", sizes)
        self.cpus = float(usable_cpus())

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

    def speeds(self) -> None:
        """Stages against bare loops, in turn; the median ratio counts."""
        print("\n| stage | bare model | stage | of the bare model |\n|---|---|---|---|")
        sizes = self.sizes
        for stage, table, bare, each, what in (
            (
                self.embedding(),
                self.clips(sizes.clips, FRAMES_PER_CLIP),
                self.bare_embedder,
                FRAMES_PER_CLIP,
                "images/s",
            ),
            (
                self.captioning(),
                self.clips(sizes.captions, 1),
                self.bare_captioner,
                1,
                "captions/s",
            ),
            (self.summarising(), self.captions(sizes.texts), self.bare_summariser, 1, "texts/s"),
        ):
            n = table.num_rows * each
            loop = bare(n)
            with in_calls(stage) as staged:

                def of_stage(staged: Any = staged, table: pa.Table = table) -> object:
                    return staged(table)

                loop(), of_stage()
                times = [(seconds(loop), seconds(of_stage)) for _ in range(self.rounds)]
            ratio = statistics.median(b / s for b, s in times)
            left, right = (n / statistics.median(column) for column in zip(*times, strict=True))
            print(f"| {stage.name} | {left:.0f} {what} | {right:.0f} {what} | {ratio:.2f} |")

    def bare_embedder(self, count: int) -> Callable[[], object]:
        import torch

        embedder = self.embedding().load("image")
        size = embedder.batch_images
        ready = [
            torch.from_numpy(embedder.prepare([self.jpegs[i % 16] for i in range(start, end)])).to(
                embedder.device, embedder.dtype
            )
            for start, end in ((at, min(at + size, count)) for at in range(0, count, size))
        ][:8]
        batches = -(-count // size)
        model = embedder.image_model

        def loop() -> object:
            with torch.inference_mode():
                return [model(ready[i % len(ready)]).float().cpu() for i in range(batches)]

        return loop

    def bare_captioner(self, count: int) -> Callable[[], object]:
        import torch
        import transformers

        stage: Any = self.captioning()
        model, device = self.loaded(transformers.BlipForConditionalGeneration, self.blip)
        side = self.sizes.picture_side
        dtype = model.dtype
        pixels = torch.rand((stage.batch_images, 3, side, side)).to(device, dtype)
        return self.generating(model, {"pixel_values": pixels}, count, stage.batch_images)

    def bare_summariser(self, count: int) -> Callable[[], object]:
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
        return self.generating(model, inputs, count, stage.batch_texts)

    def loaded(self, kind: Any, folder: Path) -> tuple[Any, Any]:
        import torch

        device = torch.device(self.device)
        model = kind.from_pretrained(folder, dtype=default_dtype(device)).to(device).eval()
        return model, device

    def generating(
        self, model: Any, inputs: dict[str, Any], count: int, size: int
    ) -> Callable[[], object]:
        import torch

        tokens = self.sizes.new_tokens

        def loop() -> object:
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

    def correctness(self) -> None:
        """Results in float32, on the device and on a CPU."""
        print("\n| in float32, against the CPU | |\n|---|---|")
        few = self.clips(16, FRAMES_PER_CLIP)
        with in_calls(self.embedding(dtype="float32")) as staged:
            found = {row["clip_id"]: row["embeddings"] for row in staged(few).to_pylist()}
        with on_cpu(), in_calls(self.embedding(dtype="float32")) as staged:
            right = {row["clip_id"]: row["embeddings"] for row in staged(few).to_pylist()}
        worst = max(
            float(np.abs(np.subtract(found[key], right[key], dtype=np.float64)).max())
            for key in right
        )
        print(f"| largest difference in an embedding (half floats) | {worst:.1e} |")
        for stage, table, column in (
            (self.captioning, self.clips(16, 1), "caption_coarse"),
            (self.summarising, self.captions(16), "caption"),
        ):
            with in_calls(stage(dtype="float32", device=self.device)) as staged:
                found = texts(staged(table), column)
            with in_calls(stage(dtype="float32", device="cpu")) as staged:
                right = texts(staged(table), column)
            same = sum(found[key] == right[key] for key in right)
            print(f"| {stage().name}: equal texts | {same} of {len(right)} |")

    def idle(self) -> None:
        """A whole run over many shards: how long the device has nothing to do."""
        place = self.place / "run"
        place.mkdir()
        feed.make_pictures(place)
        shards = self.sizes.shards
        path = feed.recipe(
            place,
            "idle",
            {"embed_clips": {"model": str(self.clip), "cpus": self.cpus, "batch_images": 128}},
            videos=shards * 2,
            a_shard=2,
            clips=max(4, self.sizes.clips // 32),
        )
        clipmill.run(path, dataset=path.with_suffix(""), until="split_clips")
        with timed_batches(self.device) as spans:
            clipmill.run(path, dataset=path.with_suffix(""))
        busy = union(spans)
        whole = max(end for _, end in spans) - min(start for start, _ in spans)
        print(
            f"\nA run of {shards} shards, {len(spans)} batches of images: the device has nothing "
            f"to do in {1 - busy / whole:.1%} of the {whole:.1f} s between the first and the last."
        )

    def served(self, python: Path) -> None:
        """summarize_captions by vLLM, which the run starts, and by transformers."""
        folder = gpu_models.language_model(self.place / "chat", self.sizes)
        table = self.captions(self.sizes.texts)
        settings = {"model": folder, "max_new_tokens": self.sizes.new_tokens}
        options = {"vllm": {"python": str(python)}}
        found = []
        for engine in (None, options):
            more = {} if engine is None else {"engine": engine}
            with in_calls(SummarizeCaptions(**settings, **more)) as staged:
                staged(table.slice(0, 8))
                found.append(table.num_rows / seconds(lambda: staged(table)))
        print("\n| | texts/s |\n|---|---|")
        print(f"| transformers | {found[0]:.1f} |\n| vLLM | {found[1]:.1f} |")


@contextlib.contextmanager
def in_calls(stage: Stage) -> Iterator[Callable[[pa.Table], pa.Table]]:
    """The stage as the runner calls it: batch by batch, several at a time."""
    with (
        stage.open(Workspace(Path(), Path())) as transform,
        ThreadPoolExecutor(stage.calls_at_once) as pool,
    ):

        def run(table: pa.Table) -> pa.Table:
            size = stage.rows_at_once
            batches = [table.slice(start, size) for start in range(0, table.num_rows, size)]
            if stage.calls_at_once == 1:
                return pa.concat_tables([transform(batch) for batch in batches])
            return pa.concat_tables(list(pool.map(transform, batches)))

        yield run


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Models that are loaded inside are on the CPU."""
    import torch

    from clipmill.stages.models import embedders

    before = embedders.best_device
    embedders.best_device = lambda: torch.device("cpu")
    try:
        yield
    finally:
        embedders.best_device = before


@contextlib.contextmanager
def timed_batches(device: str) -> Iterator[list[tuple[float, float]]]:
    """When each batch of images was on the device, in seconds."""
    import torch

    original = ClipEmbedder.embed_batch
    spans: list[tuple[float, float]] = []
    events: list[tuple[Any, Any]] = []
    lock = threading.Lock()
    on_gpu = device == "cuda"
    first = torch.cuda.Event(enable_timing=True) if on_gpu else None
    if first is not None:
        first.record()

    def timed(self: ClipEmbedder, batch: Any) -> np.ndarray:
        if not on_gpu:
            began = time.perf_counter()
            found = original(self, batch)
            with lock:
                spans.append((began, time.perf_counter()))
            return found
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        found = original(self, batch)
        end.record()
        with lock:
            events.append((start, end))
        return found

    ClipEmbedder.embed_batch = timed  # type: ignore[method-assign]  # only here
    try:
        yield spans
    finally:
        ClipEmbedder.embed_batch = original  # type: ignore[method-assign]
        if first is not None:
            torch.cuda.synchronize()
            for start, end in events:
                spans.append((first.elapsed_time(start) / 1e3, first.elapsed_time(end) / 1e3))


def union(spans: Sequence[tuple[float, float]]) -> float:
    """The length of what at least one span covers."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def texts(table: pa.Table, column: str) -> dict[str, str]:
    """Each clip's text, or why it has none, which quotes the text."""
    return {row["clip_id"]: row[column] or row["error"]["message"] for row in table.to_pylist()}


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
