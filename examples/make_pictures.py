"""Make the example pictures again: python examples/make_pictures.py

The scenes are combinations that no training data has; photo.jpg is no scene at all, to try what the model can't do.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout too

from processing_anygpt.tiny_world import language, pictures  # noqa: E402

CAPTIONS = {
    "picture_single.png": "a big purple heart",
    "picture_pair.png": "a big red triangle above a small red cross",
    "picture_row.png": "a green star and a pink star and a red cross",
}


def landscape() -> Image.Image:
    """Hills under a sun with film grain, 320x240 px."""
    grain = np.random.default_rng(0)
    y, x = np.mgrid[0:240, 0:320].astype(float)
    pixels = np.stack([120 + y / 4, 170 + y / 6, 235 - y / 12], axis=-1)
    glow = np.exp(-((x - 240) ** 2 + (y - 60) ** 2) / 900)[..., None]
    pixels = pixels * (1 - glow) + np.array([255, 240, 190]) * glow
    for index, (height, colour) in enumerate([(130, (95, 125, 110)), (165, (60, 105, 60)), (200, (45, 75, 35))]):
        ridge = height + 18 * np.sin(x / (40 - 8 * index) + index) + 9 * np.sin(x / 17 + 2 * index)
        hill = np.array(colour) + (y - ridge)[..., None] * 0.2
        pixels = np.where((y > ridge)[..., None], hill, pixels)
    return Image.fromarray((pixels + grain.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    for name, caption in CAPTIONS.items():
        picture = pictures.draw(language.parse_scene(caption), random.Random(caption))
        # Larger than the codec's 64 px, as a user's pictures are: the processor has to resize.
        picture.resize((256, 256), Image.Resampling.LANCZOS).save(args.out / name, optimize=True)
    landscape().save(args.out / "photo.jpg", quality=85)


if __name__ == "__main__":
    main()
