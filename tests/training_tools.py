"""A small checkpoint and rows of token ids on disk, made in process, and runs on them, for tests of the trainers."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback

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


def make_workshop(folder: Path) -> Path:
    """model/, tied/, rows of speech/, image/, music/, and pairs.parquet."""
    small_checkpoint(folder / "model")
    small_checkpoint(folder / "tied", tied=True)
    random_rows(folder / "speech", "speech", 60, (5, 40))
    random_rows(folder / "image", "image", 30, (64, 64))
    random_rows(folder / "music", "music", 30, (20, 60))
    write_pairs(folder / "pairs.parquet")
    return folder


def write_pairs(path: Path, count: int = 24) -> None:
    """The same request, answered by counting speech codes (chosen) or by a picture (rejected)."""
    config, rng = AutoConfig.from_pretrained(EMBEDDED), np.random.default_rng(0)
    pairs = []
    for _ in range(count):
        (chosen, labels), (rejected, _) = (random_row(config, m, 12, rng) for m in ("speech", "image"))
        prompt = labels.count(-100)
        rejected = rejected[-(12 + 3) :]
        pairs.append({"prompt_ids": chosen[:prompt], "chosen_ids": chosen[prompt:], "rejected_ids": rejected})
    pq.write_table(pa.Table.from_pylist(pairs), path)


def words(workshop: Path, out: Path, **changes) -> list[str]:
    """The command line of a run of 6 steps, saved after 3."""
    settings = {"model": workshop / "model", "output_dir": out, "data_cache": workshop / "cache", "use_cpu": True}
    settings |= {"max_length": 128, "max_steps": 6, "save_steps": 3, "logging_steps": 1, "learning_rate": 1e-2}
    settings |= {"disable_tqdm": True, "gradient_accumulation_steps": 2}
    settings |= {"heldout_rows": 4} if "pairs" not in changes else {}
    if "pairs" not in changes:
        rates = {"speech": 0.5, "image": 0.3, "music": 0.2}
        settings["mixture"] = json.dumps({n: {"rows": str(workshop / n), "rate": r} for n, r in rates.items()})
    return [f"--{key}={value}" for key, value in (settings | changes).items()]


class Stop(TrainerCallback):
    """Breaks off in the middle, as Ctrl-C does."""

    def on_step_end(self, args, state, control, **arguments):
        if state.global_step == 5:
            raise KeyboardInterrupt


def train(script, line: list[str], stop: bool = False) -> list[dict]:
    """Runs a script's parse, build and run; the log of every step, without times."""
    recipe, config = script.parse(script.CLASSES, line)
    trainer, checkpoint = script.build(recipe, config)
    if stop:
        trainer.add_callback(Stop)
        with pytest.raises(KeyboardInterrupt):
            script.run(trainer, checkpoint, recipe)
    else:
        script.run(trainer, checkpoint, recipe)
    return [
        {key: value for key, value in entry.items() if not key.endswith(("_runtime", "_per_second"))}
        for entry in trainer.state.log_history
    ]
