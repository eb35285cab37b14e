"""Reads how a sentence-embedding model makes one vector of a text, from its folder's files.

In the layout of sentence-transformers, `modules.json` lists a transformer, a pooling, and what
follows it (linear layers, a normalisation). A folder of transformers without it gets the mean over
the tokens, or the last token if it generates text, as sentence-transformers itself does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import ClipmillError

# In the order in which their results are joined, and the names of their switches in older files.
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid")
_TEXT_CONFIGURATIONS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# The prompts of a model for texts that are searched, the most specific first.
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Dense:
    """A linear layer after the pooling."""

    folder: Path
    inputs: int
    outputs: int
    has_bias: bool
    activation: str


@dataclass(frozen=True)
class SentenceLayout:
    """What follows the transformer, and what it is given."""

    transformer: Path
    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    """Whether the tokens of a prompt count in the pooling."""
    dense: tuple[Dense, ...] = ()
    normalizes: bool = False
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None

    @property
    def document_prompt(self) -> str:
        """What comes before a text that is stored."""
        return self._first(*_DOCUMENT_PROMPTS)

    @property
    def query_prompt(self) -> str:
        """What comes before words that are searched for."""
        return self._first("query")

    def _first(self, *names: str) -> str:
        """The first of these prompts that there is, or else the default one."""
        found = (self.prompts.get(name) for name in (*names, self.default_prompt or ""))
        return next((prompt for prompt in found if prompt), "")


def read_layout(folder: Path) -> SentenceLayout:
    """The layout of a model's folder; ClipmillError for modules that are not known here."""
    modules = _read(folder / "modules.json")
    config = _read(folder / "config_sentence_transformers.json") or {}
    said: dict[str, Any] = {
        "prompts": {name: text for name, text in (config.get("prompts") or {}).items() if text},
        "default_prompt": config.get("default_prompt_name"),
    }
    if modules is None:
        return SentenceLayout(folder, pooling=_usual_pooling(folder), **said)
    dense: list[Dense] = []
    for number, module in enumerate(modules):
        kind = str(module.get("type")).rpartition(".")[2]
        place = folder / str(module.get("path") or "")
        if (kind == "Transformer") != (number == 0) or (kind == "Pooling") != (number == 1):
            raise _unknown(folder, modules)
        if kind == "Transformer":
            said |= _transformer(place)
        elif kind == "Pooling":
            said |= _pooling(place)
        elif kind == "Dense" and not said.get("normalizes"):
            dense.append(_dense(place))
        elif kind == "Normalize":
            said["normalizes"] = True
        else:
            raise _unknown(folder, modules)
    if "pooling" not in said:
        raise _unknown(folder, modules)
    return SentenceLayout(dense=tuple(dense), **said)


def _transformer(place: Path) -> dict[str, Any]:
    config = next((c for name in _TEXT_CONFIGURATIONS if (c := _read(place / name))), None) or {}
    return {
        "transformer": place,
        "max_tokens": config.get("max_seq_length"),
        "lower_case": bool(config.get("do_lower_case")),
    }


def _pooling(place: Path) -> dict[str, Any]:
    config = _read(place / "config.json") or {}
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for mode, switch in POOLINGS.items() if config.get(switch)] or ["mean"]
    names = (modes,) if isinstance(modes, str) else tuple(modes)
    if unknown := [name for name in names if name not in POOLINGS]:
        raise ClipmillError(
            f"{place / 'config.json'}: the pooling {unknown[0]!r} is not known; possible are "
            f"{', '.join(POOLINGS)}"
        )
    return {"pooling": names, "include_prompt": config.get("include_prompt", True) is not False}


def _dense(place: Path) -> Dense:
    config = _read(place / "config.json") or {}
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in _ACTIVATIONS or config.get("use_residual"):
        raise ClipmillError(
            f"{place / 'config.json'}: expected a linear layer with one of the activations "
            f"{', '.join(_ACTIVATIONS)} and without a residual connection"
        )
    return Dense(
        place,
        int(config["in_features"]),
        int(config["out_features"]),
        config.get("bias", True) is not False,
        activation,
    )


def _usual_pooling(folder: Path) -> tuple[str, ...]:
    config = _read(folder / "config.json") or {}
    names = config.get("architectures") or [""]
    generates = str(names[0]).endswith("ForCausalLM") and config.get("is_causal", True)
    return ("lasttoken",) if generates else ("mean",)


def _unknown(folder: Path, modules: list[Any]) -> ClipmillError:
    names = [str(module.get("type")).rpartition(".")[2] for module in modules]
    return ClipmillError(
        f"{folder / 'modules.json'} lists {', '.join(names)}; expected Transformer, Pooling, then "
        "Dense and Normalize, as models of one vector per text have them"
    )


def _read(path: Path) -> Any:
    """A JSON file's content; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ClipmillError(f"{path} is not JSON: {error}; fetch the model again") from error
