"""Checks of models that write texts: image captioners and language models, local or served."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.models.checks.packages import packages_explained
from clipmill.stages.models.checks.pictures import HEIGHT, WIDTH, example_jpeg
from clipmill.stages.models.checks.skeleton import load_skeleton
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.engines.requests import Request
    from clipmill.stages.models.generation import GeneratingStage

_CAPTIONER = "an image captioner such as BLIP, Florence-2, Qwen2.5-VL or SmolVLM"
_WRITER = "a language model such as Flan-T5 or Qwen2.5-Instruct"
_PROMPT = "A dog runs along the beach. What happens?"
IMAGE_TOKENS = ("image_token_id", "image_token_index")
VIDEO_TOKENS = ("video_token_id", "video_token_index")
# What models' own checks of a picture's size say.
_OF_SIZE = re.compile(
    r"image size|resolution|size of tensor|broadcast a dim|mat1 and mat2", re.IGNORECASE
)


def check_captioner(
    reference: ModelReference,
    stage: GeneratingStage,
    setting: str,
    prompts: Sequence[str | None] = (),
    *,
    fills_in: bool = False,
) -> str:
    """What is known of an image captioner; ClipmillError if the stage can't caption with it, or,
    if it is to fill in forms, can't ask it to."""
    from clipmill.stages.models.captioners import check_fills_in

    with packages_explained(setting):
        family, config, where = captioner_family(reference, stage, setting)
        for prompt in prompts:
            family.check_prompt(prompt)
        if fills_in:
            check_fills_in(family.default_prompt, setting)
        return _with_a_picture(family, config, where, prompts)


def captioner_family(
    reference: ModelReference, stage: GeneratingStage, setting: str
) -> tuple[Any, Any, str]:
    """A captioner without its weights, its configuration, and the place for errors; ClipmillError
    if the folder's model is none."""
    from clipmill.stages.models.engines.families import family_of
    from clipmill.stages.models.generation import ModelPlacement, load_config
    from clipmill.stages.models.loading import local_folder
    from clipmill.stages.models.torch_setup import prepare_torch

    prepare_torch()
    import torch
    import transformers

    folder = local_folder(reference, setting=setting)
    where = f"{setting}: {folder}"
    trust = stage.trust_remote_code
    config = load_config(folder, setting, trust_remote_code=trust)
    _require(config, [transformers.AutoModelForImageTextToText], where, _CAPTIONER)
    if first_token(config, IMAGE_TOKENS) is None and first_token(config, VIDEO_TOKENS) is not None:
        raise ClipmillError(
            f"{where} is a {kind_of(config)}, which takes videos and no single "
            f"pictures; the stage needs {_CAPTIONER}"
        )
    place = ModelPlacement(torch.device("meta"), torch.float32)
    _check_loading(stage, setting)
    family = family_of(config, folder)(folder, config, setting, place, trust, load=load_skeleton)
    return family, config, where


def check_text_model(reference: ModelReference, stage: GeneratingStage, setting: str) -> str:
    """What is known of a language model; ClipmillError if the stage can't ask it."""
    from clipmill.stages.models.engines.language import LanguageModel
    from clipmill.stages.models.engines.processors import has_chat_template
    from clipmill.stages.models.engines.requests import Generation, Request
    from clipmill.stages.models.generation import ModelPlacement, load_config
    from clipmill.stages.models.loading import local_folder
    from clipmill.stages.models.torch_setup import prepare_torch

    prepare_torch()
    import torch
    import transformers

    with packages_explained(setting):
        folder = local_folder(reference, setting=setting)
        where = f"{setting}: {folder}"
        config = load_config(folder, setting, trust_remote_code=stage.trust_remote_code)
        classes: list[Any] = [
            transformers.AutoModelForCausalLM,
            transformers.AutoModelForSeq2SeqLM,
            transformers.AutoModelForImageTextToText,
        ]
        _require(config, classes, where, _WRITER)
        sees = type(config) in classes[2]._model_mapping
        if sees and type(config) not in classes[0]._model_mapping and not has_chat_template(folder):
            raise ClipmillError(
                f"{where} is a {kind_of(config)}, which writes about pictures and answers no "
                f"texts; the stage needs {_WRITER}"
            )
        place = ModelPlacement(torch.device("meta"), torch.float32)
        _check_loading(stage, setting)
        trust = stage.trust_remote_code
        model = LanguageModel(folder, config, setting, place, trust, load=load_skeleton)
        try:
            ids = model.accepted(Request.of(_PROMPT, generation=Generation(1)))
        except ImportError:
            raise
        except Exception as error:  # a template may raise anything
            raise _of_template(where, error) from error
        check_ids(ids, model.model, where)
        return f"{type(model.model).__name__}; a prompt of 8 words is {len(ids)} tokens"


def _check_loading(stage: GeneratingStage, setting: str) -> None:
    """ClipmillError if a package is missing that the stage's way to load models needs."""
    import torch

    from clipmill.stages.models.engines.loading_options import loading_options
    from clipmill.stages.models.generation import ModelPlacement

    loading_options(
        ModelPlacement(
            torch.device("cpu"),
            torch.float32,
            stage.attention,
            stage.quantization,
            stage.device_map,
        ),
        setting,
    )


def kind_of(config: Any) -> str:
    """What a model is, from its configuration's class."""
    return f"{type(config).__name__.removesuffix('Config')} model"


def _require(config: Any, classes: Sequence[Any], where: str, needed: str) -> None:
    """ClipmillError unless one of transformers' auto classes can load the model as it was made."""
    import transformers

    remote = getattr(config, "auto_map", None) or {}
    if any(one.__name__ in remote for one in classes):
        return
    made_as = [
        found
        for name in getattr(config, "architectures", None) or ()
        if (found := getattr(transformers, name, None)) is not None
    ]
    is_known = any(type(config) in one._model_mapping for one in classes)
    if is_known and (not made_as or any(_generates(one) for one in made_as)):
        return
    kind = kind_of(config)
    if made_as and not any(_generates(one) for one in made_as):
        kind = f"{kind} ({made_as[0].__name__}), which writes no texts"
    elif type(config) in transformers.AutoModelForCausalLM._model_mapping:
        kind = f"{kind}, which sees no pictures"
    raise ClipmillError(f"{where} is a {kind}; the stage needs {needed}")


def _generates(model_class: Any) -> bool:
    try:
        return bool(model_class.can_generate())
    except (AttributeError, ImportError):  # a placeholder for a class that lacks a package
        return True


def first_token(config: Any, names: Sequence[str]) -> int | None:
    found = [getattr(config, name, None) for name in names]
    return next((one for one in found if isinstance(one, int)), None)


def _with_a_picture(family: Any, config: Any, where: str, prompts: Sequence[str | None]) -> str:
    """What becomes of a picture in the model's own preparation; ClipmillError if nothing does."""
    from clipmill.stages.models.engines.requests import Generation, Picture, Request

    prompt = next((prompt for prompt in prompts if prompt and "{" not in prompt), None)
    asked = Request.of(
        prompt or family.default_prompt or "", Picture(example_jpeg()), generation=Generation(1)
    )
    inputs = prepared(family, asked, where, "picture")
    name = type(family.model).__name__
    pixels = [one for one in inputs if getattr(inputs[one], "is_floating_point", bool)()]
    if not pixels:
        raise ClipmillError(
            f"{where}: the preparation leaves no pixels of a picture, so {name} would see none; "
            f"the stage needs {_CAPTIONER}"
        )
    ids = inputs.get("input_ids")
    token = first_token(config, IMAGE_TOKENS)
    said = f"{name}; a picture of {WIDTH} × {HEIGHT}"
    if ids is None or token is None:
        _run_vision(family.model, inputs, where)
        return f"{said} is {' × '.join(map(str, inputs[pixels[0]].shape[1:]))} numbers"
    found = int((ids == token).sum())
    if not found:
        raise ClipmillError(
            f"{where}: a prompt with a picture has no image token ({token}) among its "
            f"{ids.numel()} tokens, so {name} would see no picture; its chat template or "
            "tokenizer is another model's"
        )
    check_ids([one for one in ids.flatten().tolist() if one != token], family.model, where)
    wanted = _run_vision(family.model, inputs, where)
    if wanted is not None and wanted != found:
        raise ClipmillError(
            f"{where}: a picture becomes {found} image tokens in the prompt, but {name} makes "
            f"{wanted} vectors of it; its processor's files are another model's"
        )
    return f"{said} is {found} image tokens of {ids.numel()}"


def prepared(family: Any, request: Request, where: str, what: str) -> Mapping[str, Any]:
    """The model's inputs for a picture or a clip; ClipmillError if they can't be made."""
    try:
        inputs: Mapping[str, Any] = family.prepare([family.accepted(request)])
        return inputs
    except ImportError:
        raise
    except RowFailed as error:
        raise ClipmillError(f"{where} cannot prepare a {what}: {error.message}") from error
    except Exception as error:  # processors and templates may raise anything
        raise ClipmillError(
            f"{where} cannot prepare a {what}: {type(error).__name__}: {error}; the files of its "
            "processor, its tokenizer or its chat template are another model's"
        ) from error


def check_ids(ids: Sequence[int], model: Any, where: str) -> None:
    """ClipmillError if a prompt has tokens that the model has no embedding for, or none at all."""
    if not ids:
        raise ClipmillError(f"{where}: its tokenizer makes no tokens of a prompt")
    rows = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= rows:
        raise ClipmillError(
            f"{where}: its tokenizer makes token {max(ids)}, but {type(model).__name__} has only "
            f"{rows} tokens; the tokenizer's files are another model's"
        )


def _of_template(where: str, error: Exception) -> ClipmillError:
    return ClipmillError(
        f"{where}: its tokenizer or chat template fails on a prompt: "
        f"{type(error).__name__}: {error}"
    )


def _run_vision(model: Any, inputs: Mapping[str, Any], where: str) -> int | None:
    """How many vectors the model makes of its pictures; None if that can't be told without weights.

    ClipmillError if it refuses pictures of this size.
    """
    import torch

    grid = inputs.get("image_grid_thw")
    merge = getattr(getattr(model.config, "vision_config", None), "spatial_merge_size", None)
    if grid is not None and merge:
        return int(grid.prod(-1).sum()) // int(merge) ** 2
    tower = _vision_tower(model)
    if tower is None:
        return None
    taken = set(inspect.signature(tower).parameters)
    shown = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
        if name in taken and name not in ("input_ids", "attention_mask")
    }
    try:
        with torch.inference_mode():
            features = tower(**shown)
        return _count(features) if _puts_them_at_tokens(model) else None
    except (ValueError, RuntimeError) as error:
        if _OF_SIZE.search(str(error)):
            raise ClipmillError(
                f"{where}: {type(model).__name__} doesn't take what its processor makes of a "
                f"picture: {error}"
            ) from error
        return None
    except Exception:  # noqa: BLE001 - much can't be computed without numbers
        return None


def _vision_tower(model: Any) -> Any:
    if hasattr(model, "get_image_features"):
        return model.get_image_features
    for name in ("vision_model", "encoder"):
        tower = getattr(model, name, None)
        if tower is not None and "pixel_values" in inspect.signature(tower.forward).parameters:
            return tower.forward
    return None


def _puts_them_at_tokens(model: Any) -> bool:
    """Whether the model itself requires one image token for each vector of `get_image_features`."""
    inner = getattr(model, "model", model)
    return hasattr(inner, "get_placeholder_mask") and not hasattr(inner, "pack_image_features")


def _count(features: Any) -> int | None:
    """The vectors in what a model's vision tower returns, whatever form that has."""
    import torch

    pooled = getattr(features, "pooler_output", None)
    found = features if pooled is None else pooled
    if isinstance(found, torch.Tensor):
        found = [found]
    if not isinstance(found, list | tuple) or not all(
        isinstance(one, torch.Tensor) and one.ndim >= 2 for one in found
    ):
        return None
    return sum(int(one.numel()) // int(one.shape[-1]) for one in found)
