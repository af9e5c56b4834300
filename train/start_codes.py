"""First embeddings of speech codes in a grown text model: codes start as letters that sound like them.

  python train/start_codes.py --model data/smollm2_any --out data/smollm2_start

`anygpt init` knows nothing of a codec and makes new rows averages of the old ones. The codec of anygpt-tiny was taught
phones: what a code sounds like can be read from its codebook. A row becomes the average of letters that its phones are
written with, plus its codebook vector turned at random into the model's width. The model then meets " t t uw uw" for
"two" and not a thousand unknown words, and learns to read and write speech from a few thousand sentences. The other
rows stay as they are. Of use for this codec only: others have no phones.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from codebook_init import project, speech_codebook
from make_codec_data import PHONES
from merge import refuse_existing, save_whole
from recipe import ModelRecipe, load_model, load_processor, vocabulary_rows
from settings import run_script

LETTERS = dict(
    SIL=" ", AA="ah", AE="a", AH="uh", AO="or", AW="ow", AY="ai", B="b", CH="ch", D="d", DH="th", EH="e", ER="er",
    EY="ay", F="f", G="g", HH="h", IH="i", IY="ee", JH="j", K="k", L="l", M="m", N="n", NG="ng", OW="o", OY="oy",
    P="p", R="r", S="s", SH="sh", T="t", TH="th", UH="oo", UW="oo", V="v", W="w", Y="y", Z="z", ZH="zh",
)  # fmt: skip
SHARE = 0.8  # of a row's spread that is letters; the rest, in squares, is codebook


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of `anygpt init --modalities speech`")
    parser.add_argument("--out", required=True, type=Path, help="new folder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    refuse_existing(args.out)
    processor = load_processor(args.model)
    model = load_model(ModelRecipe(model=args.model), args.seed)
    start(model, processor.tokenizer, Path(args.model), np.random.default_rng(args.seed))
    save_whole(model, processor, args.out, args.model)
    print(f"saved {args.out}")


@torch.no_grad()
def start(model, tokenizer, folder: Path, rng: np.random.Generator) -> None:
    """Sets the rows of the speech codes in embedding and head."""
    spec = model.config.modality("speech")
    phones, level1 = speech_codebook(folder)
    if (spec.num_codebooks, spec.codebook_size) != (1, len(level1)):
        raise ValueError(f"{folder} has {spec.num_codes} speech codes, its codec {len(level1)} in level 1.")
    spelled = [tokenizer(LETTERS[phone], add_special_tokens=False)["input_ids"] for phone in PHONES]
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for matrix in matrices.values():  # one, if they are tied
        known = matrix[: vocabulary_rows(model.config)[0]]
        mean, spread = known.mean(0), known.std(0).mean()
        letters = phones @ torch.stack([matrix[ids].mean(0) for ids in spelled]) - mean
        turned = torch.from_numpy(project(level1.numpy(), matrix.shape[1], rng))
        rows = mean + SHARE * letters + (1 - SHARE**2) ** 0.5 * spread * turned / turned.std()
        matrix[spec.first_code_id : spec.first_code_id + spec.num_codes] = rows.to(matrix.dtype)


if __name__ == "__main__":
    run_script(main)
