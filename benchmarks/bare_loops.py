"""Measures on a CPU how much of the bare models' speed the stages reach.

    python -m benchmarks.bare_loops [--parts embeddings captions summaries] [--rounds 6]

Models have published sizes and random weights, and stages their default settings. A bare loop runs
the same model over inputs that are ready. In each round a few batches go through both, the one that
comes first changing every time, so what else a machine does slows both alike. The ratio counts: of
the processor time, which other work hardly changes, and of the time on the clock.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.gpu import FRAMES_PER_CLIP, Bench
from benchmarks.gpu_models import FULL
from benchmarks.staged_calls import in_calls
from clipmill.stages.caption_frames import CaptionFrames
from clipmill.stages.embed_clips import EmbedClips
from clipmill.stages.models.torch_setup import prepare_torch
from clipmill.stages.summarize_captions import SummarizeCaptions

PARTS = ("embeddings", "captions", "summaries")
BATCHES_A_ROUND = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=6, help="times that both are timed")
    parser.add_argument("--architecture", default="ViT-B-16", help="open_clip's, for embeddings")
    arguments = parser.parse_args()
    prepare_torch()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        bench = OnCpu(Path(folder), arguments.architecture, arguments.rounds)
        print("| stage | processor time | time | rounds |\n|---|---|---|---|")
        for part in arguments.parts:
            bench.measure(part)


class OnCpu(Bench):
    """The stages with their default batches."""

    def __init__(self, place: Path, architecture: str, rounds: int) -> None:
        super().__init__(place, "cpu", replace(FULL, architecture=architecture), rounds)

    def embedding(self, **settings: Any) -> EmbedClips:
        return EmbedClips(model=self.clip, **settings)

    def captioning(self, **settings: Any) -> CaptionFrames:
        tokens = self.sizes.new_tokens
        return CaptionFrames(
            model=self.blip, fine=False, max_new_tokens=tokens, min_new_tokens=tokens, **settings
        )

    def summarising(self, **settings: Any) -> SummarizeCaptions:
        tokens = self.sizes.new_tokens
        return SummarizeCaptions(
            model=self.t5, max_new_tokens=tokens, min_new_tokens=tokens, **settings
        )

    def bare_summariser(self, most: int) -> Callable[[int], object]:
        """The stage's own prompts, those of similar length together, as the stage does it."""
        import transformers

        stage = self.summarising()
        model, _ = self.loaded(transformers.T5ForConditionalGeneration, self.t5)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(self.t5)
        unlimited = SimpleNamespace(longest_prompt=None)
        rows = self.captions(most).to_pylist()
        prompts = [tokenizer(stage.prompt_for(row, unlimited))["input_ids"] for row in rows]
        size = stage.batch_texts
        ready = [
            tokenizer.pad({"input_ids": prompts[at : at + size]}, return_tensors="pt")
            for prompts in [sorted(prompts, key=len)]
            for at in range(0, most, size)
        ]
        loops = [self.generating(model, dict(inputs), size) for inputs in ready]
        return lambda _: [loop(size) for loop in loops]

    def measure(self, part: str) -> None:
        """Prints a row: the bare loop's time as a share of the stage's."""
        stage: Any
        if part == "embeddings":
            stage, bare = self.embedding(), self.bare_embedder
            count = BATCHES_A_ROUND * stage.batch_images
            table = self.clips(count // FRAMES_PER_CLIP, FRAMES_PER_CLIP)
        elif part == "captions":
            stage, bare = self.captioning(), self.bare_captioner
            count = BATCHES_A_ROUND * stage.batch_images
            table = self.clips(count, 1)
        else:
            stage, bare = self.summarising(), self.bare_summariser
            count = BATCHES_A_ROUND * stage.batch_texts
            table = self.captions(count)
        loop = bare(count)
        with in_calls(stage) as staged:
            both = (lambda: loop(count), lambda: staged(table))
            for one in both:
                one()
            shares = [self.round(both, turned=number % 2 == 1) for number in range(self.rounds)]
        cpu, clock = (statistics.median(column) for column in zip(*shares, strict=True))
        print(f"| {stage.name} | {cpu:.3f} | {clock:.3f} | {self.rounds} |", flush=True)

    @staticmethod
    def round(
        both: tuple[Callable[[], object], Callable[[], object]], *, turned: bool
    ) -> tuple[float, float]:
        """Processor time and time of the first as a share of the second's."""
        spent = [spent_on(one) for one in (reversed(both) if turned else both)]
        bare, staged = reversed(spent) if turned else spent
        return bare[0] / staged[0], bare[1] / staged[1]


def spent_on(call: Callable[[], object]) -> tuple[float, float]:
    cpu, clock = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - clock


if __name__ == "__main__":
    main()
