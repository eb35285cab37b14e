"""Checks of models that see several frames of a clip at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.models.checks.generators import (
    IMAGE_TOKENS,
    VIDEO_TOKENS,
    captioner_family,
    check_ids,
    first_token,
    prepared,
)
from clipmill.stages.models.checks.packages import packages_explained
from clipmill.stages.models.checks.pictures import example_jpeg
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.engines.requests import Request
    from clipmill.stages.models.generation import GeneratingStage

_FRAMES = 4


def check_clip_captioner(
    reference: ModelReference,
    stage: GeneratingStage,
    setting: str,
    shown: Callable[[Any, str], Any],
    request: Callable[[Sequence[tuple[float, bytes]], Any], Request],
) -> str:
    """What is known of a model that is shown clips; ClipmillError if it would not see them.

    `shown` is how it gets a clip, and `request` what it is asked about frames.
    """
    with packages_explained(setting):
        family, config, where = captioner_family(reference, stage, setting)
        how = shown(family.sees, setting)
        same, other = (
            prepared(family, request(_frames(turned=turned), how), where, "clip")
            for turned in (False, True)
        )
        name = type(family.model).__name__
        tokens = _vision_tokens(family, config, where, same)
        # What the last frame shows must reach the model.
        if not tokens or not _pixels_differ(same, other):
            raise ClipmillError(
                f"{where}: {_FRAMES} frames as {how} become {tokens} vision tokens in the prompt, "
                f"and {name} would not see them all; its chat template or processor is another "
                "model's"
            )
        return f"{name}; {_FRAMES} frames as {how} are {tokens} vision tokens"


def _frames(*, turned: bool) -> list[tuple[float, bytes]]:
    last = _FRAMES - 1
    return [(float(i), example_jpeg(turned=turned and i == last)) for i in range(_FRAMES)]


def _pixels_differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    import torch

    return any(
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and not torch.equal(value, other[name])
        for name, value in one.items()
    )


def _vision_tokens(family: Any, config: Any, where: str, inputs: Mapping[str, Any]) -> int:
    """How many tokens of the prompt stand for what is seen."""
    ids = inputs["input_ids"].flatten().tolist()
    vision = {first_token(config, names) for names in (IMAGE_TOKENS, VIDEO_TOKENS)} - {None}
    check_ids([one for one in ids if one not in vision], family.model, where)
    return sum(token in vision for token in ids) if vision else len(ids)
