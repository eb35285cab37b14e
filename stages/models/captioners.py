"""Captioners: turn a picture and a prompt into a text, whatever kind of model is behind them.

The kind is chosen by the class of the model's configuration. What the prompt means depends on it:

    BLIP                   the beginning of the caption, which the model continues
    BLIP-2                 text before the caption ("Question: … Answer:"), or nothing
    Florence-2             a task: <CAPTION>, <DETAILED_CAPTION>, <MORE_DETAILED_CAPTION>, <OCR>
    VisionEncoderDecoder   no prompt supported
    with a chat template   the user's message that accompanies the picture
    any other              text that the model's own processor combines with the picture
"""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.models.completions import Completion, completions, ending_tokens
from clipmill.stages.models.generation import (
    Batches,
    GeneratingStage,
    Generation,
    ModelPlacement,
    chat_options,
    load_config,
    load_weights,
)
from clipmill.stages.models.pixels import PlainPixels
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    import numpy as np
    import torch

    from clipmill.stages.models.openai_server import OpenAIServer

CHAT_PROMPT = "Describe this picture in one short sentence."
FLORENCE_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>", "<OCR>")


@dataclass(frozen=True)
class PictureToCaption:
    """One picture to caption. `ticket` identifies it and is returned with the text."""

    ticket: Hashable
    jpeg: bytes
    prompt: str | None = None


def frame_of(picture: PictureToCaption) -> np.ndarray:
    """The pixels, height × width × 3, RGB; RowFailed `bad_media` if they can't be decoded."""
    from clipmill.stages.media.read.images import decode_jpeg

    return decode_jpeg(picture.jpeg)


class Captioner(Protocol):
    """Returns an answer or a failure for each ticket."""

    def check_prompt(self, prompt: str | None) -> None:
        """Raises ClipmillError if the model can't use the prompt."""

    def describe(
        self, pictures: Sequence[PictureToCaption], generation: Generation
    ) -> dict[Hashable, Completion | RowFailed]: ...


@contextmanager
def open_captioner(
    reference: ModelReference, stage: GeneratingStage, setting: str, batch_images: int
) -> Iterator[Captioner]:
    """The captioner for a reference; errors name `setting`."""
    if reference.server:
        with stage.server(reference, setting) as server:
            server.check()
            yield ServerCaptioner(server)
        return
    from clipmill.stages.models.loading import local_folder
    from clipmill.stages.models.torch_setup import prepare_torch

    prepare_torch()
    folder = local_folder(reference, setting=setting)
    place = ModelPlacement.of(stage, setting, folder)
    trust = stage.trust_remote_code
    config = load_config(folder, setting, trust_remote_code=trust)
    family = family_of(config, folder)
    yield LocalCaptioner(family(folder, config, setting, place, trust), batch_images)


class ServerCaptioner:
    """Sends the stored JPEGs to a server unchanged."""

    def __init__(self, server: OpenAIServer) -> None:
        self._server = server

    def check_prompt(self, prompt: str | None) -> None:
        """A server accepts any prompt."""

    def describe(
        self, pictures: Sequence[PictureToCaption], generation: Generation
    ) -> dict[Hashable, Completion | RowFailed]:
        from clipmill.stages.models.openai_server import Message

        answers = self._server.ask(
            [Message(picture.prompt or CHAT_PROMPT, picture.jpeg) for picture in pictures],
            max_new_tokens=generation.max_new_tokens,
        )
        return {picture.ticket: answer for picture, answer in zip(pictures, answers, strict=True)}


class LocalCaptioner:
    """Runs a transformers model in batches across clips."""

    def __init__(self, family: Family, batch_images: int) -> None:
        self._family = family
        self._size = batch_images

    def check_prompt(self, prompt: str | None) -> None:
        self._family.check_prompt(prompt)

    def describe(
        self, pictures: Sequence[PictureToCaption], generation: Generation
    ) -> dict[Hashable, Completion | RowFailed]:
        family = self._family
        ordered = sorted(pictures, key=family.group)
        batches = Batches[PictureToCaption, dict[str, Any], Completion](
            self._size, family.prepare, lambda inputs: family.generate(inputs, generation)
        )
        answers = batches.run([list(group) for _, group in groupby(ordered, key=family.group)])
        # A size that didn't fit once won't fit next time.
        self._size = batches.size
        return {picture.ticket: answer for picture, answer in zip(ordered, answers, strict=True)}


class Family:
    """Models with the same kind of input. Subclasses turn pictures and prompts into inputs."""

    default_prompt: ClassVar[str | None] = None

    def __init__(
        self, folder: Path, config: Any, setting: str, place: ModelPlacement, trust: bool
    ) -> None:
        import transformers

        self.setting = setting
        self.place = place
        self.load_processors(folder, trust)
        self.model = load_weights(
            transformers.AutoModelForImageTextToText,
            folder,
            setting,
            place,
            trust_remote_code=trust,
        )
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # A separate tokenizer for the outputs: the thread that prepares the next batch uses the
        # other one, and a tokenizer can't be used by two threads at a time ("Already borrowed").
        self._decoder = copy.deepcopy(self.tokenizer)
        if not config.is_encoder_decoder:
            # Text that continues its prompt must not have padding in between.
            self.tokenizer.padding_side = "left"

    def load_processors(self, folder: Path, trust: bool) -> None:
        self.processor = load_processor("AutoProcessor", folder, self.setting, trust)
        self.tokenizer = self.processor.tokenizer

    def check_prompt(self, prompt: str | None) -> None:
        """Raises ClipmillError if this kind of model cannot use the prompt."""

    def prompt_of(self, picture: PictureToCaption) -> str:
        return picture.prompt or self.default_prompt or ""

    def group(self, picture: PictureToCaption) -> int:
        """Only pictures of the same group share a batch."""
        return 0

    def prepare(self, pictures: Sequence[PictureToCaption]) -> dict[str, Any]:
        """The model's inputs for a batch, on the CPU; runs in a thread parallel to the model."""
        raise NotImplementedError

    def generate(self, inputs: Mapping[str, Any], generation: Generation) -> list[Completion]:
        import torch

        with torch.inference_mode():
            inputs = {name: self._moved(value) for name, value in inputs.items()}
            output = self.model.generate(**inputs, **self.options(), **generation.arguments())
        new = self.new_tokens(output, inputs)
        return completions(
            self._decoder.batch_decode(new, skip_special_tokens=True),
            new,
            ends=self.ends(),
            padding=self.tokenizer.pad_token_id,
            limit=generation.max_new_tokens,
            prompt_tokens=prompt_lengths(inputs),
        )

    def options(self) -> dict[str, Any]:
        """Arguments of `generate` that depend on the model instead of the settings."""
        return {"pad_token_id": self.tokenizer.pad_token_id}

    def ends(self) -> frozenset[int]:
        """The tokens after which the model stops."""
        return ending_tokens(self.model)

    def new_tokens(self, output: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The output without the prompt, which decoders repeat, and encoder–decoders replace by
        one token that starts the text."""
        if self.model.config.is_encoder_decoder:
            return output[:, 1:]
        return without_prompt(output, inputs.get("input_ids"))

    def _moved(self, value: Any) -> Any:
        import torch

        if not isinstance(value, torch.Tensor):
            return value
        if value.is_floating_point():
            return value.to(self.place.device, self.place.dtype)
        return value.to(self.place.device)


class _OnePicture(Family):
    """Families whose input is one resized and normalised tensor per picture."""

    def load_processors(self, folder: Path, trust: bool) -> None:
        super().load_processors(folder, trust)
        self.use_images(self.processor.image_processor)

    def use_images(self, image_processor: Any) -> None:
        self._images = image_processor
        self._plain = PlainPixels.of(image_processor)

    def pixels(self, pictures: Sequence[PictureToCaption]) -> torch.Tensor:
        frames = [frame_of(picture) for picture in pictures]
        if self._plain is not None:
            return self._plain.batch(frames)
        pixels: torch.Tensor = self._images(frames, return_tensors="pt")["pixel_values"]
        return pixels

    def prompt_ids(self, prompt: str) -> list[int]:
        """The tokens before the generated ones."""
        raise NotImplementedError

    def group(self, picture: PictureToCaption) -> int:
        # Prompts of one length need no padding, which these models handle badly or not at all.
        return len(self.prompt_ids(self.prompt_of(picture)))

    def prepare(self, pictures: Sequence[PictureToCaption]) -> dict[str, Any]:
        import torch

        ids = torch.tensor([self.prompt_ids(self.prompt_of(picture)) for picture in pictures])
        return {
            "pixel_values": self.pixels(pictures),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }


class Blip(_OnePicture):
    """BLIP needs [DEC] before the prompt, and drops the closing token that it expects after it."""

    def prompt_ids(self, prompt: str) -> list[int]:
        text = self.model.config.text_config
        words = self.tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        return [text.bos_token_id, *words, text.sep_token_id]

    def options(self) -> dict[str, Any]:
        return {}

    def ends(self) -> frozenset[int]:
        return frozenset([self.model.config.text_config.sep_token_id])

    def new_tokens(self, output: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        return output[:, inputs["input_ids"].shape[1] - 1 :]


class Blip2(_OnePicture):
    """BLIP-2 has placeholders for its query tokens before the text."""

    def prompt_ids(self, prompt: str) -> list[int]:
        config = self.model.config
        words = self.tokenizer(prompt)["input_ids"] or [config.text_config.bos_token_id]
        return [config.image_token_id] * config.num_query_tokens + list(words)


class VisionEncoderDecoder(_OnePicture):
    """An image encoder and a text decoder that takes no prompt."""

    def load_processors(self, folder: Path, trust: bool) -> None:
        self.tokenizer = load_processor("AutoTokenizer", folder, self.setting, trust)
        self.use_images(load_processor("AutoImageProcessor", folder, self.setting, trust))

    def check_prompt(self, prompt: str | None) -> None:
        if prompt:
            raise ClipmillError(
                f"{self.setting}: this model (VisionEncoderDecoder) doesn't "
                "support a prompt; remove prompt and fine_prompt"
            )

    def group(self, picture: PictureToCaption) -> int:
        return 0

    def prepare(self, pictures: Sequence[PictureToCaption]) -> dict[str, Any]:
        return {"pixel_values": self.pixels(pictures)}


class Other(Family):
    """Models whose processor takes pictures and plain text."""

    def prepare(self, pictures: Sequence[PictureToCaption]) -> dict[str, Any]:
        return dict(
            self.processor(
                images=[frame_of(picture) for picture in pictures],
                text=[self.prompt_of(picture) for picture in pictures],
                padding=True,
                return_tensors="pt",
            )
        )


class Florence2(Other):
    """Florence-2, whose prompt is a task."""

    default_prompt = "<CAPTION>"

    def check_prompt(self, prompt: str | None) -> None:
        if prompt is not None and prompt not in FLORENCE_TASKS:
            raise ClipmillError(
                f"{self.setting}: the prompt of Florence-2 is one of "
                f"{', '.join(FLORENCE_TASKS)}, not {prompt!r}"
            )


class Chat(Family):
    """Models with a chat template: Qwen-VL, LLaVA, SmolVLM, InternVL, Gemma 3, …"""

    default_prompt = CHAT_PROMPT

    def load_processors(self, folder: Path, trust: bool) -> None:
        super().load_processors(folder, trust)
        self._template_options = chat_options(self.processor.chat_template)

    def prepare(self, pictures: Sequence[PictureToCaption]) -> dict[str, Any]:
        from PIL import Image

        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": Image.fromarray(frame_of(picture))},
                        {"type": "text", "text": self.prompt_of(picture)},
                    ],
                }
            ]
            for picture in pictures
        ]
        return dict(
            self.processor.apply_chat_template(
                conversations,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
                **self._template_options,
            )
        )


_FAMILIES: dict[str, type[Family]] = {
    "BlipConfig": Blip,
    "Blip2Config": Blip2,
    "Florence2Config": Florence2,
    "VisionEncoderDecoderConfig": VisionEncoderDecoder,
}


def family_of(config: Any, folder: Path) -> type[Family]:
    """The family of a model with this configuration."""
    known = _FAMILIES.get(type(config).__name__)
    if known is not None:
        return known
    return Chat if has_chat_template(folder) else Other


def has_chat_template(folder: Path) -> bool:
    """Whether a model's folder holds a chat template, in any of its possible places."""
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    return any(
        (folder / name).is_file()
        and "chat_template" in json.loads((folder / name).read_text("utf-8"))
        for name in ("processor_config.json", "tokenizer_config.json")
    )


def load_processor(auto_class: str, folder: Path, setting: str, trust_remote_code: bool) -> Any:
    """A transformers processor; ClipmillError if the folder lacks its files."""
    import transformers

    try:
        return getattr(transformers, auto_class).from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ClipmillError(
            f"{setting}: {folder} lacks what {auto_class} needs: {error}"
        ) from error


def prompt_lengths(inputs: Mapping[str, Any]) -> list[int] | None:
    """Tokens of each prompt without its padding; None if the model takes no prompt."""
    counted = inputs.get("attention_mask", inputs.get("input_ids"))
    if counted is None or "input_ids" not in inputs:
        return None
    if "attention_mask" in inputs:
        return [int(length) for length in counted.sum(dim=1)]
    return [counted.shape[1]] * len(counted)


def without_prompt(output: torch.Tensor, input_ids: torch.Tensor | None) -> torch.Tensor:
    """`output` without `input_ids`, if it begins with them."""
    if input_ids is None or output.shape[1] < input_ids.shape[1]:
        return output
    length = input_ids.shape[1]
    return output[:, length:] if bool((output[:, :length] == input_ids).all()) else output
