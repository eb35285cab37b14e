"""Checks of models that embed texts, without their weights."""

from __future__ import annotations

from typing import Any

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.models.checks.packages import packages_explained
from clipmill.stages.models.checks.skeleton import check_weights, headers, load_skeleton
from clipmill.stages.references import ModelReference

_TEXT = "a dog runs along the beach"


def check_sentence_model(reference: ModelReference, setting: str) -> str:
    """What is known of a sentence-embedding model; ClipmillError if it can't be used as one."""
    from clipmill.stages.models.loading import local_folder
    from clipmill.stages.models.sentence_layout import read_layout
    from clipmill.stages.models.sentence_models import load_tokenizer, text_limit
    from clipmill.stages.models.torch_setup import prepare_torch

    prepare_torch()
    folder = local_folder(reference, setting=setting)
    where = f"{setting}: {folder}"
    with packages_explained(setting):
        from transformers import AutoModel

        try:
            layout = read_layout(folder)
        except ClipmillError as error:
            raise ClipmillError(f"{setting}: {error}") from error
        model = load_skeleton(AutoModel, layout.transformer, setting, trust_remote_code=False)
        try:
            tokenizer = load_tokenizer(layout)
            ids = tokenizer([_TEXT])["input_ids"][0]
        except ImportError:
            raise
        except Exception as error:  # a malformed folder raises many kinds of errors
            raise ClipmillError(
                f"{where}: its tokenizer can't be used: {type(error).__name__}: {error}"
            ) from error
        rows = getattr(model.config, "vocab_size", None)
        if rows is not None and max(ids, default=0) >= rows:
            raise ClipmillError(
                f"{where}: its tokenizer makes token {max(ids)}, but the model has only {rows} "
                "tokens; the tokenizer's files are another model's"
            )
        width = getattr(model.config, "hidden_size", None)
        width = width and width * len(layout.pooling)
        for dense in layout.dense:
            width = _check_dense(dense, width, setting)
        size = f", embeddings of {width} numbers" if width else ""
        limit = text_limit(layout, tokenizer, model.config)
        return f"{type(model).__name__}{size}; texts of {limit} tokens"


def _check_dense(dense: Any, width: int | None, setting: str) -> int:
    if width is not None and dense.inputs != width:
        raise ClipmillError(
            f"{setting}: {dense.folder} takes {dense.inputs} numbers, but is given {width}"
        )
    files = [
        path
        for name in ("model.safetensors", "pytorch_model.bin")
        if (path := dense.folder / name).is_file()
    ]
    if not files:
        raise ClipmillError(
            f"{setting}: {dense.folder} contains no model.safetensors; fetch the model again"
        )
    state = headers(dense.folder, setting, files[:1])
    wanted: dict[str, tuple[int, ...]] = {"linear.weight": (dense.outputs, dense.inputs)}
    if dense.has_bias:
        wanted["linear.bias"] = (dense.outputs,)
    other = {
        (name, tuple(state[name].shape), shape)
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != shape
    }
    check_weights("Dense", wanted.keys() - state.keys(), other, files[0], setting)
    return int(dense.outputs)
