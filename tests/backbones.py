"""For tests of init and export: tiny causal language models with their tokenizers, and an AnyGPT without codecs."""

from pathlib import Path

import torch
from processing_tools import byte_tokenizer, sentencepiece_tokenizer
from tiny_model import text_config
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from modeling_anygpt import AnyGPTConfig, AnyGPTForCausalLM, ModalitySpec
from processing_anygpt import AnyGPTProcessor, add_modality_tokens
from serving_anygpt import cli

PADDING = 100  # rows that the padded backbone has beyond its tokenizer; fewer than the table below adds


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces with "▁" for a space, its own "<eos>", a <bos> before every text and another end for turns."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Replace("▁", " ")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["a big red circle", "please draw what you hear", "0123456789:,.\n"] * 9, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), special, strict=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def nested_gemma(text: dict):
    """A Gemma 3 that also sees: the language model is a part of it."""
    vision = dict(model_type="siglip_vision_model", hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    vision |= dict(num_attention_heads=2, image_size=28, patch_size=14)
    return AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)


def make_backbone(folder: Path, kind: str, tied: bool = False, padding: int = 0, dtype=torch.float32) -> Path:
    """Saves a backbone: kind is "llama", "mixtral", "qwen3", "gemma3_text" or "gemma3" (nested)."""
    makers = {"llama": lambda: sentencepiece_tokenizer(False), "qwen3": byte_tokenizer}
    tokenizer = makers.get("llama" if kind == "mixtral" else kind, gemma_tokenizer)()
    ids = dict(pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id)
    ids |= dict(eos_token_id=[1, 4] if kind.startswith("gemma3") else tokenizer.eos_token_id)
    sizes = ids | dict(vocab_size=len(tokenizer) + padding)
    config = text_config("gemma3_text" if kind == "gemma3" else kind, tied, **sizes)
    if kind == "gemma3":
        config = nested_gemma(config.to_dict())
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():  # large enough that the logits of tokens differ
        model.get_output_embeddings().weight.mul_(10)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_like(folder: Path) -> Path:
    """An AnyGPT folder whose codecs are nowhere: its table has pictures, speech and music of two codebooks."""
    specs = [
        ModalitySpec("image", "<👀{}>", "<soim>", "<eoim>", 40, codes_per_item=4, image_size=8),
        ModalitySpec("speech", "<🗣️{}>", "<sosp>", "<eosp>", 60, frame_rate=5, sampling_rate=1600, max_seconds=2),
        ModalitySpec("music", "<🎶{}>", "<somu>", "<eomu>", 20, 2, frame_rate=5, sampling_rate=1600, max_seconds=2),
    ]
    tokenizer = byte_tokenizer()
    add_modality_tokens(tokenizer, specs)
    config = AnyGPTConfig(text_config=text_config(vocab_size=len(tokenizer)), modalities=specs)
    config.assign_token_ids(tokenizer)
    model = AnyGPTForCausalLM(config)
    model.generation_config.modality_presets = {"speech": {"temperature": 0.5}, "image": {"top_k": 1}}
    model.save_pretrained(folder)
    AnyGPTProcessor(tokenizer, [spec.to_dict() for spec in config.modalities], "Be kind.").save_pretrained(folder)
    return folder


def refused(words: list[str], capsys, monkeypatch, folder: Path) -> str:
    """Runs the command in `folder`; the one line it printed, after making sure that nothing is left behind."""
    monkeypatch.chdir(folder)
    before = sorted(path.name for path in folder.iterdir())
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    output, error = capsys.readouterr()
    assert code == 2 and output == ""
    assert sorted(path.name for path in folder.iterdir()) == before
    lines = [line for line in error.splitlines() if line.startswith("anygpt")]
    assert len(lines) == 1 and error.splitlines()[-1] == lines[0], error
    return lines[0]
