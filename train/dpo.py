"""Preferences (DPO): of two answers to a prompt, in any modality, the chosen one becomes likelier than the other.

  python train/dpo.py train/configs/dpo_tiny.yaml
  ... --resume                      goes on from the last checkpoint of output_dir, with exactly the same losses

Keys: `PairsRecipe`, `ModelRecipe` (recipe.py), every field of TRL's DPOConfig. The pairs are parquet files with the
columns prompt_ids, chosen_ids and rejected_ids, lists of ids of the checkpoint's vocabulary: a prompt as
`apply_chat_template` makes it, and two answers that end with `<eos>`, such as two generated voices, pictures or tunes
that someone compared.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from recipe import (
    ModelRecipe,
    TrainingDefaults,
    load_model,
    load_processor,
    lora_config,
    prepare_output,
    record_settings,
    speed_up,
)
from row_attention import NAME as ROW_BY_ROW
from settings import parse, run_script
from token_rows import load_columns
from token_trainer import QuietTrainer, choose_checkpointing, run
from trl import DPOConfig, DPOTrainer

from processing_anygpt.rows import naming, read_schema

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass(kw_only=True)
class PairsRecipe(ModelRecipe):
    """Keys of this script."""

    pairs: str = field(metadata={"help": "parquet file, or folder of parquet files"})
    heldout_pairs: str | None = field(default=None, metadata={"help": "the same, to evaluate on"})
    data_cache: str | None = field(default=None, metadata={"help": "folder for memory-mapped copies of the pairs"})

    def __post_init__(self):
        super().__post_init__()
        if self.lora_vocabulary == "rows":
            raise ValueError(
                "lora_vocabulary: rows can't be switched off for the reference. Allowed here: frozen, all."
            )
        if self.attn_implementation == ROW_BY_ROW:
            raise ValueError(f"attn_implementation: {ROW_BY_ROW} is for packs, and pairs are padded. Use sdpa.")


@dataclass
class PairsConfig(TrainingDefaults, DPOConfig):
    """TRL's DPOConfig with our defaults."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta: got {self.beta}, allowed: a number above 0.")


class PairTrainer(QuietTrainer, DPOTrainer):
    """DPOTrainer on pairs of ids."""

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset  # TRL's own turns text into the columns that the pairs have already


def open_pairs(path: str, max_length: int, vocabulary: int, cache: str | None) -> Dataset:
    """The pairs that fit into `max_length` ids; a cut answer would teach broken media.

    Raises:
        ValueError: no files, a column that is missing or holds anything but lists of ids, ids outside the vocabulary,
            no pair that fits.
    """
    files = sorted(Path(path).glob("*.parquet")) if Path(path).is_dir() else [Path(path)]
    if not files or not files[0].is_file():
        raise ValueError(f"pairs: {path} is no parquet file and no folder of them.")
    filled = []  # datasets reads no empty ones
    for file in files:
        schema = read_schema(file)
        for column in COLUMNS:
            if column not in schema.names:
                raise ValueError(f"pairs: {file} has no column {column!r}. Needed: {', '.join(COLUMNS)}.")
            kind = schema.field(column).type
            is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
            if not is_list or not pa.types.is_integer(kind.value_type):
                raise ValueError(f"pairs: {column} of {file} is of type {kind}, need lists of integers.")
        with naming(file):
            filled += [file] if pq.read_metadata(file).num_rows else []
    if not filled:
        raise ValueError(f"pairs: {path} holds no pairs. Give one or more.")
    pairs = load_columns(filled, list(COLUMNS), cache)
    table = pairs.with_format("arrow")[:]
    lengths = {name: count_ids(table[name], f"pairs: {name} of {path}", vocabulary) for name in COLUMNS}
    longest = lengths["prompt_ids"] + np.maximum(lengths["chosen_ids"], lengths["rejected_ids"])
    kept = pairs.select(np.flatnonzero(longest <= max_length))
    if not len(kept):
        raise ValueError(f"pairs: none of the {len(pairs)} pairs in {path} fits into max_length {max_length}.")
    return kept


def count_ids(column: pa.ChunkedArray, name: str, vocabulary: int) -> np.ndarray:
    """Lengths of lists of ids, [pairs]. ValueError if one is empty or no list of ids of this vocabulary."""
    lengths, ids = pc.list_value_length(column), pc.list_flatten(column)
    if lengths.null_count or ids.null_count or pc.min(lengths).as_py() == 0:
        raise ValueError(f"{name} has a prompt or an answer without ids, or an empty id. Leave such pairs out.")
    lowest, highest = pc.min_max(ids).as_py().values()
    if lowest < 0 or highest >= vocabulary:
        raise ValueError(
            f"{name} has ids in {lowest}..{highest}, allowed are 0..{vocabulary - 1}. Make them with the model's "
            "processor."
        )
    return lengths.to_numpy()


def build(recipe: PairsRecipe, config: PairsConfig) -> tuple[PairTrainer, str | None]:
    """The trainer of a recipe, and the checkpoint to go on from. Wrong settings show here, before any training."""
    checkpoint = prepare_output(config.output_dir, recipe.resume)
    processor = load_processor(recipe.model)
    model = load_model(recipe, config.seed)
    options = {"max_length": config.max_length, "vocabulary": model.config.vocab_size, "cache": recipe.data_cache}
    pairs = open_pairs(recipe.pairs, **options)
    heldout = open_pairs(recipe.heldout_pairs, **options) if recipe.heldout_pairs else None
    pairs_per_step = config.train_batch_size * config.world_size * config.gradient_accumulation_steps
    record_settings(recipe, config, pairs_per_step, [Path(recipe.pairs)])
    speed_up(model, recipe, config)
    choose_checkpointing(model, recipe, config)
    trainer = PairTrainer(
        model=model,
        ref_model=None if recipe.lora_r else load_model(recipe, config.seed),
        args=config,
        train_dataset=pairs,
        eval_dataset=heldout,
        processing_class=processor.tokenizer,
        peft_config=lora_config(recipe, model.config),
    )
    return trainer, checkpoint


CLASSES = (PairsRecipe, PairsConfig)  # whose fields are the keys


def main(words: list[str]):
    recipe, config = parse(CLASSES, words, __doc__)
    run(*build(recipe, config), recipe)


if __name__ == "__main__":
    run_script(main)
