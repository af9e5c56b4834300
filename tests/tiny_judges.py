"""Judges of a few thousand weights, built in process: CLIP, CLAP and a WavLM speaker verifier, saved as folders.

Their weights come from numpy's frozen RandomState, so that scores can be stored as goldens.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMForXVector,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

WORDS = "a an the red green blue square circle on left right of loud quiet tone noise high low".split()
CAPTIONS = ["a red square", "the blue circle on the left", "a green square right of a circle", "noise"]


def set_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Every weight from RandomState(0), in the order of their names; in eval mode."""
    draw = np.random.RandomState(0)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            weight.copy_(torch.tensor(draw.standard_normal(tuple(weight.shape)) * 0.7))
    return model.eval()


def tokenizer(length: int) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "<unk>", *WORDS, "</s>"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(word, vocabulary[word]) for word in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
    )


def clip(folder: Path) -> Path:
    """32 x 32 px in patches of 8, texts up to 12 tokens, vectors of 16."""
    words = tokenizer(12)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": len(words) - 1, "pad_token_id": 0}
    config = CLIPConfig(
        text_config={"vocab_size": len(words), "max_position_embeddings": 12, **ids, **layers},
        vision_config={"image_size": 32, "patch_size": 8, **layers},
        projection_dim=16,
    )
    set_weights(CLIPModel(config)).save_pretrained(folder)
    words.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def clap(folder: Path) -> Path:
    """8 kHz, windows of 10 s, vectors of 16."""
    words = tokenizer(12)
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 20, "pad_token_id": 0}
    audio = {"num_mel_bins": 16, "window_size": 4, "spec_size": 64, "patch_size": 4, "patch_stride": [4, 4]}
    audio |= {"hidden_size": 32, "patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2]}
    audio |= {"num_hidden_layers": 2, "freq_ratio": 4}
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
    set_weights(ClapModel(config)).save_pretrained(folder)
    words.save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=400, fft_window_size=512, truncation="rand_trunc"
    ).save_pretrained(folder)
    return folder


def wavlm(folder: Path) -> Path:
    """16 kHz, 100 frames a second, x-vectors of 8."""
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    convolutions = {"conv_dim": (8, 8, 8), "conv_stride": (5, 4, 8), "conv_kernel": (10, 8, 16)}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_buckets": 16}
    speaker = {"tdnn_dim": (8, 8), "tdnn_kernel": (5, 3), "tdnn_dilation": (1, 2), "xvector_output_dim": 8}
    config = WavLMConfig(**layers, **convolutions, **positions, **speaker, vocab_size=8)
    set_weights(WavLMForXVector(config)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=True).save_pretrained(folder)
    return folder


def picture(number: int) -> Image.Image:
    """A 40 x 32 px picture of its own for each number."""
    draw = np.random.RandomState(100 + number)
    blocks = draw.randint(0, 256, (4, 5, 3)).astype(np.uint8)
    return Image.fromarray(blocks.repeat(8, 0).repeat(8, 1))


def sound(number: int, seconds: float, rate: int) -> np.ndarray:
    """Two tones and some noise, float32 [T], of its own for each number."""
    draw = np.random.RandomState(200 + number)
    time = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * draw.uniform(100, 2000) * time) for _ in range(2))
    return (0.2 * tones + 0.02 * draw.standard_normal(len(time))).astype(np.float32)
