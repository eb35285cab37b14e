"""Tiny models of the real architectures: real configurations, random weights, own tokenizers.

Each function writes a folder that loads like one from the hub. Weights have a large variance, so
that different pictures and texts give different, meaningless results.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer, WordLevelTrainer

from clipmill.stages.models.torch_setup import prepare_torch

# Models this small become many times slower if threads wait for each other.
torch.set_num_threads(1)


class _Transformers:
    """`transformers`, imported by the first test that uses it and not to collect all tests."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)  # pytest looks at what a file has
        prepare_torch()
        import transformers

        return getattr(transformers, name)


hf: Any = _Transformers()

_TEXT = (
    "a the red green blue yellow circle square star triangle dog cat man woman street beach moves "
    "stands runs jumps left right up down slowly fast on in of and with picture video clip frame "
    "summarise describe write one sentence moments time order tags . , : ; ? !"
)
WORDS = _TEXT.split()

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif part.type == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def _words(special: list[str]) -> Tokenizer:
    """A tokenizer of whole lower-case words; an unknown word is `special[1]`."""
    tokenizer = Tokenizer(WordLevel(unk_token=special[1]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator([WORDS], WordLevelTrainer(special_tokens=special))
    return tokenizer


def _bytes(special: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer, as GPT-2, BART, OPT and Qwen have."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return tokenizer


def _framed(tokenizer: Tokenizer, before: str, after: str) -> Tokenizer:
    """Puts special tokens around each text."""
    names = [name for name in (before, after) if name]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(part for part in (before, "$A", after) if part),
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in names],
    )
    return tokenizer


def _widen(model: torch.nn.Module, seed: int, scale: float) -> None:
    # The usual small random weights make every picture look the same to the decoder.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif "norm" not in name.lower() and "layer_norm" not in name.lower():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def _save(
    folder: Path, model: hf.PreTrainedModel, processor: object, seed: int, scale: float = 0.25
) -> Path:
    _widen(model, seed, scale)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_blip(folder: Path, seed: int = 0) -> Path:
    """BLIP, 48 px, a BERT-like tokenizer with [DEC] as its first token."""
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=_framed(
            _words(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]"]), "[CLS]", "[SEP]"
        ),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[DEC]",
    )
    tokens = {"pad_token_id": 0, "bos_token_id": 4, "eos_token_id": 2, "sep_token_id": 3}
    config = hf.BlipConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=32,
            encoder_hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            projection_dim=16,
            **tokens,
        ),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": 12,
        },
        projection_dim=16,
        image_text_hidden_size=16,
    )
    images = hf.BlipImageProcessor(size={"height": 48, "width": 48})
    return _save(
        folder, hf.BlipForConditionalGeneration(config), hf.BlipProcessor(images, tokenizer), seed
    )


def make_blip2(folder: Path, seed: int = 0) -> Path:
    """BLIP-2 over OPT, 28 px, four query tokens."""
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=_framed(_bytes(["<s>", "<pad>", "</s>", "<unk>"]), "</s>", ""),
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    processor = hf.Blip2Processor(
        hf.BlipImageProcessor(size={"height": 28, "width": 28}), tokenizer, num_query_tokens=4
    )
    config = hf.Blip2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        qformer_config={
            "vocab_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "encoder_hidden_size": 32,
        },
        text_config=hf.OPTConfig(
            vocab_size=len(processor.tokenizer),
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=128,
            word_embed_proj_dim=32,
            bos_token_id=2,
            eos_token_id=2,
            pad_token_id=1,
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    return _save(folder, hf.Blip2ForConditionalGeneration(config), processor, seed)


def make_git(folder: Path, seed: int = 0, frames: int | None = None) -> Path:
    """GIT, 32 px, a BERT-like tokenizer; with `frames`, for videos of that many."""
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=_framed(_words(["[PAD]", "[UNK]", "[CLS]", "[SEP]"]), "[CLS]", "[SEP]"),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = hf.GitConfig(
        vision_config=vision,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        num_image_with_embedding=frames,
    )
    images = hf.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    # With other seeds, some pictures get the same text, or one that ends.
    return _save(folder, hf.GitForCausalLM(config), hf.GitProcessor(images, tokenizer), seed + 6)


def make_git_of_videos(folder: Path, seed: int = 0) -> Path:
    """GIT for videos of six frames."""
    return make_git(folder, seed, frames=6)


def make_florence2(folder: Path, seed: int = 0) -> Path:
    """Florence-2: DaViT and BART, 64 px."""
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=_framed(
            _bytes(["<s>", "<pad>", "</s>", "<unk>", "<image>"]), "<s>", "</s>"
        ),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    images = hf.CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    config = hf.Florence2Config(
        vision_config={
            "embed_dim": [16, 32],
            "depths": [1, 1],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "patch_size": [7, 3],
            "patch_stride": [8, 4],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "window_size": 4,
            "projection_dim": 32,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": len(tokenizer),
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 128,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": None,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        is_encoder_decoder=True,
    )
    return _save(
        folder,
        hf.Florence2ForConditionalGeneration(config),
        hf.Florence2Processor(images, tokenizer),
        seed,
    )


def _chat_tokenizer() -> hf.PreTrainedTokenizerFast:
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=_bytes(CHAT_TOKENS),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=CHAT_TOKENS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_qwen_vl(folder: Path, seed: int = 0) -> Path:
    """Qwen2.5-VL with a chat template; pictures keep their shape, so inputs differ in length."""
    tokenizer = _chat_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 4}
    processor = hf.Qwen2_5_VLProcessor(
        hf.Qwen2VLImageProcessor(size=size),
        tokenizer,
        hf.Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )
    config = hf.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
            },
            "bos_token_id": token("<|im_start|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 14,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    model = hf.Qwen2_5_VLForConditionalGeneration(config)
    # Like the published ones: sampling is on unless the caller disables it.
    model.generation_config = hf.GenerationConfig(
        do_sample=True,
        temperature=1.5,
        top_p=0.9,
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
    )
    return _save(folder, model, processor, seed)


def make_llava_onevision(folder: Path, seed: int = 0) -> Path:
    """LLaVA-OneVision: SigLIP and Qwen2, 28 px, several pictures and videos."""
    tokenizer = _chat_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    token = tokenizer.convert_tokens_to_ids
    template = CHAT_TEMPLATE.replace(
        "<|vision_start|><|image_pad|><|vision_end|>", "<image>"
    ).replace("<|vision_start|><|video_pad|><|vision_end|>", "<video>")
    size = {"height": 28, "width": 28}
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[28, 28], [28, 56]]),
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    config = hf.LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        image_token_id=token("<image>"),
        video_token_id=token("<video>"),
        image_grid_pinpoints=[[28, 28], [28, 56]],
        vision_feature_layer=-1,
    )
    return _save(folder, hf.LlavaOnevisionForConditionalGeneration(config), processor, seed)


def make_vision_encoder_decoder(folder: Path, seed: int = 0) -> Path:
    """ViT and GPT-2, 32 px; the tokenizer is GPT-2's kind, without a padding token."""
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=_bytes(["<|endoftext|>"]),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
    )
    encoder = hf.ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    decoder = hf.GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        is_decoder=True,
        add_cross_attention=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, decoder_start_token_id=0, pad_token_id=0, eos_token_id=0
    )
    _save(folder, hf.VisionEncoderDecoderModel(config=config), tokenizer, seed)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def make_t5(folder: Path, seed: int = 0) -> Path:
    """T5 with a context of 64 input tokens."""
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=_framed(_words(["<pad>", "<unk>", "</s>"]), "", "</s>"),
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=64,
    )
    config = hf.T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=0,
    )
    return _save(folder, hf.T5ForConditionalGeneration(config), tokenizer, seed, scale=0.15)


def make_chat(folder: Path, seed: int = 0) -> Path:
    """Qwen2 with a chat template."""
    tokenizer = _chat_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    config = hf.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        eos_token_id=token("<|im_end|>"),
        pad_token_id=token("<|endoftext|>"),
    )
    return _save(folder, hf.Qwen2ForCausalLM(config), tokenizer, seed)


MAKERS = {
    "blip": make_blip,
    "blip2": make_blip2,
    "git": make_git,
    "git_of_videos": make_git_of_videos,
    "florence2": make_florence2,
    "qwen_vl": make_qwen_vl,
    "llava_onevision": make_llava_onevision,
    "vision_encoder_decoder": make_vision_encoder_decoder,
    "t5": make_t5,
    "chat": make_chat,
}


@functools.cache
def _workplace() -> tempfile.TemporaryDirectory[str]:
    # Deleted with the process, and cached as long.
    return tempfile.TemporaryDirectory(prefix="clipmill-tiny-models-")


@functools.cache
def tiny_model(name: str, seed: int = 0) -> Path:
    """The folder of a model of MAKERS, made once per process. Not to be written to."""
    return MAKERS[name](Path(_workplace().name) / f"{name}-{seed}", seed)
