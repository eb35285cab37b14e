"""The models that weigh features; their weights are a file here, made by `benchmarks.shots.train`.

Cuts have small networks, since a feature means another thing in the dark or amid fast cuts;
what else is decided has logistic regressions.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.stages.media.read.shots.weights import WEIGHTS

Floats = NDArray[np.float64]

CUTS, JUDGED, DISSOLVES, WIPES = "cuts", "judged_cuts", "dissolves", "wipes"
EDGE = 5.0
"""Features count up to this many standard deviations from their mean."""


@dataclass(frozen=True)
class Regression:
    """Gives the probability of a yes for rows of named features."""

    names: tuple[str, ...]
    mean: Floats
    scale: Floats
    weights: Floats
    bias: float

    def probabilities(self, rows: Floats, names: Sequence[str]) -> Floats:
        return _probability(self.logits(rows, names))

    def logits(self, rows: Floats, names: Sequence[str]) -> Floats:
        _check(names, self.names)
        found: Floats = (rows - self.mean) / self.scale @ self.weights + self.bias
        return found

    def to_json(self) -> dict[str, Any]:
        columns = zip(self.names, self.mean, self.scale, self.weights, strict=True)
        return {
            "features": {
                name: {"mean": _short(m), "scale": _short(s), "weight": _short(w)}
                for name, m, s, w in columns
            },
            "bias": _short(self.bias),
        }

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Regression:
        features = found["features"]
        columns = {
            column: np.array([feature[column] for feature in features.values()])
            for column in ("mean", "scale", "weight")
        }
        return Regression(
            tuple(features), columns["mean"], columns["scale"], columns["weight"], found["bias"]
        )


@dataclass(frozen=True)
class Networks:
    """The mean of some networks with one hidden layer each: their logits."""

    names: tuple[str, ...]
    mean: Floats
    scale: Floats
    hidden: Floats
    """[networks, features and bias, neurons]."""
    output: Floats
    """[networks, neurons and bias]."""

    def probabilities(self, rows: Floats, names: Sequence[str]) -> Floats:
        return _probability(self.logits(rows, names))

    def logits(self, rows: Floats, names: Sequence[str]) -> Floats:
        _check(names, self.names)
        # Far from all examples nothing is known: it counts as the edge.
        inputs = np.clip((rows - self.mean) / self.scale, -EDGE, EDGE)
        sums = np.c_[inputs, np.ones(len(inputs))] @ self.hidden
        neurons = sums * _probability(sums)
        found: Floats = ((neurons * self.output[:, None, :-1]).sum(2) + self.output[:, -1:]).mean(0)
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "features": {
                name: {"mean": _short(m), "scale": _short(s)}
                for name, m, s in zip(self.names, self.mean, self.scale, strict=True)
            },
            "hidden": [[[_short(x, 4) for x in row] for row in one] for one in self.hidden],
            "output": [[_short(x, 4) for x in row] for row in self.output],
        }

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Networks:
        features = found["features"]
        mean, scale = (
            np.array([feature[column] for feature in features.values()])
            for column in ("mean", "scale")
        )
        hidden, output = (np.array(found[name], float) for name in ("hidden", "output"))
        return Networks(tuple(features), mean, scale, hidden, output)


Weights = Mapping[str, Regression | Networks]
"""The models by name: `CUTS`, `JUDGED`, `DISSOLVES`, `WIPES`."""


@functools.cache
def shipped() -> Weights:
    """Those of this package."""
    found = json.loads(WEIGHTS.read_text("utf-8"))
    return {
        name: (Networks if "hidden" in found[name] else Regression).from_json(found[name])
        for name in found
    }


def fitted(
    rows: Floats,
    is_yes: Floats,
    names: Sequence[str],
    weights: Floats | None = None,
    penalty: float = 1.0,
) -> Regression:
    """The regression for examples; `weights` says how often each counts."""
    mean, scale = rows.mean(0), rows.std(0) + 1e-6
    inputs = np.c_[(rows - mean) / scale, np.ones(len(rows))]
    often = np.ones(len(rows)) if weights is None else weights
    found = np.zeros(inputs.shape[1])
    pull = np.diag([penalty] * rows.shape[1] + [1e-6])
    for _ in range(50):
        guess = 1 / (1 + np.exp(-inputs @ found))
        slope = inputs.T @ (often * (guess - is_yes)) + pull @ found
        curve = (inputs * (often * guess * (1 - guess))[:, None]).T @ inputs + pull
        step = np.linalg.solve(curve, slope)
        found -= step
        if np.abs(step).max() < 1e-8:
            break
    return Regression(tuple(names), mean, scale, found[:-1], float(found[-1]))


def _check(given: Sequence[str], known: tuple[str, ...]) -> None:
    if tuple(given) != known:
        raise ValueError(f"{WEIGHTS.name} is for other features; train again")


def _probability(logits: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return found


def _short(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")
