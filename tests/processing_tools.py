"""Tokenizers, tables and codecs for tests of the processor: made in process, no checkpoint."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from modeling_anygpt import ModalitySpec
from modeling_anygpt.conversion.llm import llama_tokenizer
from processing_anygpt import AnyGPTProcessor, add_modality_tokens

PROMPTS = Path(__file__).parent / "goldens" / "prompts"


def golden(name: str) -> dict:
    return json.loads((PROMPTS / f"{name}.json").read_text(encoding="utf-8"))


def released_table() -> list[ModalitySpec]:
    """The modalities of the released AnyGPT; items of any number of codes, as its own string functions take them."""
    return [
        ModalitySpec("image", "<👀{}>", "<soim>", "<eoim>", 8192, frame_rate=1),
        ModalitySpec("speech", "<🗣️{}>", "<sosp>", "<eosp>", 1024, frame_rate=50, sampling_rate=16000),
        ModalitySpec("music", "<🎶{}>", "<somu>", "<eomu>", 2048, 4, frame_rate=50, sampling_rate=32000),
    ]


def small_table() -> list[ModalitySpec]:
    """Pictures of 4 codes; speech of 1 of 3 codebooks at 50 Hz, filled in by a decoder; music of 2 at 25 Hz."""
    common = {"sampling_rate": 1600}
    image = ModalitySpec(
        "image", "<👀{}>", "<soim>", "<eoim>", 16, codes_per_item=4, image_size=8, codec="image_codec"
    )
    speech = ModalitySpec("speech", "<🗣️{}>", "<sosp>", "<eosp>", 64, 1, frame_rate=50, codec="speech_codec", **common)
    music = ModalitySpec("music", "<🎶{}>", "<somu>", "<eomu>", 64, 2, frame_rate=25, codec="music_codec", **common)
    return [image, ModalitySpec.from_dict(speech.to_dict() | {"decoder": "soundstorm"}), music]


def sentencepiece_tokenizer(legacy: bool) -> PreTrainedTokenizerFast:
    """The goldens' stand-in for LLaMA's tokenizer, as a fast one in either of its ways to put prefix spaces."""
    return llama_tokenizer(PROMPTS / "tokenizer.model", legacy)


class SlowLlamaTokenizer:
    """Texts to ids as transformers 4.44's `LlamaTokenizer` made them, with the goldens' `tokenizer.model`.

    That one also hides the start of a stretch behind `<unk>`, for models that drop spaces; LLaMA's and this keep all.

    Args:
        added: the added tokens and LLaMA's own, with their ids; none strips the spaces around it.
    """

    OWN = ("<unk>", "<s>", "</s>")

    def __init__(self, legacy: bool, added: dict[str, int]):
        model = sentencepiece_model_pb2.ModelProto.FromString((PROMPTS / "tokenizer.model").read_bytes())
        model.normalizer_spec.add_dummy_prefix = legacy
        self.sentencepiece = SentencePieceProcessor(model_proto=model.SerializeToString())
        self.legacy, self.added = legacy, added
        longest_first = sorted(added, key=len, reverse=True)
        self.split = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split

    def __call__(self, text: str) -> list[int]:
        if text and not self.legacy:
            text = "▁" + text.replace("▁", " ")
        pieces = ["<s>"]
        for part in filter(None, self.split(text)):
            pieces += [part] if part in self.added else self.sentencepiece.encode(part, out_type=str)
        if not self.legacy and pieces[1:2] == ["▁"] and pieces[2:3] and pieces[2] in self.OWN:
            del pieces[1]
        return [self.added.get(piece, self.sentencepiece.piece_to_id(piece)) for piece in pieces]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that has merges to get wrong: "<eoh>" and "</s>" are words of its training text."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a big red circle", "<eoh> <eos> <pad>", "please draw what you hear"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", padding_side="left"
    )


class ExactAudioCodec(torch.nn.Module):
    """Its own inverse: code k of a frame is a digit of the frame's mean, and a frame is constant at that value."""

    def __init__(self, num_codebooks: int, frame_rate: int, codebook_size: int = 64, sampling_rate: int = 1600):
        super().__init__()
        self.config = SimpleNamespace(
            model_type="exact",
            sampling_rate=sampling_rate,
            frame_rate=frame_rate,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
        )
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.hop = sampling_rate // frame_rate
        self.batches: list[tuple[int, ...]] = []

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        self.batches.append(tuple(values.shape))
        values = torch.nn.functional.pad(values, (0, -values.shape[1] % self.hop))
        mean = values.reshape(len(values), -1, self.hop).mean(-1).double()  # [B, T]
        size, codes = self.config.codebook_size, []
        rest = ((mean + 1) / 2).clamp(0, 1 - 1e-9)
        for _ in range(self.config.num_codebooks):
            digit = (rest * size).floor()
            codes.append(digit.long())
            rest = rest * size - digit
        return torch.stack(codes, 1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        size = self.config.codebook_size
        weights = size ** -(torch.arange(codes.shape[1], dtype=torch.float64) + 1)
        middle = size ** -float(codes.shape[1]) / 2
        values = (codes * weights[:, None]).sum(1) + middle
        return (values * 2 - 1).repeat_interleave(self.hop, 1).float()


class ExactImageCodec(torch.nn.Module):
    """Four grey levels' quadrants of an 8 px picture."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(model_type="exact")
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        cells = torch.nn.functional.avg_pool2d(values.mean(1, keepdim=True), 4)
        return ((cells.flatten(2) + 1) * 7.5).round().long()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        cells = (codes / 7.5 - 1).reshape(-1, 1, 2, 2)
        return cells.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


class EchoDecoder(torch.nn.Module):
    """Stands for SoundStorm: acoustic levels are the first frame of the prompt, else 0."""

    def __init__(self, levels: int = 2):
        super().__init__()
        self.device, self.levels = torch.device("cpu"), levels

    def generate(self, semantic, prompt=None, steps=1, greedy=True, generator=None):
        acoustic = semantic.new_zeros(*semantic.shape, self.levels)
        if prompt is not None:
            acoustic = acoustic + prompt[:, :1, 1:]
        return torch.cat([semantic[..., None], acoustic], -1)


def make_processor() -> AnyGPTProcessor:
    tokenizer = byte_tokenizer()
    table = small_table()
    add_modality_tokens(tokenizer, table)
    processor = AnyGPTProcessor(tokenizer, [spec.to_dict() for spec in table])
    processor.set_codec("image", ExactImageCodec())
    processor.set_codec("speech", ExactAudioCodec(3, 50), EchoDecoder())
    processor.set_codec("music", ExactAudioCodec(2, 25))
    return processor


def tone(seconds: float, rate: int, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 5 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
