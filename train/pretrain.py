"""Alignment pre-training: a model learns to read and write codes, from pairs of media and text in given shares.

  python train/pretrain.py train/configs/pretrain_tiny.yaml
  accelerate launch --config_file train/configs/accelerate_fsdp2.yaml train/pretrain.py train/configs/paper_stage1.yaml
  ... --resume                      goes on from the last checkpoint of output_dir, with exactly the same losses
  ... --learning_rate 1e-4          any key of the recipe

Keys: `RowsRecipe` (token_trainer.py), `ModelRecipe` (recipe.py), every field of TRL's SFTConfig. The rows come from
train/prepare_data.py. Unlike train/sft.py every id is learned, of all modalities alike, as in the paper's first stage.
"""

from dataclasses import dataclass

from settings import parse, run_script
from token_trainer import RowsConfig, RowsRecipe, build, run


@dataclass(kw_only=True)
class PretrainRecipe(RowsRecipe):
    """As `RowsRecipe`; every id is learned, as in the paper's first stage."""

    learn: str = "all"


CLASSES = (PretrainRecipe, RowsConfig)  # whose fields are the keys


def main(words: list[str]):
    recipe, config = parse(CLASSES, words, __doc__)
    run(*build(recipe, config), recipe)


if __name__ == "__main__":
    run_script(main)
