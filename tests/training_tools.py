"""A small checkpoint and rows of token ids on disk, made in process, for tests of the training scripts."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from modeling_anygpt import AnyGPTConfig
from processing_anygpt import AnyGPTProcessor
from processing_anygpt.rows import finish, make_row, shard_name, vocabulary_fingerprint, write_shard

EMBEDDED = Path(__file__).parent.parent / "modeling_anygpt" / "pretrained" / "anygpt_tiny"


def small_checkpoint(folder: Path, tied: bool = False, **sizes) -> Path:
    """anygpt-tiny's tokenizer and modality table on a random backbone of 2 layers, 32 wide. No codecs."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "head_dim": 8} | sizes
    original = AutoConfig.from_pretrained(EMBEDDED)
    text = {key: value for key, value in original.text_config.to_dict().items() if key not in shape}
    settings = {k: v for k, v in original.to_dict().items() if k not in ("text_config", "tie_word_embeddings")}
    config = AnyGPTConfig(text_config=text | shape | {"tie_word_embeddings": tied}, **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # so large that a step changes something
        model.get_input_embeddings().weight.mul_(10)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    AnyGPTProcessor(tokenizer, [spec.to_dict() for spec in config.modalities]).save_pretrained(folder)
    return folder


def random_row(config: AnyGPTConfig, modality: str, codes: int, rng: np.random.Generator) -> tuple[list, list]:
    """Some text (not learned), an item of `codes` codes, `<eos>`: ids and labels. The codes count up."""
    spec = config.modality(modality)
    start = rng.integers(4)
    item = [spec.first_code_id + int(start + i) % spec.num_codes for i in range(codes)]
    text = rng.integers(40, 200, rng.integers(3, 9)).tolist()
    answer = [spec.start_token_id, *item, spec.end_token_id, config.eos_token_id]
    return text + answer, [-100] * len(text) + answer


def write_rows(folder: Path, config: AnyGPTConfig, rows: list[tuple[list, list]], task: str, shards: int = 2) -> Path:
    """A finished folder of rows, as train/prepare_data.py leaves it."""
    folder.mkdir(parents=True)
    names = [spec.name for spec in config.modalities]
    made = [make_row(ids, labels, task, str(i), config.modalities) for i, (ids, labels) in enumerate(rows)]
    for unit in range(shards):
        write_shard(folder / shard_name(unit), made[unit::shards], [], names)
    facts = {"settings": {}, "modalities": names, "codecs": {}, "input": "", "units": shards}
    finish(folder, facts | {"tokenizer": vocabulary_fingerprint(AutoTokenizer.from_pretrained(EMBEDDED))})
    return folder


def random_rows(folder: Path, modality: str, count: int, codes: tuple[int, int], seed: int = 0) -> Path:
    """A folder of `count` rows with one item each of `codes[0]`..`codes[1]` codes, of anygpt-tiny's vocabulary."""
    config = AutoConfig.from_pretrained(EMBEDDED)
    rng = np.random.default_rng(seed)
    rows = [random_row(config, modality, int(rng.integers(codes[0], codes[1] + 1)), rng) for _ in range(count)]
    return write_rows(folder, config, rows, f"text->{modality}")
