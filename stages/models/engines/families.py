"""Families of models that take pictures: how each turns requests into the model's inputs.

The family is chosen by the class of the model's configuration. What the prompt means depends on it:

    BLIP                   the beginning of the caption, which the model continues
    BLIP-2                 text before the caption ("Question: … Answer:"), or nothing
    GIT                    the beginning of the caption, or a question to a model for questions
    Florence-2             a task: <CAPTION>, <DETAILED_CAPTION>, <MORE_DETAILED_CAPTION>, <OCR>
    VisionEncoderDecoder   no prompt supported
    with a chat template   the user's message that accompanies the picture
    any other              text that the model's own processor combines with the picture

Only models with a chat template take several pictures, a video, a system message or a schema.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.models.completions import Completion, completions, ending_tokens
from clipmill.stages.models.engines.processors import (
    Copies,
    chat_options,
    has_chat_template,
    load_processor,
    prompt_lengths,
    takes_system,
    without_prompt,
)
from clipmill.stages.models.engines.requests import (
    CHAT_PROMPT,
    Generation,
    Part,
    Picture,
    Request,
    Sees,
    Video,
)
from clipmill.stages.models.generation import ModelPlacement, arguments_of, load_weights
from clipmill.stages.models.outputs.decoding import Decoder
from clipmill.stages.models.pixels import PlainPixels

if TYPE_CHECKING:
    import numpy as np
    import torch

FLORENCE_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>", "<OCR>")
_PROMPTS_KEPT = 1024
# Processors that use a template of their own for videos, whatever the model's folder has.
_OWN_TEMPLATE = ("SmolVLMProcessor",)
# A video's metadata counts its frames; with this rate, a frame's number is its millisecond.
_MILLISECONDS = 1000.0


def pixels_of(jpeg: bytes) -> np.ndarray:
    """The pixels, height × width × 3, RGB; RowFailed `bad_media` if they can't be decoded."""
    from clipmill.stages.media.read.images import decode_jpeg

    return decode_jpeg(jpeg)


@dataclass
class Tools:
    """What turns pictures and text into tensors; one thread uses it at a time."""

    tokenizer: Any
    processor: Any = None
    images: Any = None


class Family:
    """Models with the same kind of input. Subclasses turn requests into inputs."""

    default_prompt: ClassVar[str | None] = None
    longest_prompt: int | None = None
    sees: Sees = "picture"

    def __init__(
        self,
        folder: Path,
        config: Any,
        setting: str,
        place: ModelPlacement,
        trust: bool,
        *,
        threads: int = 1,
        load: Callable[..., Any] = load_weights,
    ) -> None:
        import transformers

        self.setting = setting
        self.place = place
        tools = self.load_tools(folder, trust)
        self.model = load(
            transformers.AutoModelForImageTextToText,
            folder,
            setting,
            place,
            trust_remote_code=trust,
        )
        tokenizer = tools.tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._padding = tokenizer.pad_token_id
        # For outputs and single prompts, in any thread but one at a time.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._decoder = Decoder(tokenizer)
        self._lock = threading.Lock()
        if not config.is_encoder_decoder:
            # Text that continues its prompt must not have padding in between.
            tokenizer.padding_side = "left"
        self.tools = Copies(tools, threads)

    def load_tools(self, folder: Path, trust: bool) -> Tools:
        processor = load_processor("AutoProcessor", folder, self.setting, trust)
        return Tools(processor.tokenizer, processor)

    def check_prompt(self, prompt: str | None) -> None:
        """Raises ClipmillError if this kind of model cannot use the prompt."""

    def accepted(self, request: Request) -> Request:
        """The request as this model takes it; RowFailed if it can't be asked that."""
        seen = [part for part in request.parts if not isinstance(part, str)]
        if len(seen) != 1 or not isinstance(seen[0], Picture):
            raise RowFailed("model", self._only("a single picture, no video"))
        if request.system or request.schema is not None:
            raise RowFailed("model", self._only("a picture and a prompt, no further instructions"))
        return request

    def _only(self, what: str) -> str:
        return f"{self.setting}: this model ({type(self).__name__}) takes {what} per request"

    def prompt_of(self, request: Request) -> str:
        return request.text or self.default_prompt or ""

    def group(self, request: Request) -> Hashable:
        """Only requests of the same group share a batch."""
        return 0

    def order(self, request: Request) -> Any:
        """Requests that are near in this order share a batch."""
        return 0

    def prepare(self, requests: Sequence[Request]) -> dict[str, Any]:
        """The model's inputs for a batch, on the CPU; runs in threads parallel to the model."""
        with self.tools.borrowed() as tools:
            return self.inputs(requests, tools)

    def inputs(self, requests: Sequence[Request], tools: Tools) -> dict[str, Any]:
        raise NotImplementedError

    def generate(
        self,
        inputs: Mapping[str, Any],
        generation: Generation,
        is_unwanted: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """Answers to a batch; once it `is_unwanted`, generation ends after the next token."""
        import torch

        with torch.inference_mode():
            inputs = {name: self._moved(value) for name, value in inputs.items()}
            output = self.model.generate(
                **inputs, **self.options(), **arguments_of(generation, is_unwanted)
            )
        new = self.new_tokens(output, inputs)
        with self._lock:
            prompts = inputs["input_ids"] if self.default_prompt == CHAT_PROMPT else None
            texts = self._decoder.texts(self._tokenizer, new, prompts)
        return completions(
            texts,
            new,
            ends=self.ends(),
            padding=self._padding,
            limit=generation.max_new_tokens,
            prompt_tokens=prompt_lengths(inputs),
        )

    def options(self) -> dict[str, Any]:
        """Arguments of `generate` that depend on the model instead of the settings."""
        return {"pad_token_id": self._padding}

    def ends(self) -> frozenset[int]:
        """The tokens after which the model stops."""
        return ending_tokens(self.model)

    def new_tokens(self, output: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The output without the prompt, which decoders repeat, and encoder–decoders replace by
        one token that starts the text."""
        if self.model.config.is_encoder_decoder:
            return output[:, 1:]
        return without_prompt(output, inputs.get("input_ids"))

    def count_tokens(self, request: Request) -> int:
        with self._lock:
            return len(self._tokenizer(f"{request.system}{request.text}")["input_ids"])

    def _moved(self, value: Any) -> Any:
        import torch

        if not isinstance(value, torch.Tensor):
            return value
        if value.is_floating_point():
            return value.to(self.place.device, self.place.dtype)
        return value.to(self.place.device)


class _OnePicture(Family):
    """Families whose input is one resized and normalised tensor per picture."""

    def load_tools(self, folder: Path, trust: bool) -> Tools:
        tools = super().load_tools(folder, trust)
        tools.images = tools.processor.image_processor
        return tools

    def pixels(self, requests: Sequence[Request], tools: Tools) -> torch.Tensor:
        frames = [pixels_of(request.pictures[0].jpeg) for request in requests]
        plain = PlainPixels.of(tools.images)
        if plain is not None:
            return plain.batch(frames)
        pixels: torch.Tensor = tools.images(frames, return_tensors="pt")["pixel_values"]
        return pixels

    @functools.cached_property
    def prompt_ids(self) -> Callable[[str], list[int]]:
        """The tokens before the generated ones, for a prompt; those of the last ones are kept."""

        def ids_of(prompt: str) -> list[int]:
            with self._lock:
                return self.ids_of(prompt)

        return functools.lru_cache(maxsize=_PROMPTS_KEPT)(ids_of)

    def ids_of(self, prompt: str) -> list[int]:
        raise NotImplementedError

    def group(self, request: Request) -> Hashable:
        # Prompts of one length need no padding, which these models handle badly or not at all.
        return len(self.prompt_ids(self.prompt_of(request)))

    def inputs(self, requests: Sequence[Request], tools: Tools) -> dict[str, Any]:
        import torch

        ids = torch.tensor([self.prompt_ids(self.prompt_of(request)) for request in requests])
        return {
            "pixel_values": self.pixels(requests, tools),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }


class Blip(_OnePicture):
    """BLIP needs [DEC] before the prompt, and drops the closing token that it expects after it."""

    def ids_of(self, prompt: str) -> list[int]:
        text = self.model.config.text_config
        words = self._tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        return [text.bos_token_id, *words, text.sep_token_id]

    def options(self) -> dict[str, Any]:
        return {}

    def ends(self) -> frozenset[int]:
        return frozenset([self.model.config.text_config.sep_token_id])

    def new_tokens(self, output: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        return output[:, inputs["input_ids"].shape[1] - 1 :]


class Blip2(_OnePicture):
    """BLIP-2 has placeholders for its query tokens before the text."""

    def ids_of(self, prompt: str) -> list[int]:
        config = self.model.config
        words = self._tokenizer(prompt)["input_ids"] or [config.text_config.bos_token_id]
        return [config.image_token_id] * config.num_query_tokens + list(words)


class Git(_OnePicture):
    """GIT continues [CLS] and the prompt's words, without the [SEP] that its tokenizer adds."""

    def ids_of(self, prompt: str) -> list[int]:
        words = self._tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        return [self.model.config.bos_token_id, *words]

    def pixels(self, requests: Sequence[Request], tools: Tools) -> torch.Tensor:
        pixels = super().pixels(requests, tools)
        frames = self.model.config.num_image_with_embedding
        # A model for videos sees the picture as a video that stands still.
        return pixels.unsqueeze(1).repeat(1, frames, 1, 1, 1) if frames else pixels


class VisionEncoderDecoder(_OnePicture):
    """An image encoder and a text decoder that takes no prompt."""

    def load_tools(self, folder: Path, trust: bool) -> Tools:
        tokenizer = load_processor("AutoTokenizer", folder, self.setting, trust)
        images = load_processor("AutoImageProcessor", folder, self.setting, trust)
        return Tools(tokenizer, images=images)

    def check_prompt(self, prompt: str | None) -> None:
        if prompt:
            raise ClipmillError(
                f"{self.setting}: this model (VisionEncoderDecoder) doesn't "
                "support a prompt; remove prompt and fine_prompt"
            )

    def group(self, request: Request) -> Hashable:
        return 0

    def inputs(self, requests: Sequence[Request], tools: Tools) -> dict[str, Any]:
        return {"pixel_values": self.pixels(requests, tools)}


class Other(Family):
    """Models whose processor takes pictures and plain text."""

    def inputs(self, requests: Sequence[Request], tools: Tools) -> dict[str, Any]:
        return dict(
            tools.processor(
                images=[pixels_of(request.pictures[0].jpeg) for request in requests],
                text=[self.prompt_of(request) for request in requests],
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
    """Models with a chat template: Qwen-VL, LLaVA, SmolVLM, InternVL, Gemma 3, …

    Where processor and template have videos, a video goes in as one, with its frames' times;
    elsewhere as pictures, each after its time.
    """

    default_prompt = CHAT_PROMPT

    def load_tools(self, folder: Path, trust: bool) -> Tools:
        tools = super().load_tools(folder, trust)
        template = tools.processor.chat_template
        self._template_options = chat_options(template)
        has_videos = getattr(tools.processor, "video_processor", None) is not None
        names_videos = "video" in str(template) or type(tools.processor).__name__ in _OWN_TEMPLATE
        self.sees = "video" if has_videos and names_videos else "pictures"
        self._takes_system = takes_system(tools.processor, in_parts=True)
        return tools

    def accepted(self, request: Request) -> Request:
        request = request.with_schema_in_words()
        if self.sees != "video":
            request = request.without_videos()
        return request if self._takes_system else request.without_system()

    def order(self, request: Request) -> Any:
        seen = sum(len(p.frames) if isinstance(p, Video) else 1 for p in request.parts)
        return seen, len(request.text), request.text

    def group(self, request: Request) -> Hashable:
        # Some processors take no batch in which only some requests have pictures, or whose videos
        # have different numbers of frames.
        frames = tuple(len(part.frames) for part in request.parts if isinstance(part, Video))
        return len(request.pictures), frames

    def inputs(self, requests: Sequence[Request], tools: Tools) -> dict[str, Any]:
        options: dict[str, Any] = {"padding": True}
        metadata = [
            [_metadata(part) for part in request.parts if isinstance(part, Video)]
            for request in requests
        ]
        if any(metadata):
            options |= {"do_sample_frames": False, "video_metadata": metadata}
        return dict(
            tools.processor.apply_chat_template(
                [_conversation(request) for request in requests],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=options,
                **self._template_options,
            )
        )


def _conversation(request: Request) -> list[dict[str, Any]]:
    return [
        {"role": message.role, "content": [_content(part) for part in message.parts]}
        for message in request.messages
    ]


def _content(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Picture):
        from PIL import Image

        return {"type": "image", "image": Image.fromarray(pixels_of(part.jpeg))}
    import numpy as np

    return {"type": "video", "video": np.stack([pixels_of(jpeg) for _, jpeg in part.frames])}


def _metadata(video: Video) -> dict[str, Any]:
    """A video's times, as processors expect them: each frame's number in the whole video."""
    numbers = [round(seconds * _MILLISECONDS) for seconds, _ in video.frames]
    count = len(numbers)
    # So that frames per second come out as one over the frames' distance.
    span = (numbers[-1] - numbers[0]) * count / (count - 1) if count > 1 else _MILLISECONDS
    return {
        "total_num_frames": max(1, round(span)),
        "fps": _MILLISECONDS,
        "duration": span / _MILLISECONDS,
        "frames_indices": numbers,
    }


_FAMILIES: dict[str, type[Family]] = {
    "BlipConfig": Blip,
    "Blip2Config": Blip2,
    "GitConfig": Git,
    "Florence2Config": Florence2,
    "VisionEncoderDecoderConfig": VisionEncoderDecoder,
}


def family_of(config: Any, folder: Path) -> type[Family]:
    """The family of a model with this configuration."""
    known = _FAMILIES.get(type(config).__name__)
    if known is not None:
        return known
    return Chat if has_chat_template(folder) else Other
