"""The training loop of the demo's models, and how their weights are stored."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True, slots=True)
class Schedule:
    steps: int
    batch_rows: int
    peak_rate: float
    """Learning rate after the warm-up; it then decays to zero along a cosine."""
    warm_up_steps: int = 100


def learn(
    name: str,
    model: torch.nn.Module,
    loss_of_batch: Callable[[int], torch.Tensor],
    schedule: Schedule,
) -> None:
    """Trains in place with AdamW; `loss_of_batch` takes the step's number."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.peak_rate, weight_decay=0.02, betas=(0.9, 0.98)
    )
    model.train()
    started, recent = time.perf_counter(), 0.0
    for step in range(schedule.steps):
        warm = min(1.0, (step + 1) / schedule.warm_up_steps)
        rate = schedule.peak_rate * warm * (1 + math.cos(math.pi * step / schedule.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        # On CPUs the backward pass of fused attention takes longer than everything else.
        with sdpa_kernel(SDPBackend.MATH):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of_batch(step)
            optimizer.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent += loss.item()
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - started
            print(f"{name} step {step + 1} loss {recent / 100:.4f} {seconds:.0f} s", flush=True)
            recent = 0.0
    model.eval()


def shrink_weights(folder: Path) -> None:
    """Converts a saved model's weights to float16; it is still loaded as float32."""
    path = folder / "model.safetensors"
    save_halved(load_file(path), path)
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_halved(weights: dict[str, torch.Tensor], path: Path) -> None:
    halved = {
        name: (weight.half() if weight.is_floating_point() else weight).contiguous()
        for name, weight in weights.items()
    }
    save_file(halved, path, metadata={"format": "pt"})
