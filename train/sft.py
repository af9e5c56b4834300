"""Instruction tuning on conversations, of all weights or of LoRA adapters. The adapters train every output modality.

  python train/sft.py train/configs/sft_tiny.yaml
  accelerate launch --config_file train/configs/accelerate_fsdp2.yaml train/sft.py train/configs/sft_7b_full.yaml
  ... --resume                      goes on from the last checkpoint of output_dir, with exactly the same losses
  ... --lora_r 16                   any key of the recipe

Keys: `RowsRecipe` (token_trainer.py), `ModelRecipe` (recipe.py), every field of TRL's SFTConfig. The rows come from
train/prepare_data.py; what their labels mark is learned: the assistant's turns.
"""

from settings import parse, run_script
from token_trainer import RowsConfig, RowsRecipe, build, run

CLASSES = (RowsRecipe, RowsConfig)  # whose fields are the keys


def main(words: list[str]):
    recipe, config = parse(CLASSES, words, __doc__)
    run(*build(recipe, config), recipe)


if __name__ == "__main__":
    run_script(main)
