"""Parts of `benchmarks.gpu` beside the speeds: correctness, a whole run, another engine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import clipmill
from benchmarks import feed, gpu_models
from benchmarks.staged_calls import in_calls, seconds
from clipmill.stages.models.batch_size import free_memory
from clipmill.stages.models.embedders import ClipEmbedder
from clipmill.stages.summarize_captions import SummarizeCaptions

if TYPE_CHECKING:
    from benchmarks.gpu import Bench

CLIPS, PICTURES = 4, 16
FRAMES_PER_CLIP = 4
# An embedding's largest numbers, of about 0.2, are stored to 0.0001.
MOST_OFF = 5e-4
# Random weights leave next words near ties, which any rounding may turn.
MOST_OTHER_TEXTS = 2
SECONDS_OF_A_RUN = 15.0


def correctness(bench: Bench) -> None:
    """Results in float32, on the device and on a CPU."""
    print("\n| in float32, against the CPU | |\n|---|---|")
    few = bench.clips(CLIPS, FRAMES_PER_CLIP)
    with in_float32():
        with in_calls(bench.embedding(dtype="float32")) as staged:
            found = {row["clip_id"]: row["embeddings"] for row in staged(few).to_pylist()}
        with on_cpu(), in_calls(bench.embedding(dtype="float32")) as staged:
            right = {row["clip_id"]: row["embeddings"] for row in staged(few).to_pylist()}
        worst = max(
            float(np.abs(np.subtract(found[key], right[key], dtype=np.float64)).max())
            for key in right
        )
        print(f"| largest difference in an embedding (half floats) | {worst:.1e} |", flush=True)
        equal: dict[str, tuple[int, int]] = {}
        for stage, table, column in (
            (bench.captioning, bench.clips(PICTURES, 1), "caption_coarse"),
            (bench.summarising, bench.captions(PICTURES), "caption"),
        ):
            with in_calls(stage(dtype="float32", device=bench.device)) as staged:
                told = texts(staged(table), column)
            with in_calls(stage(dtype="float32", device="cpu")) as staged:
                expected = texts(staged(table), column)
            same = sum(told[key] == expected[key] for key in expected)
            print(f"| {stage().name}: equal texts | {same} of {len(expected)} |", flush=True)
            equal[stage().name] = same, len(expected)
    wrong = beyond_tolerance(worst, equal)
    assert not wrong, "; ".join(wrong)


def beyond_tolerance(worst: float, equal: Mapping[str, tuple[int, int]]) -> list[str]:
    """What is wrong with a largest difference of embeddings, and with so many equal texts."""
    wrong = []
    if not worst <= MOST_OFF:
        wrong.append(f"embeddings differ by {worst:.1e}, by more than {MOST_OFF:.0e}")
    for name, (same, count) in equal.items():
        if count - same > MOST_OTHER_TEXTS:
            wrong.append(f"only {same} of {count} texts of {name} are equal")
    return wrong


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Convolutions and products of float32 are not rounded to TF32."""
    import torch

    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def idle(bench: Bench) -> None:
    """A whole run over many shards: how long the device has nothing to do."""
    place = bench.place / "run"
    place.mkdir()
    feed.make_pictures(place)
    shards = bench.sizes.shards
    videos = shards * 2
    rate = bench.rates.get("embed_clips", float("inf"))
    in_time = rate * SECONDS_OF_A_RUN / (videos * FRAMES_PER_CLIP)
    path = feed.recipe(
        place,
        "idle",
        {"embed_clips": {"model": str(bench.clip), "cpus": bench.cpus, "batch_images": 128}},
        videos=videos,
        a_shard=2,
        clips=max(4, int(min(bench.sizes.clips // 32, in_time))),
    )
    clipmill.run(path, dataset=path.with_suffix(""), until="split_clips")
    with timed_batches(bench.device) as spans:
        clipmill.run(path, dataset=path.with_suffix(""))
    busy = union(spans)
    whole = max(end for _, end in spans) - min(start for start, _ in spans)
    print(
        f"\nA run of {shards} shards, {len(spans)} batches of images: the device has nothing "
        f"to do in {1 - busy / whole:.1%} of the {whole:.1f} s between the first and the last."
    )


def served(bench: Bench, python: Path) -> None:
    """summarize_captions by vLLM, which the run starts, and by transformers."""
    folder = gpu_models.language_model(bench.place / "chat", bench.sizes)
    table = bench.captions(bench.sizes.texts)
    tokens = bench.sizes.new_tokens
    settings: dict[str, Any] = {"model": folder, "max_new_tokens": tokens, "when_cut_off": "keep"}
    # It takes a share of all memory, of which this process has some.
    options = ["--gpu-memory-utilization", "0.5", "--max-model-len", "2048"]
    program = {"python": str(python), "options": options, "start_seconds": 300}
    print("\n| | texts/s |\n|---|---|", flush=True)
    for name, more in (
        ("transformers", {"min_new_tokens": tokens, "batch_texts": 64}),
        ("vLLM", {"engine": {"vllm": program}, "server_options": {"ignore_eos": True}}),
    ):
        with in_calls(SummarizeCaptions(**settings, **more)) as staged:
            staged(table.slice(0, 8))
            rate = table.num_rows / seconds(lambda staged=staged: staged(table))
        free_memory()
        print(f"| {name} | {rate:.1f} |", flush=True)


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
