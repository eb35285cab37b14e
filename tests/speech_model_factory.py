"""Tiny speech models of the real architectures, with random weights and their own tokenizers."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from tests.models_factory import _bytes, _save, _workplace, hf

LANGUAGES = ("en", "de", "ja")
_TIMES = 1501


def make_whisper(
    folder: Path,
    seed: int = 0,
    *,
    aligns: bool = True,
    multilingual: bool = True,
    width: int = 32,
    layers: int = 2,
    heads: int = 2,
) -> Path:
    """Whisper with its true windows, times and prompt, but few layers, words and languages."""
    plain = _bytes([])
    folder.mkdir(parents=True)
    vocabulary = json.loads(plain.to_str())["model"]
    special = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in (LANGUAGES if multilingual else ())),
        *(("<|translate|>", "<|transcribe|>") if multilingual else ()),
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    tokenizer = hf.WhisperTokenizer(
        vocab=vocabulary["vocab"], merges=[tuple(pair) for pair in vocabulary["merges"]]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.add_tokens([f"<|{number * 0.02:.2f}|>" for number in range(_TIMES)])
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in special}
    no_times = ids["<|notimestamps|>"]
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    config = hf.WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=80,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_source_positions=1500,
        max_target_positions=448,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
    )
    model = hf.WhisperForConditionalGeneration(config)
    told = model.generation_config
    told._from_model_config = False  # else what only Whisper knows is not read again
    for name, value in {
        "decoder_start_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
        "no_timestamps_token_id": no_times,
        # Most of its tokens are times, which a model of random weights would choose.
        "suppress_tokens": list(range(end + 1, len(tokenizer) if aligns else no_times)),
        "begin_suppress_tokens": [end],
        "max_initial_timestamp_index": 50,
        "return_timestamps": False,
        "is_multilingual": multilingual,
        "prev_sot_token_id": ids["<|startofprev|>"],
    }.items():
        setattr(told, name, value)  # it knows few of these names
    if aligns:
        told.alignment_heads = [[0, 1], [1, 0]]
    if multilingual:
        told.lang_to_id = {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES}
        told.task_to_id = {name: ids[f"<|{name}|>"] for name in ("translate", "transcribe")}
    extractor = hf.WhisperFeatureExtractor(feature_size=80)
    processor = hf.WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer)
    return _save(folder, model, processor, seed, 0.4)


def make_speech_to_text(folder: Path, seed: int = 0) -> Path:
    """Moonshine: takes samples as they are, and tells no times."""
    config = hf.MoonshineConfig(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=32,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=_bytes(["<pad>", "<s>", "</s>"]),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
    extractor = hf.Wav2Vec2FeatureExtractor(sampling_rate=16000, do_normalize=False)
    processor = hf.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)
    return _save(folder, hf.MoonshineForConditionalGeneration(config), processor, seed, 0.3)


@functools.cache
def tiny_speech_model(name: str) -> Path:
    """The folder of a model, made once per process. Not to be written to."""
    folder = Path(_workplace().name) / name
    if name == "moonshine":
        return make_speech_to_text(folder)
    return make_whisper(folder, aligns="plain" not in name, multilingual="english" not in name)
