"""Make the pictures of anygpt-tiny: python train/data_image.py pictures --out data/images/pictures_train.npz

Two steps, each a few minutes on one core:

    python train/data_image.py pictures --out data/images/pictures_train.npz   # what codec_image.py learns from
    python train/data_image.py codes --codec <folder> --out data/images        # what the language model reads

`pictures`: scenes with captions from the training side of the split, and (--crowded, half by default) pictures crowded
with things at random places, since white paper teaches a codec little.
`codes`: codes_train.npz and codes_heldout.npz (held-out captions): `caption`; `codes` uint16 [N, 64] of a picture with
things a little off their places and colours, as they are met; `neat` uint16 [N, 64] of the same scene without that, as
they are to be drawn: jitter can be seen past, but to a painter it is noise that hides what the words ask for.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from settings import run_script

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from processing_anygpt.files import write_npz  # noqa: E402
from processing_anygpt.tiny_world import language, pictures  # noqa: E402

# Training scenes of each kind, times --scale. There are but 72 single things: more of them are learnt by heart.
KINDS = {"single": 3_000, "pair": 12_000, "row": 6_000}
HELD_OUT = 200  # scenes of each kind


def crowded(rng: random.Random) -> Image.Image:
    """Three to nine things at random places, overlapping and cut by the edge as it comes."""
    picture = Image.new("RGB", (pictures.IMAGE_SIZE,) * 2, "white")
    for _ in range(rng.randint(3, 9)):
        thing = language.Thing(*(rng.choice(language.RULES[name]) for name in ("size", "colour", "shape")))
        pictures.paste(picture, thing, rng.randint(2, 61), rng.randint(2, 61), rng)
    return picture


def training_picture(share: float, rng: random.Random) -> Image.Image:
    if rng.random() < share:
        return crowded(rng)
    return pictures.draw(language.parse_scene(language.sample("picture", rng)), rng)


def make_pictures(args: argparse.Namespace) -> None:
    if args.count < 1:
        raise ValueError(f"--count: got {args.count}, allowed: 1 or more.")
    if not 0 <= args.crowded <= 1:
        raise ValueError(f"--crowded: got {args.crowded}, allowed: 0 to 1.")
    if args.out.is_dir():
        raise ValueError(f"--out: {args.out} is a folder, allowed: the name of an npz file.")
    rng = random.Random(args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)  # better now than after the work
    made = [np.asarray(training_picture(args.crowded, rng)) for _ in range(args.count)]
    write_npz(args.out, pictures=np.stack(made))


def make_codes(args: argparse.Namespace) -> None:
    import torch
    from diffusers import VQModel

    if not 1 / min(KINDS.values()) <= args.scale < float("inf"):
        raise ValueError(
            f"--scale: got {args.scale}, allowed: {1 / min(KINDS.values()):.4f} or more, a scene of a kind."
        )
    if args.threads < 1:
        raise ValueError(f"--threads: got {args.threads}, allowed: 1 or more.")
    torch.set_num_threads(args.threads)
    codec = VQModel.from_pretrained(args.codec).eval()
    args.out.mkdir(parents=True, exist_ok=True)

    def encode(captions: list[str], rng: random.Random | None) -> np.ndarray:  # uint16 [N, 64]
        codes = []
        for start in range(0, len(captions), 50):
            scenes = [language.parse_scene(caption) for caption in captions[start : start + 50]]
            values = np.stack([np.asarray(pictures.draw(scene, rng)) for scene in scenes])  # [B, 64, 64, 3]
            values = torch.from_numpy(values).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.inference_mode():
                codes.append(codec.quantize(codec.encode(values).latents)[2][2].view(len(scenes), -1))
        return torch.cat(codes).numpy().astype(np.uint16)

    def save(split: str, captions: list[str]):
        codes, neat = encode(captions, rng), encode(captions, None)
        write_npz(args.out / f"codes_{split}.npz", codes=codes, neat=neat, caption=np.array(captions))

    rng = random.Random(args.seed + 1)
    save("heldout", [language.sample(kind, rng, held_out=True) for kind in KINDS for _ in range(HELD_OUT)])
    captions = [language.sample(kind, rng) for kind, count in KINDS.items() for _ in range(int(args.scale * count))]
    rng.shuffle(captions)
    save("train", captions)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("pictures", "codes"):
        step = steps.add_parser(name)
        step.add_argument("--out", type=Path, required=True, help="npz file (pictures) or folder (codes)")
        step.add_argument("--seed", type=int, default=0)
    steps.choices["pictures"].add_argument("--count", type=int, default=12_000)
    steps.choices["pictures"].add_argument("--crowded", type=float, default=0.5, help="share that is no scene")
    steps.choices["codes"].add_argument("--codec", type=Path, required=True, help="folder of the image codec")
    steps.choices["codes"].add_argument("--scale", type=float, default=1.0, help="share of the 21,000 training scenes")
    steps.choices["codes"].add_argument("--threads", type=int, default=1)
    args = parser.parse_args(words)
    {"pictures": make_pictures, "codes": make_codes}[args.step](args)


if __name__ == "__main__":
    run_script(main)
