"""Trains the demo's models: `python -m clipmill.jobs.demo.train_models --output jobs/demo/models`.

All data is generated from one seed, so nothing is downloaded. The captioner and the aesthetic head
start from the CLIP in the output folder.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from clipmill.jobs.demo import world
from clipmill.jobs.demo.evaluate_models import evaluate_models
from clipmill.jobs.demo.train_text import train_summarizer
from clipmill.jobs.demo.train_vision import train_aesthetic_head, train_captioner, train_clip
from clipmill.jobs.demo.training_data import draw_specimens

PARTS = ("clip", "captioner", "summarizer", "aesthetic")
TRAINING_SEED = 20_260
HELD_OUT_SEED = 77_001
"""Seed of the films that the models are measured on; `make demo` must not use it either."""
_SPECIMENS = 24_000
_HELD_OUT_FILMS = 24


def train_models(output: Path, parts: tuple[str, ...]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    clip = output / "clip"
    if set(parts) - {"summarizer"}:
        specimens = draw_specimens(TRAINING_SEED, _SPECIMENS)
        if "clip" in parts:
            train_clip(clip, specimens, TRAINING_SEED)
        if "captioner" in parts:
            train_captioner(output / "captioner", clip, specimens, TRAINING_SEED)
        if "aesthetic" in parts:
            train_aesthetic_head(output / "aesthetic.safetensors", clip, specimens, TRAINING_SEED)
    if "summarizer" in parts:
        train_summarizer(output / "summarizer", TRAINING_SEED)
    (output / "tags.txt").write_text("\n".join(world.TAGS) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the models of the demo on its world.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the models to")
    parser.add_argument(
        "--parts", nargs="*", choices=PARTS, default=PARTS, help="models to train; none: measure"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads to compute with")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train_models(arguments.output, tuple(arguments.parts))
    films = world.make_world(HELD_OUT_SEED, _HELD_OUT_FILMS)
    for name, value in asdict(evaluate_models(arguments.output, films)).items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
