"""Checks of models that compare pictures, videos and texts, and of what scores their embeddings."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.models.checks.packages import packages_explained
from clipmill.stages.models.checks.pictures import example_jpeg
from clipmill.stages.models.checks.skeleton import check_weights, headers, load_skeleton
from clipmill.stages.models.naflex import Patches
from clipmill.stages.models.published_weights import PAIR, published_weights
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.embedders import Tower
    from clipmill.stages.models.transformers_clip import TransformersClip

_OPEN_CLIP = "open_clip_config.json"
_TEXT = "a dog runs along the beach"


def check_embedder(
    reference: ModelReference,
    setting: str,
    towers: Sequence[Tower],
    *,
    trust_remote_code: bool = False,
) -> str:
    """What is known of a contrastive model; ClipmillError if it can't be loaded as one."""
    from clipmill.stages.models.embedders import is_of_transformers
    from clipmill.stages.models.loading import local_folder
    from clipmill.stages.models.torch_setup import prepare_torch

    prepare_torch()
    folder = local_folder(reference, setting=setting)
    where = f"{setting}: {folder}"
    with packages_explained(setting):
        if reference.hub is None or not reference.hub.startswith(PAIR):
            is_open_clip = (folder / _OPEN_CLIP).is_file()
            if not is_open_clip and is_of_transformers(folder):
                return _check_transformers_clip(folder, setting, trust_remote_code)
        name, path, options = _open_clip_name(reference, folder, setting)
        model = _without_weights(name, options, where)
        _check_file(model, path, where)
        width = _width(model)
        said = [f"{type(model).__name__}, embeddings of {width} numbers"]
        if "image" in towers:
            said.append(_with_a_picture(model, where))
        if "text" in towers:
            said.append(_with_a_text(model, name, where))
        return "; ".join(said)


def _check_transformers_clip(folder: Path, setting: str, trust_remote_code: bool) -> str:
    """The same for a model in transformers' own format."""
    from transformers import AutoModel

    from clipmill.stages.models.transformers_clip import TransformersClip

    where = f"{setting}: {folder}"
    try:
        model = TransformersClip(
            folder,
            trust_remote_code=trust_remote_code,
            load=lambda place: load_skeleton(
                AutoModel, place, setting, trust_remote_code=trust_remote_code
            ),
        )
        ids = model.tokenize([_TEXT])["input_ids"]
    except (ClipmillError, ImportError):
        raise
    except Exception as error:  # a malformed folder raises many kinds of errors
        raise ClipmillError(f"{where} can't be used as an embedder: {error}") from error
    rows = model.model.config.text_config.vocab_size
    if int(ids.max()) >= rows:
        raise _other_tokenizer(where, int(ids.max()), rows)
    return f"{type(model.model).__name__}; {_fitting_pictures(model, where)}"


def _fitting_pictures(model: TransformersClip, where: str) -> str:
    """The pictures that a model is given; ClipmillError if it takes others."""
    preparation, config = model.preparation, model.model.config.vision_config
    if isinstance(preparation, Patches):
        made, of_model, what = preparation.patch, config.patch_size, "patches"
        said = f"pictures in up to {preparation.most} patches of {made} × {made}"
    else:
        made, of_model, what = preparation.size[0], getattr(config, "image_size", None), "pictures"
        said = f"pictures of {preparation.size[1]} × {made}"
    if isinstance(of_model, int) and of_model != made:
        raise ClipmillError(
            f"{where}: its preparation makes {what} of {made} × {made} pixels, its model takes "
            f"{of_model} × {of_model}; see its preprocessor_config.json"
        )
    return said


def embedding_width(reference: ModelReference, setting: str) -> int | None:
    """The length of a model's embeddings; None if its configuration doesn't say."""
    from clipmill.stages.models.loading import local_folder

    if reference.hub and reference.hub.startswith(PAIR):
        import open_clip

        config = open_clip.get_model_config(published_weights(reference.hub).architecture) or {}
    else:
        folder = local_folder(reference, setting=setting)
        config = _read(folder / _OPEN_CLIP).get("model_cfg") or _read(folder / "config.json")
    width = config.get("embed_dim") or config.get("projection_dim")
    return width if isinstance(width, int) else None


def check_head(path: Path, embeddings: ModelReference | None, setting: str, label: str) -> str:
    """What is known of an aesthetic head; ClipmillError if it scores other embeddings."""
    from clipmill.stages.models.aesthetic_heads import load_head

    head = load_head(path)
    width = None if embeddings is None else embedding_width(embeddings, f"{label}.model")
    if width is not None and width != head.dimensions:
        raise ClipmillError(
            f"{setting}: the head {path.name} scores embeddings of {head.dimensions} numbers, "
            f"those of {label} ({embeddings}) have {width}; set {label}.model to the model that "
            "the head was trained on, or use the head of that model (512: ViT-B/32 and B/16, 768: "
            "ViT-L/14)"
        )
    return f"a head for embeddings of {head.dimensions} numbers"


def check_video_text(
    reference: ModelReference, setting: str, preparation: str | None = None
) -> str:
    """What is known of a video–text model; ClipmillError if it is none, or lacks something."""
    from clipmill.stages.models.loading import local_folder
    from clipmill.stages.models.torch_setup import prepare_torch

    prepare_torch()
    folder = local_folder(reference, setting=setting)
    where = f"{setting}: {folder}"
    with packages_explained(setting):
        from clipmill.stages.models.video_text.base import FromWeights
        from clipmill.stages.models.video_text.choose import checked_kind

        try:
            kind = checked_kind(folder, setting, preparation)
        except UsageError:
            raise
        except ClipmillError as error:
            raise ClipmillError(f"{where} can't be used: {error}") from error
        except ImportError:
            raise
        except Exception as error:  # as above
            raise ClipmillError(f"{where} cannot be used as a video–text model: {error}") from error
        if issubclass(kind, FromWeights):
            return kind.__name__
        import transformers

        model = load_skeleton(transformers.AutoModel, folder, setting, trust_remote_code=False)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            ids = tokenizer(_TEXT)["input_ids"]
        except ImportError:
            raise
        except Exception as error:  # as above
            raise ClipmillError(
                f"{where}: its tokenizer can't be used: {type(error).__name__}: {error}"
            ) from error
        rows = model.config.text_config.vocab_size
        if max(ids) >= rows:
            raise _other_tokenizer(where, max(ids), rows)
        return f"{kind.__name__} for {model.config.vision_config.num_frames} frames"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def _open_clip_name(
    reference: ModelReference, folder: Path, setting: str
) -> tuple[str, Path, dict[str, Any]]:
    """open_clip's name of a model, the file of its weights, and options to build it with."""
    from clipmill.stages.models.embedders import weights_file

    if reference.hub and reference.hub.startswith(PAIR):
        published = published_weights(reference.hub)
        options = {
            "force_quick_gelu": published.quick_gelu,
            "force_preprocess_cfg": published.preprocessing,
        }
        return published.architecture, weights_file(folder), options
    if not (folder / _OPEN_CLIP).is_file():
        raise UsageError(
            f"{setting}: {reference} contains no {_OPEN_CLIP}; models must be in open_clip's "
            "format, such as open_clip:ViT-B-32/openai or a repository of timm or laion, or in "
            "that of transformers, with a config.json"
        )
    try:
        path = weights_file(folder)
    except FileNotFoundError as error:
        raise ClipmillError(
            f"{setting}: {folder} contains {error}; fetch the model again"
        ) from error
    return f"local-dir:{folder}", path, {}


def _without_weights(name: str, options: dict[str, Any], where: str) -> Any:
    import open_clip
    import torch

    try:
        with _quiet(), torch.device("meta"):
            return open_clip.create_model(
                name, load_weights=False, pretrained_text=False, device="meta", **options
            )
    except ImportError:
        raise
    except Exception as error:  # open_clip raises many kinds of errors for a malformed folder
        raise ClipmillError(
            f"{where} cannot be built as its configuration says: {type(error).__name__}: {error}"
        ) from error


def _check_file(model: Any, path: Path, where: str) -> None:
    """ClipmillError if the weights in a file don't fit the model, by their names and shapes."""
    from open_clip import factory

    library: Any = factory
    setting, _, _ = where.partition(": ")
    state = headers(path.parent, setting, [path])
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    try:
        # As open_clip's load_checkpoint does.
        state = library.convert_state_dict(model, state)
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = library.convert_to_custom_text_state_dict(state)
        library.resize_pos_embed(state, model)
        library.resize_text_pos_embed(state, model)
    except Exception:  # noqa: BLE001 - these compute with the numbers; loading checks them
        return
    # open_clip sets a bias that old checkpoints lack, and reshapes single numbers.
    optional = {"logit_bias", "logit_scale"}
    missing = {name for name in wanted if name not in state and name not in optional}
    other = {
        (name, tuple(state[name].shape), shape)
        for name, shape in wanted.items()
        if name in state and name not in optional and tuple(state[name].shape) != shape
    }
    check_weights(type(model).__name__, missing, other, path, setting)


def _width(model: Any) -> int | None:
    for name in ("text_projection", "visual.proj"):
        found = model
        for part in name.split("."):
            found = getattr(found, part, None)
        if getattr(found, "ndim", 0) == 2:
            return int(found.shape[1])
    width = getattr(model.visual, "output_dim", None)
    return int(width) if width else None


def _with_a_picture(model: Any, where: str) -> str:
    from clipmill.stages.models.embedders import preparation_of

    try:
        shape = preparation_of(model)([example_jpeg()]).shape
    except Exception as error:  # a configuration may hold anything
        raise ClipmillError(
            f"{where} cannot prepare a picture: {type(error).__name__}: {error}; see "
            "preprocess_cfg in its open_clip_config.json"
        ) from error
    size = getattr(model.visual, "image_size", None)
    sides = (size, size) if isinstance(size, int) else tuple(size or shape[-2:])
    if tuple(shape[-2:]) != sides:
        raise ClipmillError(
            f"{where}: its preparation makes pictures of {shape[-1]} × {shape[-2]} pixels, its "
            f"model takes {sides[1]} × {sides[0]}; see preprocess_cfg in its open_clip_config.json"
        )
    return f"pictures of {shape[-1]} × {shape[-2]}"


def _with_a_text(model: Any, name: str, where: str) -> str:
    import open_clip

    try:
        with _quiet():
            ids = open_clip.get_tokenizer(name)([_TEXT])
    except ImportError:
        raise
    except Exception as error:  # as above
        raise ClipmillError(
            f"{where}: its tokenizer can't be used: {type(error).__name__}: {error}"
        ) from error
    table = getattr(model, "token_embedding", None) or getattr(
        getattr(model, "text", None), "token_embedding", None
    )
    rows = getattr(table, "num_embeddings", None)
    if rows is not None and int(ids.max()) >= rows:
        raise _other_tokenizer(where, int(ids.max()), rows)
    return f"texts of {ids.shape[1]} tokens"


def _other_tokenizer(where: str, token: int, rows: int) -> ClipmillError:
    return ClipmillError(
        f"{where}: its tokenizer makes token {token}, but the model has only {rows} tokens; the "
        "tokenizer's files are another model's"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's warnings that a model has no weights: that is intended here."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    # Python gives a root logger without handlers one that prints, at its first message.
    nowhere = logging.NullHandler()
    root.addHandler(nowhere)
    try:
        yield
    finally:
        root.removeHandler(nowhere)
        root.setLevel(before)
