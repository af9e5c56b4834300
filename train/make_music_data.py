"""Render tunes of the tiny world for the music codec.

    python train/make_music_data.py --sound-font TimGM6mb.sf2 --clips 2400 --out data/music

Writes OUT/clips_000.npy ... int16 [N, 80000], 5 s clips at 16 kHz, up to 300 (48 MB) in a file. Captions are those of the
training side of the split (`language.is_held_out`), so that the codec has not heard the held-out combinations either.
Needs tinysoundfont (pip install tinysoundfont) and a General MIDI sound font (Debian: timgm6mb-soundfont).
"""

import argparse
import os
import random
import sys
from pathlib import Path

import numpy as np


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout too

from processing_anygpt.tiny_world import language, tunes  # noqa: E402


CLIPS_PER_FILE = 300


def render_clip(rng: random.Random, sound_font: str) -> np.ndarray:
    """One random clip, int16 [80000]."""
    tune = language.parse_tune(language.sample("tune", rng))
    audio = tunes.render(tunes.notes(tune, rng), tune.instrument, sound_font)
    return np.round(audio * 32767).astype(np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sound-font", required=True)
    parser.add_argument("--clips", type=int, default=2400)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)
    for first in range(0, args.clips, CLIPS_PER_FILE):
        count = min(CLIPS_PER_FILE, args.clips - first)
        path = args.out / f"clips_{first // CLIPS_PER_FILE:03d}.npy"
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            np.save(file, np.stack([render_clip(rng, args.sound_font) for _ in range(count)]))
        os.replace(temporary, path)
        print(f"{path}: {count} clips", flush=True)


if __name__ == "__main__":
    main()
