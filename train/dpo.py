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


class PairTrainer(QuietTrainer, DPOTrainer):
    """DPOTrainer on pairs of ids."""

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset  # TRL's own turns text into the columns that the pairs have already


def open_pairs(path: str, max_length: int, vocabulary: int, cache: str | None) -> Dataset:
    """The pairs that fit into `max_length` ids; a cut answer would teach broken media.

    Raises:
        ValueError: no files, a missing column, ids outside the vocabulary, no pair that fits.
    """
    files = sorted(Path(path).glob("*.parquet")) if Path(path).is_dir() else [Path(path)]
    if not files or not files[0].is_file():
        raise ValueError(f"pairs: {path} is no parquet file and no folder of them.")
    for file in files:
        missing = [column for column in COLUMNS if column not in pq.read_schema(file).names]
        if missing:
            raise ValueError(f"pairs: {file} has no column {missing[0]!r}. Needed: {', '.join(COLUMNS)}.")
    pairs = load_columns(files, list(COLUMNS), cache)

    def fits(pair: dict) -> bool:
        if not all(pair.values()):
            raise ValueError(f"pairs: {path} has a prompt or an answer without ids. Leave such pairs out.")
        if max(map(max, pair.values())) >= vocabulary:
            raise ValueError(
                f"pairs: {path} has ids beyond the {vocabulary} of the model. Make them with its processor."
            )
        return len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"])) <= max_length

    kept = pairs.filter(fits)
    if not len(kept):
        raise ValueError(f"pairs: none of the {len(pairs)} pairs in {path} fits into max_length {max_length}.")
    return kept


def build(recipe: PairsRecipe, config: PairsConfig) -> tuple[PairTrainer, str | None]:
    """The trainer of a recipe, and the checkpoint to go on from. Wrong settings show here, before any training."""
    checkpoint = prepare_output(config.output_dir, recipe.resume)
    processor = load_processor(recipe.model)
    record_settings(recipe, config, config.train_batch_size * config.world_size * config.gradient_accumulation_steps)
    model = load_model(recipe, config.seed)
    speed_up(model, recipe, config)
    options = {"max_length": config.max_length, "vocabulary": model.config.vocab_size, "cache": recipe.data_cache}
    choose_checkpointing(model, recipe, config)
    trainer = PairTrainer(
        model=model,
        ref_model=None if recipe.lora_r else load_model(recipe, config.seed),
        args=config,
        train_dataset=open_pairs(recipe.pairs, **options),
        eval_dataset=open_pairs(recipe.heldout_pairs, **options) if recipe.heldout_pairs else None,
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
