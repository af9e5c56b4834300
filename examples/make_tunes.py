"""Make the example tunes again, originals of combinations that no training data has.

    python examples/make_tunes.py --sound-font TimGM6mb.sf2

Needs tinysoundfont and soundfile; the sound font is Debian's timgm6mb-soundfont.
"""

import argparse
import random
import sys
from pathlib import Path

import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout too

from processing_anygpt.tiny_world import language, tunes  # noqa: E402

CAPTIONS = {
    "tune_flute.wav": "a steady happy tune on the flute going up",
    "tune_piano.wav": "a slow sad tune on the piano going down",
    "tune_trumpet.wav": "a fast happy tune on the trumpet going down",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sound-font", required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    for name, caption in CAPTIONS.items():
        tune = language.parse_tune(caption)
        audio = tunes.render(tunes.notes(tune, random.Random(caption)), tune.instrument, args.sound_font)
        soundfile.write(args.out / name, audio, tunes.SAMPLING_RATE, subtype="PCM_16")


if __name__ == "__main__":
    main()
