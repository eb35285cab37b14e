"""Fingerprints: what determines a step's output, as 16 digits that name its folder.

A served model counted by its address before it counted by its name. What was made then stays
valid: a step keeps the former fingerprint if the dataset has shards under it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clipmill.pipeline.dataset.run_records import read_run
from clipmill.pipeline.dataset.shards import committed_shards
from clipmill.schemas.damage import DamagedFile
from clipmill.schemas.folders import RUNS, json_files
from clipmill.stages.protocol import Stage
from clipmill.stages.references import ModelReference


def fingerprint(stage: Stage, inputs: Mapping[str, str]) -> str:
    """16 hex digits over what determines a step's output: itself, its settings, its inputs."""
    return _digits(stage, stage.identity(), inputs)


def fingerprint_in(
    dataset: Path, label: str, stage_label: str, stage: Stage, inputs: Mapping[str, str]
) -> str:
    """The fingerprint under which a dataset has shards of a step, or the one for new ones."""
    now = fingerprint(stage, inputs)
    served = {
        setting: value
        for setting, value in stage.references().items()
        if isinstance(value, ModelReference) and value.server
    }
    if not served or committed_shards(dataset / label / now):
        return now
    for identity in _former_identities(dataset, stage_label, stage, served):
        former = _digits(stage, identity, inputs)
        if committed_shards(dataset / label / former):
            return former
    return now


def _digits(stage: Stage, identity: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    payload = {
        "name": stage.name,
        "version": stage.version,
        "identity": identity,
        "prompts": stage.prompts(),
        "inputs": dict(inputs),
    }
    text = json.dumps(payload, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _former_identities(
    dataset: Path, stage_label: str, stage: Stage, served: Mapping[str, ModelReference]
) -> Iterator[dict[str, Any]]:
    """A stage's identity with its models at the addresses that they have or had in earlier runs."""
    known: dict[str, dict[str, None]] = {
        setting: dict.fromkeys(f"{url}#{model.served_as}" for url in model.servers)
        for setting, model in served.items()
    }
    for reference, setting in _references_before(dataset, stage_label):
        if setting in served and reference.endswith(f"#{served[setting].served_as}"):
            known[setting].setdefault(reference)
    identity = stage.identity()
    for addresses in itertools.product(*known.values()):
        yield {**identity, **dict(zip(known, addresses, strict=True))}


def _references_before(dataset: Path, stage_label: str) -> Iterator[tuple[str, str]]:
    """The models that earlier runs named for a stage, the newest first, with their settings."""
    for path in reversed(json_files(dataset / RUNS)):
        with contextlib.suppress(DamagedFile):  # `verify` reports it
            for recorded in read_run(path)["stages"]:
                if recorded["stage"] == stage_label:
                    for setting, model in recorded["models"].items():
                        yield model["reference"], setting
