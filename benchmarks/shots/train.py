"""Fits the detector's weights to the examples in `data/`, and says how well they do on others.

    python -m benchmarks.shots.train [--dry]

Prints, for each model, errors with an eighth of the films left out at a time, how well the
probabilities are calibrated, and what each feature is worth alone. Writes
`stages/media/read/shots/weights.json` unless `--dry`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.shots.examples import CUTS, MIXES, MONTAGES, RENDERED, Examples
from benchmarks.shots.rendered import SUDDEN
from clipmill.stages.media.read.shots import find, model
from clipmill.stages.media.read.shots.model import EDGE, Floats, Networks, Regression, fitted

# Rendered examples are easy and many: together they count as much as this share of the real ones.
RENDERED_SHARE = {
    **dict.fromkeys(("cut", *SUDDEN), 0.3 / (1 + len(SUDDEN))),
    "montage": 0.2,
    "unrest": 0.3,
    "jumps": 0.15,
    "dissolve": 1.0,
    "wipe": 1.0,
}
PENALTY = 2.0
# Of the networks: how many, their neurons, and how they learn.
_NETWORKS, _NEURONS, _STEPS, _BATCH = 6, 32, 600, 512
# Into how many parts films are divided, each of which is left out once.
_PARTS = 8
_RATE, _DECAY, _DROPPED, _NOISE = 5e-3, 1.0, 0.2, 0.05


@dataclass(frozen=True)
class Task:
    """What one model learns from; `is_deep` if it is of networks."""

    title: str
    kinds: np.ndarray
    is_deep: bool
    names: tuple[str, ...]
    rows: Floats
    labels: Floats
    groups: np.ndarray
    films: np.ndarray
    frames: np.ndarray

    @property
    def is_real(self) -> np.ndarray:
        return self.groups != RENDERED

    def weights(self, chosen: np.ndarray) -> Floats:
        found = np.where(self.is_real, 1.0, 0.0)
        real = (chosen & self.is_real).sum()
        for kind in np.unique(self.kinds[~self.is_real]):
            made = chosen & ~self.is_real & (self.kinds == kind)
            found[made] = min(1.0, RENDERED_SHARE[kind] * max(real, 1) / max(made.sum(), 1))
        return found[chosen]

    def fit(self, chosen: np.ndarray) -> Regression | Networks:
        given = (self.rows[chosen], self.labels[chosen], self.names, self.weights(chosen))
        return fitted_networks(*given) if self.is_deep else fitted(*given, PENALTY)


def fitted_networks(
    rows: Floats, labels: Floats, names: Sequence[str], weights: Floats
) -> Networks:
    """The networks for examples: each begins elsewhere and sees them in another order."""
    import torch

    torch.set_num_threads(1)
    mean, scale = rows.mean(0), rows.std(0) + 1e-6
    inputs, wanted, often = (
        torch.tensor(values, dtype=torch.float32)
        for values in (np.clip((rows - mean) / scale, -EDGE, EDGE), labels, weights)
    )
    hidden, output = [], []
    for seed in range(_NETWORKS):
        torch.manual_seed(seed)
        first, last = torch.nn.Linear(len(names), _NEURONS), torch.nn.Linear(_NEURONS, 1)
        learns = torch.optim.AdamW([*first.parameters(), *last.parameters()], weight_decay=_DECAY)
        for step in range(_STEPS):
            learns.param_groups[0]["lr"] = _RATE * (1 - step / _STEPS) + _RATE / 50
            seen = torch.randint(0, len(inputs), (_BATCH,))
            given = inputs[seen] + _NOISE * torch.randn(_BATCH, len(names))
            neurons = torch.nn.functional.dropout(torch.nn.functional.silu(first(given)), _DROPPED)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                last(neurons)[:, 0], wanted[seen], often[seen]
            )
            learns.zero_grad()
            loss.backward()
            learns.step()
        with torch.no_grad():
            hidden.append(torch.cat([first.weight.T, first.bias[None]]).double().numpy())
            output.append(torch.cat([last.weight[0], last.bias]).double().numpy())
    return Networks(tuple(names), mean, scale, np.stack(hidden), np.stack(output))


def task(title: str, examples: Examples, kinds: Sequence[str], *, is_deep: bool = False) -> Task:
    labels = np.array(examples.labels, float)
    keep = np.isin(examples.kinds, kinds) & (labels >= 0) & (np.array(examples.splits) == "train")
    return Task(
        title,
        np.array(examples.kinds)[keep],
        is_deep,
        examples.names,
        np.stack(examples.rows)[keep],
        labels[keep],
        np.array(examples.groups)[keep],
        np.array(examples.films)[keep],
        np.array(examples.frames)[keep],
    )


def judged(found: Task, examples: Examples, probabilities: Floats) -> Task:
    """What weighs the network's answer beside the features, which saw none of the film then."""
    known = {
        (film, frame): logit
        for film, frame, logit in zip(examples.films, examples.frames, examples.logits, strict=True)
    }
    keys = zip(found.films.tolist(), found.frames.tolist(), strict=True)
    answers = np.array([known[key] for key in keys])
    asked = found.is_real & np.isfinite(answers)
    sure = np.clip(probabilities[asked], 1e-6, 1 - 1e-6)
    return Task(
        "cuts with the network",
        found.kinds[asked],
        False,
        find.FUSED,
        np.c_[np.log(sure / (1 - sure)), answers[asked]],
        found.labels[asked],
        found.groups[asked],
        found.films[asked],
        found.frames[asked],
    )


def tasks() -> dict[str, Task]:
    """What each model learns from, by its name, but for the one with the network."""
    cuts, mixed = Examples.read(CUTS), Examples.read(MIXES)
    return {
        model.CUTS: task("cuts", cuts, ["cut", *SUDDEN, *MONTAGES], is_deep=True),
        model.DISSOLVES: task("dissolves", mixed, ["dissolve"]),
        model.WIPES: task("wipes", mixed, ["wipe"]),
    }


@functools.cache
def parts() -> list[np.ndarray]:
    """The groups of films, in some parts: networks take seconds to fit, so one is left out at a
    time, and not one group."""
    groups = np.unique(np.concatenate([found.groups[found.is_real] for found in tasks().values()]))
    return [groups[i::_PARTS] for i in range(_PARTS)]


def weights_without(group: str) -> model.Weights:
    """Weights that were fitted without the films of this group, but for the network's."""
    return _weights_without(next((i for i, part in enumerate(parts()) if group in part), 0))


@functools.cache
def _weights_without(part: int) -> model.Weights:
    fit = {
        name: found.fit(~np.isin(found.groups, parts()[part])) for name, found in tasks().items()
    }
    return {**fit, model.JUDGED: model.shipped()[model.JUDGED]}


def left_out(found: Task) -> Floats:
    """The probability of each example by a model that saw no film of its group."""
    probabilities = np.zeros(len(found.labels))
    for part in parts():
        here = np.isin(found.groups, part)
        if here.any():
            probabilities[here] = found.fit(~here).probabilities(found.rows[here], found.names)
    return probabilities


def report(found: Task, probabilities: Floats, threshold: float = 0.5) -> None:
    real = found.is_real
    labels, sure = found.labels[real], probabilities[real]
    yes = labels == 1
    hits, false = int((yes & (sure >= threshold)).sum()), int((~yes & (sure >= threshold)).sum())
    clipped = np.clip(np.where(yes, sure, 1 - sure), 1e-6, 1)
    unsure = int(((sure > 1 - find.SURE) & (sure < find.SURE)).sum())
    print(f"\n{found.title}: {len(labels)} real examples, {int(yes.sum())} yes; ", end="")
    print(f"rendered {int((~real).sum())}")
    print(
        f"  a film left out, {threshold:g}: {hits} found, {int(yes.sum()) - hits} missed, ", end=""
    )
    print(f"{false} false; {unsure} unsure; loss {-np.log(clipped).mean():.3f}")
    edges = (0, 0.15, 0.5, 0.85, 1.0001)
    for low, high in itertools.pairwise(edges):
        part = (sure >= low) & (sure < high)
        if part.any():
            said, true = sure[part].mean(), yes[part].mean()
            print(f"  said {said:.2f}, true {true:.2f} of {int(part.sum())}")
    films, frames = found.films[real], found.frames[real]
    for i in np.flatnonzero(yes != (sure >= threshold)):
        print(f"    {films[i]} {frames[i]}: said {sure[i]:.2f}, is {int(labels[i])}")


def report_features(found: Task) -> None:
    yes, no = found.rows[found.labels == 1], found.rows[found.labels == 0]
    if not len(yes) or not len(no):
        return
    print("  area under the curve of each feature:")
    for column, name in enumerate(found.names):
        a, b = yes[:, column, None], no[None, :, column]
        area = float((a > b).mean() + 0.5 * (a == b).mean())
        print(f"    {name:22} {max(area, 1 - area):.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="write nothing")
    parser.add_argument("--features", action="store_true", help="what each feature is worth")
    options = parser.parse_args(arguments)
    written = {}
    waiting = list(tasks().items())
    while waiting:
        name, found = waiting.pop(0)
        if not (found.labels == 1).any():
            print(f"\n{found.title}: no examples")
            continue
        probabilities = left_out(found)
        report(found, probabilities)
        if name == model.CUTS:
            with_network = judged(found, Examples.read(CUTS), probabilities)
            waiting.insert(0, (model.JUDGED, with_network))
        if options.features:
            report_features(found)
        written[name] = found.fit(np.ones(len(found.labels), bool)).to_json()
    if not options.dry:
        model.WEIGHTS.write_text(json.dumps(written, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
