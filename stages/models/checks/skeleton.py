"""A transformers model without its weights, checked against the headers of its files.

The architecture is built on the meta device, and the names and shapes in the checkpoint go through
transformers' own loading, with its conversions of old names. So a check costs the same for any
size.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.words import counted
from clipmill.stages.models.loading import local_folder
from clipmill.stages.references import ModelReference

# In the order in which transformers looks for them.
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")


def load_skeleton(
    auto_class: Any, folder: Path, what: str, place: object = None, *, trust_remote_code: bool
) -> Any:
    """The model on the meta device, in place of `load_weights`.

    Raises ClipmillError if its files lack weights, or hold weights of other shapes.
    """
    import torch

    config, model = None, None
    try:
        config = auto_class_config(folder, trust_remote_code)
        model_class = class_for(auto_class, config, folder, trust_remote_code)
        with contextlib.ExitStack() as stack:
            for context in model_class.get_init_context(torch.float32, False, False, None):
                stack.enter_context(context)
            model = model_class(config)
    except ImportError:
        raise
    except Exception as error:
        raise ClipmillError(
            f"{what}: {folder} cannot be built as its configuration says: "
            f"{type(error).__name__}: {error}"
        ) from error
    state = headers(folder, what)
    if getattr(config, "quantization_config", None) is None:
        check_weights(type(model).__name__, *_compared(model, state, folder), folder, what)
    return model.eval()


def check_files(reference: ModelReference, setting: str) -> str:
    """That a model's configuration and weights are there, for a program that loads them itself."""
    folder = local_folder(reference, setting=setting)
    if not (folder / "config.json").is_file():
        raise ClipmillError(f"{setting}: {folder} contains no config.json; fetch the model again")
    files = weight_files(folder, setting)
    headers(folder, setting, files)
    return f"{counted(len(files), 'file')} of weights, for a server that the run starts"


def auto_class_config(folder: Path, trust_remote_code: bool) -> Any:
    import transformers

    return transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code
    )


def class_for(auto_class: Any, config: Any, folder: Path, trust_remote_code: bool) -> Any:
    """The class that an auto class would load with this configuration."""
    remote = (getattr(config, "auto_map", None) or {}).get(auto_class.__name__)
    if remote is not None and trust_remote_code:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module(remote, folder, local_files_only=True)
    found = auto_class._model_mapping[type(config)]
    if not isinstance(found, tuple | list):
        return found
    names = getattr(config, "architectures", None) or []
    return next((one for one in found if one.__name__ in names), found[0])


def headers(folder: Path, what: str, files: Sequence[Path] | None = None) -> dict[str, Any]:
    """Tensors on the meta device with the names and shapes of a folder's weights."""
    found: dict[str, Any] = {}
    for path in weight_files(folder, what) if files is None else files:
        try:
            found |= _header(path)
        except pickle.UnpicklingError as error:
            raise ClipmillError(
                f"{what}: {path} contains a pickle with more than weights, which may run code when "
                "it is loaded; use the model's safetensors"
            ) from error
        # safetensors has its own error for a file that is cut off, torch several.
        except Exception as error:
            raise ClipmillError(
                f"{what}: {path} is damaged or not complete, fetch it again "
                f"({type(error).__name__}: {error})"
            ) from error
    return found


def weight_files(folder: Path, what: str) -> list[Path]:
    """The files that transformers would load; ClipmillError if there are none, or some lack."""
    for index in _INDEXES:
        # Single files come first, each before the index of its own format.
        single = folder / _SINGLE[_INDEXES.index(index)]
        if single.is_file():
            return [single]
        if (folder / index).is_file():
            names = _names_in(folder / index, what)
            if lost := sorted(name for name in names if not (folder / name).is_file()):
                raise ClipmillError(
                    f"{what}: {folder} lacks {len(lost)} of its {len(names)} files of weights, "
                    f"the first of them {lost[0]}; fetch the model again"
                )
            return [folder / name for name in sorted(names)]
    if (folder / "adapter_config.json").is_file():
        raise ClipmillError(
            f"{what}: {folder} is an adapter, not a whole model; merge it into its base model "
            "(peft's merge_and_unload) and save that"
        )
    raise ClipmillError(
        f"{what}: {folder} contains no weights that transformers loads: expected "
        f"{_SINGLE[0]}, or its parts with {_INDEXES[0]}"
    )


def _names_in(index: Path, what: str) -> set[str]:
    """The files of weights that an index names."""
    try:
        return set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ClipmillError(
            f"{what}: {index} is damaged, fetch it again ({type(error).__name__}: {error})"
        ) from error


def _header(path: Path) -> dict[str, Any]:
    import torch

    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return {
                name: torch.empty(file.get_slice(name).get_shape(), device="meta")
                for name in file.keys()  # noqa: SIM118 - it is no mapping
            }
    loaded = torch.load(path, map_location="meta", weights_only=True)
    state = loaded.get("state_dict", loaded)
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def check_weights(
    name: str,
    missing: Collection[str],
    mismatched: Collection[tuple[str, Any, Any]],
    place: Path,
    what: str,
) -> None:
    """ClipmillError if weights are missing, or have other shapes than those of the model `name`.

    `mismatched` are their names, shapes in the files, and shapes in the model.
    """
    if mismatched:
        weight, found, wanted = min(mismatched)
        raise ClipmillError(
            f"{what}: {place} holds weights of another size than its configuration says: "
            f"{weight} is {_shape(found)} and {name} takes {_shape(wanted)} "
            f"({counted(len(mismatched), 'such weight')})"
        )
    # Poolers are for classification: published captioners often lack theirs.
    lost = sorted(weight for weight in missing if "pooler" not in weight)
    if lost:
        raise ClipmillError(
            f"{what}: {place} lacks {counted(len(lost), 'weight')} that {name} needs, the first "
            f"of them {lost[0]}"
        )


def _shape(sizes: Any) -> str:
    return " × ".join(map(str, sizes)) or "one number"


def _compared(
    model: Any, state: dict[str, Any], folder: Path
) -> tuple[set[str], set[tuple[str, Any, Any]]]:
    """Missing weights, and those of other shapes: (name, in the files, in the model)."""
    import torch
    from transformers import modeling_utils

    library: Any = modeling_utils
    try:
        with _silent():
            settings = library.LoadStateDictConfig(
                pretrained_model_name_or_path=str(folder),
                ignore_mismatched_sizes=True,
                device_map={"": torch.device("meta")},
                dtype=torch.float32,
                dtype_plan=model._get_dtype_plan(torch.float32),
                weight_mapping=library.get_model_conversion_mapping(model, None, None),
            )
            info, _ = type(model)._load_pretrained_model(model, state, None, settings)
            model.mark_tied_weights_as_initialized(info)
            model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
            model._adjust_missing_and_unexpected_keys(info)
        return set(info.missing_keys), {tuple(one) for one in info.mismatched_keys}
    except (AttributeError, TypeError, NotImplementedError):
        # Another version of transformers loads in another way, and some conversions compute with
        # the numbers. Loading itself reports what is missing then.
        return set(), set()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    import transformers

    logging = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
