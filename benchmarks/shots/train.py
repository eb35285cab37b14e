"""Fits the detector's weights to the examples in `data/`, and says how well they do on others.

    python -m benchmarks.shots.train [--dry]

Prints, for each regression, errors with one group of films left out at a time, how well the
probabilities are calibrated, and what each feature is worth alone. Writes
`stages/media/read/shots/weights.json` unless `--dry`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.shots.examples import CUTS, MIXES, RENDERED, Examples
from benchmarks.shots.rendered import SUDDEN
from clipmill.stages.media.read.shots import find, model
from clipmill.stages.media.read.shots.model import Floats, Regression, fitted

# Rendered examples are easy and many: together they count as much as this share of the real ones.
RENDERED_SHARE = {"cut": 0.3, "dissolve": 1.0, "wipe": 1.0}
PENALTY = {"cut": 2.0, "dissolve": 2.0, "wipe": 2.0}


@dataclass(frozen=True)
class Task:
    """What one regression learns from."""

    title: str
    kind: str
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
        real = chosen & self.is_real
        made = chosen & ~self.is_real
        found = np.zeros(len(chosen))
        found[real] = 1.0
        if made.any():
            share = RENDERED_SHARE[self.kind] * max(real.sum(), 1) / made.sum()
            found[made] = min(1.0, share)
        return found[chosen]

    def fit(self, chosen: np.ndarray) -> Regression:
        return fitted(
            self.rows[chosen],
            self.labels[chosen],
            self.names,
            self.weights(chosen),
            PENALTY[self.kind],
        )


def task(title: str, examples: Examples, kinds: Sequence[str], *, judged: bool = False) -> Task:
    labels = np.array(examples.labels, float)
    rows = np.stack(examples.rows)
    names = examples.names
    keep = np.isin(examples.kinds, kinds) & (labels >= 0) & (np.array(examples.splits) == "train")
    if judged:
        logits = np.array(examples.logits)
        rows, names = np.c_[rows, logits], (*names, find.NETWORK)
        keep &= np.isfinite(logits)
    return Task(
        title,
        kinds[0],
        tuple(names),
        rows[keep],
        labels[keep],
        np.array(examples.groups)[keep],
        np.array(examples.films)[keep],
        np.array(examples.frames)[keep],
    )


def tasks() -> dict[str, Task]:
    """What each regression learns from, by its name."""
    cuts, mixed = Examples.read(CUTS), Examples.read(MIXES)
    return {
        model.CUTS: task("cuts", cuts, ["cut", *SUDDEN]),
        model.JUDGED: task("cuts with the network", cuts, ["cut", *SUDDEN], judged=True),
        model.DISSOLVES: task("dissolves", mixed, ["dissolve"]),
        model.WIPES: task("wipes", mixed, ["wipe"]),
    }


def weights_without(group: str) -> model.Weights:
    """Weights that were fitted without the films of this group."""
    return {
        name: found.fit(found.groups != group)
        for name, found in tasks().items()
        if (found.labels == 1).any()
    }


def left_out(found: Task) -> Floats:
    """The probability of each example by a regression that saw no film of its group."""
    probabilities = np.zeros(len(found.labels))
    for group in np.unique(found.groups[found.is_real]):
        here = found.groups == group
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
    found_tasks = tasks()
    written = {}
    for name, found in found_tasks.items():
        if not (found.labels == 1).any():
            print(f"\n{found.title}: no examples")
            continue
        report(found, left_out(found))
        if options.features:
            report_features(found)
        written[name] = found.fit(np.ones(len(found.labels), bool)).to_json()
    if not options.dry:
        model.WEIGHTS.write_text(json.dumps(written, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
