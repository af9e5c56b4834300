"""A Whisper of a few thousand random weights with its tokenizer of bytes, saved as a folder."""

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]


def whisper(folder: Path) -> Path:
    """Hears 30 s at 16 kHz; what it writes is noise, at most eight bytes."""
    bytes_ = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = WhisperTokenizer(vocab=bytes_ | {SPECIAL[0]: len(bytes_)}, merges=[], pad_token=SPECIAL[0])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    ids = tokenizer.convert_tokens_to_ids(SPECIAL)
    layers = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "num_mel_bins": 16,
        "vocab_size": len(tokenizer),
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    ends = {"bos_token_id": ids[0], "eos_token_id": ids[0], "pad_token_id": ids[0], "decoder_start_token_id": ids[1]}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**layers, **heads, **ends))
    tasks = {"task_to_id": {"translate": ids[3], "transcribe": ids[4]}, "lang_to_id": {"<|en|>": ids[2]}}
    extra = {"is_multilingual": True, "no_timestamps_token_id": ids[5], "max_new_tokens": 8}
    model.generation_config = GenerationConfig(**ends, **tasks, **extra)
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer).save_pretrained(folder)
    return folder
