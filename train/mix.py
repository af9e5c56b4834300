"""Mix checkpoints: the mean of several, or part of the way to it from the weights that they started from.

  python train/mix.py runs/a/model runs/b/model --base data/smollm2_start --share 0.92 --out runs/mixed

Runs that went on from one another agree better than each alone (M. Wortsman et al. 2022, "Model soups"); and who goes
back a little of the way that fine-tuning went gets back more of what was forgotten than is lost of what was learned
("Robust fine-tuning of zero-shot models", arXiv 2109.01903). The embeddings go the whole way: rows of new codes have
nothing to go back to.
"""

import argparse
from pathlib import Path

import torch
from assemble_tiny import mean_of, shapes
from merge import refuse_existing, save_whole
from recipe import ModelRecipe, load_model, load_processor
from settings import run_script
from transformers import PreTrainedModel

from processing_anygpt.rows import vocabulary_fingerprint


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="checkpoints of one shape")
    parser.add_argument("--base", help="checkpoint that they were trained from; with --share")
    parser.add_argument("--share", type=float, default=1.0, help="of the way from the base, 0 to 1 (default: 1)")
    parser.add_argument("--out", required=True, type=Path, help="new folder")
    args = parser.parse_args(words)
    refuse_existing(args.out)
    if not 0 <= args.share <= 1 or (args.share < 1) != (args.base is not None):
        raise ValueError(f"Got --share {args.share} and --base {args.base}. A share of 0 to below 1 goes with a base.")
    paths = [*args.models, *([args.base] if args.base else [])]
    processors = [load_processor(path) for path in paths]
    loaded = [load_model(ModelRecipe(model=path), seed=0) for path in paths]
    vocabularies = [vocabulary_fingerprint(processor.tokenizer) for processor in processors]
    for path, model, vocabulary in zip(paths, loaded, vocabularies, strict=True):
        if shapes(model) != shapes(loaded[0]):
            raise ValueError(f"{path} has other weights than {paths[0]}. Only checkpoints of one shape can be mixed.")
        if vocabulary != vocabularies[0] or model.config.modalities != loaded[0].config.modalities:
            raise ValueError(f"{path} has other ids than {paths[0]}. Only checkpoints of one vocabulary can be mixed.")
    base = loaded.pop() if args.base else None
    mixed = mean_of(loaded)
    if base is not None:
        go_back(mixed, base, args.share)
    save_whole(mixed, processors[0], args.out, args.models[0])
    print(f"saved {args.out}")


@torch.no_grad()
def go_back(model: PreTrainedModel, base: PreTrainedModel, share: float) -> None:
    """Sets the weights of `model` to base + share * (model - base), but those of the embeddings."""
    whole = {id(matrix.weight) for matrix in (model.get_input_embeddings(), model.get_output_embeddings())}
    start = dict(base.named_parameters())
    for name, weight in model.named_parameters():
        if id(weight) not in whole:
            weight.copy_(start[name].lerp(weight, share))


if __name__ == "__main__":
    run_script(main)
